"""Scorers: how a kind of student encodes a batch, and its scores of the batch's lists.

Every list objective sees (batch, n) float32 scores, whatever produced them, so any objective trains any student.
"""

from __future__ import annotations

import copy
from abc import ABC, abstractmethod
from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING, Any, NamedTuple

import numpy as np
import torch
from torch import Tensor, nn

from retrodistill.core.errors import UserError
from retrodistill.training.lists import ListBatch, as_float32

if TYPE_CHECKING:
    from retrodistill.encoders.contract import Role

View = tuple[str, float, Any]  # name, weight, and what `Scorer.lists` takes


class TokenBatch(NamedTuple):
    """Token vectors of a batch of texts."""

    vectors: Tensor  # (batch, tokens, d), of unit length where the model normalizes
    mask: Tensor  # (batch, tokens) bool, true where a token counts


class Scorer(ABC):
    """From a batch's columns to scores.

    ``encoded`` is what `encode` returns, or what `prepared` makes of that where a kind overrides it.
    """

    has_vectors = True  # whether a query can be scored with documents of other queries without another forward pass
    has_embeddings = False  # whether it gives one embedding of a text, which objectives align
    has_tokens = False  # whether a column is encoded to a `TokenBatch`
    cosine = False  # whether scores are cosines of vectors

    def encode(self, model: nn.Module, columns: Sequence[Any], texts: np.ndarray) -> Any:
        """Encode a batch; by default to one (batch, d) tensor of vectors for each column.

        Args:
            model: The student, or what wraps it in distributed training.
            columns: Features of the query's column, followed by those of each place if documents are encoded.
            texts: (batch,) int64 rows of the queries among the stage's texts.
        """
        return [model(features)["sentence_embedding"] for features in columns]

    @abstractmethod
    def lists(self, encoded: Any, batch: ListBatch) -> Tensor:
        """(batch, n) float32 scores of each query with its own list."""

    @abstractmethod
    def own_documents(self, encoded: Any, batch: ListBatch) -> Tensor:
        """(batch, batch) float32 scores of each query with each query's own document."""

    def batch_documents(self, encoded: Any, batch: ListBatch) -> tuple[Tensor, np.ndarray]:
        """(batch, m) float32 scores of each query with the batch's documents, and (m,) their corpus positions.

        By default, these are the texts' own documents.
        """
        return self.own_documents(encoded, batch), batch.own

    def prepared(self, encoded: Any) -> Any:
        """What the other methods take, computed once from what `encode` returns; the same by default."""
        return encoded

    def keep_start(self, model: Any) -> Any:
        """Keep the present student to compare with later: a frozen copy, or None if the scorer keeps parameters."""
        return copy.deepcopy(model).requires_grad_(False)

    def start_lists(self, encoded: Any, batch: ListBatch) -> Tensor:
        """As `lists`, by the student that `keep_start` kept; `encoded` is from its copy if there is one."""
        return self.lists(encoded, batch)

    def embeddings(self, encoded: Any) -> Tensor:
        """(batch, d) float32 embeddings of single texts, if `has_embeddings`."""
        raise UserError(f"{type(self).__name__} gives no embeddings of single texts.")

    def own_terms(self, encoded: Any, batch: ListBatch, progress: float | None) -> dict[str, Tensor]:
        """Weighted terms of the kind's own, such as regularizers, by name; `progress` is the share of steps done."""
        return {}

    def views(self, columns: Sequence[Any]) -> Callable[[Any], list[View]] | None:
        """Other ways to score the batch, on which list objectives are also taken.

        Called before `encode`, because a model writes into its features: what a view needs of them is read first.
        """
        return None

    def features(self, student: Any, columns: Sequence[list[str]]) -> list[Any]:
        """Columns of texts, the query's first, as the trainer hands them to `encode`."""
        from sentence_transformers.util import batch_to_device

        batch = []
        for place, column in enumerate(columns):
            role: Role = "document" if place else "query"
            features = student.model.preprocess(column, prompt=student.prompt(role) or None, task=role)
            features.setdefault("task", role)
            batch.append(batch_to_device(features, student.model.device))
        return batch


