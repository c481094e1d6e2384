"""Objectives over a list as a distribution of its candidates or orders. `objectives.lists` has their contract."""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import asdict, dataclass
from functools import partial

import torch
from torch import Tensor

from retrodistill.core.errors import UserError
from retrodistill.objectives.lists import (
    NOTHING,
    at_least_float32,
    check_positives,
    cleaned,
    full_mask,
    log_softmax,
    mask_of,
    mean_over_lists,
)
from retrodistill.objectives.registry import objective


def _over_distributions(per_list: Callable[[Tensor, Tensor, Tensor], Tensor]) -> Callable[..., Tensor]:
    """An objective from a function of (batch, n) log-probabilities of student and teacher, and the mask."""

    def function(
        scores: Tensor,
        targets: Tensor,
        mask: Tensor | None = None,
        *,
        student_temperature: float = 1.0,
        teacher_temperature: float = 1.0,
    ) -> Tensor:
        valid = mask_of(scores, targets, mask)
        student = log_softmax(scores, valid, student_temperature)
        teacher = log_softmax(targets, valid, teacher_temperature)
        return mean_over_lists(per_list(student, teacher, valid), valid.sum(dim=1) >= 2)

    function.__name__, function.__doc__ = per_list.__name__, per_list.__doc__
    return function


def _divergence(of: Tensor, to: Tensor, valid: Tensor) -> Tensor:
    """(batch,) KL(of || to) of log-probabilities."""
    return (of.exp() * (of - to)).masked_fill(~valid, 0.0).sum(dim=1)


def _cross_entropy(of: Tensor, to: Tensor, valid: Tensor) -> Tensor:
    """(batch,) cross-entropy of log-probabilities, in nats."""
    return -(of.exp() * to).masked_fill(~valid, 0.0).sum(dim=1)


@objective("kl", "KL divergence from the teacher's softmax over a list to the student's")
@_over_distributions
def kl_divergence(student: Tensor, teacher: Tensor, valid: Tensor) -> Tensor:
    """Forward Kullback-Leibler divergence from the teacher's distribution to the student's, in nats, 0 or more.

    ``mean_b sum_i p_i (log p_i - log q_i)`` with ``p = softmax(t / T_t)`` and ``q = softmax(s / T_s)`` (Hinton et al.
    2015, arXiv 1503.02531, without its factor T^2: at small temperatures, weight the term before mixing it with
    others). `student_temperature` T_s and `teacher_temperature` T_t must be above 0. Cosines need about 0.05;
    `retrodistill.objectives.lists.temperature_for` measures the teacher's.
    """
    return _divergence(teacher, student, valid)


@objective("reverse-kl", "KL divergence the other way: no mass where the teacher has none")
@_over_distributions
def reverse_kl(student: Tensor, teacher: Tensor, valid: Tensor) -> Tensor:
    """Reverse Kullback-Leibler divergence, from the student's distribution to the teacher's, in nats, 0 or more.

    ``mean_b sum_i q_i (log q_i - log p_i)``, with p, q and the temperatures of `kl_divergence`. The student may
    concentrate on a few of the teacher's favorites (Distill-VQ's best with lists, arXiv 2204.00185).
    """
    return _divergence(student, teacher, valid)


@objective("balanced-kl", "both, weighted in each list by the gap of the entropies (BD-KD, arXiv 2212.12965)")
@_over_distributions
def balanced_kl(student: Tensor, teacher: Tensor, valid: Tensor) -> Tensor:
    """Forward and reverse KL, weighted per list by the entropy gap (BD-KD, arXiv 2212.12965), in nats, 0 or more.

    ``mean_b w KL(p || q) + (1 - w) KL(q || p)`` with ``w = sigmoid(H(p) - H(q))`` and no gradient through w; p, q and
    the temperatures are those of `kl_divergence`. The forward divergence flattens a student that is more confident than
    its teacher; the reverse one sharpens one that is less confident. The logistic weight is this package's choice,
    since the paper's weights were not available.
    """
    with torch.no_grad():
        weights = torch.sigmoid(_cross_entropy(teacher, teacher, valid) - _cross_entropy(student, student, valid))
    return weights * _divergence(teacher, student, valid) + (1 - weights) * _divergence(student, teacher, valid)


