"""Objectives that see a list as a distribution over its candidates."""

from __future__ import annotations

from torch import Tensor

from retrodistill.errors import UserError
from retrodistill.objectives.masks import check_lists, full_mask, log_softmax, mean_over_lists


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
    2015, arXiv 1503.02531, without its factor T^2: at small temperatures weigh the term before mixing it).

    Args:
        scores: (batch, n) student scores.
        targets: (batch, n) teacher scores, higher is better. Masked places may hold anything, NaN too.
        mask: (batch, n) bool, true where there is a candidate.
        student_temperature: Above 0; for cosines about a twentieth.
        teacher_temperature: Above 0; see `retrodistill.objectives.temperature`.

    Returns:
        Scalar float32 in nats, 0 or more: the mean over the lists with at least two candidates, 0 where none has.

    Raises:
        UserError: Shapes that differ, or a temperature that is not above 0.
    """
    check_lists(scores, targets)
    valid = full_mask(scores, mask)
    student = log_softmax(scores, valid, student_temperature)
    teacher = log_softmax(targets, valid, teacher_temperature)
    terms = (teacher.exp() * (teacher - student)).masked_fill(~valid, 0.0)
    return mean_over_lists(terms.sum(dim=1), valid.sum(dim=1) >= 2)


def contrastive(
    scores: Tensor, positives: Tensor, mask: Tensor | None = None, *, student_temperature: float = 0.05
) -> Tensor:
    """InfoNCE: cross-entropy of each list's positive among its candidates (van den Oord et al. 2018, arXiv 1807.03748).

    The control beside every distilled student: it sees which document is right, and no teacher.

    Args:
        scores: (batch, n) student scores.
        positives: (batch,) integer place of the positive in its list; negative where a list has none, which is
            then left out.
        mask: (batch, n) bool, true where there is a candidate.
        student_temperature: Above 0.

    Returns:
        Scalar float32 in nats: the mean over the lists with a positive and at least two candidates.

    Raises:
        UserError: Shapes that differ, or a temperature that is not above 0.
    """
    if scores.ndim != 2 or positives.shape != scores.shape[:1]:
        raise UserError(
            f"scores of shape {tuple(scores.shape)} and positives of shape {tuple(positives.shape)}; they are "
            "(batch, candidates) and (batch,)."
        )
    valid = full_mask(scores, mask)
    logs = log_softmax(scores, valid, student_temperature)
    places = positives.clamp(min=0)[:, None]
    usable = (positives >= 0) & valid.gather(1, places).squeeze(1) & (valid.sum(dim=1) >= 2)
    return mean_over_lists(-logs.gather(1, places).squeeze(1), usable)
