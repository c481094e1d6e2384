"""Objectives over the teacher's preference between two candidates."""

from __future__ import annotations

import math

import torch
from torch import Tensor
from torch.nn.functional import softplus

from retrodistill.core.errors import UserError, unknown
from retrodistill.objectives.masks import at_least_float32, check_lists, full_mask, mean_over_lists
from retrodistill.objectives.registry import objective

WEIGHTINGS = ("lambdarank", "ndcg-loss2", "ndcg-loss2++")
WIDEST = 1024  # candidates: 64 such lists take 256 MiB per (batch, n, n) tensor, and training holds several


def check_width(candidates: int) -> None:
    """Reject lists whose pairs would not fit into memory.

    Raises:
        UserError: More than `WIDEST` candidates.
    """
    if candidates > WIDEST:
        raise UserError(
            f"lists of {candidates} candidates; objectives over pairs take at most {WIDEST}: lower candidates.depth, "
            "or take listnet, listmle or pld."
        )


@objective("ranknet", "logistic loss of every pair that the teacher orders (Burges et al. 2005)", has_pairs=True)
def ranknet(scores: Tensor, targets: Tensor, mask: Tensor | None = None) -> Tensor:
    """RankNet: logistic loss of every pair that the teacher orders (Burges et al. 2005, ICML).

    ``mean over t_i > t_j of log(1 + exp(-(s_i - s_j)))``: only the teacher's order counts. Ties form no pair.

    Args:
        scores: (batch, n) student scores over their temperature.
        targets: (batch, n) teacher scores, higher is better. Masked positions may hold any value, NaN included.
        mask: (batch, n) bool, true at positions that hold a candidate.

    Returns:
        Scalar float32 in nats: the mean over all ordered pairs of the batch; 0 if there are none.

    Raises:
        UserError: The shapes differ, or lists too wide for their pairs.
    """
    scores, targets, valid = _checked(scores, targets, mask)
    ordered = _ordered(targets, valid)
    losses = softplus(scores[:, None, :] - scores[:, :, None])
    return losses.masked_fill(~ordered, 0.0).sum() / ordered.sum().clamp(min=1)


@objective(
    "lambdaloss", "the same pairs, each weighed by what it may change in nDCG (Wang et al. 2018)", has_pairs=True
)
def lambda_loss(
    scores: Tensor,
    targets: Tensor,
    mask: Tensor | None = None,
    *,
    gains: Tensor | None = None,
    weighting: str = "ndcg-loss2++",
    mu: float = 10.0,
) -> Tensor:
    """LambdaLoss: RankNet's pairs, each weighted by its effect on nDCG (Wang et al. 2018, CIKM, eqs. 14-17).

    ``sum over t_i > t_j of w_ij log2(1 + exp(-(s_i - s_j)))`` with the gains G over the ideal DCG, discounts
    D(r) = log2(1 + r) at the student's present ranks, and

    - ``lambdarank``: ``w_ij = |G_i - G_j| |1/D(r_i) - 1/D(r_j)|``,
    - ``ndcg-loss2``: ``w_ij = |G_i - G_j| |1/D(|r_i - r_j|) - 1/D(|r_i - r_j| + 1)|``,
    - ``ndcg-loss2++``: the former plus `mu` times the latter.

    Distillation has no grades. By default the gain is ``exp(t_i - max t)``, DCG's exponential gain of the teacher's
    logits: the teacher's temperature sets how fast it falls. Weights carry no gradient.

    Args:
        scores: (batch, n) student scores over their temperature.
        targets: (batch, n) teacher scores over theirs, higher is better. Masked positions may hold any value, NaN
            included.
        mask: (batch, n) bool, true at positions that hold a candidate.
        gains: (batch, n) gains, 0 or more, that replace the teacher's; for grades use 2^grade - 1.
        weighting: One of `WEIGHTINGS`.
        mu: Weight of NDCG-Loss2 in ``ndcg-loss2++``.

    Returns:
        Scalar float32 in bits: the sum over a list's pairs, averaged over the lists with at least two candidates.

    Raises:
        UserError: The shapes differ, unknown `weighting`, or lists too wide for their pairs.
    """
    if weighting not in WEIGHTINGS:
        raise unknown("weighting", weighting, WEIGHTINGS)
    scores, targets, valid = _checked(scores, targets, mask)
    with torch.no_grad():
        best = targets.masked_fill(~valid, -torch.inf).amax(dim=1, keepdim=True)
        given = (targets - torch.nan_to_num(best, neginf=0.0)).exp() if gains is None else at_least_float32(gains)
        given = given.masked_fill(~valid, 0.0)
        weights = _weights(scores.masked_fill(~valid, -torch.inf), given, weighting, mu)
    losses = weights * softplus(scores[:, None, :] - scores[:, :, None]) / math.log(2)
    summed = losses.masked_fill(~_ordered(targets, valid), 0.0).sum(dim=(1, 2))
    return mean_over_lists(summed, valid.sum(dim=1) >= 2)


def _weights(scores: Tensor, gains: Tensor, weighting: str, mu: float) -> Tensor:
    """(batch, n, n) weights of pairs; scores are -inf and gains 0 at masked positions."""
    ranks = 1 + scores.argsort(dim=1, descending=True, stable=True).argsort(dim=1).to(gains.dtype)
    places = torch.arange(1, gains.shape[1] + 1, device=gains.device, dtype=gains.dtype)
    ideal = (gains.sort(dim=1, descending=True).values / torch.log2(1 + places)).sum(dim=1, keepdim=True)
    shares = gains / ideal.clamp(min=1e-10)
    apart = (shares[:, :, None] - shares[:, None, :]).abs()
    discounts = 1 / torch.log2(1 + ranks)
    swapped = (discounts[:, :, None] - discounts[:, None, :]).abs()
    # The minimum avoids log2(1) = 0 on the diagonal, which is not a pair.
    distance = (ranks[:, :, None] - ranks[:, None, :]).abs().clamp(min=1)
    stepped = 1 / torch.log2(1 + distance) - 1 / torch.log2(2 + distance)
    if weighting == "lambdarank":
        return apart * swapped
    return apart * (stepped if weighting == "ndcg-loss2" else swapped + mu * stepped)


def _checked(scores: Tensor, targets: Tensor, mask: Tensor | None) -> tuple[Tensor, Tensor, Tensor]:
    """Scores and targets in float32 with 0 at masked positions, and the mask."""
    check_lists(scores, targets)
    check_width(scores.shape[1])
    valid = full_mask(scores, mask)
    cleaned = (at_least_float32(one).masked_fill(~valid, 0.0) for one in (scores, targets))
    return *cleaned, valid  # type: ignore[return-value]


def _ordered(targets: Tensor, valid: Tensor) -> Tensor:
    """(batch, n, n) bool: the teacher ranks i above j."""
    return (targets[:, :, None] > targets[:, None, :]) & valid[:, :, None] & valid[:, None, :]
