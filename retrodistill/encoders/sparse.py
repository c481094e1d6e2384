"""Sparse encoders: a sentence-transformers SparseEncoder with the contract that indexes hold it to."""

from __future__ import annotations

from collections.abc import Sequence
from functools import cached_property
from typing import TYPE_CHECKING, Any

import numpy as np
from scipy.sparse import csr_array, vstack

from retrodistill.core.errors import UserError
from retrodistill.core.files import digest
from retrodistill.core.manifest import Manifest
from retrodistill.encoders.contract import Role, TextModel
from retrodistill.encoders.token_weights import TokenWeights, own_tokenizer, unit_rows

if TYPE_CHECKING:
    pass

_AT_ONCE = 256  # texts whose vectors are dense at one time: 31 MB over BERT's vocabulary
_ROLES: tuple[Role, Role] = ("query", "document")
_WITHOUT_EFFECT = ("embedding_dimension", "frozen")  # known from the rest, and about training


class SparseTextEncoder(TextModel):
    """Turns queries and documents into weights of the vocabulary's terms whose inner product is the score.

    A model whose similarity is cosine gives unit vectors here. Queries that are token weights alone (a Router whose
    query route is a `SparseStaticEmbedding`) are encoded without the document model.

    Args:
        model: The sentence-transformers model.
        name: ``kind:name`` as the user wrote it.
        student: The manifest of a student that retrodistill trained, if it is one.

    Raises:
        UserError: Its Router has no route for queries or for documents.
    """

    kind = "sparse"

    def __init__(self, model: Any, name: str, student: Manifest | None = None) -> None:
        super().__init__(model, name, student)
        for role in _ROLES:
            if any(getattr(part, "embedding_dimension", 0) is None for part in self.modules(role)):
                # a SPLADE pooling learns its width from the first text; until then the model reports its hidden one
                model.encode("a", task=role, show_progress_bar=False)

    @property
    def is_inference_free(self) -> bool:
        """Whether queries are token weights, which need no model."""
        return self.token_weights("query") is not None

    def contract(self, role: Role) -> dict[str, Any]:
        """All that decides the vector of a text: as of any model, the vocabulary, and how many terms are kept."""
        contract = super().contract(role)
        return {
            **contract,
            "modules": [
                [kind, {key: value for key, value in settings.items() if key not in _WITHOUT_EFFECT}]
                for kind, settings in contract["modules"]
            ],
            "vocabulary": self._vocabularies[role],
            "most_terms": self.model.max_active_dims,
        }

    def needs_store(self, role: Role) -> bool:
        """Whether encoding takes longer than looking vectors up: not of token weights."""
        return self.token_weights(role) is None

    def token_weights(self, role: Role) -> TokenWeights | None:
        """The weights per token that are all of this role's encoder; None where a model must run."""
        parts = self.modules(role)
        if [type(part).__name__ for part in parts] != ["SparseStaticEmbedding"]:
            return None
        weights = parts[0].weight.detach().cpu().numpy().astype(np.float32, copy=False)
        if role not in self._tokenizers:  # copying one takes a hundred times as long as a query
            self._tokenizers[role] = own_tokenizer(parts[0].tokenizer, self.name, len(weights))
        tokenizer = self._tokenizers[role]
        if tokenizer is None:
            return None
        most = self.model.max_active_dims
        return TokenWeights(tokenizer, weights, self.prompt(role), most, self.similarity == "cosine")

    def encode(self, texts: Sequence[str], role: Role, *, batch_size: int | None = None) -> csr_array:
        """Encode texts.

        Returns:
            (n, vocabulary) float32, terms in ascending order in a row, no stored zeros; a text may have no term.

        Raises:
            UserError: A weight is not finite.
        """
        table = self.token_weights(role)
        if table is not None:
            vectors = table.encode(texts)
        else:
            parts = [
                self._encode(list(texts[start : start + _AT_ONCE]), role, batch_size)
                for start in range(0, len(texts), _AT_ONCE)
            ]
            empty = csr_array((0, self.dimension), dtype=np.float32)
            vectors = csr_array(vstack(parts, format="csr")) if parts else empty
        bad = np.flatnonzero(~np.isfinite(vectors.data))
        if len(bad):
            row = int(np.searchsorted(vectors.indptr, bad[0], side="right")) - 1
            raise UserError(f"model {self.name} gives a weight that is not finite for {texts[row][:60]!r}.")
        return vectors

    def _encode(self, texts: list[str], role: Role, batch_size: int | None) -> csr_array:
        with self.encoding.autocast(self.model.device):
            dense = self.model.encode(
                texts,
                prompt=self.prompt(role),
                task=role,  # which tower, where the model has a Router
                batch_size=batch_size or self.encoding.batch_size,
                show_progress_bar=False,
                convert_to_sparse_tensor=False,
                save_to_cpu=True,
            )
        vectors = csr_array(dense.float().numpy())
        return unit_rows(vectors) if self.similarity == "cosine" else vectors

    @cached_property
    def _tokenizers(self) -> dict[Role, Any]:
        return {}

    @cached_property
    def _vocabularies(self) -> dict[Role, str]:
        """Digest of tokens and their numbers."""
        tokenizers = {role: getattr(self.modules(role)[0], "tokenizer", None) for role in _ROLES}
        return {role: digest(found and sorted(found.get_vocab().items())) for role, found in tokenizers.items()}