def skewed_kl(
    scores: Tensor,
    targets: Tensor,
    mask: Tensor | None = None,
    *,
    skew: float = 0.1,
    reverse: bool = False,
    student_temperature: float = 1.0,
    teacher_temperature: float = 1.0,
) -> Tensor:
    """Skew KL divergence (DistiLLM, ICML 2024, arXiv 2402.03898, eqs. 4 and 5), in nats, from 0 to -log `skew`.

    ``mean_b KL(p || a p + (1 - a) q)``, and with `reverse` ``mean_b KL(q || (1 - a) p + a q)``, where a is `skew`, from
    0 up to 1, and p, q and the temperatures are those of `kl_divergence`, which it is at a = 0. The mixture keeps the
    ratio of the two distributions, and with it the gradient, bounded where the one that is learned from has mass and
    the other has almost none.
    """
    if not 0 <= skew < 1:
        raise UserError(f"skew={skew}: it must be from 0 to less than 1.")

    def divergence(student: Tensor, teacher: Tensor, valid: Tensor) -> Tensor:
        of, other = (student, teacher) if reverse else (teacher, student)
        if skew == 0:
            return _divergence(of, other, valid)
        return _divergence(of, torch.logaddexp(of + math.log(skew), other + math.log1p(-skew)), valid)

    temperatures = {"student_temperature": student_temperature, "teacher_temperature": teacher_temperature}
    return _over_distributions(divergence)(scores, targets, mask, **temperatures)


objective("skew-kl", "KL to nine parts of the student and one of the teacher: bounded gradients (arXiv 2402.03898)")(
    skewed_kl
)
objective("skew-reverse-kl", "the same from the student's side")(partial(skewed_kl, reverse=True))


@objective(
    "calibrated-kl",
    "KL to the teacher's softmax, corrected by the label where the teacher misses it (FerKD, arXiv 2312.17473)",
    ("scores", "targets", "mask", "positives"),
    corrects_by_labels=True,
)
def calibrated_kl(
    scores: Tensor, targets: Tensor, mask: Tensor | None = None, positives: Tensor | None = None
) -> Tensor:
    """KL to a mixture of the teacher's distribution and the label, by how far the teacher misses it, in nats.

    ``mean_b KL((1 - w) p + w e_+ || q)``, with p and q the softmax of teacher and student, the label e_+ all on the
    positive, and ``w = 1 - p_+ / max p``: 0 where the teacher ranks the positive first, toward 1 the further the
    positive is below. That only soft labels which are not reliable are corrected by hard ones is FerKD's idea (Shen,
    ICCV 2023, arXiv 2312.17473), which tells them by fixed thresholds of the teacher's confidence in a class. A text
    without a positive learns p alone, as with `kl_divergence`. 0 or more.
    """
    valid = mask_of(scores, targets, mask)
    shares, student = log_softmax(targets, valid, 1.0).exp(), log_softmax(scores, valid, 1.0)
    if positives is not None:
        check_positives(scores, positives)
        places = positives.clamp(min=0)[:, None]
        known = (positives >= 0)[:, None] & valid.gather(1, places)
        weight = (1 - shares.gather(1, places) / shares.amax(dim=1, keepdim=True)).masked_fill(~known, 0.0)
        shares = ((1 - weight) * shares).scatter_add(1, places, weight)
    divergences = (torch.special.xlogy(shares, shares) - shares * student).masked_fill(~valid, 0.0).sum(dim=1)
    return mean_over_lists(divergences, valid.sum(dim=1) >= 2)


