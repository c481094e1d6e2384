"""Encoders: a sentence-transformers model with the contract that indexes hold it to."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from retrodistill.core.errors import UserError
from retrodistill.core.manifest import Manifest
from retrodistill.encoders.contract import IN_MEMORY, STUDENT_MANIFEST, Role, TextModel
from retrodistill.encoders.loading import load_bi_encoder
from retrodistill.encoders.names import ModelName, parse_model_name, split_exit

if TYPE_CHECKING:
    from sentence_transformers import SentenceTransformer


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

    def encode(self, texts: Sequence[str], role: Role, *, batch_size: int = 32) -> np.ndarray:
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

    def _encode(self, texts: Sequence[str], role: Role, batch_size: int) -> np.ndarray:
        return self.model.encode(
            list(texts),
            prompt=self.prompt(role),
            task=role,  # which tower, where the model has a Router
            batch_size=batch_size,
            show_progress_bar=False,
            convert_to_numpy=True,
            normalize_embeddings=self.similarity == "cosine",
        ).astype(np.float32, copy=False)

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


def load_encoder(source: str | Path | ModelName | Encoder | SentenceTransformer) -> Encoder:
    """Load an encoder by its name; an `Encoder` or a SentenceTransformer object is taken as it is.

    Vectors of a file (``vectors:PATH``) are an encoder that knows its space and encodes nothing until it is bound to a
    collection.

    Raises:
        UserError: Not a model name, not an encoder's kind, or not to be found.
    """
    if isinstance(source, Encoder):
        return source
    if not isinstance(source, (str, Path, ModelName)):
        if not hasattr(source, "model_card_data") or not hasattr(source, "similarity_fn_name"):
            raise UserError(
                f"an encoder cannot be made from {type(source).__name__}; give 'dense:NAME', 'static:NAME' or a "
                "SentenceTransformer."
            )
        return Encoder(source, f"dense:{source.model_card_data.model_id or IN_MEMORY}")
    name = source if isinstance(source, ModelName) else parse_model_name(str(source))
    if name.kind == "vectors":
        from retrodistill.encoders.vector_files import VectorFile

        return VectorFile.open(name.name)
    if name.kind not in ("dense", "static"):
        raise UserError(f"model {name} is no encoder; an encoder is 'dense:NAME', 'static:NAME' or 'vectors:PATH'.")
    manifest, folder = None, split_exit(name.name)[0]
    if (Path(folder) / STUDENT_MANIFEST).exists():
        manifest = Manifest.read(folder, STUDENT_MANIFEST)
    encoder = Encoder(load_bi_encoder(name.name), str(name), manifest)
    if name.kind == "static" and not encoder.is_static:
        raise UserError(
            f"model {name.name} is not a token table but {type(encoder.model[0]).__name__}; "
            f"name it 'dense:{name.name}'."
        )
    return encoder
