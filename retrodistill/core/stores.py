"""Append-only folders of parts: killed at any moment they lose at most the part in flight.

Two kinds share the mechanics: pair scores (Parquet) and embeddings (memory-mapped Arrow files).
"""

from __future__ import annotations

import contextlib
import hashlib
import re
import uuid
from collections.abc import Iterator, Sequence
from pathlib import Path

import filelock
import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

from retrodistill.core.errors import UserError
from retrodistill.core.files import atomic_file, make_folder
from retrodistill.core.manifest import FILE_NAME, Manifest
from retrodistill.core.runtime import log

_COMPACT_ABOVE = 32  # parts; more make opening slow
_WAIT_SECONDS = 1.0  # before we say that another process holds the store
_KEY_LOCKS = 1024  # files; two sets that share one only wait for each other


def text_keys(texts: Sequence[str]) -> np.ndarray:
    """(n,) uint64 digest of each text; the chance that two of ten million texts share one is 3e-6."""
    joined = b"".join(hashlib.blake2b(text.encode(), digest_size=8).digest() for text in texts)
    return np.frombuffer(joined, dtype="<u8")


def slug(name: str) -> str:
    """A file name for a model name: letters, digits, dots and dashes, at most 60 characters."""
    return re.sub(r"[^A-Za-z0-9.]+", "-", name)[-60:].strip("-.") or "model"


class PartStore:
    """A folder of immutable parts and the manifest of whom they belong to.

    Args:
        folder: Where; created if missing.
        owner: Whose rows these are. Another owner's folder is refused.
        ending: ``.parquet``, or ``.arrow`` for parts that are read memory-mapped.

    Raises:
        UserError: The folder belongs to another owner or cannot be written.
    """

    def __init__(self, folder: Path, owner: Manifest, ending: str) -> None:
        self.folder = make_folder(folder)
        self.ending = ending
        self._lock = filelock.FileLock(self.folder / ".lock")
        if not (self.folder / FILE_NAME).exists():  # else a writer's lock would keep readers out for hours
            with self.writing():
                if not (self.folder / FILE_NAME).exists():
                    owner.write(self.folder)
        found = Manifest.read(self.folder)
        if found.fingerprint != owner.fingerprint:
            raise UserError(
                f"store {self.folder} belongs to another {owner.artifact}: it holds {found.inputs} with "
                f"{found.settings}, wanted {owner.inputs} with {owner.settings}; choose another folder or delete it."
            )

    @contextlib.contextmanager
    def computing(self, keys: np.ndarray) -> Iterator[None]:
        """Hold some rows' keys against other processes that want the same set of them; of other sets they go on.

        Where two sets share keys, both may compute these at once: the rows are equal, and readers take the first.

        Args:
            keys: (n,), in any order.
        """
        number = int.from_bytes(hashlib.blake2b(np.unique(keys).tobytes(), digest_size=8).digest()) % _KEY_LOCKS
        with self._held(filelock.FileLock(self.folder / f".computing-{number}.lock")):
            yield

    @contextlib.contextmanager
    def writing(self) -> Iterator[None]:
        """Hold the folder against other processes; for as long as writing takes, not computing."""
        with self._held(self._lock):
            self._sweep()
            yield

    @contextlib.contextmanager
    def _held(self, lock: filelock.BaseFileLock) -> Iterator[None]:
        """Wait for a lock, and say so; it is released when a process dies."""
        try:
            lock.acquire(timeout=_WAIT_SECONDS)
        except filelock.Timeout:
            log(f"waiting for another process that fills {self.folder}")
            lock.acquire()
        try:
            yield
        finally:
            lock.release()

    def parts(self) -> list[pa.Table]:
        """The parts that are whole on disk, in the order of their names.

        Raises:
            UserError: A part is cut short or altered.
        """
        while True:
            try:
                return [self._read(path) for path in self._paths()]
            except FileNotFoundError:  # another process merged the parts since they were listed
                continue

    def append(self, table: pa.Table) -> None:
        """Add one part; it is there whole or not at all."""
        with self.writing():
            number = len(list(self.folder.glob("part-*")))
            self._write(table, f"part-{number:06d}-{uuid.uuid4().hex[:8]}{self.ending}")

    def compact(self) -> None:
        """Merge many parts into one."""
        with self.writing():
            paths = self._paths()
            if len(paths) <= _COMPACT_ABOVE:
                return
            merged = pa.concat_tables([self._read(path) for path in paths])
            self._write(merged, f"part-000000-{uuid.uuid4().hex[:8]}{self.ending}")
            for path in paths:  # a kill between the two leaves rows twice with equal values: readers take the first
                path.unlink()

    def _paths(self) -> list[Path]:
        return sorted(self.folder.glob(f"part-*{self.ending}"))

    def _sweep(self) -> None:
        """Remove what a killed writer left half-written; nobody else writes while the lock is held."""
        for leftover in self.folder.glob(f".part-*{self.ending}.*.part"):
            leftover.unlink(missing_ok=True)

    def _read(self, path: Path) -> pa.Table:
        try:
            if self.ending == ".parquet":
                return pq.read_table(path, page_checksum_verification=True)
            with pa.memory_map(str(path)) as source:
                return pa.ipc.open_file(source).read_all()
        except FileNotFoundError:
            raise
        except (OSError, pa.ArrowException) as error:
            raise UserError(
                f"{path} is cut short or altered ({str(error).splitlines()[0]}); delete this file and its rows will "
                "be made again."
            ) from error

    def _write(self, table: pa.Table, name: str) -> None:
        with atomic_file(self.folder / name) as temporary:
            if self.ending == ".parquet":
                pq.write_table(table, temporary, compression="zstd", write_page_checksum=True)
            else:
                with pa.OSFile(str(temporary), "wb") as sink, pa.ipc.new_file(sink, table.schema) as writer:
                    writer.write_table(table)


class KeyIndex:
    """Rows of keys: sorted keys and the row of each, the first where one appears twice."""

    def __init__(self, keys: np.ndarray) -> None:
        self.keys, self.rows = np.unique(keys, return_index=True)

    def find(self, keys: np.ndarray) -> np.ndarray:
        """(n,) int64 rows; -1 for an absent key."""
        if not len(self.keys):
            return np.full(len(keys), -1, dtype=np.int64)
        place = np.minimum(np.searchsorted(self.keys, keys), len(self.keys) - 1)
        return np.where(self.keys[place] == keys, self.rows[place], -1)