@objective(
    "affinity",
    "KL both ways over the batch: a text's documents, and a document's texts (TinyCLIP, arXiv 2309.12314)",
    ("batch_scores", "batch_targets", "batch_mask"),
    needs_positives=True,
    control="in-batch",
)
def affinity_mimicking(scores: Tensor, targets: Tensor, mask: Tensor | None = None) -> Tensor:
    """Affinity mimicking: the batch's scores as distributions over documents and over texts (TinyCLIP, ICCV 2023).

    Half of `kl_divergence` over the rows of the (batch, m) scores, which ranks the documents of the batch for each
    text, plus half of the same over their columns, which ranks the texts for each document (arXiv 2309.12314, section
    3.1, with the Kullback-Leibler divergence for its cross-entropy, which has the same gradient). In nats, 0 or more.
    Columns compare scores across texts: cosines can be compared, an ensemble's z-scores per text only roughly.
    """
    valid = mask_of(scores, targets, mask)
    return (kl_divergence(scores, targets, valid) + kl_divergence(scores.T, targets.T, valid.T)) / 2


@objective("listnet", "cross-entropy of the top-one probabilities (Cao et al. 2007)")
@_over_distributions
def listnet(student: Tensor, teacher: Tensor, valid: Tensor) -> Tensor:
    """ListNet: cross-entropy of the top-one probabilities, in nats (Cao et al. 2007, ICML).

    ``mean_b -sum_i p_i log q_i``, with p, q and the temperatures of `kl_divergence`. It has the same gradient, and a
    value that is higher by the teacher's entropy.
    """
    return _cross_entropy(teacher, student, valid)


@objective(
    "lwf",
    "KL to the student of the stage's start: an anchor for another objective (PROD)",
    ("scores", "start_scores", "mask"),
)
def without_forgetting(
    scores: Tensor, start_scores: Tensor, mask: Tensor | None = None, *, student_temperature: float = 1.0
) -> Tensor:
    """Learning without forgetting: KL from the initial student to the current student, in nats, 0 at the stage's start.

    `kl_divergence` whose teacher is the frozen student at the start of the stage, with one temperature for both (Li
    and Hoiem 2016, arXiv 1606.09282; on lists in PROD, WWW 2023). It teaches nothing alone: add it to another
    objective with a weight.
    """
    temperatures = {"student_temperature": student_temperature, "teacher_temperature": student_temperature}
    return kl_divergence(scores, start_scores.detach(), mask, **temperatures)


def contrastive(
    scores: Tensor, positives: Tensor, mask: Tensor | None = None, *, student_temperature: float = 0.05
) -> Tensor:
    """InfoNCE, in nats: cross-entropy of each list's positive among its candidates.

    Van den Oord et al. 2018, arXiv 1807.03748. This is the control for every distilled student: it sees which
    document is relevant, and no teacher. Lists without a positive are left out. `student_temperature` must be above 0.
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

    ``mean_i -log(exp(s_ii / T) / sum_j exp(s_ij / T))`` in nats, over the texts i with a document and at least one
    negative, and the j that are not false negatives of i. `student_temperature` T must be above 0.

    Args:
        scores: (batch, batch) student scores of text i with the document of text j.
        false_negatives: (batch, batch) bool, true where the document of text j is relevant to text i too, as when two
            texts share a document. The diagonal is not read.
        known: (batch,) bool, true where a text has a document of its own; None means all.
        student_temperature: T.
    """
    if scores.ndim != 2 or scores.shape[0] != scores.shape[1]:
        raise UserError(f"scores of shape {tuple(scores.shape)}; in-batch scores are (batch, batch).")
    own = torch.eye(len(scores), dtype=torch.bool, device=scores.device)
    places = torch.arange(len(scores), device=scores.device)
    valid = torch.ones_like(own) if false_negatives is None else ~full_mask(scores, false_negatives) | own
    if known is not None:
        check_positives(scores, known)
        valid = valid & known.bool()[None, :]
        places = places.masked_fill(~known.bool(), -1)
    return contrastive(scores, places, valid, student_temperature=student_temperature)


