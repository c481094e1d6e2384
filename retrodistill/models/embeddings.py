"""The embedding store: a text is embedded once, for candidates, teacher, alignment and index together."""

from __future__ import annotations

import time
from collections.abc import Sequence
from pathlib import Path

import numpy as np
import pyarrow as pa

from retrodistill.errors import UserError
from retrodistill.files import cache_folder
from retrodistill.manifest import Manifest
from retrodistill.models.contract import Role
from retrodistill.models.encoder import Encoder
from retrodistill.models.vector_files import VectorFile
from retrodistill.progress import bar
from retrodistill.stores import KeyIndex, PartStore, text_keys

_BATCH = 32
_PART = 256  # texts per part: what a kill may lose


class EmbeddingStore:
    """Vectors of one encoder in one role, keyed by text, in memory-mapped parts.

    Args:
        encoder: Whose vectors these are.
        role: ``query`` or ``document``: it decides the prompt.
        root: Folder of stores; the shared cache by default.

    Raises:
        UserError: The folder belongs to another encoder or cannot be written.
    """

    def __init__(self, encoder: Encoder, role: Role, root: Path | None = None) -> None:
        self.encoder, self.role = encoder, role
        fingerprint = encoder.fingerprint(role)
        base = (root or cache_folder()) / "embeddings"
        owner = Manifest("encoder", {"encoder": fingerprint}, {"role": role}, {"contract": encoder.contract(role)})
        self._store = PartStore(base / f"{role}-{fingerprint}", owner, ".arrow")
        self._load()

    def missing(self, texts: Sequence[str]) -> list[str]:
        """The distinct texts that are not embedded yet, in order."""
        keys = text_keys(texts)
        absent = self._index.find(keys) < 0
        _, first = np.unique(keys, return_index=True)
        return [texts[row] for row in np.sort(first) if absent[row]]

    def fill(self, texts: Sequence[str]) -> None:
        """Embed what is missing, longest first, a part at a time; safe to kill and to run twice at once."""
        if not self.missing(texts):
            return
        with self._store.writing():
            self._load()  # another process may have been faster
            todo = sorted(self.missing(texts), key=len, reverse=True)
            with bar(len(todo), f"embedding ({self.encoder.name}, {self.role})", "texts") as progress:
                for start in range(0, len(todo), _PART):
                    part = todo[start : start + _PART]
                    vectors = self.encoder.encode(part, self.role, batch_size=_BATCH)
                    self._store.append(_part(part, vectors))
                    progress.update(len(part))
            self._store.compact()
        self._load()

    def put(self, texts: Sequence[str], vectors: np.ndarray) -> None:
        """Add vectors that were computed otherwise, (n, dimension) float32; texts already there keep theirs."""
        with self._store.writing():
            self._load()
            place = {text: row for row, text in enumerate(texts)}
            absent = self.missing(texts)
            if absent:
                self._store.append(_part(absent, vectors[[place[text] for text in absent]]))
            self._store.compact()
        self._load()

    def gather(self, texts: Sequence[str]) -> np.ndarray:
        """(n, dimension) float32 vectors of embedded texts.

        Raises:
            UserError: A text is not in the store.
        """
        rows = self._index.find(text_keys(texts))
        if (rows < 0).any():
            raise UserError(f"{int((rows < 0).sum())} texts are not in the store; embed them first.")
        vectors = np.empty((len(texts), self.encoder.dimension), dtype=np.float32)
        part = np.searchsorted(self._starts, rows, side="right") - 1
        for number, block in enumerate(self._blocks):
            here = np.flatnonzero(part == number)
            vectors[here] = block[rows[here] - self._starts[number]]
        return vectors

    def _load(self) -> None:
        tables = self._store.parts()
        keys = [table["key"].to_numpy() for table in tables]
        self._blocks = [
            chunk.flatten().to_numpy().reshape(-1, self.encoder.dimension)
            for table in tables
            for chunk in table["vector"].chunks
        ]
        self._starts = np.concatenate([[0], np.cumsum([len(block) for block in self._blocks])])[:-1].astype(np.int64)
        self._index = KeyIndex(np.concatenate(keys) if keys else np.zeros(0, dtype=np.uint64))


def embed(encoder: Encoder, texts: Sequence[str], role: Role, root: Path | None = None) -> np.ndarray:
    """Embed texts through the store of the encoder; a static encoder and recorded vectors are faster and skip it.

    Returns:
        (n, dimension) float32.
    """
    if encoder.is_static or isinstance(encoder, VectorFile):
        return encoder.encode(texts, role, batch_size=1024)
    store = EmbeddingStore(encoder, role, root)
    store.fill(texts)
    return store.gather(texts)


def seconds_to_embed(encoder: Encoder, texts: Sequence[str], role: Role, root: Path | None = None) -> tuple[int, float]:
    """How many texts are still to embed, and the seconds this takes at the rate measured on up to 64 of them."""
    if encoder.is_static or isinstance(encoder, VectorFile):
        return 0, 0.0
    missing = EmbeddingStore(encoder, role, root).missing(texts)
    if not missing:
        return 0, 0.0
    probe = [missing[place] for place in np.linspace(0, len(missing) - 1, min(64, len(missing)), dtype=int)]
    start = time.perf_counter()
    encoder.encode(probe, role, batch_size=_BATCH)
    rate = sum(map(len, probe)) / (time.perf_counter() - start)
    return len(missing), sum(map(len, missing)) / rate


def _part(texts: Sequence[str], vectors: np.ndarray) -> pa.Table:
    flat = pa.array(np.ascontiguousarray(vectors, dtype=np.float32).ravel())
    return pa.table(
        {"key": pa.array(text_keys(texts)), "vector": pa.FixedSizeListArray.from_arrays(flat, vectors.shape[1])}
    )
