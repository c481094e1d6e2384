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


def at_least_float32(scores: Tensor) -> Tensor:
    """Scores in float32 (float64 stays): half precision overflows at 65504 and squares badly."""
    return scores.to(torch.promote_types(scores.dtype, torch.float32))


def log_softmax(scores: Tensor, mask: Tensor, temperature: float) -> Tensor:
    """(batch, n) log-probabilities of scores / temperature over the unmasked places, about -1e30 in masked ones.

    Raises:
        UserError: A temperature that is not above 0.
    """
    if not temperature > 0:
        raise UserError(f"temperature={temperature}: it lies above 0.")
    return torch.log_softmax((at_least_float32(scores) / temperature).masked_fill(~mask, _NOTHING), dim=-1)


def mean_over_lists(values: Tensor, usable: Tensor) -> Tensor:
    """Mean of (batch,) values over the usable lists; 0, with a gradient of 0, where none is."""
    return torch.where(usable, values, torch.zeros_like(values)).sum() / usable.sum().clamp(min=1)
