"""Objectives that treat a list as a distribution over its candidates."""

from __future__ import annotations

from functools import partial

import torch
from torch import Tensor

from retrodistill.core.errors import UserError
from retrodistill.objectives.lists import (
    at_least_float32,
    check_lists,
    check_positives,
    full_mask,
    log_softmax,
    mean_over_lists,
)
from retrodistill.objectives.registry import objective


@objective("kl", "KL divergence from the teacher's softmax over a list to the student's")
def kl_divergence(
    scores: Tensor,
    targets: Tensor,
    mask: Tensor | None = None,
    *,
    student_temperature: float = 1.0,
    teacher_temperature: float = 1.0,
) -> Tensor:
    """Forward Kullback-Leibler divergence from the teacher's distribution to the student's.

    ``mean_b sum_i p_i (log p_i - log q_i)`` with ``p = softmax(t / T_t)`` and ``q = softmax(s / T_s)`` (Hinton et al.
    2015, arXiv 1503.02531, without its factor T^2: at small temperatures, weight the term before mixing it with
    others).

    Args:
        scores: (batch, n) student scores.
        targets: (batch, n) teacher scores, higher is better. Masked positions may hold any value, NaN included.
        mask: (batch, n) bool, true at positions that hold a candidate.
        student_temperature: Must be above 0; for cosines about 0.05.
        teacher_temperature: Must be above 0; see `retrodistill.objectives.lists`.

    Returns:
        Scalar float32 in nats, 0 or more: the mean over lists with at least two candidates; 0 if no list has two.

    Raises:
        UserError: The shapes differ, or a temperature is not above 0.
    """
    student, teacher, valid = _logs(scores, targets, mask, student_temperature, teacher_temperature)
    return mean_over_lists(_divergence(teacher, student, valid), valid.sum(dim=1) >= 2)


@objective("reverse-kl", "KL divergence the other way: no mass where the teacher has none")
def reverse_kl(
    scores: Tensor,
    targets: Tensor,
    mask: Tensor | None = None,
    *,
    student_temperature: float = 1.0,
    teacher_temperature: float = 1.0,
) -> Tensor:
    """Reverse Kullback-Leibler divergence, from the student's distribution to the teacher's.

    ``mean_b sum_i q_i (log q_i - log p_i)``, p and q as in `kl_divergence`. It penalizes mass where the teacher has
    none, so the student may concentrate on a few of the teacher's favorites (Distill-VQ's best with lists, arXiv
    2204.00185).

    Args:
        scores: (batch, n) student scores.
        targets: (batch, n) teacher scores, higher is better. Masked positions may hold any value, NaN included.
        mask: (batch, n) bool, true at positions that hold a candidate.
        student_temperature: Must be above 0.
        teacher_temperature: Must be above 0.

    Returns:
        Scalar float32 in nats, 0 or more: the mean over lists with at least two candidates; 0 if no list has two.

    Raises:
        UserError: The shapes differ, or a temperature is not above 0.
    """
    student, teacher, valid = _logs(scores, targets, mask, student_temperature, teacher_temperature)
    return mean_over_lists(_divergence(student, teacher, valid), valid.sum(dim=1) >= 2)


@objective("balanced-kl", "both, weighed in each list by the gap of the entropies (BD-KD, arXiv 2212.12965)")
def balanced_kl(
    scores: Tensor,
    targets: Tensor,
    mask: Tensor | None = None,
    *,
    student_temperature: float = 1.0,
    teacher_temperature: float = 1.0,
) -> Tensor:
    """Forward and reverse KL, weighted per list by the entropy gap (BD-KD, arXiv 2212.12965).

    ``mean_b w KL(p || q) + (1 - w) KL(q || p)`` with ``w = sigmoid(H(p) - H(q))`` and no gradient through w. The
    forward divergence flattens a student that is more confident than its teacher. The reverse divergence sharpens one
    that is less confident. The balance per sample by the entropy gap is the paper's. The logistic weight is this
    package's choice, since the paper's weights were not available.

    Args:
        scores: (batch, n) student scores.
        targets: (batch, n) teacher scores, higher is better. Masked positions may hold any value, NaN included.
        mask: (batch, n) bool, true at positions that hold a candidate.
        student_temperature: Must be above 0.
        teacher_temperature: Must be above 0.

    Returns:
        Scalar float32 in nats, 0 or more: the mean over lists with at least two candidates; 0 if no list has two.

    Raises:
        UserError: The shapes differ, or a temperature is not above 0.
    """
    student, teacher, valid = _logs(scores, targets, mask, student_temperature, teacher_temperature)
    with torch.no_grad():
        weights = torch.sigmoid(_entropy(teacher, valid) - _entropy(student, valid))
    forward, backward = _divergence(teacher, student, valid), _divergence(student, teacher, valid)
    return mean_over_lists(weights * forward + (1 - weights) * backward, valid.sum(dim=1) >= 2)


@objective("listnet", "cross-entropy of the top-one probabilities (Cao et al. 2007)")
def listnet(
    scores: Tensor,
    targets: Tensor,
    mask: Tensor | None = None,
    *,
    student_temperature: float = 1.0,
    teacher_temperature: float = 1.0,
) -> Tensor:
    """ListNet: cross-entropy of the top-one probabilities (Cao et al. 2007, ICML).

    ``mean_b -sum_i p_i log q_i``, p and q as in `kl_divergence`. It has the same gradient, and a value that is
    higher by the teacher's entropy.

    Args:
        scores: (batch, n) student scores.
        targets: (batch, n) teacher scores, higher is better. Masked positions may hold any value, NaN included.
        mask: (batch, n) bool, true at positions that hold a candidate.
        student_temperature: Must be above 0.
        teacher_temperature: Must be above 0.

    Returns:
        Scalar float32 in nats: the mean over lists with at least two candidates; 0 if no list has two.

    Raises:
        UserError: The shapes differ, or a temperature is not above 0.
    """
    student, teacher, valid = _logs(scores, targets, mask, student_temperature, teacher_temperature)
    crossed = -(teacher.exp() * student).masked_fill(~valid, 0.0).sum(dim=1)
    return mean_over_lists(crossed, valid.sum(dim=1) >= 2)


