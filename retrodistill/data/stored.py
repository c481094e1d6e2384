"""Collections in the cache: parsed once, streaming, into Arrow files that are memory-mapped from then on."""

from __future__ import annotations

import shutil
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import filelock
import pyarrow as pa

from retrodistill.core.errors import UserError
from retrodistill.core.files import atomic_folder, cache_folder, digest, make_folder, read_json, write_json
from retrodistill.data.collection import JUDGMENT_SCHEMA as JUDGMENTS
from retrodistill.data.collection import Collection, Qrels, check_parts, full_text
from retrodistill.data.records import Document, Judgment, Query, Source
from retrodistill.data.texts import BATCH, Texts, duplicates, pair_batches
from retrodistill.data.texts import SCHEMA as TEXTS

# Part of every key: raise it when the files' layout or the checks change, and older ones are made again.
FORMAT = 1
_DOCUMENTS = pa.schema(
    [("id", pa.string()), ("title", pa.large_string()), ("body", pa.large_string()), ("text", pa.large_string())]
)


def cached(name: str, key: tuple[object, ...], source: Callable[[], Source]) -> Collection:
    """Open the collection of `key`. If it is not in the cache, first read `source` into the cache.

    Args:
        name: Name of the collection; not part of the key.
        key: JSON-like values that decide the content, such as digests of files.
        source: Called only if there is something to read.
    """
    home = make_folder(cache_folder() / "collections")
    folder = home / digest(FORMAT, *key)
    make_once(folder, lambda temporary: write(temporary, source()))
    return open_stored(folder, name)


def make_once(folder: Path, make: Callable[[Path], None]) -> None:
    """Let `make` fill a temporary folder that then becomes `folder`, unless that exists; one process at a time."""
    if folder.exists():
        return
    # Two processes at once: the second waits, and finds the first one's work.
    with filelock.FileLock(folder.with_name(f".{folder.name}.lock")):
        for left in folder.parent.glob(f".{folder.name}.*.part"):  # left by a killed process; we hold the lock
            shutil.rmtree(left, ignore_errors=True)
        if not folder.exists():
            with atomic_folder(folder) as temporary:
                make(temporary)


def write(folder: Path, source: Source) -> None:
    """Read a source to its end and write it as Arrow files and collection.json.

    Raises:
        UserError: An id appears twice, there are no documents, or whatever the source finds.
    """
    _write_table(folder / "documents.arrow", _DOCUMENTS, _document_batches(source.documents()))
    _write_table(folder / "queries.arrow", TEXTS, pair_batches((query.id, query.text) for query in source.queries()))
    documents, queries = _open_table(folder / "documents.arrow"), _open_table(folder / "queries.arrow")
    _refuse_duplicates(documents, source.documents, source.where.get("documents", "documents, row"))
    _refuse_duplicates(queries, source.queries, source.where.get("queries", "queries, row"))
    judged, repeated = {}, []
    for split, rows in source.qrels.items():
        judged[split], again = _judgments(rows())
        if again:
            repeated.append(
                f"{split}: {again} judgments repeat a pair of query and document; the last one counts, as in beir."
            )
    texts, asked = Texts(documents), Texts(queries)
    kept, warnings = check_parts(texts, asked, judged)
    # A split's name may hold what a file's name may not.
    files = {split: f"qrels-{place}.arrow" for place, split in enumerate(kept)}
    for split, qrels in kept.items():
        _write_table(folder / files[split], JUDGMENTS, iter(qrels.table.to_batches()))
    write_json(
        folder / "collection.json",
        {
            "documents": {"rows": len(texts), "fingerprint": texts.fingerprint},
            "queries": {"rows": len(asked), "fingerprint": asked.fingerprint},
            "splits": files,
            "warnings": [*source.warnings, *warnings, *repeated],
        },
    )


def open_stored(folder: Path, name: str) -> Collection:
    """Open what `write` wrote; nothing is read but the manifest, texts are memory-mapped.

    Raises:
        UserError: A file is damaged.
    """
    about = read_json(folder / "collection.json")
    try:
        documents = _open_table(folder / "documents.arrow")
        return Collection(
            name,
            Texts(documents, about["documents"]["fingerprint"]),
            titles=Texts(_renamed(documents, "title")),
            bodies=Texts(_renamed(documents, "body")),
            queries=Texts(_open_table(folder / "queries.arrow"), about["queries"]["fingerprint"]),
            qrels={split: Qrels(_open_table(folder / file)) for split, file in about["splits"].items()},
            warnings=about["warnings"],
        )
    except (pa.ArrowInvalid, OSError, KeyError) as error:
        raise UserError(
            f"the cached collection in {folder} is damaged ({error}); delete that folder and load again."
        ) from error


def _document_batches(rows: Iterator[Document]) -> Iterator[pa.RecordBatch]:
    columns: tuple[list[str], ...] = ([], [], [], [])
    for row in rows:
        for column, value in zip(columns, (row.id, row.title, row.body, full_text(row.title, row.body)), strict=True):
            column.append(value)
        if len(columns[0]) == BATCH:
            yield pa.record_batch(list(columns), schema=_DOCUMENTS)
            columns = ([], [], [], [])
    if columns[0]:
        yield pa.record_batch(list(columns), schema=_DOCUMENTS)


def _judgments(rows: Iterator[Judgment]) -> tuple[Qrels, int]:
    count = 0

    def counted() -> Iterator[tuple[str, str, int]]:
        nonlocal count
        for count, row in enumerate(rows, start=1):  # noqa: B007 - the count is what is wanted
            yield row.query_id, row.document_id, row.relevance

    qrels = Qrels.from_rows(counted())
    return qrels, count - len(qrels)


def _refuse_duplicates(table: pa.Table, again: Callable[[], Iterator[Any]], where: str) -> None:
    twice = duplicates(table["id"])
    if not twice:
        return
    # Places are rarely needed, so they are not kept while reading. Read again up to the second occurrence.
    first: int | None = None
    row: Document | Query
    for row in again():
        if row.id != twice[0]:
            continue
        if first is not None:
            more = f" ({len(twice) - 1} more ids appear twice)" if len(twice) > 1 else ""
            unit = where.rpartition(" ")[2]
            raise UserError(
                f"{where} {row.place}: id {row.id!r} is already on {unit} {first}{more}; ids must be unique."
            )
        first = row.place


def _write_table(path: Path, schema: pa.Schema, batches: Iterator[pa.RecordBatch]) -> None:
    with pa.OSFile(str(path), "wb") as sink, pa.ipc.new_file(sink, schema) as writer:
        for batch in batches:
            writer.write_batch(batch)


def _open_table(path: Path) -> pa.Table:
    return pa.ipc.open_file(pa.memory_map(str(path))).read_all()


def _renamed(table: pa.Table, column: str) -> pa.Table:
    return pa.table({"id": table["id"], "text": table[column]})
