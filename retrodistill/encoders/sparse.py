"""Sparse encoders: weights of a vocabulary's terms, from a model or from a table of token weights."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any, ClassVar

import numpy as np
from scipy.sparse import csr_array, vstack

from retrodistill.core.arrays import read_array, save_array
from retrodistill.core.digests import digest
from retrodistill.core.errors import UserError
from retrodistill.core.manifest import Manifest
from retrodistill.data.records import require_utf8
from retrodistill.encoders.contract import Role, TextModel
from retrodistill.encoders.reading import Reader

_TOKENIZER, _WEIGHTS = "query-tokenizer.json", "query-weights.npy"
_BLOCK = 256  # texts whose vectors are dense at one time: 31 MB over BERT's vocabulary
_ROLES: tuple[Role, Role] = ("query", "document")
_IGNORED = ("embedding_dimension", "frozen")  # the first follows from the rest, the second is about training


class SparseTextEncoder(TextModel):
    """Encodes queries and documents as weights of the vocabulary's terms whose inner product is the score.

    Vectors of a cosine model are normalized here. Inference-free queries (a Router whose query route is a
    `SparseStaticEmbedding`) are encoded without the document model. A Router needs routes for both roles.
    """

    kind = "sparse"
    most_tokens = 8192  # logits over BERT's vocabulary take 122 kB for each token
    ignored_settings: ClassVar[Mapping[Role, Sequence[str]]] = {"query": _IGNORED, "document": _IGNORED}

    def __init__(self, model: Any, name: str, student: Manifest | None = None) -> None:
        super().__init__(model, name, student)
        for role in _ROLES:
            if any(getattr(part, "embedding_dimension", 0) is None for part in self.modules(role)):
                # a SPLADE pooling learns its width from its first text; until then the model reports its hidden width
                model.encode("a", task=role, show_progress_bar=False)

    @property
    def is_inference_free(self) -> bool:
        """Whether queries are token weights, which need no model."""
        return self.token_weights("query") is not None

    def contract(self, role: Role) -> dict[str, Any]:
        """As `TextModel.contract`, with the vocabulary and the number of terms that are kept."""
        own = {"vocabulary": self._vocabularies[role], "most_terms": self.model.max_active_dims}
        return {**super().contract(role), **own}

    def needs_store(self, role: Role) -> bool:
        """As `TextModel.needs_store`; token weights are faster than the store."""
        return self.token_weights(role) is None

    def token_weights(self, role: Role) -> TokenWeights | None:
        """The table of token weights that encodes this role; None if a model is needed."""
        parts = self.modules(role)
        if [type(part).__name__ for part in parts] != ["SparseStaticEmbedding"]:
            return None
        weights = parts[0].weight.detach().cpu().numpy().astype(np.float32, copy=False)
        if role not in self._tokenizers:  # copying one takes a hundred times as long as a query
            self._tokenizers[role] = own_tokenizer(parts[0].tokenizer, self.name, len(weights))
        most, is_cosine = self.model.max_active_dims, self.similarity == "cosine"
        tokenizer = self._tokenizers[role]
        return None if tokenizer is None else TokenWeights(tokenizer, weights, self.prompt(role), most, is_cosine)

    def encode(self, texts: Sequence[str], role: Role, *, batch_size: int | None = None) -> csr_array:
        """(n, vocabulary) float32, terms of a row in ascending order, no stored zeros; a text may have no term."""
        table = self.token_weights(role)
        if table is not None:
            vectors = table.encode(texts)
        else:
            blocks = [texts[start : start + _BLOCK] for start in range(0, len(texts), _BLOCK)]
            parts = [self._encode(block, role, batch_size) for block in blocks]
            empty = csr_array((0, self.dimension), dtype=np.float32)
            vectors = csr_array(vstack(parts, format="csr")) if parts else empty
        if vectors.shape[1] != self.dimension:  # as rows of that width, they would be read outside their memory
            problem = f"weights for {vectors.shape[1]} terms and says that it has {self.dimension}"
            raise UserError(f"model {self.name} gives {problem}; correct embedding_dimension in its files.")
        self._require_finite(~np.isfinite(vectors.data), vectors.indptr, texts, "weight")
        return vectors

    def _encode(self, texts: Sequence[str], role: Role, batch_size: int | None) -> csr_array:
        rows = self._run(texts, role, batch_size, convert_to_sparse_tensor=False, save_to_cpu=True)
        vectors = csr_array(np.stack([row.float().numpy() for row in rows]))
        return unit_rows(vectors) if self.similarity == "cosine" else vectors

    @cached_property
    def _tokenizers(self) -> dict[Role, Any]:
        """Copies of token weights' tokenizers, made when they are first used."""
        return {}

    @cached_property
    def _vocabularies(self) -> dict[Role, str]:
        tokenizers = {role: getattr(self.modules(role)[0], "tokenizer", None) for role in _ROLES}
        return {role: digest(own and sorted(own.get_vocab().items())) for role, own in tokenizers.items()}


