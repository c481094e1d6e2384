"""The store of sparse embeddings: a text is encoded once, for candidates, teacher and index together."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import numpy as np
import pyarrow as pa
from scipy.sparse import csr_array

from retrodistill.errors import UserError
from retrodistill.files import cache_folder
from retrodistill.manifest import Manifest
from retrodistill.models.contract import Role
from retrodistill.models.sparse import SparseTextEncoder
from retrodistill.progress import bar
from retrodistill.stores import KeyIndex, PartStore, text_keys

_BATCH = 32
_PART = 256  # texts per part: what a kill may lose


class SparseStore:
    """Sparse vectors of one encoder in one role, keyed by text, in memory-mapped parts.

    Args:
        encoder: Whose vectors these are.
        role: ``query`` or ``document``: it decides route and prompt.
        root: Folder of stores; the shared cache by default.

    Raises:
        UserError: The folder belongs to another encoder or cannot be written.
    """

    def __init__(self, encoder: SparseTextEncoder, role: Role, root: Path | None = None) -> None:
        self.encoder, self.role = encoder, role
        contract, fingerprint = encoder.contract(role), encoder.fingerprint(role)
        owner = Manifest("encoder", {"encoder": fingerprint}, {"role": role}, {"contract": contract})
        self._store = PartStore((root or cache_folder()) / "sparse" / f"{role}-{fingerprint}", owner, ".arrow")
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
        with self._store.writing():
            self._load()  # another process may have been faster
            todo = sorted(self.missing(texts), key=len, reverse=True)
            with bar(len(todo), f"encoding ({self.encoder.name}, {self.role})", "texts") as progress:
                for start in range(0, len(todo), _PART):
                    part = todo[start : start + _PART]
                    self._store.append(_part(part, self.encoder.encode(part, self.role, batch_size=_BATCH)))
                    progress.update(len(part))
            self._store.compact()
        self._load()

    def gather(self, texts: Sequence[str]) -> csr_array:
        """(n, vocabulary) float32 vectors of encoded texts.

        Raises:
            UserError: A text is not in the store.
        """
        rows = self._index.find(text_keys(texts))
        if (rows < 0).any():
            raise UserError(f"{int((rows < 0).sum())} texts are not in the store; encode them first.")
        return self._vectors[rows]

    def _load(self) -> None:
        tables = self._store.parts()
        chunks = [(table["terms"].chunks, table["weights"].chunks) for table in tables]
        terms = [chunk for held, _ in chunks for chunk in held]
        counts = [np.diff(chunk.offsets.to_numpy()) for chunk in terms]
        bounds = np.concatenate([[0], np.cumsum(_joined(counts, np.int64))])
        indices = _joined([chunk.flatten().to_numpy() for chunk in terms], np.int32)
        weights = _joined([chunk.flatten().to_numpy() for _, held in chunks for chunk in held], np.float32)
        self._vectors = csr_array((weights, indices, bounds), shape=(len(bounds) - 1, self.encoder.dimension))
        self._index = KeyIndex(_joined([table["key"].to_numpy() for table in tables], np.uint64))


def embed_sparse(encoder: SparseTextEncoder, texts: Sequence[str], role: Role, root: Path | None = None) -> csr_array:
    """Encode texts through the store of the encoder; token weights are faster than their store and skip it.

    Returns:
        (n, vocabulary) float32.
    """
    if encoder.token_weights(role) is not None:
        return encoder.encode(texts, role)
    store = SparseStore(encoder, role, root)
    store.fill(texts)
    return store.gather(texts)


def _part(texts: Sequence[str], vectors: csr_array) -> pa.Table:
    bounds = pa.array(vectors.indptr.astype(np.int32))
    terms = pa.ListArray.from_arrays(bounds, pa.array(vectors.indices.astype(np.int32)))
    weights = pa.ListArray.from_arrays(bounds, pa.array(vectors.data.astype(np.float32)))
    return pa.table({"key": pa.array(text_keys(texts)), "terms": terms, "weights": weights})


def _joined(arrays: list[np.ndarray], kind: type) -> np.ndarray:
    return np.concatenate(arrays) if arrays else np.zeros(0, dtype=kind)
