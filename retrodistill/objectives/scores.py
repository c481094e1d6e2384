"""Objectives over each score alone, score differences, or the order of pairs. `objectives.lists` has their contract."""

from __future__ import annotations

import math
from functools import partial

import torch
from torch import Tensor
from torch.nn.functional import softplus

from retrodistill.core.errors import UserError, unknown
from retrodistill.objectives.lists import at_least_float32, check_positives, cleaned, mask_of, mean_over_lists
from retrodistill.objectives.registry import objective

PAIRS = ("positive", "all")
WEIGHTINGS = ("lambdarank", "ndcg-loss2", "ndcg-loss2++")
WIDEST = 1024  # candidates: 64 such lists take 256 MiB per (batch, n, n) tensor, and training holds several


def mse(scores: Tensor, targets: Tensor, mask: Tensor | None = None, *, free_zero: bool = False) -> Tensor:
    """Squared difference of scores (Hinton et al. 2015, arXiv 1503.02531, section 2.1).

    ``mean((s_i - t_i + c)^2)`` over all candidates of the batch, with c = 0. With `free_zero`, c fits the batch best:
    minus the mean of s_i - t_i. Both sides need one scale and, without `free_zero`, one zero: cosines can never reach
    logits around -8. Unlike with `margin_mse`, scores stay comparable across queries.
    """
    valid = _listed(scores, targets, mask)
    count = valid.sum().clamp(min=1)
    residuals = (at_least_float32(scores) - at_least_float32(targets)).masked_fill(~valid, 0.0)
    if free_zero:
        residuals = (residuals - residuals.sum() / count).masked_fill(~valid, 0.0)
    return (residuals**2).sum() / count


objective("mse", "squared difference of the scores themselves, up to one constant for the batch")(
    partial(mse, free_zero=True)
)


@objective(
    "bce",
    "cross-entropy of each candidate alone with a soft label from 0 to 1 (Trans-Encoder, arXiv 2109.13059)",
    ("scores", "labels", "mask"),
)
def binary_cross_entropy(scores: Tensor, labels: Tensor, mask: Tensor | None = None) -> Tensor:
    """Cross-entropy of each candidate with its soft label (Trans-Encoder, ICLR 2022, arXiv 2109.13059).

    ``mean(log(1 + exp(s_i)) - y_i s_i)`` over all candidates of the batch, which is
    ``-y log sigmoid(s) - (1 - y) log(1 - sigmoid(s))`` for labels y from 0 to 1 and raw logits s. Its minimum is the
    entropy of the labels, not 0. Unlike margin objectives, it depends on the absolute level of the scores.
    """
    valid = _listed(scores, labels, mask)
    logits = cleaned(scores, valid)
    losses = (softplus(logits) - cleaned(labels, valid) * logits).masked_fill(~valid, 0.0)
    return losses.sum() / valid.sum().clamp(min=1)


