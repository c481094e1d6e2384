"""Commands around indexes: index, check, search, export."""

from __future__ import annotations

import contextlib
import json
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from retrodistill.cli.app import CollectionOption, JsonOption, OutOption, app, show
from retrodistill.core.errors import UserError, unknown
from retrodistill.core.runtime import log, set_quiet

if TYPE_CHECKING:
    from retrodistill.exports import QdrantIndex
    from retrodistill.indexes import Index

TARGETS = ("qdrant", "parquet")
_KIND = "Kind of index by the documents' encoder: FAISS for dense, inverted for sparse, token vectors for multi-vector."


@app.command()
def index(  # noqa: PLR0913, PLR0917 - one option each
    collection: CollectionOption,
    documents: Annotated[str, typer.Option(help="Encoder of the documents, e.g. dense:all-MiniLM-L6-v2, sparse:NAME.")],
    out: OutOption,
    option: Annotated[
        list[str] | None,
        typer.Argument(metavar="KEY=VALUE", help="Any key of a recipe's index, e.g. muvera.candidates=500."),
    ] = None,
    queries: Annotated[str | None, typer.Option(help="Encoder of the queries; the documents' by default.")] = None,
    factory: Annotated[
        str | None, typer.Option(help="FAISS factory string (Flat, SQ8, OPQ48,PQ48, IVF64,Flat...), or auto.")
    ] = None,
    bytes_wanted: Annotated[
        int | None, typer.Option("--bytes", help="Per document: for auto and --learn.", min=1)
    ] = None,
    recall: Annotated[float | None, typer.Option(help="Share of the exact 10 to find: for auto; then tuned.")] = None,
    truncate: Annotated[int | None, typer.Option(help="Keep so many leading dimensions (Matryoshka).", min=1)] = None,
    learn: Annotated[
        bool, typer.Option("--learn", help="Learn the quantizer from exact scores (Distill-VQ); 16 bytes by default.")
    ] = False,
    learn_queries: Annotated[
        bool, typer.Option("--learn-queries", help="With --learn: a linear map of the queries besides, in OUT.queries.")
    ] = False,
    codec: Annotated[
        str | None, typer.Option(help="Multi-vector: float16, float32, or residual (with --bits 1, 2 or 4).")
    ] = None,
    muvera: Annotated[bool, typer.Option("--muvera", help="Multi-vector: candidates by MUVERA encodings.")] = False,
    bits: Annotated[
        int | None, typer.Option(help="Sparse: of an impact, 8, or 32 for exact weights. Residual codec: 1, 2 or 4.")
    ] = None,
    backend: Annotated[str | None, typer.Option(help="Sparse: exact, or seismic (approximate, large corpora).")] = None,
    prune: Annotated[int | None, typer.Option(help="Sparse: keep so many terms of a document.", min=1)] = None,
    query_cut: Annotated[int | None, typer.Option(help="Seismic: heaviest terms that choose lists.", min=1)] = None,
    heap_factor: Annotated[float | None, typer.Option(help="Seismic: 0 to 1; lower is faster, finds less.")] = None,
    seed: Annotated[int, typer.Option(help="Seed of k-means, tuning and learning.")] = 0,
) -> None:
    """Build an index: files of its kind, ids and a manifest with the contract of its space."""
    from retrodistill.cli import building

    flags = {
        "factory": factory,
        "bytes": bytes_wanted,
        "recall": recall,
        "truncate": truncate,
        "codec": codec,
        "muvera": muvera,
        "bits": bits,
        "backend": backend,
        "prune": prune,
        "query_cut": query_cut,
        "heap_factor": heap_factor,
    }
    options = building.given_options(option or [], flags)
    if learn or learn_queries:
        how = building.Learning(learn_queries, seed)
        built = building.learn(collection, documents, queries, options, out, how)
    else:
        built = building.build(collection, documents, queries, options, out)
    log(f"{len(built)} documents, {built.bytes_per_document():.0f} bytes each, in {out}")


@app.command()
def check(  # noqa: PLR0913, PLR0917 - one option each
    folder: Annotated[Path, typer.Argument(help="An index' folder.")],
    collection: CollectionOption,
    queries: Annotated[str | None, typer.Option(help="The query encoder to check; the index' own by default.")] = None,
    teacher: Annotated[str | None, typer.Option(help="The documents' encoder, where it has moved.")] = None,
    split: Annotated[str, typer.Option(help="Whose queries are asked.")] = "test",
    k: Annotated[int, typer.Option(help="Depth of the comparison.", min=1)] = 10,
    latency_queries: Annotated[int, typer.Option(help="Queries that are timed; 0 for none.", min=0)] = 50,
    symmetric: Annotated[
        bool, typer.Option(help="Also embed the documents by the query encoder, for comparison.")
    ] = True,
    as_json: JsonOption = False,
) -> None:
    """Check a query encoder against an index: is it admitted, what does it keep of the teacher, how fast is it."""
    from retrodistill.data import load_collection
    from retrodistill.evaluation.check import CheckConfig
    from retrodistill.evaluation.check import check as check_index
    from retrodistill.indexes import load_index
    from retrodistill.report.tables import check_text

    set_quiet(as_json)
    made = check_index(
        load_index(folder, queries),
        load_collection(collection),
        teacher=teacher,
        config=CheckConfig(k, split, latency_queries, symmetric),
    )
    show(json.dumps(made.to_json(), ensure_ascii=False) if as_json else check_text(made))


