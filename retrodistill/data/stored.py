"""Collections in the cache: parsed once into Arrow files, which are memory-mapped from then on."""

from __future__ import annotations

import itertools
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any

import pyarrow as pa

from retrodistill.core.cache import cache_folder, open_once
from retrodistill.core.checksums import DamagedError, open_arrow, write_arrow
from retrodistill.core.digests import digest
from retrodistill.core.disk import reason_of
from retrodistill.core.errors import UserError
from retrodistill.core.formats import check_stamp, stamp
from retrodistill.core.json_files import read_json, write_json
from retrodistill.core.runtime import bar
from retrodistill.data.collection import JUDGMENT_SCHEMA, Collection, Qrels, check_parts, full_text
from retrodistill.data.fields import FieldWriter
from retrodistill.data.records import Document, Query, Source
from retrodistill.data.texts import SCHEMA as TEXT_SCHEMA
from retrodistill.data.texts import Texts, duplicates, row_batches

# Part of every cache key. Raise it when the layout of the files or the checks change, so that they are made again.
FORMAT = 6
_DOCUMENTS_FILE, _QUERIES_FILE, _FIELDS_FILE = "documents.arrow", "queries.arrow", "fields.arrow"
LAZY = ("title", "body", "text")  # columns that are verified when they are read
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
    return open_once(folder, lambda temporary: write(temporary, source()), lambda: open_stored(folder, name))


def write(folder: Path, source: Source) -> None:
    """Write the records of a source, after checking them, as Arrow files and collection.json."""
    fields = FieldWriter(source.where.get("documents", "documents, row"), folder)

    def document_rows() -> Iterator[tuple[str, ...]]:
        for row in source.documents():
            fields.append(row.fields, row.place)
            yield row.id, row.title, row.body, full_text(row.title, row.body)

    seals: dict[str, str] = {}  # of the files: one that is exchanged for another is noticed

    def write_table(name: str, schema: pa.Schema, batches: Iterator[pa.RecordBatch], lazy: Sequence[str] = ()) -> None:
        seals[name] = write_arrow(folder / name, schema, batches, lazy=lazy)

    batches = _counted(row_batches(document_rows(), DOCUMENT_SCHEMA), "documents")
    write_table(_DOCUMENTS_FILE, DOCUMENT_SCHEMA, batches, LAZY)
    schema, field_batches, field_warnings = fields.finish()
    if schema.names:
        write_table(_FIELDS_FILE, schema, field_batches, schema.names)
    query_rows = ((row.id, row.text) for row in source.queries())
    write_table(_QUERIES_FILE, TEXT_SCHEMA, _counted(row_batches(query_rows), "queries"))
    documents, queries = (open_table(folder / name, seals[name]) for name in (_DOCUMENTS_FILE, _QUERIES_FILE))
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
        write_table(files[split], JUDGMENT_SCHEMA, iter(judged.table.to_batches()))
    write_json(
        folder / "collection.json",
        {
            **stamp("collection"),
            "documents": _about(document_texts),
            "queries": _about(query_texts),
            "splits": files,
            "seals": seals,
            "warnings": [*source.warnings, *warnings, *field_warnings, *repeated],
        },
    )


def open_stored(folder: Path, name: str) -> Collection:
    """Open a collection that `write` wrote. Texts and fields are memory-mapped, and verified when they are read."""
    try:
        about = read_json(folder / "collection.json")
    except UserError as error:
        if isinstance(error.__cause__, OSError) and not isinstance(error.__cause__, FileNotFoundError):
            raise
        raise DamagedError(
            folder / "collection.json", "it is missing, cut short or altered", _advice(folder)
        ) from error
    try:
        check_stamp(about, "collection", folder / "collection.json")
        seals, splits = about["seals"], about["splits"]
        tables = {file: open_table(folder / file, seal) for file, seal in seals.items()}
        documents = tables[_DOCUMENTS_FILE]
        titles, bodies = (pa.table({"id": documents["id"], "text": documents[part]}) for part in ("title", "body"))
        return Collection(
            name,
            _texts(documents, about["documents"]),
            titles=Texts(titles),
            bodies=Texts(bodies),
            queries=_texts(tables[_QUERIES_FILE], about["queries"]),
            qrels={split: Qrels(tables[file]) for split, file in splits.items()},
            fields=tables.get(_FIELDS_FILE),
            warnings=about["warnings"],
        )
    except (AttributeError, KeyError, TypeError) as error:
        reason = f"{type(error).__name__}: {error}"
        raise DamagedError(folder / "collection.json", reason, _advice(folder)) from error


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


def open_table(path: Path, seal: str | None = None) -> pa.Table:
    """Open a table of a folder of the cache, memory-mapped, with the seal that is known of it.

    Texts, those of `LAZY` columns, and fields are to be given to `checked` before they are read.
    """
    try:
        return open_arrow(path, advice=_advice(path.parent), expected=seal)
    except FileNotFoundError as error:
        raise DamagedError(path, "it is missing", _advice(path.parent)) from error
    except OSError as error:
        raise UserError(f"cannot read {path}: {reason_of(error, path)}; {_advice(path.parent)}.") from error


def _advice(folder: Path) -> str:
    return f"delete the folder {folder} of the cache, and it is made again"
