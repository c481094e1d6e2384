"""Dense encoders: one vector per text, from a transformer or a static token table."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np

from retrodistill.core.errors import UserError
from retrodistill.encoders.contract import Role, TextModel
from retrodistill.encoders.vectors import normalized


class Encoder(TextModel):
    """Encodes queries and documents as vectors whose inner product is the score.

    Vectors of a cosine model are normalized here, so that the inner product means the same for every model. Arguments
    as for `TextModel`.
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
        """Encode texts.

        Returns:
            (n, dimension) float32; unit vectors for cosine models.

        Raises:
            UserError: A vector is not finite.
        """
        if not len(texts):
            return np.zeros((0, self.dimension), dtype=np.float32)
        vectors = self._encode_table(texts, role) if self._is_plain_table else self._encode(texts, role, batch_size)
        if not np.isfinite(vectors).all():
            row = int(np.flatnonzero(~np.isfinite(vectors).all(axis=1))[0])
            raise UserError(f"model {self.name} gives a vector that is not finite for {texts[row][:60]!r}.")
        return vectors

    def _encode(self, texts: Sequence[str], role: Role, batch_size: int | None) -> np.ndarray:
        with self.encoding.autocast(self.model.device):
            vectors = self.model.encode(
                list(texts),
                prompt=self.prompt(role),
                task=role,  # selects the tower of a model with a Router
                batch_size=batch_size or self.encoding.batch_size,
                show_progress_bar=False,
                convert_to_numpy=True,
                normalize_embeddings=self.similarity == "cosine",
            ).astype(np.float32, copy=False)
        # bfloat16 products leave lengths that are 1 to three digits only
        is_rounded = self.encoding.precision != "float32" and self.similarity == "cosine"
        return normalized(vectors) if is_rounded else vectors

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
