"""Terms of a loss over layers: the student's hidden states and attention against those of a transformer teacher."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn

from retrodistill.core.errors import UserError
from retrodistill.encoders.inner_states import Pass, recording
from retrodistill.encoders.layers import stack_of
from retrodistill.training.loss import LayerMap, Term


class Transformers(NamedTuple):
    """Transformers without heads that read the same tokens."""

    student: Any
    teacher: Any


class LayerLoss(nn.Module):
    """Adds terms over layers to a loss of any kind of student.

    The teacher's transformer runs on the tokens that the student's was given, without gradients, so that nothing is
    stored and a stage may read any texts.

    Args:
        model: The student in training.
        loss: Its other terms, which run the model.
        terms: Objectives that see layers.
        transformers: Of student and teacher.

    Raises:
        UserError: A term's layers do not fit those of the two, or it needs heads and one has none that are found.
    """

    def __init__(self, model: Any, loss: nn.Module, terms: Sequence[Term], transformers: Transformers) -> None:
        super().__init__()
        self.model, self.loss, self.terms = model, loss, list(terms)
        self._transformers = transformers  # a tuple, so that they are no modules of the loss
        transformers.teacher.eval().requires_grad_(False)
        counts = [len(stack_of(each)[0]) for each in (transformers.student, transformers.teacher)]
        self._pairs = [layer_pairs(_layers_of(term), *counts) for term in terms]
        of_heads = [term.objective.needs("student_heads") for term in terms]
        self._needs_heads = any(of_heads)
        for term, pairs, needs_heads in zip(terms, self._pairs, of_heads, strict=True):
            if needs_heads and not all(map(all, pairs)):
                raise UserError(
                    f"objective {term.name!r} compares attention, which layer 0 has not; begin with layer 1."
                )

    def forward(self, sentence_features: Iterable[Any], labels: Tensor, **given: Any) -> dict[str, Tensor]:
        """The loss's own terms by name, and those over layers, each the mean over the passes of the student."""
        student, teacher = self._transformers
        with recording(student, heads=self._needs_heads) as ours:
            parts = dict(self.loss(sentence_features, labels, **given))
        with torch.no_grad(), recording(teacher, heads=self._needs_heads) as theirs:
            for one in ours:
                teacher(**one.inputs)
        for own, other in zip(ours, theirs, strict=True):
            for term, pairs in zip(self.terms, self._pairs, strict=True):
                value = term.weight * term.value(_inputs(term, own, other, pairs)) / len(ours)
                parts[term.name] = parts[term.name] + value if term.name in parts else value
        return parts


def layer_pairs(layers: LayerMap, student: int, teacher: int) -> list[tuple[int, int]]:
    """Pairs of a student's and a teacher's layer, counted from 1; 0 is what the first layer gets.

    Args:
        layers: ``uniform`` pairs each layer of the student with the teacher's at the same relative depth (TinyBERT),
            ``last`` the last ones; or the teacher's layer for each of the student's.
        student: Number of the student's layers.
        teacher: Number of the teacher's layers.

    Raises:
        UserError: A layer that one of them has not.
    """
    if layers == "last":
        return [(student, teacher)]
    if layers == "uniform":
        return [(layer, round(layer * teacher / student)) for layer in range(1, student + 1)]
    wrong = [pair for pair in layers.items() if not (0 <= pair[0] <= student and 0 <= pair[1] <= teacher)]
    if wrong or not layers:
        found = f"{wrong[0][0]}: {wrong[0][1]}" if wrong else "no pair"
        raise UserError(
            f"layers: {found}; give pairs of a student's layer, up to {student}, and a teacher's, up to {teacher}."
        )
    return sorted(layers.items())


def _layers_of(term: Term) -> LayerMap:
    if term.layers is not None:
        return term.layers
    return "last" if term.objective.deepest else "uniform"


def _inputs(term: Term, own: Pass, other: Pass, pairs: Sequence[tuple[int, int]]) -> dict[str, Tensor]:
    """What a term takes of `retrodistill.objectives.registry.INPUTS`."""
    inputs = {"token_mask": own.mask}
    for side, one, layers in zip(("student", "teacher"), (own, other), zip(*pairs, strict=True), strict=True):
        if term.objective.needs(f"{side}_states"):
            inputs[f"{side}_states"] = torch.stack([one.states[layer] for layer in layers])
        if term.objective.needs(f"{side}_heads"):  # of the layers alone: what the first one gets has none
            inputs[f"{side}_heads"] = torch.stack([one.heads[layer - 1] for layer in layers])
    return inputs