@app.command()
def search(
    place: Annotated[str, typer.Argument(metavar="INDEX", help="An index' folder, or qdrant:FOLDER_OR_URL#NAME.")],
    query: Annotated[list[str], typer.Argument(help="One or more queries.")],
    k: Annotated[int | None, typer.Option(help="Documents per query; 10, or all of fewer.")] = None,
    queries: Annotated[str | None, typer.Option(help="Another query encoder, of the index' space.")] = None,
    collection: Annotated[str | None, typer.Option(help="Show the documents' texts from this collection.")] = None,
    parameters: Annotated[str | None, typer.Option(help="FAISS search parameters, e.g. nprobe=16.")] = None,
    as_json: JsonOption = False,
) -> None:
    """Search an index."""
    from retrodistill.data import load_collection
    from retrodistill.rankers.protocol import check_queries

    set_quiet(as_json)
    check_queries(query)
    texts = load_collection(collection).documents if collection else None
    with _opened(place, queries, parameters) as opened:
        found = opened.search(query, k=k)
    rows: list[dict[str, Any]] = [
        {
            "query": query[int(number)],
            "document_id": document,
            "score": score,
            **({"text": texts[document]} if texts is not None and document in texts else {}),
        }
        for number, documents, scores in found
        for document, score in zip(documents, scores.tolist(), strict=True)
    ]
    if texts is not None and rows and not any("text" in row for row in rows):
        log(f"none of these documents is in {collection}: it is another corpus")
    if as_json:
        show(json.dumps(rows, ensure_ascii=False))
        return
    for row in rows:
        show(f"{row['score']:.4f}  {row['document_id']}  {' '.join(str(row.get('text', '')).split())[:100]}".rstrip())


@app.command()
def export(  # noqa: PLR0913, PLR0917 - one option each
    folder: Annotated[Path, typer.Argument(help="An index' folder.")],
    out: Annotated[str, typer.Option(help="Folder (an embedded Qdrant, or Parquet files), or a Qdrant server's URL.")],
    to: Annotated[str, typer.Option(help="qdrant or parquet.")] = "qdrant",
    collection: Annotated[
        str | None, typer.Option(help="What it was built on: needed for titles and texts, and where codes are lossy.")
    ] = None,
    name: Annotated[str | None, typer.Option(help="Of the Qdrant collection; the collection's by default.")] = None,
    texts: Annotated[bool, typer.Option("--texts", help="Keep the documents' texts, too.")] = False,
    quantization: Annotated[str | None, typer.Option(help="Qdrant: scalar, product or binary.")] = None,
    shards: Annotated[int | None, typer.Option(help="Of a Qdrant cluster's collection.", min=1)] = None,
    replicas: Annotated[int | None, typer.Option(help="Of each shard.", min=1)] = None,
    batch: Annotated[int | None, typer.Option(help="Documents per request.", min=1)] = None,
    as_json: JsonOption = False,
) -> None:
    """Export an index to Qdrant (embedded, a server, a cluster) or Parquet; interrupted, it goes on; then verified."""
    from retrodistill.data import load_collection
    from retrodistill.exports import QdrantSettings, export_parquet, export_qdrant
    from retrodistill.exports.parquet import ParquetSettings

    set_quiet(as_json)
    if to not in TARGETS:
        raise unknown("target", to, TARGETS)
    corpus = load_collection(collection) if collection else None
    if to == "parquet":
        made: Any = export_parquet(folder, corpus, out, ParquetSettings(texts=texts))
    else:
        settings = QdrantSettings(
            name=name,
            texts=texts,
            quantization=quantization,  # type: ignore[arg-type]  # checked by the settings
            shards=shards,
            replicas=replicas,
            batch=batch,
        )
        made = export_qdrant(folder, corpus, out, settings)
    show(json.dumps(vars(made), default=str) if as_json else str(made))
    if to == "qdrant" and not as_json:
        show(f'retrodistill search {made.address} "a question"')


@contextlib.contextmanager
def _opened(place: str, queries: str | None, parameters: str | None) -> Iterator[Index | QdrantIndex]:
    """An index on disk, or in Qdrant."""
    if place.startswith("qdrant:"):
        from retrodistill.exports import load_qdrant

        if parameters:
            raise UserError(f"search parameters {parameters!r} are for FAISS; leave them out.")
        with load_qdrant(place, queries) as found:
            yield found
        return
    from retrodistill.indexes import load_index

    yield load_index(place, queries, parameters=parameters)
