"""Parquet files with a schema, for any other program: ``parquet:FOLDER``.

They are ``FOLDER/documents/part-00000.parquet``... with the columns ``document_id`` string, ``title`` string (with a
collection), ``text`` string (if wanted), the fields of the documents, ``passage_id`` string (of an index of passages),
and those of `retrodistill.exports.columns` with the vectors. Where the entries of sparse vectors are known,
``FOLDER/vocabulary.parquet`` has ``index`` and ``token``.

``FOLDER/manifest.json`` holds the contract of the space and, once everything is written, counts, checksums and the
state "complete".
"""

from __future__ import annotations

import contextlib
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any, Literal

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq
from pydantic import Field

from retrodistill.core.arrays import read_parquet
from retrodistill.core.checksums import check_files, file_checksum
from retrodistill.core.errors import UserError
from retrodistill.core.files import atomic_file, check_replaceable
from retrodistill.core.locks import exclusive
from retrodistill.core.manifest import FILE_NAME, Manifest
from retrodistill.core.paths import path_of
from retrodistill.data.filters import Filter, mask_of
from retrodistill.exports.columns import read_vectors, table_of
from retrodistill.exports.protocol import StoreSettings, VectorStore, check_parts, check_same
from retrodistill.exports.records import Answers, Batch, Records, Vectors, exact_search
from retrodistill.runs.documents import PASSAGE

_PARTS, _VOCABULARY = "documents", "vocabulary.parquet"
_ROW_GROUP = 10_000
_ROWS = {"dense": 50_000, "sparse": 50_000, "multi-vector": 2_000}  # per part, about 100 MB
_SPAN = 2_000  # rows that a search reads at a time
_WRITING, _COMPLETE = "being written", "complete"


class ParquetSettings(StoreSettings):
    """How an index is written to Parquet."""

    numbers: Literal["float32", "float16"] = "float32"
    """Type of the numbers; `float16` takes half the bytes and keeps 11 bits of each number."""
    rows: int | None = Field(default=None, ge=1)
    """Documents per file; by default 50,000, of token vectors 2,000."""


