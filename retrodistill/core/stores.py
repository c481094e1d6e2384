"""Append-only folders of part files. A killed process loses at most the part that it was writing."""

from __future__ import annotations

import hashlib
import re
import uuid
from collections.abc import Iterator, Sequence
from contextlib import AbstractContextManager, contextmanager
from functools import cached_property
from pathlib import Path
from typing import Any

import filelock
import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

from retrodistill.core.checksums import DamagedError, checked, open_arrow, seal, sealed_file, write_arrow
from retrodistill.core.disk import reason_of
from retrodistill.core.errors import UserError, first_line
from retrodistill.core.files import atomic_file, remove_leftovers
from retrodistill.core.locks import lock_file, locked
from retrodistill.core.manifest import FILE_NAME, Manifest
from retrodistill.core.paths import make_folder
from retrodistill.core.runtime import log

_COMPACT_ABOVE = 32  # parts; more of them make opening a store slow
_MERGED = 1024  # parts that are merged while a store grows: Linux maps at most 65,530 files of a process
KEY = "key"  # column of `.arrow` parts that is read when a store is opened
_ADVICE = "delete this file and its rows will be computed again"
_KEY_LOCKS = 1024  # lock files; two key sets that share one only wait for each other


def text_keys(texts: Sequence[str]) -> np.ndarray:
    """(n,) uint64 digest of each text. The chance of a collision among ten million texts is 3e-6."""
    joined = b"".join(hashlib.blake2b(text.encode(), digest_size=8).digest() for text in texts)
    return np.frombuffer(joined, dtype="<u8")


def slug(name: str) -> str:
    """Turn a model name into a file name: letters, digits, dots and dashes, at most 60 characters."""
    return re.sub(r"[^A-Za-z0-9.]+", "-", name)[-60:].strip("-.") or "model"


