"""Masked lists: what every (batch, n) objective stands on."""

from __future__ import annotations

import torch
from torch import Tensor

from retrodistill.errors import UserError

_NOTHING = -1e30  # finite, so that 0 x it stays 0 and gradients stay finite; float32 lists reach no further than 1e4


def full_mask(scores: Tensor, mask: Tensor | None) -> Tensor:
    """(batch, n) bool: `mask`, or all true where there is none.

    Raises:
        UserError: Another shape than the scores'.
    """
    if mask is None:
        return torch.ones_like(scores, dtype=torch.bool)
    if mask.shape != scores.shape:
        raise UserError(f"mask of shape {tuple(mask.shape)} for scores of shape {tuple(scores.shape)}; they are equal.")
    return mask.bool()


def check_lists(scores: Tensor, targets: Tensor) -> None:
    """Refuse lists that do not fit.

    Raises:
        UserError: Not two tables (batch, n) of one shape.
    """
    if scores.ndim != 2 or scores.shape != targets.shape:
        raise UserError(
            f"scores of shape {tuple(scores.shape)} and teacher scores of shape {tuple(targets.shape)}; both are "
            "(batch, candidates)."
        )


def log_softmax(scores: Tensor, mask: Tensor) -> Tensor:
    """(batch, n) log-probabilities over the unmasked places of each row, about -1e30 in masked ones."""
    return torch.log_softmax(scores.float().masked_fill(~mask, _NOTHING), dim=-1)


def mean_over_lists(values: Tensor, usable: Tensor) -> Tensor:
    """Mean of (batch,) values over the usable lists; 0, with a gradient of 0, where none is."""
    return torch.where(usable, values, torch.zeros_like(values)).sum() / usable.sum().clamp(min=1)
