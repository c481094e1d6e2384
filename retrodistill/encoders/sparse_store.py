"""The store of sparse embeddings: a text is encoded once, for candidates, teacher and index together."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import numpy as np
import pyarrow as pa
from scipy.sparse import csr_array

from retrodistill.encoders.contract import Role
from retrodistill.encoders.sparse import SparseTextEncoder
from retrodistill.encoders.text_store import TextStore


class SparseStore(TextStore):
    """Sparse vectors of one encoder in one role, as rows of terms and weights."""

    folder = "sparse"

    def gather(self, texts: Sequence[str]) -> csr_array:
        """(n, vocabulary) float32 vectors of encoded texts.

        Raises:
            UserError: A text is not in the store.
        """
        return self._vectors[self._rows(texts)]

    def _columns(self, vectors: csr_array) -> dict[str, pa.Array]:
        bounds = pa.array(vectors.indptr.astype(np.int32))
        return {
            "terms": pa.ListArray.from_arrays(bounds, pa.array(vectors.indices.astype(np.int32))),
            "weights": pa.ListArray.from_arrays(bounds, pa.array(vectors.data.astype(np.float32))),
        }

    def _read(self, tables: list[pa.Table]) -> None:
        terms = [chunk for table in tables for chunk in table["terms"].chunks]
        weights = [chunk.flatten().to_numpy() for table in tables for chunk in table["weights"].chunks]
        counts = [np.diff(chunk.offsets.to_numpy()) for chunk in terms]
        bounds = np.concatenate([[0], np.cumsum(_joined(counts, np.int64))])
        indices = _joined([chunk.flatten().to_numpy() for chunk in terms], np.int32)
        shape = (len(bounds) - 1, self.encoder.dimension)
        self._vectors = csr_array((_joined(weights, np.float32), indices, bounds), shape=shape)


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


def _joined(arrays: list[np.ndarray], kind: type) -> np.ndarray:
    return np.concatenate(arrays) if arrays else np.zeros(0, dtype=kind)
