"""Objectives that transport one distribution over a list to another."""

from __future__ import annotations

import torch
from torch import Tensor

from retrodistill.core.errors import UserError
from retrodistill.objectives.masks import at_least_float32, check_lists, full_mask, log_softmax
from retrodistill.objectives.registry import objective


@objective("sinkhorn", "entropic transport between the batch's distributions (SinKD, arXiv 2402.17110)")
def sinkhorn(
    scores: Tensor, targets: Tensor, mask: Tensor | None = None, *, entropy: float = 0.1, iterations: int = 20
) -> Tensor:
    """SinKD: entropic transport between the batch's student and teacher distributions (COLING 2024, arXiv 2402.17110).

    ``1/b sum_ij P_ij C_ij`` with ``C_ij = sum_k |q_ik - p_jk|`` between the student's list i and the teacher's list j,
    and P = exp(-C / entropy) after `iterations` times scaling its rows, then its columns, to 1. (The authors' code
    sums instead of averaging, and multiplies by a constant.) Columns do not correspond across queries, so each list
    is first sorted in its teacher's order. With one list, the loss is the L1 distance of the two distributions.
    Entropic plans spread mass, so the value is not 0 when student and teacher agree.

    Args:
        scores: (batch, n) student scores over their temperature.
        targets: (batch, n) teacher scores over theirs, higher is better. Masked positions may hold any value, NaN
            included.
        mask: (batch, n) bool, true at positions that hold a candidate.
        entropy: Above 0, in the unit of the costs, which lie in 0 to 2.
        iterations: Number of row and column scalings, 1 or more.

    Returns:
        Scalar float32 from 0 to 2, over the lists with at least two candidates; 0 if there are none.

    Raises:
        UserError: The shapes differ, or an entropy or iterations out of range.
    """
    if not (entropy > 0 and iterations >= 1):
        raise UserError(
            f"entropy={entropy}, iterations={iterations}: the first lies above 0, the second is at least 1."
        )
    check_lists(scores, targets)
    valid = full_mask(scores, mask)
    usable = valid.sum(dim=1) >= 2
    if not bool(usable.any()):
        return (at_least_float32(scores).masked_fill(~valid, 0.0) * 0.0).sum()
    scores, targets, valid = scores[usable], at_least_float32(targets[usable]), valid[usable]
    order = targets.masked_fill(~valid, -torch.inf).argsort(dim=1, descending=True, stable=True)
    student, teacher = (log_softmax(one, valid, 1.0).exp().gather(1, order) for one in (scores, targets))
    costs = torch.cdist(student, teacher, p=1)
    plan = -costs / entropy
    for _ in range(iterations):
        plan = plan - plan.logsumexp(dim=1, keepdim=True)
        plan = plan - plan.logsumexp(dim=0, keepdim=True)
    return (plan.exp() * costs).sum() / len(costs)
