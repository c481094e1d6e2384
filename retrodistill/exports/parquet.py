"""Export to Parquet files with a schema, for anything else: written part by part, resumed, read back and compared."""

from __future__ import annotations

import os
import time
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, Literal

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

from retrodistill.core.errors import UserError, unknown
from retrodistill.core.files import atomic_file, check_replaceable, exclusive, file_digest, make_folder
from retrodistill.core.manifest import FILE_NAME, Manifest
from retrodistill.core.runtime import bar
from retrodistill.data.collection import Collection
from retrodistill.encoders.multi_vector import Tokens
from retrodistill.exports.payload import Payload, differences
from retrodistill.exports.records import Exportable, Vectors
from retrodistill.exports.sources import exportable

Number = Literal["float32", "float16"]
PARTS, VOCABULARY = "documents", "vocabulary.parquet"
NUMBERS = ("float32", "float16")
_ROW_GROUP = 10_000
_ROWS = {"dense": 50_000, "sparse": 50_000, "multi-vector": 2_000}  # per part: some 100 MB


@dataclass(frozen=True)
class ParquetSettings:
    """How an index is written.

    Attributes:
        texts: A column of each document's text, too.
        numbers: ``float32``, or ``float16`` at half the size: 11 bits of each number are kept.
        rows: Documents per file; by default 50,000, of token vectors 2,000.
    """

    texts: bool = False
    numbers: Number = "float32"
    rows: int | None = None

    def __post_init__(self) -> None:
        if self.rows is not None and self.rows < 1:
            raise UserError(f"rows={self.rows}: give a number of at least 1.")
        if self.numbers not in NUMBERS:
            raise unknown("numbers", self.numbers, NUMBERS)


@dataclass(frozen=True)
class ParquetReport:
    """What an export wrote.

    Attributes:
        folder: Where.
        kind: ``dense``, ``sparse`` or ``multi-vector``.
        documents: Rows in all parts.
        parts: Files.
        written: Files that this export wrote; fewer where an interrupted one had written before.
        bytes: Of all files.
        seconds: Reading back included.
    """

    folder: str
    kind: str
    documents: int
    parts: int
    written: int
    bytes: int
    seconds: float

    def __str__(self) -> str:
        return (
            f"{self.documents} documents ({self.kind}) in {self.parts} Parquet files, {self.bytes / 1e6:.1f} MB, in "
            f"{self.folder}; read back and equal ({self.seconds:.0f} s)"
        )


def export_parquet(
    source: Any,
    collection: Collection | None,
    folder: str | os.PathLike[str],
    settings: ParquetSettings | None = None,
) -> ParquetReport:
    """Export an index to ``FOLDER/documents/part-00000.parquet``...; the same command goes on after an interruption.

    Columns: ``document_id`` string; ``title`` string (with a collection); ``text`` string (if wanted); and by kind

    - dense: ``vector`` fixed_size_list<float>[d];
    - sparse: ``indices`` list<int32>, ascending, and ``values`` list<float>; where the entries are known,
      ``FOLDER/vocabulary.parquet`` has ``index`` and ``token``;
    - multi-vector: ``vectors`` list<fixed_size_list<float>[d]>, one per token, in order.

    ``FOLDER/manifest.json`` holds the space's contract, and once all is there counts, checksums and the state
    "complete". Every part is read back and compared with the source, those of an interrupted export too.

    Args:
        source: An index, its folder, an encoder or its name (with a collection), or an `Exportable`.
        collection: Titles and texts; None to export ids and vectors alone.
        folder: New, empty, or that of the same export.
        settings: How.

    Raises:
        UserError: The folder holds something else (what differs is named) or is not writable, the disk is full, or what
            was read back is not what was written.
    """
    start, settings = time.perf_counter(), settings or ParquetSettings()
    records = exportable(source, collection)
    payload = Payload.of(records, collection, texts=settings.texts)
    rows, written = settings.rows or _ROWS[records.kind], 0
    decisive = {"texts": settings.texts, "numbers": settings.numbers, "rows": rows}
    manifest = payload.manifest("Parquet export", records, decisive)
    target = _claimed(folder, manifest)
    firsts = range(0, len(records), rows)
    with exclusive(target / ".lock"), bar(len(records), f"exporting ({target.name})", "documents") as progress:
        for leftover in target.rglob(".*.part"):  # of an export that was killed; nobody else writes here now
            leftover.unlink()
        for number, first in enumerate(firsts):
            table = _table(records, payload, first, min(first + rows, len(records)), settings.numbers)
            written += _write_part(target / PARTS / f"part-{number:05d}.parquet", table)
            progress.update(len(table))
        if records.vocabulary is not None:
            entries = {"index": np.arange(len(records.vocabulary), dtype=np.int32), "token": list(records.vocabulary)}
            _write_part(target / VOCABULARY, pa.table(entries))
        files = [*sorted((target / PARTS).glob("*.parquet")), *target.glob(VOCABULARY)]
        checksums = {file.relative_to(target).as_posix(): file_digest(file) for file in files}
        about = {**manifest.about, "state": "complete", "parts": len(firsts), "checksums": checksums}
        replace(manifest, about=about).write(target)
    size = sum(file.stat().st_size for file in files)
    seconds = time.perf_counter() - start
    return ParquetReport(str(folder), records.kind, len(records), len(firsts), written, size, seconds)


