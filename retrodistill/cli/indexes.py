"""Commands around indexes: index, search."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Annotated

import typer

from retrodistill.cli.app import CollectionOption, JsonOption, OutOption, app, show
from retrodistill.progress import say, set_quiet


@app.command()
def index(
    collection: CollectionOption,
    documents: Annotated[str, typer.Option(help="Encoder of the documents, e.g. dense:all-MiniLM-L6-v2.")],
    out: OutOption,
    queries: Annotated[str | None, typer.Option(help="Encoder of the queries; the documents' by default.")] = None,
    factory: Annotated[str, typer.Option(help="FAISS factory string, e.g. Flat, SQ8, OPQ48,PQ48.")] = "Flat",
) -> None:
    """Build an asymmetric index: a plain FAISS file, ids and a manifest."""
    from retrodistill.collections import load_collection
    from retrodistill.files import check_replaceable
    from retrodistill.indexes import build_index

    check_replaceable(out, "index.faiss")
    built = build_index(load_collection(collection), documents, queries, factory)
    built.save(out)
    say(f"{len(built)} documents, {built.bytes_per_document():.0f} bytes each, in {out}")


@app.command()
def search(
    folder: Annotated[Path, typer.Argument(help="An index' folder.")],
    query: Annotated[list[str], typer.Argument(help="One or more queries.")],
    k: Annotated[int, typer.Option(help="Documents per query.")] = 10,
    queries: Annotated[str | None, typer.Option(help="Another query encoder, of the index' space.")] = None,
    collection: Annotated[str | None, typer.Option(help="Show the documents' texts from this collection.")] = None,
    parameters: Annotated[str | None, typer.Option(help="FAISS search parameters, e.g. nprobe=16.")] = None,
    as_json: JsonOption = False,
) -> None:
    """Search an index."""
    from retrodistill.collections import load_collection
    from retrodistill.indexes import AsymmetricIndex
    from retrodistill.models.retrievers import check_queries

    set_quiet(as_json)
    check_queries(query)
    texts = load_collection(collection).documents if collection else None
    found = AsymmetricIndex.load(folder, queries, parameters=parameters).search(query, k)
    rows = [
        {
            "query": query[int(number)],
            "document_id": document,
            "score": score,
            **({"text": texts[document]} if texts is not None and document in texts else {}),
        }
        for number, documents, scores in found
        for document, score in zip(documents, scores.tolist(), strict=True)
    ]
    if as_json:
        show(json.dumps(rows, ensure_ascii=False))
        return
    for row in rows:
        show(f"{row['score']:.4f}  {row['document_id']}  {' '.join(str(row.get('text', '')).split())[:100]}".rstrip())
