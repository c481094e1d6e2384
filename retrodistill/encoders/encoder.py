"""Encoders: a sentence-transformers model with the contract that indexes hold it to."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np

from retrodistill.core.errors import UserError
from retrodistill.encoders.contract import Role, TextModel


class Encoder(TextModel):
    """Turns queries and documents into vectors whose inner product is the score.

    A model whose similarity is cosine gives unit vectors here, so that inner product means the same everywhere.

    Args:
        model: The sentence-transformers model.
        name: ``kind:name`` as the user wrote it.
        student: The manifest of a student that retrodistill trained, if it is one.
    """

    @property
    def kind(self) -> str:  # type: ignore[override]  # read-only here
        """``dense`` or ``static``."""
        return "static" if self.is_static else "dense"

    @property
    def is_static(self) -> bool:  # type: ignore[override]  # read-only here
        """Whether it is a token table (no transformer)."""
        return type(self.model[0]).__name__ == "StaticEmbedding"

    @property
    def _is_plain_table(self) -> bool:
        """Whether a mean of rows, normalized or not, is all that it does, on the CPU."""
        rest = {type(module).__name__ for module in list(self.model)[1:]}
        return self.is_static and rest <= {"Normalize"} and self.truncation is None and str(self.model.device) == "cpu"

    def needs_store(self, role: Role) -> bool:
        """Whether encoding takes longer than looking vectors up: not of a token table."""
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
                task=role,  # which tower, where the model has a Router
                batch_size=batch_size or self.encoding.batch_size,
                show_progress_bar=False,
                convert_to_numpy=True,
                normalize_embeddings=self.similarity == "cosine",
            ).astype(np.float32, copy=False)
        if self.encoding.precision != "float32" and self.similarity == "cosine":  # unit length to float32's digits
            lengths = np.linalg.norm(vectors, axis=1, keepdims=True)
            vectors = vectors / np.where(lengths > 0, lengths, 1.0)
        return vectors

    def _encode_table(self, texts: Sequence[str], role: Role) -> np.ndarray:
        """As the model does, without its overhead, which is several times the work of one query."""
        module: Any = self.model[0]
        table = module.embedding.weight.detach().cpu().numpy()
        prompt = self.prompt(role)
        encodings = module.tokenizer.encode_batch([prompt + text for text in texts], add_special_tokens=False)
        vectors = np.zeros((len(texts), table.shape[1]), dtype=np.float32)
        for row, encoding in enumerate(encodings):
            if encoding.ids:
                vectors[row] = table[encoding.ids].mean(axis=0)
        if self.similarity == "cosine":
            lengths = np.linalg.norm(vectors, axis=1, keepdims=True)
            vectors /= np.where(lengths > 0, lengths, 1.0)
        return vectors