objective(
    "contrastive",
    "InfoNCE with the pseudo-query's own document as positive; no teacher (a control)",
    ("scores", "positives", "own_mask"),
    needs_positives=True,
)(partial(contrastive, student_temperature=1.0))
objective(
    "in-batch",
    "InfoNCE with the other texts' documents as negatives; no teacher (a control)",
    ("own_scores", "own_shared", "own_known"),
    needs_positives=True,
)(partial(in_batch_contrastive, student_temperature=1.0))


@objective("sinkhorn", "entropic transport between the batch's distributions (SinKD, arXiv 2402.17110)")
def sinkhorn(
    scores: Tensor, targets: Tensor, mask: Tensor | None = None, *, entropy: float = 0.1, iterations: int = 20
) -> Tensor:
    """SinKD: entropic transport between the batch's student and teacher distributions (COLING 2024, arXiv 2402.17110).

    ``1/b sum_ij P_ij C_ij``, from 0 to 2, with ``C_ij = sum_k |q_ik - p_jk|`` between the student's list i and the
    teacher's list j, and P = exp(-C / entropy) after `iterations` times scaling its rows, then its columns, to 1. (The
    authors' code sums instead of averaging, and multiplies by a constant.) Columns do not correspond across queries, so
    each list is first sorted in its teacher's order. With one list, the loss is the L1 distance of the two
    distributions. Entropic plans spread mass, so the value is not 0 when student and teacher agree. `entropy` must be
    above 0, in the unit of the costs, which lie in 0 to 2.
    """
    if not (entropy > 0 and iterations >= 1):
        raise UserError(f"entropy={entropy}, iterations={iterations}: entropy must be above 0, iterations at least 1.")
    valid = mask_of(scores, targets, mask)
    usable = valid.sum(dim=1) >= 2
    if not bool(usable.any()):
        return (cleaned(scores, valid) * 0.0).sum()
    scores, targets, valid = scores[usable], targets[usable], valid[usable]
    order = _order(targets, valid)
    student, teacher = (log_softmax(side, valid, 1.0).exp().gather(1, order) for side in (scores, targets))
    costs = torch.cdist(student, teacher, p=1)
    plan = -costs / entropy
    for _ in range(iterations):
        plan = plan - plan.logsumexp(dim=1, keepdim=True)
        plan = plan - plan.logsumexp(dim=0, keepdim=True)
    return (plan.exp() * costs).sum() / len(costs)


def taid(scores: Tensor, targets: Tensor, mask: Tensor | None = None, *, t: float) -> Tensor:
    """TAID: KL divergence to a target between student and teacher (Shing et al., ICLR 2025, arXiv 2501.16937).

    ``KL(softmax((1 - t) stopgrad(s) + t T) || softmax(s))``, T the teacher's scores, in nats, 0 or more. The loss mixes
    logits, so both sides need one scale: divide both by their temperatures first. At t = 1 it is `kl_divergence`. At
    t = 0 its gradient is 0. `t` is from 0 to 1, see `InterpolationSchedule`.
    """
    if not 0 <= t <= 1:
        raise UserError(f"t={t}: it must be from 0 to 1.")
    valid = mask_of(scores, targets, mask)
    return kl_divergence(scores, (1 - t) * at_least_float32(scores).detach() + t * at_least_float32(targets), valid)


objective(
    "taid",
    "KL to a target that moves from student to teacher during training (arXiv 2501.16937)",
    ("scores", "targets", "mask", "t"),
)(lambda scores, targets, mask, t: taid(scores, targets, mask, t=t))