class ParquetStore(VectorStore):
    """A folder of Parquet files. Every part is read back after it is written; a search is exact and reads all files."""

    options = ParquetSettings

    def __init__(self, folder: Path, settings: ParquetSettings | None = None) -> None:
        self.folder, self.settings = folder, settings or ParquetSettings()
        self._lock = contextlib.ExitStack()
        self._verified: set[str] = set()  # parts whose checksum was right

    @classmethod
    def open(cls, place: str, settings: ParquetSettings | None = None, *, create: bool = False) -> ParquetStore:
        """Open a folder; refuses one without an export unless `create` is true."""
        store = cls(path_of(place), settings)
        if not create and not (store.folder / FILE_NAME).is_file():
            raise UserError(
                f"no Parquet export {place!r} (no {FILE_NAME} in it); write one with 'retrodistill export'."
            )
        return store

    @property
    def root(self) -> Path:
        """As `VectorStore.root`."""
        return self.folder

    @property
    def address(self) -> str:
        """``parquet:FOLDER``."""
        return f"parquet:{self.folder}"

    def create(self, spec: Records) -> None:
        """As `VectorStore.create`."""
        self._spec, self.batch_size = spec, self.settings.rows or _ROWS[spec.kind]
        settings = {"texts": self.settings.texts, "numbers": self.settings.numbers, "rows": self.batch_size}
        self._manifest = spec.manifest("Parquet export", settings, self.folder)
        check_replaceable(self.folder, FILE_NAME)
        self._lock.enter_context(exclusive(self.folder / ".lock"))
        if (self.folder / FILE_NAME).is_file():
            check_same(self.manifest(), self._manifest, str(self.folder), "choose another folder, or delete it first")
            parts = (_part(start // self.batch_size) for start in range(0, len(spec), self.batch_size))
            check_parts(self.folder / _PARTS, "*.parquet", parts)
        else:
            self._write_manifest(state=_WRITING)

    def upload(self, batches: Iterable[Batch]) -> int:
        """As `VectorStore.upload`. Parts of an interrupted export are compared with the source, too."""
        written = 0
        for batch in batches:
            table = table_of(batch, self.settings.numbers)
            written += len(batch) * _write_part(self.folder / _PARTS / _part(batch.start // self.batch_size), table)
        return written

    def finish(self) -> dict[str, Any]:
        """As `VectorStore.finish`."""
        if self._spec.vocabulary is not None:
            tokens = list(self._spec.vocabulary)
            table = pa.table({"index": np.arange(len(tokens), dtype=np.int32), "token": tokens})
            _write_part(self.folder / _VOCABULARY, table)
        parts = sorted((self.folder / _PARTS).glob("*.parquet"))
        files = [*parts, *self.folder.glob(_VOCABULARY)]
        checksums = {file.relative_to(self.folder).as_posix(): file_checksum(file) for file in files}
        self._write_manifest(state=_COMPLETE, parts=len(parts), checksums=checksums)
        return {"folder": str(self.folder), "parts": len(parts), "bytes": sum(file.stat().st_size for file in files)}

    def manifest(self) -> Manifest:
        """As `VectorStore.manifest`."""
        manifest = Manifest.read(self.folder)
        return replace(manifest, about={**manifest.about, "is_complete": manifest.about.get("state") == _COMPLETE})

    def count(self) -> int:
        """Number of rows."""
        return sum(pq.read_metadata(part).num_rows for part in self._parts())

    def best(self, queries: Vectors, k: int, filter: Filter | None = None) -> Answers:
        """As `VectorStore.best`."""
        return exact_search(self._blocks(filter), queries, k)

    def payloads(self, ids: Sequence[str]) -> dict[str, dict[str, Any]]:
        """As `VectorStore.payloads`."""
        found, names, wanted = {}, self.schema().names, pa.array(ids, pa.string())
        own = PASSAGE if PASSAGE in names else "document_id"
        for part in self._parts():
            table = read_parquet(part, names)
            for row in table.filter(pc.is_in(table[own], value_set=wanted)).to_pylist():
                values = {name: value for name, value in row.items() if value not in (None, "")}
                found[row[own]] = {name: values[name] for name in values if name not in ("document_id", PASSAGE)}
        return found

    def close(self) -> None:
        """Let others write to the folder."""
        self._lock.close()

    def _parts(self) -> Iterator[Path]:
        """The parts: of a complete export, those that the manifest lists, each verified when it is first read."""
        checksums = self.manifest().about.get("checksums")
        if checksums is None:
            yield from sorted((self.folder / _PARTS).glob("*.parquet"))
            return
        for name, checksum in checksums.items():
            if name.startswith(f"{_PARTS}/"):
                if name not in self._verified:
                    check_files(self.folder, {name: checksum}, "export again")
                    self._verified.add(name)
                yield self.folder / name

    def _write_manifest(self, **about: Any) -> None:
        replace(self._manifest, about={**self._manifest.about, **about}).write(self.folder)

    def _blocks(self, filter: Filter | None) -> Iterator[tuple[list[str], Vectors]]:
        """Ids and vectors of the rows that pass the filter, part by part."""
        width = int(self.manifest().about["space"]["dimension"])
        for part in self._parts():
            with pq.ParquetFile(part) as file:
                for read in file.iter_batches(_SPAN):
                    rows = read
                    if filter is not None:
                        rows = read.filter(pa.array(mask_of(filter, pa.Table.from_batches([read]))))
                    if len(rows):
                        own = PASSAGE if PASSAGE in rows.schema.names else "document_id"
                        yield rows[own].to_pylist(), read_vectors(rows, width)


def _part(number: int) -> str:
    return f"part-{number:05d}.parquet"


def _write_part(path: Path, table: pa.Table) -> bool:
    """Write a file unless it is there with the same content; returns whether it was written."""
    if path.is_file() and _is_same(path, table):
        return False
    with atomic_file(path) as temporary:
        pq.write_table(table, temporary, compression="zstd", row_group_size=_ROW_GROUP, write_page_checksum=True)
    if not _is_same(path, table):
        raise UserError(f"{path} does not read back as it was written; the disk may be failing: export elsewhere.")
    return True


def _is_same(path: Path, table: pa.Table) -> bool:
    try:
        return bool(pq.read_table(path, page_checksum_verification=True).equals(table))
    except (pa.ArrowException, OSError):  # cut short or altered: it is written again
        return False


STORE = ParquetStore