@objective(
    "margin-mse",
    "squared difference of margins, the positive (or the teacher's best) against each (arXiv 2010.02666)",
    ("scores", "targets", "mask", "positives"),
)
def margin_mse(
    scores: Tensor,
    targets: Tensor,
    mask: Tensor | None = None,
    positives: Tensor | None = None,
    *,
    pairs: str = "positive",
) -> Tensor:
    """Mean squared difference between the student's margins and the teacher's.

    ``mean(((s_i - s_j) - (t_i - t_j))^2)`` over all margins of the batch, with signed margins of raw scores: no
    sigmoid, no temperature, no absolute value (Hofstaetter et al. 2020, arXiv 2010.02666, eq. 8). `pairs` is
    ``positive`` for the positive of each list against each other candidate, the paper's form, or ``all`` for every pair
    of candidates. `positives` are (batch,) places in the lists; where it is -1, the teacher's best is the positive.
    """
    if pairs not in PAIRS:
        raise unknown("choice of pairs", pairs, PAIRS)
    valid = mask_of(scores, targets, mask)
    targets = cleaned(targets, valid)
    # A difference of margins is a difference of residuals: (s_i - s_j) - (t_i - t_j) = r_i - r_j.
    residuals = (at_least_float32(scores) - targets).masked_fill(~valid, 0.0)
    if pairs == "all":
        # sum_{i<j} (r_i - r_j)^2 = n sum_i (r_i - mean r)^2: no (batch, n, n) tensor, so a list may be a whole corpus.
        sizes = valid.sum(dim=1)
        means = residuals.sum(dim=1) / sizes.clamp(min=1)
        spreads = ((residuals - means[:, None]) ** 2).masked_fill(~valid, 0.0).sum(dim=1)
        return (sizes * spreads).sum() / (sizes * (sizes - 1) // 2).sum().clamp(min=1)
    best = targets.masked_fill(~valid, -torch.inf).argmax(dim=1)
    if positives is not None:
        check_positives(scores, positives)
        best = torch.where(positives >= 0, positives, best)
    counted = valid.scatter(1, best[:, None], value=False) & valid.gather(1, best[:, None])
    margins = residuals.gather(1, best[:, None]) - residuals
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

    ``mean(((s_i+ - s_ij) - (t_i+ - t_ij))^2)`` over texts i and the m documents j of the batch: the second half of
    TAS-B's dual supervision, where a teacher scores documents that were mined for other texts of the same topic. All
    tables are (batch, m). The scores are raw. A text without a positive adds no margin.
    """
    valid = mask_of(scores, targets, mask)
    check_positives(scores, positives)
    own = positives.clamp(min=0)[:, None]
    counted = valid & (positives >= 0)[:, None] & valid.gather(1, own)
    residuals = at_least_float32(scores) - cleaned(targets, valid)
    margins = (residuals.gather(1, own) - residuals).masked_fill(~counted, 0.0)
    return (margins**2).sum() / counted.scatter(1, own, value=False).sum().clamp(min=1)


def check_width(candidates: int) -> None:
    """Reject lists of more than `WIDEST` candidates, whose pairs would not fit into memory."""
    if candidates > WIDEST:
        raise UserError(
            f"lists of {candidates} candidates; objectives over pairs take at most {WIDEST}: lower candidates.depth, "
            "or take listnet, listmle or pld."
        )


@objective("ranknet", "logistic loss of every pair that the teacher orders (Burges et al. 2005)", has_pairs=True)
def ranknet(scores: Tensor, targets: Tensor, mask: Tensor | None = None) -> Tensor:
    """RankNet: logistic loss of every pair that the teacher orders, in nats (Burges et al. 2005, ICML).

    ``mean over t_i > t_j of log(1 + exp(-(s_i - s_j)))`` over the pairs of the whole batch: only the teacher's order
    counts. Ties form no pair. Lists have at most `WIDEST` candidates.
    """
    losses, ordered, _ = _pairs(scores, targets, mask)
    return losses.masked_fill(~ordered, 0.0).sum() / ordered.sum().clamp(min=1)


@objective(
    "adr-mse",
    "squared error of the ranks, discounted as in DCG, for teachers that rank (Rank-DistiLLM, arXiv 2405.07920)",
    has_pairs=True,
)
def discounted_rank_mse(scores: Tensor, targets: Tensor, mask: Tensor | None = None) -> Tensor:
    """ADR-MSE, the approximate discounted rank MSE (Schlatt et al. 2025, ECIR, Rank-DistiLLM, arXiv 2405.07920).

    ``mean over i of (r_i - p_i)^2 / log2(1 + p_i)`` with the teacher's rank p_i and the student's smooth rank
    ``r_i = 1 + sum over j != i of sigmoid(s_j - s_i)``, over the candidates of the batch. Only the teacher's order
    counts. Candidates of equal scores, such as those below the window of a listwise judge, have the mean of their
    ranks. Lists have at most `WIDEST` candidates.
    """
    valid = _listed(scores, targets, mask)
    check_width(scores.shape[1])
    scores, targets = cleaned(scores, valid), cleaned(targets, valid)
    both = valid[:, :, None] & valid[:, None, :]
    smooth = 0.5 + torch.sigmoid(scores[:, None, :] - scores[:, :, None]).masked_fill(~both, 0.0).sum(dim=2)
    above = ((targets[:, None, :] > targets[:, :, None]) & both).sum(dim=2)
    equal = ((targets[:, None, :] == targets[:, :, None]) & both).sum(dim=2)
    ranks = 0.5 + above + equal.to(scores.dtype) / 2
    losses = ((smooth - ranks) ** 2 / torch.log2(1 + ranks)).masked_fill(~valid, 0.0)
    return losses.sum() / valid.sum().clamp(min=1)


@objective(
    "lambdaloss", "the same pairs, each weighted by what it may change in nDCG (Wang et al. 2018)", has_pairs=True
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
    """LambdaLoss: RankNet's pairs, each weighted by its effect on nDCG (Wang et al. 2018, CIKM, eqs. 14-17), in bits.

    ``sum over t_i > t_j of w_ij log2(1 + exp(-(s_i - s_j)))`` with the gains G over the ideal DCG, discounts
    D(r) = log2(1 + r) at the student's present ranks, and

    - ``lambdarank``: ``w_ij = |G_i - G_j| |1/D(r_i) - 1/D(r_j)|``,
    - ``ndcg-loss2``: ``w_ij = |G_i - G_j| |1/D(|r_i - r_j|) - 1/D(|r_i - r_j| + 1)|``,
    - ``ndcg-loss2++``: the former plus `mu` times the latter.

    Distillation has no grades. By default the gain is ``exp(t_i - max t)``, DCG's exponential gain of the teacher's
    logits: the teacher's temperature sets how fast it falls. `gains`, (batch, n) and 0 or more, replace it; for grades
    use 2^grade - 1. Weights carry no gradient. Lists have at most `WIDEST` candidates.
    """
    if weighting not in WEIGHTINGS:
        raise unknown("weighting", weighting, WEIGHTINGS)
    losses, ordered, valid = _pairs(scores, targets, mask)
    with torch.no_grad():
        if gains is None:
            targets = cleaned(targets, valid)
            best = targets.masked_fill(~valid, -torch.inf).amax(dim=1, keepdim=True)
            gains = (targets - torch.nan_to_num(best, neginf=0.0)).exp()
        weights = _weights(cleaned(scores, valid, -torch.inf), cleaned(gains, valid), weighting, mu)
    summed = (weights * losses / math.log(2)).masked_fill(~ordered, 0.0).sum(dim=(1, 2))
    return mean_over_lists(summed, valid.sum(dim=1) >= 2)


def _pairs(scores: Tensor, targets: Tensor, mask: Tensor | None) -> tuple[Tensor, Tensor, Tensor]:
    """(batch, n, n) logistic losses of pairs and bool (the teacher ranks i above j), and the (batch, n) full mask."""
    valid = mask_of(scores, targets, mask)
    check_width(scores.shape[1])
    scores, targets = cleaned(scores, valid), cleaned(targets, valid)
    ordered = (targets[:, :, None] > targets[:, None, :]) & valid[:, :, None] & valid[:, None, :]
    return softplus(scores[:, None, :] - scores[:, :, None]), ordered, valid


def _weights(scores: Tensor, gains: Tensor, weighting: str, mu: float) -> Tensor:
    """(batch, n, n) weights of pairs; scores are -inf and gains 0 at masked positions."""
    ranks = 1 + scores.argsort(dim=1, descending=True, stable=True).argsort(dim=1).to(gains.dtype)
    places = torch.arange(1, gains.shape[1] + 1, device=gains.device, dtype=gains.dtype)
    ideal = (gains.sort(dim=1, descending=True).values / torch.log2(1 + places)).sum(dim=1, keepdim=True)
    apart = _apart(gains / ideal.clamp(min=1e-10))
    swapped = _apart(1 / torch.log2(1 + ranks))
    distance = _apart(ranks).clamp(min=1)  # avoids log2(1) = 0 on the diagonal, which is not a pair
    stepped = 1 / torch.log2(1 + distance) - 1 / torch.log2(2 + distance)
    if weighting == "lambdarank":
        return apart * swapped
    return apart * (stepped if weighting == "ndcg-loss2" else swapped + mu * stepped)


def _apart(values: Tensor) -> Tensor:
    """(batch, n, n) absolute differences between the (batch, n) values of a list."""
    return (values[:, :, None] - values[:, None, :]).abs()


def _listed(scores: Tensor, targets: Tensor, mask: Tensor | None) -> Tensor:
    """(batch, n) bool: the candidates of lists with at least two."""
    valid = mask_of(scores, targets, mask)
    return valid & (valid.sum(dim=1, keepdim=True) >= 2)