@dataclass(frozen=True, eq=False)
class TokenWeights:
    """Inference-free encoding: each token that is present gets its weight (OpenSearch, arXiv 2411.04403).

    Equal to a `SparseStaticEmbedding`, without torch. An index uses it like a sparse encoder.
    """

    has_model: ClassVar[bool] = False

    tokenizer: Any  # a ``tokenizers.Tokenizer`` that truncates as the model does and does not pad
    weights: np.ndarray  # (vocabulary,) float32: IDF, or learned
    prompt: str = ""  # prefix of each text
    most: int | None = None  # number of tokens of largest absolute weight to keep; None for all
    unit: bool = False  # normalize vectors (models with cosine similarity)

    def encode(self, texts: Sequence[str], role: str = "query", *, batch_size: int = 0) -> csr_array:
        """(n, vocabulary) float32, equal to the model's values; tokens of weight zero are left out."""
        require_utf8(texts, role)
        encodings = self.tokenizer.encode_batch([self.prompt + text for text in texts], add_special_tokens=False)
        kept = [self._kept(encoding.ids) for encoding in encodings]
        bounds = np.concatenate([[0], np.cumsum([len(tokens) for tokens in kept])])
        tokens = np.concatenate(kept) if kept else np.zeros(0, dtype=np.int64)
        vectors = csr_array((self.weights[tokens], tokens, bounds), shape=(len(texts), len(self.weights)))
        return unit_rows(vectors) if self.unit else vectors

    def token_weights(self, role: str) -> TokenWeights:
        """Itself."""
        return self

    def reader(self, role: str) -> Reader:
        """What tells the texts that it cannot read."""
        return self._reader

    @cached_property
    def _reader(self) -> Reader:
        return Reader(self.tokenizer)

    def needs_store(self, role: str) -> bool:
        """False: encoding is faster than the store."""
        return False

    def settings(self) -> dict[str, Any]:
        """All but tokenizer and weights, as JSON values."""
        return {"prompt": self.prompt, "most": self.most, "unit": self.unit}

    def write(self, folder: Path) -> None:
        """Write tokenizer and weights."""
        self.tokenizer.save(str(folder / _TOKENIZER))
        save_array(folder / _WEIGHTS, self.weights)

    @classmethod
    def read(cls, folder: Path, settings: dict[str, Any]) -> TokenWeights:
        """Read the files of `write`."""
        from tokenizers import Tokenizer

        tokenizer = Tokenizer.from_file(str(folder / _TOKENIZER))
        return cls(tokenizer, read_array(folder / _WEIGHTS), **settings)

    def _kept(self, ids: list[int]) -> np.ndarray:
        tokens = np.unique(np.asarray(ids, dtype=np.int64))
        heaviest = np.argsort(-np.abs(self.weights[tokens]), kind="stable")[: self.most]
        kept = tokens[np.sort(heaviest)]
        return kept[self.weights[kept] != 0]


def own_tokenizer(tokenizer: Any, name: str, vocabulary: int) -> Any:
    """Copy a fast transformers tokenizer, with the model's truncation and without padding; None for a slow one."""
    from tokenizers import Tokenizer

    backend = getattr(tokenizer, "backend_tokenizer", None)
    if backend is None:
        return None
    if backend.get_vocab_size() > vocabulary:
        sizes = f"its tokenizer has {backend.get_vocab_size()} tokens, its weights {vocabulary}"
        raise UserError(f"model {name}: {sizes}; give one weight per token.")
    own = Tokenizer.from_str(backend.to_str())
    own.no_padding()
    own.no_truncation()
    if tokenizer.model_max_length < 1e9:  # transformers sets 1e30 for "no limit"
        own.enable_truncation(int(tokenizer.model_max_length), direction=tokenizer.truncation_side)
    return own


def unit_rows(vectors: csr_array) -> csr_array:
    """Rows scaled to length 1; a row without terms stays empty."""
    lengths = np.sqrt(np.asarray(vectors.multiply(vectors).sum(axis=1), dtype=np.float32)).ravel()
    counts = np.diff(vectors.indptr)
    data = vectors.data / np.repeat(np.where(lengths > 0, lengths, np.float32(1)), counts)
    return csr_array((data.astype(np.float32), vectors.indices, vectors.indptr), shape=vectors.shape)
