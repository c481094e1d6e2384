"""Scorers: from the encoded columns of a batch to the scores of its lists. Each kind of student has one.

Every list objective sees (batch, n) float32 scores, whoever made them: that is why any of them trains any student.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor, nn

if TYPE_CHECKING:
    from retrodistill.encoders.contract import Role


class Scorer(ABC):
    """Turns a batch's columns, the query and its n documents, into scores.

    Attributes:
        has_vectors: Whether a query can be scored with documents of other queries without another forward pass.
    """

    has_vectors = True

    @abstractmethod
    def encode(self, model: nn.Module, columns: Sequence[Any]) -> list[Any]:
        """What the model makes of each column."""

    @abstractmethod
    def lists(self, encoded: Sequence[Any]) -> Tensor:
        """(batch, n) float32 scores of each query with its own documents."""

    @abstractmethod
    def across(self, encoded: Sequence[Any], places: Tensor) -> Tensor:
        """(batch, batch) float32 scores of each query with the document at each other query's place.

        Args:
            encoded: As `encode` gives.
            places: (batch,) int64 column of each query's own document, from 0.
        """

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


class VectorScorer(Scorer):
    """Inner products of single vectors: dense students, and sparse ones over the vocabulary.

    Args:
        cosine: Make the vectors unit vectors, whether or not the model's last module does.
    """

    def __init__(self, cosine: bool) -> None:
        self.cosine = cosine

    def encode(self, model: nn.Module, columns: Sequence[Any]) -> list[Tensor]:
        """(batch, d) of each column."""
        return [model(features)["sentence_embedding"] for features in columns]

    def lists(self, encoded: Sequence[Tensor]) -> Tensor:
        """(batch, n) inner products."""
        queries, *sides = (self.unit(side) for side in encoded)
        return torch.stack([(queries * side).sum(dim=1) for side in sides], dim=1)

    def across(self, encoded: Sequence[Tensor], places: Tensor) -> Tensor:
        """(batch, batch) inner products."""
        queries, *sides = (self.unit(side) for side in encoded)
        return queries @ torch.stack(sides, dim=1)[torch.arange(len(places)), places].T

    def unit(self, embeddings: Tensor) -> Tensor:
        """float32, of length 1 for cosine students."""
        return nn.functional.normalize(embeddings.float(), dim=1) if self.cosine else embeddings.float()
