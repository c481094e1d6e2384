"""Objectives over teacher and student embeddings of the same texts, or of their tokens.

Embeddings are (batch, d) tensors, one row for each text. Unless a function says otherwise, both sides have one width.
Every objective returns a scalar, float32 or the inputs' wider type, and raises `UserError` for shapes that differ.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from functools import partial

import torch
from torch import Tensor
from torch.nn.functional import cosine_similarity, normalize

from retrodistill.core.errors import UserError
from retrodistill.objectives.lists import at_least_float32, cleaned, full_mask
from retrodistill.objectives.registry import objective

_MI_TEMPERATURE = 0.25
_MARGIN = 0.015  # of cosines, as in Stella's code
_aligns = partial(objective, takes=("student", "teacher"), sees="embeddings")
_relates = partial(objective, takes=("student", "whole_teacher"), sees="embeddings")


@_aligns("leaf", "squared distance to the teacher's embedding of the same text (arXiv 2509.12539)")
def leaf(student: Tensor, teacher: Tensor) -> Tensor:
    """LEAF: squared distance between the student's and the teacher's embedding of the same text (arXiv 2509.12539).

    ``mean_b sum_d (y - y^)^2``: summed over dimensions, averaged over the batch. (A mean over dimensions would also
    divide the gradient by the width.) Between unit vectors it is 2 - 2 cos, from 0 to 4.
    """
    student, teacher = _checked(student, teacher)
    return ((student - teacher) ** 2).sum(dim=1).mean()


@objective(
    "teacher-dropping",
    "leaf for each of several teachers, of which the farthest counts, the others at random (UNIC, arXiv 2408.05088)",
    ("student", "teacher", "teacher_widths"),
    sees="embeddings",
)
def teacher_dropping(student: Tensor, teacher: Tensor, widths: Sequence[int], keep: float = 0.5) -> Tensor:
    """Distances to several teachers, of which some are dropped for each text (UNIC, Sariyildiz et al. 2024, section 3).

    A teacher's distance is `leaf` between its part of both embeddings, scaled so that a teacher's part has length 1:
    from 0 to 4 where the student's has as well. For each text, the teacher with the largest distance counts, and each
    other one with probability ``keep``, so that no teacher is learned at the expense of another. The result is the mean
    over the texts of the sum over the teachers that count. UNIC's distance is cosine plus smooth L1; of unit vectors,
    `leaf` is twice the former.

    Args:
        student: (batch, d) student embeddings: its projections to each teacher's space, side by side.
        teacher: (batch, d) embeddings of the teachers, side by side.
        widths: The teachers' dimensions, in order: two or more, which sum to d.
        keep: Probability from 0 to 1 with which a teacher that is not the farthest counts. 1 drops none.
    """
    student, teacher = _checked(student, teacher)
    if len(widths) < 2 or sum(widths) != student.shape[1]:
        raise UserError(
            f"teacher widths {list(widths)} of embeddings of {student.shape[1]} dimensions; give the widths of two or "
            "more teachers, which sum to that."
        )
    squares = ((student - teacher) ** 2).split(list(widths), dim=1)
    lengths = (teacher**2).split(list(widths), dim=1)
    # The scale is that of the batch: a text's own would make a part of length 0 infinitely important.
    distances = torch.stack(
        [
            square.sum(dim=1) / length.sum(dim=1).mean().clamp(min=1e-12)
            for square, length in zip(squares, lengths, strict=True)
        ],
        dim=1,
    )
    drawn = torch.rand(distances.shape, device=distances.device) < keep
    farthest = torch.zeros_like(drawn).scatter(1, distances.argmax(dim=1, keepdim=True), True)
    return (distances * (drawn | farthest)).sum(dim=1).mean()


@_aligns("cosine", "cosine distance to the teacher's embedding of the same text")
def cosine(student: Tensor, teacher: Tensor) -> Tensor:
    """Cosine distance between the student's and the teacher's embedding of the same text. Only direction counts.

    ``mean_b 1 - <s, t> / (|s| |t|)``, from 0 to 2; between unit vectors half of `leaf`. A zero vector has distance 1
    and a negligible gradient.
    """
    student, teacher = _checked(student, teacher)
    return (1 - cosine_similarity(student, teacher, dim=1)).mean()


@_relates("relations", "cosines between the batch's texts, as the teacher has them (arXiv 1907.09682)")
def relation_matching(student: Tensor, teacher: Tensor) -> Tensor:
    """Match pairwise similarities: the student's cosines between all texts of the batch against the teacher's.

    ``mean over i < j of (cos(s_i, s_j) - cos(t_i, t_j))^2``, from 0 to 4; 0 for a batch of one (similarity-preserving
    distillation, Tung and Mori 2019, arXiv 1907.09682, with plain cosines instead of its row-normalized Gram matrices).
    Widths may differ, and the loss is invariant to rotation. The student therefore learns its own space and cannot
    share an index or queries with the teacher.
    """
    ours, theirs = _cosine_matrices(student, teacher)
    return ((ours - theirs).triu(diagonal=1) ** 2).sum() / max(len(student) * (len(student) - 1) // 2, 1)


@_relates("triplets", "order of cosines to other texts of the batch, as the teacher has it (Jasper, arXiv 2412.19048)")
def triplets(student: Tensor, teacher: Tensor, margin: float = _MARGIN) -> Tensor:
    """Relative similarities: a text is closer to one text of the batch than to another, as the teacher has it.

    ``mean of max(0, margin - (cos(s_i, s_j) - cos(s_i, s_k)))`` over all triples of texts in which the teacher's
    ``cos(t_i, t_j)`` is above ``cos(t_i, t_k)``, from 0 to 2 + margin; 0 without such triples (Zhang et al. 2024, third
    loss). The authors also compare pairs that have no text in common, which takes the fourth power of the batch; here,
    memory grows with the third: 240 MB for 256 texts. Widths may differ, as in `relation_matching`.
    """
    ours, theirs = _cosine_matrices(student, teacher)
    others = ~torch.eye(len(ours), dtype=torch.bool, device=ours.device)
    closer = theirs[:, :, None] > theirs[:, None, :]
    counts = closer & others[:, :, None] & others[:, None, :]
    short = torch.relu(margin - (ours[:, :, None] - ours[:, None, :]))
    return (short * counts).sum() / counts.sum().clamp(min=1)


@_aligns(
    "nd", "length and direction of the teacher's embedding, for dot-product students (arXiv 2305.17007)", dot_only=True
)
def norm_and_direction(student: Tensor, teacher: Tensor, centers: Tensor | None = None) -> Tensor:
    """ND: reward a long student embedding that points the teacher's way, up to the teacher's length.

    ``mean_b 1 - <s, e> / max(|s|, |t|)``, from 0 to 2, with the unit vector e (Wang et al. 2023, arXiv 2305.17007). In
    the paper, e is the direction of the teacher's mean over the text's class, one row of `centers` (batch, d).
    Retrieval has no classes, so without `centers` e is the direction of the teacher's own embedding. While |s| is below
    |t|, the loss acts on length and direction; above |t|, on direction only. For unit vectors it equals `cosine`.
    """
    student, teacher = _checked(student, teacher)
    directions = normalize(teacher if centers is None else _checked(student, centers)[1], dim=1)
    longest = torch.maximum(student.norm(dim=1), teacher.norm(dim=1)).clamp(min=1e-12)
    return (1 - (student * directions).sum(dim=1) / longest).mean()


@objective(
    "mi-alpha",
    "a lower bound on the mutual information with the teacher's embedding (arXiv 2109.11105)",
    ("student", "teacher", "student_temperature"),
    sees="embeddings",
    student_temperature=_MI_TEMPERATURE,
)
def mi_alpha(
    student: Tensor,
    teacher: Tensor,
    temperature: float = _MI_TEMPERATURE,
    *,
    alpha: float = 0.9,
    log_baseline: float = 1.0,
) -> Tensor:
    """MI-alpha: negative lower bound on the mutual information of two embeddings (Distiller, arXiv 2109.11105).

    The interpolated bound of Poole et al. 2019 (arXiv 1905.06922),
    ``I = 1 + E[log(e^f(x, y) / (alpha m(y) + (1 - alpha) q))] - E[m'(y) / (alpha m'(y) + (1 - alpha) q)]``
    with the student's embedding y, the teacher's x, the critic f = cos / temperature, m(y) the mean of e^f over the
    batch's teacher embeddings, m'(y) the same without the text's own (as if independent), and q a baseline. alpha = 1
    is InfoNCE, log(batch) minus its cross-entropy, of low variance and at most log(batch); alpha toward 0 is NWJ's
    bound, of less bias and more variance. Distiller maximizes this bound between layers (from memory of the paper). Its
    learned critic and baseline networks are not reproduced, because a checkpoint does not keep the parameters of a
    loss: the critic is the cosine that retrieval uses, and q is a constant.

    At a temperature of 0.05, the text's own pair outweighs all others from a cosine of about .5 on: the bound is
    reached, the gradient vanishes, and the student stops far from its teacher. At 0.2 to 0.5 the gradient lasts.

    The temperature is above 0, alpha above 0 and at most 1, and `log_baseline` is log q (NWJ's is 1). The result is in
    nats, -1 - log(batch / alpha) or more; 0 with a gradient of 0 for a batch of one.
    """
    if not (temperature > 0 and 0 < alpha <= 1):
        raise UserError(f"temperature={temperature}, alpha={alpha}: temperature must be above 0, alpha in (0, 1].")
    student, teacher = _checked(student, teacher)
    count = len(student)
    if count < 2:
        return (student * 0.0).sum()
    critic = normalize(student, dim=1) @ normalize(teacher, dim=1).T / temperature
    own = torch.eye(count, dtype=torch.bool, device=critic.device)
    others = critic.masked_fill(own, -torch.inf).logsumexp(dim=1) - math.log(count - 1)
    everyone = critic.logsumexp(dim=1) - math.log(count)

    def mixed(logs: Tensor) -> Tensor:
        """log(alpha e^logs + (1 - alpha) q)."""
        if alpha == 1:
            return logs
        return torch.logaddexp(logs + math.log(alpha), torch.full_like(logs, log_baseline + math.log1p(-alpha)))

    joint = critic.diagonal() - mixed(everyone)
    marginal = (others - mixed(others)).exp()
    return marginal.mean() - joint.mean() - 1


@objective(
    "token-relations",
    "cosines between a text's tokens, as a multi-vector teacher has them (TRG, arXiv 2306.12442)",
    ("student_tokens", "teacher_tokens", "token_mask"),
    sees="tokens",
)
def token_relations(
    student: Tensor, teacher: Tensor, mask: Tensor | None = None, *, across_texts: bool = False
) -> Tensor:
    """TRG: match the similarity matrices of tokens, the student's against the teacher's (arXiv 2306.12442).

    ``mean over pairs i < j of (cos(s_i, s_j) - cos(t_i, t_j))^2`` over the real tokens of each text, or of the batch:
    from 0 to 4, 0 where no text has two tokens. Widths may differ, but tokens may not: both sides must use the same
    tokenizer. The token graph within and across texts is the paper's. The squared difference replaces the paper's
    softmax over sampled tokens. The paper's contextual loss is not implemented.

    Args:
        student: (batch, tokens, d) student token embeddings.
        teacher: (batch, tokens, e) teacher token embeddings of the same tokens.
        mask: (batch, tokens) bool, true where there is a token. Masked positions may hold any value, NaN included.
        across_texts: Use pairs over the whole batch, which takes (batch x tokens)^2 similarities.
    """
    if student.ndim != 3 or teacher.ndim != 3 or student.shape[:2] != teacher.shape[:2]:
        raise UserError(
            f"student tokens of shape {tuple(student.shape)}, teacher's {tuple(teacher.shape)}; both are (batch, "
            "tokens, dimensions) of the same tokens, so both models need one tokenizer and one maximum length."
        )
    valid = full_mask(student[:, :, 0], mask)
    if across_texts:
        student, teacher, valid = (side.flatten(0, 1)[None] for side in (student, teacher, valid))
    ours, theirs = (_cosines(cleaned(side, valid[:, :, None])) for side in (student, teacher))
    pairs = (valid[:, :, None] & valid[:, None, :]).triu(diagonal=1)
    return ((ours - theirs) ** 2).masked_fill(~pairs, 0.0).sum() / pairs.sum().clamp(min=1)


def _cosine_matrices(student: Tensor, teacher: Tensor) -> tuple[Tensor, Tensor]:
    """(batch, batch) cosines between texts, the student's and the teacher's, whose widths may differ."""
    if student.ndim != 2 or teacher.ndim != 2 or len(student) != len(teacher):
        raise UserError(
            f"student embeddings of shape {tuple(student.shape)}, teacher's {tuple(teacher.shape)}; both are (batch, "
            "dimensions) of the same texts."
        )
    return _cosines(at_least_float32(student)), _cosines(at_least_float32(teacher))


def _cosines(vectors: Tensor) -> Tensor:
    """(.., n, n) cosines between (.., n, d) vectors."""
    unit = normalize(vectors, dim=-1)
    return unit @ unit.mT


def _checked(student: Tensor, teacher: Tensor) -> tuple[Tensor, Tensor]:
    """Both in float32, if they have the same shape."""
    if student.shape != teacher.shape:
        raise UserError(
            f"student embeddings of shape {tuple(student.shape)}, teacher's {tuple(teacher.shape)}; give the student a "
            "projection to the teacher's width (dimension: space)."
        )
    return at_least_float32(student), at_least_float32(teacher)
