"""The command that makes models smaller: trim."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

from typer import Argument, Option

from retrodistill.cli.app import app, say_next, with_trust
from retrodistill.core.runtime import log


@app.command()
@with_trust
def trim(  # noqa: PLR0913, PLR0917 - one option each
    model: Annotated[
        str, Argument(help="kind:NAME: static, dense, sparse, multi-vector, or cross-encoder; a folder or hub name.")
    ],
    out: Annotated[Path, Option(help="Output folder.")],
    collection: Annotated[
        str | None, Option(help="Its documents and queries: BEIR folder, beir/NAME, ir_datasets:ID, hf:NAME, or demo.")
    ] = None,
    texts: Annotated[
        list[Path] | None,
        Option(help="File of queries or other texts: one per line, or JSON lines with text; repeatable."),
    ] = None,
    split: Annotated[
        str, Option(help="Queries of the collection; auto: train, or else those in no split. Test queries never count.")
    ] = "auto",
    min_count: Annotated[int, Option(help="Fewest texts that have a token which is kept for them.", min=1)] = 1,
    dimension: Annotated[
        float | None,
        Option(
            help="Static models: dimensions of the table, e.g. 256, or share of the texts' vectors to keep, e.g. .98."
        ),
    ] = None,
    precision: Annotated[
        str, Option(help="Static models: precision of the table on disk: float32 or int8.")
    ] = "float32",
    queries_only: Annotated[
        bool, Option("--queries-only", help="Use it for queries alone: it searches documents of the whole model.")
    ] = False,
) -> None:
    """Cut a model to the vocabulary of a collection: fewer tokens, the same vectors for its texts.

    It keeps the tokens that the documents and queries use, and those that other words need to be readable.
    """
    from retrodistill.api import trim as trim_model
    from retrodistill.core.manifest import Manifest
    from retrodistill.encoders.contract import STUDENT_MANIFEST
    from retrodistill.report.text import memory
    from retrodistill.students.registry import kind_of

    trimmed = trim_model(
        model,
        collection,
        texts=texts or (),
        split=split,
        min_count=min_count,
        dimension=dimension,
        precision=precision,
        queries_only=queries_only,
        out=out,
    )
    manifest = Manifest.read(out, STUDENT_MANIFEST)
    kept, size = manifest.about["trimmed"], sum(file.stat().st_size for file in out.rglob("*") if file.is_file())
    log(f"{kept['tokens']} of {kept['before']} tokens, of which texts use {kept['used']}; {memory(size)} in {out}")
    if collection is None or "query_space" in manifest.about:  # which index it searches is not known
        return
    if kind_of(trimmed.model).can_search:
        named = f"{model.partition(':')[0]}:{out}"
        index = out.with_name(f"{out.name}-index")
        say_next("index", "--collection", collection, "--documents", named, "--out", index)
    else:
        say_next("evaluate", f"rerank:{out}@bm25", "--collection", collection)
