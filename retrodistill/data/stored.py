"""Collections in the cache: parsed once into Arrow files, which are memory-mapped from then on."""

from __future__ import annotations

import itertools
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pyarrow as pa

from retrodistill.core.errors import UserError
from retrodistill.core.files import cache_folder, digest, make_once, read_json, write_json
from retrodistill.core.runtime import bar
from retrodistill.data.collection import JUDGMENT_SCHEMA, Collection, Qrels, check_parts, full_text
from retrodistill.data.fields import FieldWriter
from retrodistill.data.records import Document, Query, Source
from retrodistill.data.texts import SCHEMA as TEXT_SCHEMA
from retrodistill.data.texts import Texts, duplicates, row_batches

# Part of every cache key. Raise it when the layout of the files or the checks change, so that they are made again.
FORMAT = 5
_FIELDS_FILE = "fields.arrow"
DOCUMENT_SCHEMA = pa.schema(
    [("id", pa.string()), ("title", pa.large_string()), ("body", pa.large_string()), ("text", pa.large_string())]
)


def cached(name: str, key: tuple[object, ...], source: Callable[[], Source]) -> Collection:
    """Open a collection from the cache, after reading the source into the cache if necessary.

    Args:
        name: Name of the collection; not part of the key.
        key: JSON-like values that determine the content, such as digests of files.
        source: Called only if the cache lacks the collection.
    """
    folder = cache_folder() / "collections" / digest(FORMAT, *key)
    make_once(folder, lambda temporary: write(temporary, source()))
    return open_stored(folder, name)


def write(folder: Path, source: Source) -> None:
    """Write the records of a source, after checking them, as Arrow files and collection.json."""
    fields = FieldWriter(source.where.get("documents", "documents, row"), folder)

    def document_rows() -> Iterator[tuple[str, ...]]:
        for row in source.documents():
            fields.append(row.fields, row.place)
            yield row.id, row.title, row.body, full_text(row.title, row.body)

    batches = _counted(row_batches(document_rows(), DOCUMENT_SCHEMA), "documents")
    write_table(folder / "documents.arrow", DOCUMENT_SCHEMA, batches)
    schema, field_batches, field_warnings = fields.finish()
    if schema.names:
        write_table(folder / _FIELDS_FILE, schema, field_batches)
    query_rows = ((row.id, row.text) for row in source.queries())
    write_table(folder / "queries.arrow", TEXT_SCHEMA, _counted(row_batches(query_rows), "queries"))
    documents, queries = open_table(folder / "documents.arrow"), open_table(folder / "queries.arrow")
    _refuse_duplicates(documents, source.documents, source.where.get("documents", "documents, row"))
    _refuse_duplicates(queries, source.queries, source.where.get("queries", "queries, row"))
    qrels, repeated = {}, []
    for split, rows in source.qrels.items():
        judgments = [(row.query_id, row.document_id, row.relevance) for row in rows()]
        qrels[split] = Qrels.from_rows(judgments)
        if again := len(judgments) - len(qrels[split]):
            repeated.append(f"{split}: {again} judgments repeat a query-document pair; the last counts, as in beir.")
    document_texts, query_texts = Texts(documents), Texts(queries)
    kept, warnings = check_parts(document_texts, query_texts, qrels)
    # Number the files, because the name of a split may not be a valid file name.
    files = {split: f"qrels-{place}.arrow" for place, split in enumerate(kept)}
    for split, judged in kept.items():
        write_table(folder / files[split], JUDGMENT_SCHEMA, iter(judged.table.to_batches()))
    write_json(
        folder / "collection.json",
        {
            "documents": _about(document_texts),
            "queries": _about(query_texts),
            "splits": files,
            "warnings": [*source.warnings, *warnings, *field_warnings, *repeated],
        },
    )


def open_stored(folder: Path, name: str) -> Collection:
    """Open a collection that `write` wrote. Texts and fields are memory-mapped: only the manifest is read."""
    about = read_json(folder / "collection.json")
    try:
        documents = open_table(folder / "documents.arrow")
        titles, bodies = (pa.table({"id": documents["id"], "text": documents[part]}) for part in ("title", "body"))
        return Collection(
            name,
            _texts(documents, about["documents"]),
            titles=Texts(titles),
            bodies=Texts(bodies),
            queries=_texts(open_table(folder / "queries.arrow"), about["queries"]),
            qrels={split: Qrels(open_table(folder / file)) for split, file in about["splits"].items()},
            fields=open_table(folder / _FIELDS_FILE) if (folder / _FIELDS_FILE).exists() else None,
            warnings=about["warnings"],
        )
    except (pa.ArrowInvalid, OSError, KeyError) as error:
        raise UserError(
            f"the cached collection in {folder} is damaged ({error}); delete that folder and load again."
        ) from error


def _about(texts: Texts) -> dict[str, Any]:
    """What is known of texts, so that opening them does not read them."""
    return {"rows": len(texts), "fingerprint": texts.fingerprint, "blank": texts.blank_rows.tolist()}


def _texts(table: pa.Table, about: dict[str, Any]) -> Texts:
    return Texts(table, about["fingerprint"], about["blank"])


def _refuse_duplicates(
    table: pa.Table, read_again: Callable[[], Iterator[Document]] | Callable[[], Iterator[Query]], where: str
) -> None:
    twice = duplicates(table["id"])
    if not twice:
        return
    # Line numbers are rarely needed, so they are not stored: read the source again, up to the second occurrence.
    first, second = itertools.islice((row.place for row in read_again() if row.id == twice[0]), 2)
    more = f" ({len(twice) - 1} more ids appear twice)" if len(twice) > 1 else ""
    unit = where.rpartition(" ")[2]
    raise UserError(f"{where} {second}: id {twice[0]!r} is already on {unit} {first}{more}; ids must be unique.")


def _counted(batches: Iterator[pa.RecordBatch], what: str) -> Iterator[pa.RecordBatch]:
    with bar(None, f"reading {what}", what) as progress:
        for batch in batches:
            yield batch
            progress.update(batch.num_rows)


def write_table(path: Path, schema: pa.Schema, batches: Iterator[pa.RecordBatch]) -> None:
    """Write an Arrow file batch by batch."""
    with pa.OSFile(str(path), "wb") as sink, pa.ipc.new_file(sink, schema) as writer:
        for batch in batches:
            writer.write_batch(batch)


def open_table(path: Path) -> pa.Table:
    """Open an Arrow file, memory-mapped."""
    return pa.ipc.open_file(pa.memory_map(str(path))).read_all()
