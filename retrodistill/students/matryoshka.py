"""Matryoshka students: the leading dimensions of a vector are a vector (Kusupati et al. 2022, arXiv 2205.13147)."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from retrodistill.core.errors import UserError
from retrodistill.encoders.vectors import check_dimensions, leading


class LeadingVectors:
    """Stored vectors of which only the leading dimensions are seen; they are cut where they are read, not before.

    What a loss holds against a truncated student must be truncated as its index will be: documents' vectors and the
    teacher's embeddings, made unit vectors again where the similarity is the cosine.

    Args:
        vectors: (n, d) float; memory-mapped if you like.
        dimensions: How many leading ones.
        unit: Make them unit vectors again.

    Raises:
        UserError: More dimensions than there are, or none.
    """

    def __init__(self, vectors: np.ndarray, dimensions: int, *, unit: bool) -> None:
        check_dimensions([dimensions], vectors.shape[1])
        self._vectors, self._dimensions, self._unit = vectors, dimensions, unit

    @property
    def shape(self) -> tuple[int, int]:
        """(n, dimensions)."""
        return len(self._vectors), self._dimensions

    def __len__(self) -> int:
        return len(self._vectors)

    def __getitem__(self, rows: Any) -> np.ndarray:
        """(..., dimensions) of rows, one array of indices of any shape."""
        found = self._vectors[rows]
        flat = leading(found.reshape(-1, found.shape[-1]), self._dimensions, unit=self._unit)
        return flat.reshape(*found.shape[:-1], self._dimensions)

    def __array__(self, dtype: Any = None, copy: bool | None = None) -> np.ndarray:
        return np.asarray(self[:], dtype=dtype)


class MatryoshkaLoss(nn.Module):
    """Applies a loss to the whole vector and to its leading dimensions: ``sum_d w_d L(v[:d])``; the model runs once.

    sentence-transformers' own wrapper cuts what the model gives and labels that are embeddings, not what a loss has
    stored, and cannot add up losses that come as named terms.

    Args:
        model: The student, which gives one vector a text.
        losses: By number of dimensions, that of whole vectors among them: what is learned there, on stored vectors of
            as many dimensions (`LeadingVectors`). They take embeddings as `retrodistill.training.losses` do, and make
            unit vectors where they want them.
        weights: By number of dimensions; 1 by default.
        start: The student as the stage began, for ``lwf``.

    Raises:
        UserError: No loss for whole vectors, dimensions that the student does not have, or a weight for others.
    """

    def __init__(
        self,
        model: Any,
        losses: Mapping[int, nn.Module],
        *,
        weights: Mapping[int, float] | None = None,
        start: nn.Module | None = None,
    ) -> None:
        super().__init__()
        whole = int(model.get_embedding_dimension())
        check_dimensions(list(losses), whole)
        if whole not in losses or not set(weights or {}) <= set(losses):
            raise UserError(
                f"losses for {sorted(losses)} dimensions, weights for {sorted(weights or {})}; whole vectors of "
                f"{whole} are among the losses, and weights are for some of these."
            )
        self.model, self._start = model, start
        self.losses = nn.ModuleDict({str(cut): losses[cut] for cut in sorted(losses, reverse=True)})
        self._whole = whole
        self._weights = {int(cut): float((weights or {}).get(int(cut), 1.0)) for cut in self.losses}

    def forward(self, sentence_features: Iterable[dict[str, Tensor]], labels: Tensor) -> dict[str, Tensor]:
        """Terms by name, those of leading dimensions as ``name@64``."""
        columns = list(sentence_features)
        start = None
        if self._start is not None:
            self._start.eval()
            with torch.no_grad():  # a model writes into the features that it is given
                start = [self._start(dict(features))["sentence_embedding"] for features in columns]
        return self.compute_loss_from_embeddings(
            [self.model(features)["sentence_embedding"] for features in columns], labels, start
        )

    def compute_loss_from_embeddings(
        self, embeddings: list[Tensor], labels: Tensor, start_embeddings: list[Tensor] | None = None
    ) -> dict[str, Tensor]:
        """As `forward`, of (batch, d) whole vectors of each column."""
        parts: dict[str, Tensor] = {}
        for cut, weight in self._weights.items():
            loss: Any = self.losses[str(cut)]
            start = None if start_embeddings is None else [column[:, :cut] for column in start_embeddings]
            found = loss.compute_loss_from_embeddings([column[:, :cut] for column in embeddings], labels, start)
            suffix = "" if cut == self._whole else f"@{cut}"
            parts |= {name + suffix: weight * value for name, value in found.items()}
        return parts

    def get_config_dict(self) -> dict[str, Any]:
        """Weights by number of dimensions, for the model card."""
        return {"matryoshka": self._weights}