@dataclass
class InterpolationSchedule:
    """TAID's adaptive t: from `start` to `end`, never below the straight line, faster while the loss falls.

    After a step with loss J: ``m = beta m + (1 - beta) (J_before - J) / J_before`` and
    ``t = min(end, max(start + (end - start) progress, t + alpha sigmoid(m) (1 - t)))`` (arXiv 2501.16937, algorithm 1
    as the authors' code has it). A resumed training must restore `state`.

    Attributes:
        start: First t, from 0 up to `end`.
        end: Last t, at most 1.
        alpha: Size of an adaptive step, from 0 to 1.
        beta: Decay of the momentum, from 0 to below 1.
    """

    start: float = 0.4
    end: float = 1.0
    alpha: float = 5e-4
    beta: float = 0.99
    t: float = -1.0
    momentum: float = 0.0
    loss: float = math.inf  # of the previous step
    progress: float = -1.0  # completed share of the training at the last update

    def __post_init__(self) -> None:
        if not (0 <= self.start <= self.end <= 1 and 0 <= self.alpha <= 1 and 0 <= self.beta < 1):
            raise UserError(
                f"start={self.start}, end={self.end}, alpha={self.alpha}, beta={self.beta}: 0 <= start <= end <= 1, "
                "alpha from 0 to 1, beta from 0 to under 1."
            )
        self.t = self.t if self.t >= 0 else self.start

    def update(self, loss: float, progress: float) -> None:
        """Advance after a step with this `taid` loss, 0 or more, at this share of the training's steps, 0 to 1.

        A second call at the same progress changes nothing.
        """
        if progress == self.progress or not math.isfinite(loss):
            return
        self.progress = progress
        if math.isfinite(self.loss):
            fall = (self.loss - loss) / (self.loss + 1e-15)
            self.momentum = self.beta * self.momentum + (1 - self.beta) * fall
            step = self.alpha * _sigmoid(self.momentum) * (1 - self.t)
            line = self.start + (self.end - self.start) * progress
            self.t = min(self.end, max(line, self.t + step))
        self.loss = loss

    def state(self) -> dict[str, float]:
        """All that a checkpoint must keep, JSON-ready."""
        return {name: value for name, value in asdict(self).items() if math.isfinite(value)}

    @classmethod
    def from_state(cls, state: dict[str, float]) -> InterpolationSchedule:
        """Restore a schedule from `state`; a state with other names is a `UserError`."""
        if not set(state) <= set(cls.__dataclass_fields__):
            raise UserError(f"not a state of TAID's schedule: it has {', '.join(sorted(state))}.")
        return cls(**{name: float(value) for name, value in state.items()})


def _sigmoid(value: float) -> float:
    """Logistic function that does not overflow: one bad batch can make the relative change huge."""
    return 1 / (1 + math.exp(-value)) if value >= 0 else math.exp(value) / (1 + math.exp(value))


def plackett_luce(scores: Tensor, order: Tensor, weights: Tensor | None = None, mask: Tensor | None = None) -> Tensor:
    """Weighted negative log-likelihood of given orders, choice by choice (Plackett 1975; Luce 1959).

    ``sum_k a_k [logsumexp_{l >= k} s_pi(l) - s_pi(k)]``, (batch,) float32 in nats, 0 or more for weights of 0 or more.
    Weights (1, 0, ..) give InfoNCE of the first choice. Weights of 1 give ListMLE. Masked positions add 0.

    Args:
        scores: (batch, n) student scores over their temperature.
        order: (batch, n) integer positions pi, first choice first, masked positions last.
        weights: (batch, n) weights a of the choices, in their order; None means 1.
        mask: (batch, n) bool, true at positions that hold a candidate.
    """
    valid = full_mask(scores, mask)
    ordered = cleaned(scores, valid, NOTHING).gather(1, order)
    losses = ordered.flip(1).logcumsumexp(dim=1).flip(1) - ordered
    if weights is not None:
        losses = weights * losses
    return losses.masked_fill(~valid.gather(1, order), 0.0).sum(dim=1)


@objective("listmle", "likelihood of the teacher's whole order (Xia et al. 2008)")
def listmle(scores: Tensor, targets: Tensor, mask: Tensor | None = None) -> Tensor:
    """ListMLE: negative log-likelihood of the teacher's order, in nats (Xia et al. 2008, ICML).

    ``mean_b sum_k [logsumexp_{l >= k} s_pi(l) - s_pi(k)]``, pi the teacher's order, ties in the order of the list.
    Every position has the same weight, so the tail dominates long lists: keep lists short, or use `pld`.
    """
    valid = mask_of(scores, targets, mask)
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
    valid = mask_of(scores, targets, mask)
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
