"""Inference-free sparse vectors: each of a text's tokens has one weight, and no model runs."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, ClassVar

import numpy as np
from scipy.sparse import csr_array

from retrodistill.core.errors import UserError

_TOKENIZER, _WEIGHTS = "query-tokenizer.json", "query-weights.npy"


@dataclass(frozen=True, eq=False)
class TokenWeights:
    """What a `SparseStaticEmbedding` does (token present x its weight, OpenSearch's arXiv 2411.04403), without torch.

    An index uses it like a sparse encoder.

    Attributes:
        tokenizer: A ``tokenizers.Tokenizer`` that cuts where the model does and does not pad.
        weights: (vocabulary,) float32: IDF, or learned.
        prompt: Prefix of each text.
        most: Number of tokens of largest absolute weight to keep; None for all.
        unit: Whether vectors are made unit vectors (models of cosine similarity).
    """

    has_model: ClassVar[bool] = False

    tokenizer: Any
    weights: np.ndarray
    prompt: str = ""
    most: int | None = None
    unit: bool = False

    def encode(self, texts: Sequence[str], role: str = "query", *, batch_size: int = 0) -> csr_array:
        """(n, vocabulary) float32, the model's own values; tokens of weight zero are left out."""
        encodings = self.tokenizer.encode_batch([self.prompt + text for text in texts], add_special_tokens=False)
        held = [self._held(encoding.ids) for encoding in encodings]
        bounds = np.concatenate([[0], np.cumsum([len(tokens) for tokens in held])])
        tokens = np.concatenate(held) if held else np.zeros(0, dtype=np.int64)
        vectors = csr_array((self.weights[tokens], tokens, bounds), shape=(len(texts), len(self.weights)))
        return unit_rows(vectors) if self.unit else vectors

    def token_weights(self, role: str) -> TokenWeights:
        """Itself: all that encoding takes."""
        return self

    def needs_store(self, role: str) -> bool:
        """Whether encoding takes longer than looking vectors up: it does not."""
        return False

    def settings(self) -> dict[str, Any]:
        """All but tokenizer and weights, as JSON values."""
        return {"prompt": self.prompt, "most": self.most, "unit": self.unit}

    def write(self, folder: Path) -> None:
        """Write tokenizer and weights."""
        self.tokenizer.save(str(folder / _TOKENIZER))
        np.save(folder / _WEIGHTS, self.weights, allow_pickle=False)

    @classmethod
    def read(cls, folder: Path, settings: dict[str, Any]) -> TokenWeights:
        """Read what `write` wrote; the only library that this loads is tokenizers."""
        from tokenizers import Tokenizer

        tokenizer = Tokenizer.from_file(str(folder / _TOKENIZER))
        return cls(tokenizer, np.load(folder / _WEIGHTS, allow_pickle=False), **settings)

    def _held(self, ids: list[int]) -> np.ndarray:
        tokens = np.unique(np.asarray(ids, dtype=np.int64))
        weights = self.weights[tokens]
        if self.most is not None and len(tokens) > self.most:
            kept = np.argsort(-np.abs(weights), kind="stable")[: self.most]
            return np.sort(tokens[kept][weights[kept] != 0])
        return tokens[weights != 0]


def own_tokenizer(tokenizer: Any, name: str, vocabulary: int) -> Any:
    """A copy of a transformers tokenizer's fast half that cuts at the model's length and does not pad.

    None where it has no fast half.

    Raises:
        UserError: It knows tokens beyond the vocabulary, which would have no weight.
    """
    from tokenizers import Tokenizer

    backend = getattr(tokenizer, "backend_tokenizer", None)
    if backend is None:
        return None
    if backend.get_vocab_size() > vocabulary:
        raise UserError(
            f"model {name}: its tokenizer has {backend.get_vocab_size()} tokens, its weights {vocabulary}; "
            "give one weight per token."
        )
    own = Tokenizer.from_str(backend.to_str())
    own.no_padding()
    own.no_truncation()
    if tokenizer.model_max_length < 1e9:  # transformers sets 1e30 for "no limit"
        own.enable_truncation(int(tokenizer.model_max_length), direction=tokenizer.truncation_side)
    return own


def unit_rows(vectors: csr_array) -> csr_array:
    """Rows of length 1; a row without terms stays so."""
    lengths = np.sqrt(np.asarray(vectors.multiply(vectors).sum(axis=1), dtype=np.float32)).ravel()
    counts = np.diff(vectors.indptr)
    data = vectors.data / np.repeat(np.where(lengths > 0, lengths, np.float32(1)), counts)
    return csr_array((data.astype(np.float32), vectors.indices, vectors.indptr), shape=vectors.shape)
