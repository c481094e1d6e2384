"""Objectives over what is inside two transformers that read the same tokens: hidden states, attention, relations.

Inputs hold one entry for each pair of a student's and a teacher's layer, first. ``mask`` is (batch, tokens) bool, true
where there is a token; masked positions may hold any value, NaN included. The result is a scalar in float32 or the
inputs' wider type: the sum over the pairs of layers, and 0 with a gradient of 0 for a batch without tokens. Shapes that
differ are a `UserError`.
"""

from __future__ import annotations

import math
from functools import partial

import torch
from torch import Tensor

from retrodistill.core.errors import UserError
from retrodistill.objectives.lists import at_least_float32, cleaned, log_softmax
from retrodistill.objectives.registry import objective

_inside = partial(objective, sees="layers")


@_inside(
    "hidden-states",
    "squared difference of hidden states, layer by layer (TinyBERT, arXiv 1909.10351)",
    ("student_states", "teacher_states", "token_mask"),
)
def hidden_states(student: Tensor, teacher: Tensor, mask: Tensor) -> Tensor:
    """Mean squared difference of the hidden states of each token (TinyBERT, Findings of EMNLP 2020, eq. 8).

    ``sum over layers of mean over tokens and dimensions of (s - t)^2``, 0 or more. The paper's learned map from the
    student's width to the teacher's is the identity here, because a student that is cut or pruned keeps the width.

    Args:
        student: (layers, batch, tokens, d) hidden states after the student's layers.
        teacher: The same after the teacher's layers.
        mask: (batch, tokens) bool.
    """
    if student.shape != teacher.shape:
        raise UserError(
            f"hidden states of {student.shape[-1]} dimensions, the teacher's of {teacher.shape[-1]}; "
            "self-attention-relations compares models of different widths."
        )
    valid = mask[None, :, :, None]
    squares = (cleaned(student, valid) - cleaned(teacher, valid)) ** 2
    return squares.sum() / (mask.sum() * student.shape[-1]).clamp(min=1)


@_inside(
    "attention",
    "squared difference of attention logits, head by head (TinyBERT, arXiv 1909.10351)",
    ("student_heads", "teacher_heads", "token_mask"),
)
def attention_transfer(student: Tensor, teacher: Tensor, mask: Tensor) -> Tensor:
    """Mean squared difference of the attention of each head, before the softmax (TinyBERT, eq. 7).

    ``sum over layers of mean over heads and pairs of tokens of (<q_i, k_j> - <q'_i, k'_j>)^2 / d`` with the queries q
    and keys k of a head of width d, 0 or more. Both sides need the same number of heads.

    Args:
        student: (layers, 3, batch, heads, tokens, d) queries, keys and values of the student's heads.
        teacher: The same of the teacher's, whose heads may have another width.
        mask: (batch, tokens) bool.
    """
    if student.shape[3] != teacher.shape[3]:
        raise UserError(
            f"attention of {student.shape[3]} heads, the teacher's of {teacher.shape[3]}; self-attention-relations "
            "compares models with different heads."
        )
    pairs = mask[:, None, :, None] & mask[:, None, None, :]
    ours, theirs = (_products(cleaned(side, mask[:, None, :, None]), 0, 1) for side in (student, teacher))
    squares = ((ours - theirs) ** 2).masked_fill(~pairs, 0.0)
    return squares.sum() / (pairs.sum() * student.shape[3]).clamp(min=1)


@_inside(
    "self-attention-relations",
    "KL between the relations of a layer's queries, keys, and values among tokens (MiniLMv2, arXiv 2012.15828)",
    ("student_heads", "teacher_heads", "token_mask"),
    deepest=True,
)
def self_attention_relations(student: Tensor, teacher: Tensor, mask: Tensor) -> Tensor:
    """MiniLMv2: KL from the teacher's to the student's relations among queries, keys, and values (arXiv 2012.15828).

    ``sum over layers and over Q, K, V of mean over heads and tokens of KL(softmax(t_i T / sqrt d) || softmax(s_i S /
    sqrt d))``, in nats, 0 or more. Widths may differ: the vectors of all heads are split anew into as many
    relation heads as the teacher has attention heads. The paper takes the last layer, of large teachers one before it.

    Args:
        student: (layers, 3, batch, heads, tokens, d) queries, keys and values of the student's heads.
        teacher: The same of the teacher's.
        mask: (batch, tokens) bool.
    """
    heads = teacher.shape[3]
    ours, theirs = _split_anew(student, heads), teacher
    rows, columns = mask[:, None, :], mask[:, None, None, :]
    total = torch.zeros((), device=student.device)
    for kind in range(3):
        of, to = (
            log_softmax(_products(cleaned(side, mask[:, None, :, None]), kind, kind), columns, 1.0)
            for side in (theirs, ours)
        )
        divergence = (of.exp() * (of - to)).masked_fill(~columns, 0.0).sum(dim=-1).masked_fill(~rows, 0.0)
        total = total + divergence.sum() / (mask.sum() * heads).clamp(min=1)
    return total


def _split_anew(vectors: Tensor, heads: int) -> Tensor:
    """(layers, 3, batch, heads, tokens, d) vectors split into another number of heads."""
    layers, three, batch, own, tokens, width = vectors.shape
    if own == heads:
        return vectors
    if own * width % heads:
        raise UserError(f"vectors of {own} heads of {width} dimensions cannot be split into {heads} relation heads.")
    whole = vectors.transpose(3, 4).reshape(layers, three, batch, tokens, heads, own * width // heads)
    return whole.transpose(3, 4)


def _products(vectors: Tensor, left: int, right: int) -> Tensor:
    """(layers, batch, heads, tokens, tokens) products of two of queries, keys and values, over the root of a width."""
    vectors = at_least_float32(vectors)
    return vectors[:, left] @ vectors[:, right].mT / math.sqrt(vectors.shape[-1])
