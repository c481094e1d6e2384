"""What a model makes of texts, kept: a text is encoded once, for candidates, teacher, student and index together."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Sequence
from pathlib import Path
from typing import Any, ClassVar

import numpy as np
import pyarrow as pa

from retrodistill.core.allocation import keep_freed_memory
from retrodistill.core.errors import UserError
from retrodistill.core.files import cache_folder
from retrodistill.core.manifest import Manifest
from retrodistill.core.progress import bar
from retrodistill.core.stores import KeyIndex, PartStore, text_keys
from retrodistill.encoders.contract import Role, TextModel

_BATCH = 32
_PART = 256  # texts per part: what a kill may lose


class TextStore(ABC):
    """Vectors of one model in one role, keyed by text, in memory-mapped parts.

    Args:
        encoder: Whose vectors these are.
        role: ``query`` or ``document``: it decides route, prompt and length.
        root: Folder of stores; the shared cache by default.

    Raises:
        UserError: The folder belongs to another encoder or cannot be written.
    """

    folder: ClassVar[str]

    def __init__(self, encoder: TextModel, role: Role, root: Path | None = None) -> None:
        self.encoder: Any = encoder
        self.role = role
        contract, fingerprint = encoder.contract(role), encoder.fingerprint(role)
        owner = Manifest("encoder", {"encoder": fingerprint}, {"role": role}, {"contract": contract})
        self._store = PartStore((root or cache_folder()) / self.folder / f"{role}-{fingerprint}", owner, ".arrow")
        self._load()

    def missing(self, texts: Sequence[str]) -> list[str]:
        """The distinct texts that are not encoded yet, in order."""
        keys = text_keys(texts)
        absent = self._index.find(keys) < 0
        _, first = np.unique(keys, return_index=True)
        return [texts[row] for row in np.sort(first) if absent[row]]

    def fill(self, texts: Sequence[str]) -> None:
        """Encode what is missing, longest first, a part at a time; safe to kill and to run twice at once."""
        if not self.missing(texts):
            return
        keep_freed_memory()
        with self._store.computing(text_keys(texts)):
            self._load()  # another process may have been faster
            todo = sorted(self.missing(texts), key=len, reverse=True)
            with bar(len(todo), f"embedding ({self.encoder.name}, {self.role})", "texts") as progress:
                for start in range(0, len(todo), _PART):
                    part = todo[start : start + _PART]
                    self._append(part, self.encoder.encode(part, self.role, batch_size=_BATCH))
                    progress.update(len(part))
            self._store.compact()
        self._load()

    def put(self, texts: Sequence[str], vectors: Any) -> None:
        """Add what was computed otherwise, as the encoder gives it; texts already there keep theirs."""
        with self._store.writing():
            self._load()
            place = {text: row for row, text in enumerate(texts)}
            absent = self.missing(texts)
            if absent:
                self._append(absent, self._select(vectors, [place[text] for text in absent]))
            self._store.compact()
        self._load()

    def _select(self, vectors: Any, rows: list[int]) -> Any:
        """Some rows of what the encoder gave."""
        return vectors[rows]

    def _append(self, texts: Sequence[str], vectors: Any) -> None:
        self._store.append(pa.table({"key": pa.array(text_keys(texts)), **self._columns(vectors)}))

    def _rows(self, texts: Sequence[str]) -> np.ndarray:
        """(n,) int64 place of each text among all rows of the store.

        Raises:
            UserError: A text is not in the store.
        """
        rows = self._index.find(text_keys(texts))
        if (rows < 0).any():
            raise UserError(f"{int((rows < 0).sum())} texts are not in the store; embed them first.")
        return rows

    def _load(self) -> None:
        tables = self._store.parts()
        keys = [table["key"].to_numpy() for table in tables]
        self._index = KeyIndex(np.concatenate(keys) if keys else np.zeros(0, dtype=np.uint64))
        self._read(tables)

    @abstractmethod
    def _columns(self, vectors: Any) -> dict[str, pa.Array]:
        """Columns of a part, from what the encoder returned."""

    @abstractmethod
    def _read(self, tables: list[pa.Table]) -> None:
        """Take over the parts as they are on disk now."""
