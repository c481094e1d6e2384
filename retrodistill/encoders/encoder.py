"""Dense encoders: one vector per text, from a transformer or a static token table."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np

from retrodistill.encoders.contract import Role, TextModel
from retrodistill.encoders.vectors import normalized


class Encoder(TextModel):
    """Encodes queries and documents as vectors whose inner product is the score.

    Vectors of a cosine model are normalized here, so that the inner product means the same for every model.
    """

    @property
    def kind(self) -> str:  # type: ignore[override]  # read-only here
        """``dense`` or ``static``."""
        return "static" if self.is_static else "dense"

    @property
    def is_static(self) -> bool:  # type: ignore[override]  # read-only here
        """Whether it is a token table, without a transformer."""
        return type(self.model[0]).__name__ == "StaticEmbedding"

    def needs_store(self, role: Role) -> bool:
        """As `TextModel.needs_store`; a token table is faster than the store."""
        return not (self.is_static or self.is_recorded)

    def encode(self, texts: Sequence[str], role: Role, *, batch_size: int | None = None) -> np.ndarray:
        """(n, dimension) float32; unit vectors for cosine models."""
        if not len(texts):
            return np.zeros((0, self.dimension), dtype=np.float32)
        if self._is_plain_table:
            vectors = self._encode_table(texts, role)
        else:
            is_cosine = self.similarity == "cosine"
            vectors = self._run(texts, role, batch_size, convert_to_numpy=True, normalize_embeddings=is_cosine)
            vectors = vectors.astype(np.float32, copy=False)
            if is_cosine and self.encoding.precision != "float32":
                vectors = normalized(vectors)  # bfloat16 products leave lengths that are 1 to three digits only
        self._require_finite(~np.isfinite(vectors).all(axis=1), None, texts, "vector")
        return vectors

    @property
    def _is_plain_table(self) -> bool:
        """Whether it only averages rows of a table on the CPU, normalized or not."""
        others = {type(module).__name__ for module in list(self.model)[1:]}
        on_cpu = str(self.model.device) == "cpu"
        return self.is_static and others <= {"Normalize"} and self.truncation is None and on_cpu

    def _encode_table(self, texts: Sequence[str], role: Role) -> np.ndarray:
        """The model's own result without its overhead, which is several times the work for one query."""
        module: Any = self.model[0]
        table = module.embedding.weight.detach().cpu().numpy()
        prompt = self.prompt(role)
        encodings = module.tokenizer.encode_batch([prompt + text for text in texts], add_special_tokens=False)
        vectors = np.zeros((len(texts), table.shape[1]), dtype=np.float32)
        for row, encoding in enumerate(encodings):
            if encoding.ids:
                vectors[row] = table[encoding.ids].mean(axis=0)
        return normalized(vectors) if self.similarity == "cosine" else vectors
