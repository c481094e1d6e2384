"""Objectives over the order of a list, under the Plackett-Luce model. `objectives.lists` has their contract."""

from __future__ import annotations

import torch
from torch import Tensor

from retrodistill.objectives.lists import (
    NOTHING,
    check_lists,
    check_positives,
    cleaned,
    full_mask,
    log_softmax,
    mean_over_lists,
)
from retrodistill.objectives.registry import objective


def plackett_luce(scores: Tensor, order: Tensor, weights: Tensor | None = None, mask: Tensor | None = None) -> Tensor:
    """Weighted negative log-likelihood of given orders, choice by choice.

    ``sum_k a_k [logsumexp_{l >= k} s_pi(l) - s_pi(k)]`` (Plackett 1975; Luce 1959). Weights (1, 0, ..) give InfoNCE
    of the first choice. Weights of 1 give ListMLE.

    Args:
        scores: (batch, n) student scores over their temperature.
        order: (batch, n) integer positions pi, first choice first, masked positions last.
        weights: (batch, n) weights of the choices, in their order; None means 1.
        mask: (batch, n) bool, true at positions that hold a candidate.

    Returns:
        (batch,) float32 in nats, 0 or more for weights of 0 or more; masked positions add 0.
    """
    valid = full_mask(scores, mask)
    ordered = cleaned(scores, valid, NOTHING).gather(1, order)
    counted = valid.gather(1, order)
    left = ordered.flip(1).logcumsumexp(dim=1).flip(1)
    losses = left - ordered if weights is None else weights * (left - ordered)
    return losses.masked_fill(~counted, 0.0).sum(dim=1)


@objective("listmle", "likelihood of the teacher's whole order (Xia et al. 2008)")
def listmle(scores: Tensor, targets: Tensor, mask: Tensor | None = None) -> Tensor:
    """ListMLE: negative log-likelihood of the teacher's order, in nats (Xia et al. 2008, ICML).

    ``mean_b sum_k [logsumexp_{l >= k} s_pi(l) - s_pi(k)]``, pi the teacher's order, ties in the order of the list.
    Every position has the same weight, so the tail dominates long lists: keep lists short, or use `pld`.
    """
    check_lists(scores, targets)
    valid = full_mask(scores, mask)
    return mean_over_lists(plackett_luce(scores, _order(targets, valid), mask=valid), valid.sum(dim=1) >= 2)


@objective(
    "pld",
    "likelihood of the teacher's order, each choice weighted by its confidence (arXiv 2506.12542)",
    ("scores", "targets", "mask", "positives"),
)
def pld(scores: Tensor, targets: Tensor, mask: Tensor | None = None, positives: Tensor | None = None) -> Tensor:
    """Plackett-Luce distillation: the teacher's order, weighted by its confidence, in nats (arXiv 2506.12542).

    ``mean_b sum_k a_k [logsumexp_{l >= k} s_pi(l) - s_pi(k)]`` with a = softmax(t)_pi and pi the positive first, then
    the teacher's order. Where no positive is known, the teacher's best comes first.
    """
    check_lists(scores, targets)
    valid = full_mask(scores, mask)
    order = _order(targets, valid)
    if positives is not None:
        check_positives(scores, positives)
        known = (positives >= 0) & valid.gather(1, positives.clamp(min=0)[:, None]).squeeze(1)
        first = (order == positives[:, None]) & known[:, None]
        order = order.gather(1, (~first).to(torch.int8).argsort(dim=1, stable=True))
    weights = log_softmax(targets, valid, 1.0).exp().gather(1, order)
    return mean_over_lists(plackett_luce(scores, order, weights, valid), valid.sum(dim=1) >= 2)


def _order(targets: Tensor, valid: Tensor) -> Tensor:
    """(batch, n) positions, best first, ties in the order of the list, masked positions last."""
    return cleaned(targets, valid, -torch.inf).argsort(dim=1, descending=True, stable=True)
