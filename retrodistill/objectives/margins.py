"""Objectives over score differences within a list."""

from __future__ import annotations

from functools import partial

import torch
from torch import Tensor

from retrodistill.core.errors import unknown
from retrodistill.objectives.masks import at_least_float32, check_lists, check_positives, full_mask
from retrodistill.objectives.registry import objective

PAIRS = ("positive", "all")


@objective("margin-mse", "squared difference of margins, the teacher's best against each (arXiv 2010.02666)")
def margin_mse(scores: Tensor, targets: Tensor, mask: Tensor | None = None, *, pairs: str = "positive") -> Tensor:
    """Mean squared difference between the student's margins and the teacher's.

    ``mean(((s_i - s_j) - (t_i - t_j))^2)`` with signed margins of raw scores: no sigmoid, no temperature, no
    absolute value (Hofstaetter et al. 2020, arXiv 2010.02666, eq. 8).

    Args:
        scores: (batch, n) student scores, on any scale that the student can learn.
        targets: (batch, n) raw teacher scores, higher is better. Masked positions may hold any value, NaN included.
        mask: (batch, n) bool, true at positions that hold a candidate.
        pairs: ``positive``: the teacher's best candidate of each list against each other one, the paper's form with
            the teacher as judge; ``all``: every pair of candidates.

    Returns:
        Scalar float32: the mean over all margins of the batch; 0 where no list has two candidates.

    Raises:
        UserError: The shapes differ, or unknown `pairs`.
    """
    if pairs not in PAIRS:
        raise unknown("choice of pairs", pairs, PAIRS)
    check_lists(scores, targets)
    valid = full_mask(scores, mask)
    scores = at_least_float32(scores)
    targets = at_least_float32(targets).masked_fill(~valid, 0.0)
    # A difference of margins is a difference of residuals: (s_i - s_j) - (t_i - t_j) = r_i - r_j.
    residuals = (scores - targets).masked_fill(~valid, 0.0)
    if pairs == "all":
        # sum_{i<j} (r_i - r_j)^2 = n sum_i (r_i - mean r)^2: no (batch, n, n) tensor, so a list may be a whole corpus.
        sizes = valid.sum(dim=1)
        means = residuals.sum(dim=1) / sizes.clamp(min=1)
        spreads = ((residuals - means[:, None]) ** 2).masked_fill(~valid, 0.0).sum(dim=1)
        return (sizes * spreads).sum() / (sizes * (sizes - 1) // 2).sum().clamp(min=1)
    best = targets.masked_fill(~valid, -torch.inf).argmax(dim=1, keepdim=True)
    counted = valid.scatter(1, best, value=False)
    margins = residuals.gather(1, best) - residuals
    return (margins**2).masked_fill(~counted, 0.0).sum() / counted.sum().clamp(min=1)


objective("margin-mse-all", "squared difference of margins over all pairs of a list")(partial(margin_mse, pairs="all"))


@objective(
    "in-batch-margin-mse",
    "margins of a text's own document against the batch's others (TAS-B, arXiv 2104.06967)",
    ("batch_scores", "batch_targets", "batch_positives", "batch_mask"),
    needs_positives=True,
    control="in-batch",
)
def in_batch_margin_mse(scores: Tensor, targets: Tensor, positives: Tensor, mask: Tensor | None = None) -> Tensor:
    """Margin-MSE of each text's own document against the other documents of its batch (TAS-B, arXiv 2104.06967).

    ``mean(((s_i+ - s_ij) - (t_i+ - t_ij))^2)`` over texts i and the batch's documents j: the second half of TAS-B's
    dual supervision, where a teacher scores documents that were mined for other texts of the same topic.

    Args:
        scores: (batch, m) student scores of each text with each document of the batch.
        targets: (batch, m) raw teacher scores, higher is better. Masked positions may hold any value, NaN included.
        positives: (batch,) int64 position of the text's own document; -1 for a text without one, which adds no margin.
        mask: (batch, m) bool, true where a document counts.

    Returns:
        Scalar float32: the mean over all margins of the batch; 0 if there are none.

    Raises:
        UserError: The shapes differ.
    """
    check_lists(scores, targets)
    check_positives(scores, positives)
    known = positives >= 0
    own = positives.clamp(min=0)[:, None]
    valid = full_mask(scores, mask)
    counted = valid & known[:, None] & valid.gather(1, own)
    residuals = at_least_float32(scores) - at_least_float32(targets).masked_fill(~valid, 0.0)
    margins = (residuals.gather(1, own) - residuals).masked_fill(~counted, 0.0)
    return (margins**2).sum() / counted.scatter(1, own, value=False).sum().clamp(min=1)
