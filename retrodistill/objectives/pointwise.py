"""Objectives over each candidate's score alone."""

from __future__ import annotations

from functools import partial

from torch import Tensor, nn

from retrodistill.objectives.masks import at_least_float32, check_lists, full_mask
from retrodistill.objectives.registry import objective


def mse(scores: Tensor, targets: Tensor, mask: Tensor | None = None, *, free_zero: bool = False) -> Tensor:
    """Squared difference of scores (Hinton et al. 2015, arXiv 1503.02531, section 2.1).

    ``mean((s_i - t_i + c)^2)`` with c = 0. With `free_zero`, c fits the batch best: minus the mean of s_i - t_i. Both
    sides need one scale and, without `free_zero`, one zero: cosines can never reach logits around -8. Unlike with
    `margin_mse`, scores stay comparable across queries.

    Args:
        scores: (batch, n) student scores.
        targets: (batch, n) teacher scores, higher is better. Masked positions may hold any value, NaN included.
        mask: (batch, n) bool, true at positions that hold a candidate.
        free_zero: Ignore one constant offset for the whole batch.

    Returns:
        Scalar float32: the mean over all candidates of the lists with at least two; 0 if there is no such list.

    Raises:
        UserError: The shapes differ.
    """
    valid = _listed(scores, targets, mask)
    count = valid.sum().clamp(min=1)
    residuals = (at_least_float32(scores) - at_least_float32(targets)).masked_fill(~valid, 0.0)
    if free_zero:
        residuals = (residuals - residuals.sum() / count).masked_fill(~valid, 0.0)
    return (residuals**2).sum() / count


@objective(
    "bce",
    "cross-entropy of each candidate alone with a soft label from 0 to 1 (Trans-Encoder, arXiv 2109.13059)",
    ("scores", "labels", "mask"),
)
def binary_cross_entropy(scores: Tensor, labels: Tensor, mask: Tensor | None = None) -> Tensor:
    """Cross-entropy of each candidate with its soft label (Trans-Encoder, ICLR 2022, arXiv 2109.13059).

    ``mean(log(1 + exp(s_i)) - y_i s_i)``, which is ``-y log sigmoid(s) - (1 - y) log(1 - sigmoid(s))``. Its minimum
    is the entropy of the labels, not 0. Unlike margin objectives, it depends on the absolute level of the scores.

    Args:
        scores: (batch, n) student scores, raw logits.
        labels: (batch, n) from 0 to 1. Masked positions may hold any value, NaN included.
        mask: (batch, n) bool, true at positions that hold a candidate.

    Returns:
        Scalar float32: the mean over all candidates of the lists with at least two; 0 if there is no such list.

    Raises:
        UserError: The shapes differ.
    """
    valid = _listed(scores, labels, mask)
    logits = at_least_float32(scores).masked_fill(~valid, 0.0)
    wanted = at_least_float32(labels).masked_fill(~valid, 0.0)
    losses = (nn.functional.softplus(logits) - wanted * logits).masked_fill(~valid, 0.0)
    return losses.sum() / valid.sum().clamp(min=1)


objective("mse", "squared difference of the scores themselves, up to one constant for the batch")(
    partial(mse, free_zero=True)
)


def _listed(scores: Tensor, targets: Tensor, mask: Tensor | None) -> Tensor:
    """(batch, n) bool: the candidates of lists with at least two."""
    check_lists(scores, targets)
    valid = full_mask(scores, mask)
    return valid & (valid.sum(dim=1, keepdim=True) >= 2)
