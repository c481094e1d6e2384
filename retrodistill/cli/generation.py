"""The command that writes queries for documents: generate."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

from typer import Option

from retrodistill.cli.app import (
    CollectionOption,
    DryOption,
    PassagesOption,
    StoreOption,
    app,
    duration,
    say_next,
    show,
    with_engine,
)
from retrodistill.core.errors import UserError
from retrodistill.core.runtime import log


@app.command()
@with_engine
def generate(  # noqa: PLR0913, PLR0917 - one option each
    collection: CollectionOption,
    out: Annotated[Path, Option(help="JSONL file of the queries, for texts.generated in a recipe.")],
    model: Annotated[
        str | None, Option(help="seq2seq:NAME (a local doc2query model), or llm:FILE (behind a chat API).")
    ] = None,
    given: Annotated[
        Path | None, Option("--from", help="Queries that were generated before, to filter with --round-trip.")
    ] = None,
    per_document: Annotated[int, Option(help="Most queries per document.", min=1)] = 3,
    documents: Annotated[int | None, Option(help="Documents to draw, evenly; all by default.", min=1)] = None,
    prompt: Annotated[
        str | None,
        Option(help="Text, or file, with {document} and for an LLM {count}, which may have examples (InPars)."),
    ] = None,
    temperature: Annotated[float, Option(help="Of the sampling.", min=0)] = 1.0,
    top_p: Annotated[float, Option(help="Sample from the most likely tokens of this probability.")] = 0.95,
    top_k: Annotated[int | None, Option(help="Sample from so many most likely tokens (local: 25).", min=1)] = None,
    max_length: Annotated[int | None, Option(help="Tokens that a local model reads (350).", min=1)] = None,
    query_tokens: Annotated[int, Option(help="Most tokens of a query.", min=1)] = 64,
    round_trip: Annotated[
        str | None, Option(metavar="RANKER", help="Keep only queries that find their document: bm25, dense:NAME...")
    ] = None,
    depth: Annotated[int, Option(help="Documents among which --round-trip has to find it.", min=1)] = 1,
    seed: Annotated[int, Option(help="Seed of the documents and of the sampling.", min=0)] = 0,
    store: StoreOption = None,
    passages: PassagesOption = None,
    dry_run: DryOption = False,
) -> None:
    """Let a model write queries for documents, to train on; if it is killed, it resumes where it stopped.

    Documents per forward pass, and limits for an API, are options of retrodistill: --batch-size, --max-cost...
    """
    from retrodistill.data import load_collection
    from retrodistill.generation import generate_queries, plan_generation
    from retrodistill.generation.generating import filter_queries

    if (model is None) == (given is None):
        raise UserError("give --model to generate queries, or --from FILE to filter queries; one of them.")
    if given is not None and round_trip is None:
        raise UserError(f"--from {given} filters queries; give --round-trip too, such as bm25.")
    if given is not None and dry_run:
        raise UserError("--dry-run is for --model: a filter only searches; leave it out.")
    corpus = load_collection(collection, passages=passages)
    if model is None:
        queries = filter_queries(given or "", corpus, out, round_trip, depth)
    else:
        settings = {
            "per_document": per_document,
            "documents": documents,
            "prompt": prompt,
            "temperature": temperature,
            "top_p": top_p,
            "top_k": top_k,
            "max_length": max_length,
            "query_tokens": query_tokens,
            "seed": seed,
        }
        if dry_run:
            work = plan_generation(corpus, model, settings, store=store)
            bill = f", {work.bill}" if work.bill.requests else ""
            show(f"{model}: {work.items} {work.unit} left, about {duration(work.seconds)}{bill}")
            return
        queries = generate_queries(corpus, model, out, settings, round_trip=round_trip, depth=depth, store=store)
    log(f"{len(queries)} queries in {out}")
    following = ["distill", "--collection", collection, "--target", "TEACHER", "--generated", out]
    say_next(*following, passages=passages)
