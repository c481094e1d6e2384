"""The embedding store: a text is embedded once, for candidates, teacher, alignment and index together."""

from __future__ import annotations

import time
from collections.abc import Sequence
from pathlib import Path

import numpy as np
import pyarrow as pa

from retrodistill.encoders.contract import Role
from retrodistill.encoders.encoder import Encoder
from retrodistill.encoders.text_store import TextStore
from retrodistill.encoders.vector_files import VectorFile

_BATCH = 32


class EmbeddingStore(TextStore):
    """Vectors of one encoder in one role, (n, dimension) float32."""

    folder = "embeddings"

    def gather(self, texts: Sequence[str]) -> np.ndarray:
        """(n, dimension) float32 vectors of embedded texts.

        Raises:
            UserError: A text is not in the store.
        """
        rows = self._rows(texts)
        vectors = np.empty((len(texts), self.encoder.dimension), dtype=np.float32)
        part = np.searchsorted(self._starts, rows, side="right") - 1
        for number, block in enumerate(self._blocks):
            here = np.flatnonzero(part == number)
            vectors[here] = block[rows[here] - self._starts[number]]
        return vectors

    def _columns(self, vectors: np.ndarray) -> dict[str, pa.Array]:
        flat = pa.array(np.ascontiguousarray(vectors, dtype=np.float32).ravel())
        return {"vector": pa.FixedSizeListArray.from_arrays(flat, vectors.shape[1])}

    def _read(self, tables: list[pa.Table]) -> None:
        self._blocks = [
            chunk.flatten().to_numpy().reshape(-1, self.encoder.dimension)
            for table in tables
            for chunk in table["vector"].chunks
        ]
        self._starts = np.concatenate([[0], np.cumsum([len(block) for block in self._blocks])])[:-1].astype(np.int64)


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