class ColumnScorer(Scorer):
    """Documents are encoded with the queries: columns query, document_1 to document_n."""

    @abstractmethod
    def across(self, encoded: Any, places: Tensor) -> Tensor:
        """(batch, batch) float32 scores of each query with the document at each other query's place.

        `places` are (batch,) int64: the column of each query's document, from 0.
        """

    def own_documents(self, encoded: Any, batch: ListBatch) -> Tensor:
        """(batch, batch) scores."""
        return self.across(encoded, batch.positives.clamp(min=0))

    def batch_documents(self, encoded: Any, batch: ListBatch) -> tuple[Tensor, np.ndarray]:
        """All documents of all lists, column by column."""
        count, columns = batch.documents.shape
        places = torch.arange(columns)[:, None].expand(columns, count)
        return torch.cat([self.across(encoded, column) for column in places], dim=1), batch.documents.T.reshape(-1)


class VectorScorer(ColumnScorer):
    """Inner products of single vectors, dense or over the vocabulary; `cosine` makes them unit vectors first."""

    def __init__(self, cosine: bool) -> None:
        self.cosine = cosine

    def lists(self, encoded: Sequence[Tensor], batch: ListBatch | None = None) -> Tensor:
        """(batch, n) inner products."""
        queries, *documents = (_unit(side, self.cosine) for side in encoded)
        return torch.stack([(queries * side).sum(dim=1) for side in documents], dim=1)

    def across(self, encoded: Sequence[Tensor], places: Tensor) -> Tensor:
        """(batch, batch) inner products."""
        queries, *documents = (_unit(side, self.cosine) for side in encoded)
        return queries @ torch.stack(documents, dim=1)[torch.arange(len(places)), places].T


class StoredVectorScorer(Scorer):
    """Inner products of one encoded column with stored document vectors, so that a list may be the whole corpus.

    Args:
        cosine: Make the queries unit vectors, whether or not the model's last module does.
        documents: (corpus, d) document vectors; None for stages without lists.
    """

    has_embeddings = True

    def __init__(self, cosine: bool, documents: np.ndarray | None = None) -> None:
        self.cosine, self._documents = cosine, documents
        self._corpus: Tensor | None = None

    def prepared(self, encoded: Sequence[Tensor]) -> Tensor:
        """(batch, d) float32 queries, of length 1 for cosine students."""
        return _unit(encoded[0], self.cosine)

    def embeddings(self, encoded: Tensor) -> Tensor:
        """The queries."""
        return encoded

    def lists(self, encoded: Tensor, batch: ListBatch) -> Tensor:
        """(batch, n) inner products."""
        own = self._vectors(np.maximum(batch.documents, 0), encoded)
        return torch.cat([torch.einsum("bd,bnd->bn", encoded, own), encoded @ self._shared(batch, encoded).T], dim=1)

    def own_documents(self, encoded: Tensor, batch: ListBatch) -> Tensor:
        """(batch, batch) inner products."""
        return encoded @ self._vectors(np.maximum(batch.own, 0), encoded).T

    def _shared(self, batch: ListBatch, like: Tensor) -> Tensor:
        """(m, d) vectors of the documents that the batch shares; the whole corpus is kept on the device."""
        if not batch.is_whole:
            return self._vectors(batch.shared, like)
        if self._corpus is None:
            self._corpus = self._vectors(slice(None), like)
        return self._corpus

    def _vectors(self, rows: np.ndarray | slice, like: Tensor) -> Tensor:
        """Stored vectors of some documents, on the device of a tensor."""
        if self._documents is None:
            raise UserError("list objectives need candidates with teacher scores and stored documents.")
        return as_float32(self._documents[rows], like.device)


def _unit(embeddings: Tensor, cosine: bool) -> Tensor:
    """float32, of length 1 for cosine students."""
    return nn.functional.normalize(embeddings.float(), dim=1) if cosine else embeddings.float()
