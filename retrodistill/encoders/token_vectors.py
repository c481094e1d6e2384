"""The store of token vectors: a text is encoded once, for candidates, teacher and student together."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import numpy as np
import pyarrow as pa

from retrodistill.encoders.contract import Role
from retrodistill.encoders.multi_vector import MultiVectorModel, Tokens
from retrodistill.encoders.text_store import TextStore


class TokenVectors(TextStore):
    """Token vectors of one encoder in one role, float16."""

    folder = "token-vectors"

    def gather(self, texts: Sequence[str]) -> Tokens:
        """The token vectors of encoded texts, float32 as near as float16 keeps them (5e-4 of a value).

        Raises:
            UserError: A text is not in the store.
        """
        rows = self._rows(texts)
        blocks = np.searchsorted(self._starts, rows, side="right") - 1
        found = []
        for block, row in zip(blocks.tolist(), rows.tolist(), strict=True):
            bounds, vectors = self._blocks[block]
            start, stop = bounds[row - self._starts[block] : row - self._starts[block] + 2]
            found.append(vectors[start:stop].astype(np.float32))
        return Tokens.of(found, self.encoder.dimension)

    def _select(self, vectors: Tokens, rows: list[int]) -> Tokens:
        return Tokens.of([vectors[row] for row in rows], vectors.dimension)

    def _columns(self, vectors: Tokens) -> dict[str, pa.Array]:
        flat = pa.array(vectors.vectors.astype(np.float16).ravel())
        rows = pa.FixedSizeListArray.from_arrays(flat, vectors.dimension)
        return {"tokens": pa.LargeListArray.from_arrays(pa.array(vectors.bounds), rows)}

    def _read(self, tables: list[pa.Table]) -> None:
        self._blocks = []
        for chunk in (chunk for table in tables for chunk in table["tokens"].chunks):
            vectors = chunk.values.flatten().to_numpy().reshape(-1, self.encoder.dimension)
            self._blocks.append((chunk.offsets.to_numpy(), vectors))
        sizes = [len(bounds) - 1 for bounds, _ in self._blocks]
        self._starts = np.concatenate([[0], np.cumsum(sizes)])[:-1].astype(np.int64)


def embed_tokens(encoder: MultiVectorModel, texts: Sequence[str], role: Role, root: Path | None = None) -> Tokens:
    """Encode texts through the store of the encoder."""
    store = TokenVectors(encoder, role, root)
    store.fill(texts)
    return store.gather(texts)