class PartStore:
    """A folder of immutable part files, and a manifest of the owner of its rows, such as a teacher.

    The folder of another owner is rejected; a missing one has no parts, and is made for the first write. Reading writes
    nothing and takes no lock, so that a store on a read-only disk serves what it holds. Parts are ``.parquet`` (scores)
    or memory-mapped ``.arrow`` (embeddings).
    """

    def __init__(self, folder: Path, owner: Manifest, ending: str) -> None:
        self.folder, self.owner, self.ending = folder, owner, ending
        self._number = -1  # of the next part; the folder, which may have many, is listed for the first one only
        self._unmerged: list[Path] = []  # parts that this object wrote and `append` has not merged yet
        if (folder / FILE_NAME).exists():
            self._check_owner()

    def _check_owner(self) -> None:
        stored, owner = Manifest.read(self.folder), self.owner
        if stored.fingerprint != owner.fingerprint:
            held = f"it holds {stored.inputs} with {stored.settings}, expected {owner.inputs} with {owner.settings}"
            another = f"store {self.folder} belongs to another {owner.artifact}"
            raise UserError(f"{another}: {held}; choose another folder or delete it.")

    @cached_property
    def _lock(self) -> filelock.BaseFileLock:
        """For writes; made with the folder and its manifest, by the first process that needs them."""
        lock = lock_file(make_folder(self.folder) / ".lock")
        with locked(lock):
            if not (self.folder / FILE_NAME).exists():
                self.owner.write(self.folder)
        self._check_owner()
        return lock

    def computing(self, keys: np.ndarray) -> AbstractContextManager[Any]:
        """Keep other processes from computing the same set of rows, given by (n,) keys in any order.

        Other sets can be computed in parallel. Overlapping sets may compute the shared rows twice. Their values are
        equal, and readers use the first.
        """
        number = int.from_bytes(hashlib.blake2b(np.unique(keys).tobytes(), digest_size=8).digest()) % _KEY_LOCKS
        return locked(lock_file(make_folder(self.folder) / f".computing-{number}.lock"))

    @contextmanager
    def writing(self) -> Iterator[None]:
        """Lock the folder for a write (not for the computation before it)."""
        with locked(self._lock):
            if self._number < 0:
                remove_leftovers(self.folder)
                self._number = len(self._paths())  # another process may use the same: names have more than a number
            yield

    def parts(self) -> list[pa.Table]:
        """All complete parts, in the order of their names.

        A damaged part is renamed, so that its rows are missing. Memory of ``.arrow`` parts, but that of keys, is to be
        verified before it is read: by `checked` or `check_rows` inside `reading`.
        """
        while True:
            try:
                with self.reading():
                    return [self._read(path) for path in self._paths()]
            except FileNotFoundError:  # another process merged the parts after they were listed
                continue
            except DamagedError as error:
                log(str(error), always=True)

    @contextmanager
    def reading(self) -> Iterator[None]:
        """Keep a part that is found damaged inside the block under another name, so that its rows are missing.

        Raises:
            DamagedError: It was renamed: read the store again.
            UserError: It cannot be renamed.
        """
        try:
            yield
        except DamagedError as error:
            kept = error.path.with_name(f"damaged-{error.path.name}")
            try:
                error.path.replace(kept)
            except FileNotFoundError:  # another process has renamed it
                pass
            except OSError:
                raise UserError(str(error)) from error
            advice = f"it was renamed to {kept.name}, and its rows will be computed again"
            raise DamagedError(error.path, error.problem, advice) from error

    def append(self, table: pa.Table) -> None:
        """Add a part, atomically."""
        with self.writing():
            self._unmerged.append(self._write(table, self._number))
            self._number += 1
            if len(self._unmerged) == _MERGED:
                left = [path for path in self._unmerged if path.exists()]  # another process may have merged them
                self._merge(left, self._number - _MERGED)
                self._unmerged = []

    def compact(self) -> None:
        """Merge many parts into one."""
        with self.writing():
            paths = self._paths()
            if len(paths) > _COMPACT_ABOVE:
                self._merge(paths, 0)

    def _merge(self, paths: list[Path], number: int) -> None:
        """Replace parts by one; a damaged one is renamed."""
        tables: dict[Path, pa.Table] = {}
        for path in paths:
            try:
                with self.reading():
                    tables[path] = checked(self._read(path))
            except DamagedError as error:
                log(str(error), always=True)
        if len(tables) > 1:
            self._write(pa.concat_tables(tables.values()), number)
            for path in tables:  # if the process dies here, rows exist twice with equal values, which readers accept
                path.unlink()

    def _paths(self) -> list[Path]:
        return sorted(self.folder.glob(f"part-*{self.ending}"))

    def _read(self, path: Path) -> pa.Table:
        try:
            if self.ending == ".arrow":
                return open_arrow(path, owner=self.owner.fingerprint, advice=_ADVICE)
            # a fifth of the cost of `read_table`, which matters for parts with the answer of one request
            source = sealed_file(path, owner=self.owner.fingerprint, advice=_ADVICE)
            with pq.ParquetFile(source, page_checksum_verification=True) as file:
                return file.read()
        except FileNotFoundError:
            raise
        except (OSError, pa.ArrowException) as error:
            if isinstance(error, OSError) and error.errno is not None:
                raise UserError(f"cannot read {path}: {reason_of(error, path)}.") from error
            problem = f"it is cut short or altered ({first_line(error)})"
            raise DamagedError(path, problem, _ADVICE) from error

    def _write(self, table: pa.Table, number: int) -> Path:
        path = self.folder / f"part-{number:06d}-{uuid.uuid4().hex[:8]}{self.ending}"
        owner = self.owner.fingerprint
        with atomic_file(path) as temporary:
            if self.ending == ".arrow":
                lazy = [name for name in table.column_names if name != KEY]
                write_arrow(temporary, table.schema, table.to_batches(), owner=owner, lazy=lazy)
            else:
                pq.write_table(table, temporary, compression="zstd", write_page_checksum=True)
                seal(temporary, owner=owner)
        return path


class KeyIndex:
    """Finds the row of a key; of a key that appears twice, the first row."""

    def __init__(self, keys: np.ndarray) -> None:
        self.keys, self.rows = np.unique(keys, return_index=True)

    def find(self, keys: np.ndarray) -> np.ndarray:
        """(n,) int64 rows; -1 for an absent key."""
        if not len(self.keys):
            return np.full(len(keys), -1, dtype=np.int64)
        place = np.minimum(np.searchsorted(self.keys, keys), len(self.keys) - 1)
        return np.where(self.keys[place] == keys, self.rows[place], -1)