@objective(
    "lwf",
    "KL to the student of the stage's start: an anchor beside another objective (PROD)",
    ("scores", "start_scores", "mask"),
)
def without_forgetting(
    scores: Tensor, start_scores: Tensor, mask: Tensor | None = None, *, student_temperature: float = 1.0
) -> Tensor:
    """Learning without forgetting: KL from the initial student to the current student, on list scores.

    `kl_divergence` whose teacher is the frozen student at the start of the stage, with one temperature for both (Li
    and Hoiem 2016, arXiv 1606.09282; on lists in PROD, WWW 2023). It teaches nothing alone: add it to another
    objective with a weight.

    Args:
        scores: (batch, n) student scores.
        start_scores: (batch, n) scores of the student of the stage's start for the same candidates.
        mask: (batch, n) bool, true at positions that hold a candidate.
        student_temperature: Above 0, of both.

    Returns:
        Scalar float32 in nats, 0 or more, 0 at the stage's start.

    Raises:
        UserError: The shapes differ, or a temperature is not above 0.
    """
    return kl_divergence(
        scores,
        start_scores.detach(),
        mask,
        student_temperature=student_temperature,
        teacher_temperature=student_temperature,
    )


def contrastive(
    scores: Tensor, positives: Tensor, mask: Tensor | None = None, *, student_temperature: float = 0.05
) -> Tensor:
    """InfoNCE: cross-entropy of each list's positive among its candidates (van den Oord et al. 2018, arXiv 1807.03748).

    The control beside every distilled student: it sees which document is right, and no teacher.

    Args:
        scores: (batch, n) student scores.
        positives: (batch,) integer place of the positive in its list; negative where a list has none, which is
            then left out.
        mask: (batch, n) bool, true at positions that hold a candidate.
        student_temperature: Must be above 0.

    Returns:
        Scalar float32 in nats: the mean over the lists with a positive and at least two candidates.

    Raises:
        UserError: The shapes differ, or a temperature is not above 0.
    """
    check_positives(scores, positives)
    valid = full_mask(scores, mask)
    logs = log_softmax(scores, valid, student_temperature)
    places = positives.clamp(min=0)[:, None]
    usable = (positives >= 0) & valid.gather(1, places).squeeze(1) & (valid.sum(dim=1) >= 2)
    return mean_over_lists(-logs.gather(1, places).squeeze(1), usable)


def in_batch_contrastive(
    scores: Tensor,
    false_negatives: Tensor | None = None,
    known: Tensor | None = None,
    *,
    student_temperature: float = 0.05,
) -> Tensor:
    """InfoNCE with in-batch negatives: each text's own document among those of all texts (arXiv 2004.04906).

    ``mean_i -log(exp(s_ii / T) / sum_j exp(s_ij / T))`` over the j that are no false negatives of i.

    Args:
        scores: (batch, batch) student scores of text i with the document of text j.
        false_negatives: (batch, batch) bool, true where the document of text j is right for text i too, as where two
            texts share a document; the diagonal is not read.
        known: (batch,) bool, true where a text has a document of its own; all where None.
        student_temperature: Must be above 0.

    Returns:
        Scalar float32 in nats: the mean over the texts with a document and at least one negative.

    Raises:
        UserError: Scores that are not square, masks of another shape, or a temperature is not above 0.
    """
    if scores.ndim != 2 or scores.shape[0] != scores.shape[1]:
        raise UserError(f"scores of shape {tuple(scores.shape)}; in-batch scores are (batch, batch).")
    own = torch.eye(len(scores), dtype=torch.bool, device=scores.device)
    places = torch.arange(len(scores), device=scores.device)
    valid = torch.ones_like(own) if false_negatives is None else ~full_mask(scores, false_negatives) | own
    if known is not None:
        check_positives(scores, known)
        valid = valid & known.bool()[None, :]
        places = torch.where(known.bool(), places, torch.full_like(places, -1))
    return contrastive(scores, places, valid, student_temperature=student_temperature)


objective(
    "contrastive",
    "InfoNCE with the pseudo-query's own document as positive; no teacher (a control)",
    ("scores", "positives", "mask"),
    needs_positives=True,
)(partial(contrastive, student_temperature=1.0))
objective(
    "in-batch",
    "InfoNCE with the other texts' documents as negatives; no teacher (a control)",
    ("own_scores", "own_shared", "own_known"),
    needs_positives=True,
)(partial(in_batch_contrastive, student_temperature=1.0))


def _logs(
    scores: Tensor, targets: Tensor, mask: Tensor | None, student_temperature: float, teacher_temperature: float
) -> tuple[Tensor, Tensor, Tensor]:
    """Log-probabilities of student and teacher, and the mask."""
    check_lists(scores, targets)
    valid = full_mask(scores, mask)
    return log_softmax(scores, valid, student_temperature), log_softmax(targets, valid, teacher_temperature), valid


def _divergence(of: Tensor, to: Tensor, valid: Tensor) -> Tensor:
    """(batch,) KL(of || to) of log-probabilities."""
    return (of.exp() * (of - to)).masked_fill(~valid, 0.0).sum(dim=1)


def _entropy(logs: Tensor, valid: Tensor) -> Tensor:
    """(batch,) entropies in nats."""
    return -(logs.exp() * logs).masked_fill(~valid, 0.0).sum(dim=1)


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