def _claimed(folder: str | os.PathLike[str], manifest: Manifest) -> Path:
    """The folder, with the manifest of an export that has begun."""
    target = check_replaceable(folder, FILE_NAME)
    if (target / FILE_NAME).is_file():
        differing = differences(Manifest.read(target), manifest)
        if differing:
            raise UserError(
                f"{target} holds something else ({'; '.join(differing)}); choose another folder, or delete it first."
            )
        return target
    make_folder(target / PARTS)
    replace(manifest, about={**manifest.about, "state": "being written"}).write(target)
    return target


def _table(records: Exportable, payload: Payload, start: int, stop: int, numbers: Number) -> pa.Table:
    """Documents start to stop by the schema of their kind."""
    columns: dict[str, pa.Array] = {"document_id": pa.array(list(records.ids[start:stop]), pa.string())}
    columns |= {name: pa.array(texts, pa.string()) for name, texts in payload.columns(start, stop).items()}
    return pa.table({**columns, **_vector_columns(records.block(start, stop), numbers)})


def _vector_columns(vectors: Vectors, numbers: Number) -> dict[str, pa.Array]:
    kind = np.dtype(numbers)
    if isinstance(vectors, np.ndarray):
        return {"vector": _rows(vectors.astype(kind, copy=False))}
    if isinstance(vectors, Tokens):
        bounds = pa.array(np.asarray(vectors.bounds, dtype=np.int32))
        return {"vectors": pa.ListArray.from_arrays(bounds, _rows(vectors.vectors.astype(kind, copy=False)))}
    bounds = pa.array(vectors.indptr.astype(np.int32))
    return {
        "indices": pa.ListArray.from_arrays(bounds, pa.array(vectors.indices.astype(np.int32))),
        "values": pa.ListArray.from_arrays(bounds, pa.array(vectors.data.astype(kind, copy=False))),
    }


def _rows(vectors: np.ndarray) -> pa.Array:
    return pa.FixedSizeListArray.from_arrays(pa.array(np.ascontiguousarray(vectors).ravel()), vectors.shape[1])


def _write_part(path: Path, table: pa.Table) -> bool:
    """Write a part unless it is there with the same content; returns whether it wrote.

    Raises:
        UserError: What is read back is not what was written.
    """
    if path.is_file() and _same(path, table):
        return False
    with atomic_file(path) as temporary:
        pq.write_table(table, temporary, compression="zstd", row_group_size=_ROW_GROUP, write_page_checksum=True)
    if not _same(path, table):
        raise UserError(f"{path} does not read back as it was written; the disk may be failing: export elsewhere.")
    return True


def _same(path: Path, table: pa.Table) -> bool:
    try:
        return bool(pq.read_table(path, page_checksum_verification=True).equals(table))
    except (pa.ArrowException, OSError):  # cut short or altered: it is written again
        return False
