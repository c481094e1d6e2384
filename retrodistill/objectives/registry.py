"""Objectives and regularizers by name. Each registers itself where it is defined, with its requirements.

`retrodistill.objectives` imports every module of its folder, so a new module needs no line elsewhere.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, Literal

from torch import Tensor

from retrodistill.core.errors import unknown

Function = Callable[..., Tensor]
Sees = Literal["lists", "embeddings", "tokens", "layers"]

# What an objective can take. Temperatures are already applied: student scores are over the student's temperature,
# teacher scores over the teacher's.
INPUTS = {
    "scores": "(batch, n) student scores of the lists",
    "targets": "(batch, n) teacher scores of the lists",
    "labels": "(batch, n) teacher scores without a temperature, from 0 to 1",
    "mask": "(batch, n) bool: candidates, without the lists whose teacher scores teach nothing",
    "own_mask": "(batch, n) bool: candidates, without relevant documents other than the text's own",
    "positives": "(batch,) position of the text's own document in its list, -1 for none",
    "start_scores": "(batch, n) scores by the student as it was at the start of the stage",
    "own_scores": "(batch, batch) student scores of each text with each text's own document",
    "own_shared": "(batch, batch) bool: the second text's own document is relevant to the first text, too",
    "own_known": "(batch,) bool: the text has an own document",
    "batch_scores": "(batch, m) student scores of each text with all documents of the batch",
    "batch_targets": "(batch, m) teacher scores of the same, which need a teacher that scored the whole corpus",
    "batch_positives": "(batch,) position of the text's own document among them, -1 for none",
    "batch_mask": "(batch, m) bool: the document counts for the text",
    "t": "share of the teacher in an interpolated target, from a schedule that follows the training's progress",
    "student": "(batch, d) student embeddings of the texts",
    "teacher": "(batch, d) teacher embeddings of the same texts",
    "whole_teacher": "(batch, e) the same in all dimensions, where `teacher` has the leading ones only",
    "teacher_widths": "widths of the several teachers whose embeddings are concatenated",
    "classes": "the pseudo-classes of the training texts",
    "student_tokens": "(batch, tokens, d) the student's token vectors",
    "teacher_tokens": "(batch, tokens, e) the teacher's vectors of the same tokens",
    "token_mask": "(batch, tokens) bool: both sides count the token",
    "student_states": "(layers, batch, tokens, d) hidden states after layers of the student",
    "teacher_states": "(layers, batch, tokens, e) the same after the teacher's layers that they are paired with",
    "student_heads": "(layers, 3, batch, heads, tokens, d) queries, keys and values of the student's attention heads",
    "teacher_heads": "(layers, 3, batch, heads, tokens, e) the same of the teacher's",
    "student_temperature": "the student's temperature, of objectives that see no scores",
}


@dataclass(frozen=True)
class Objective:
    """One objective: a function of the inputs in `takes`, in their order, to a scalar, and its requirements."""

    name: str  # what recipes write
    about: str  # one line for users
    function: Function
    sees: Sees  # lists of candidates, embeddings of single texts, tokens of lists' texts, or layers of a transformer
    takes: tuple[str, ...]  # keys of INPUTS
    needs_positives: bool = False  # the text's own document must be in its list; other objectives never see it
    control: str = "contrastive"  # the teacher-free objective that replaces it in a control run
    has_pairs: bool = False  # its memory grows with the square of a list
    dot_only: bool = False  # for dot-product students only
    corrects_by_labels: bool = False  # it needs labeled documents as positives
    deepest: bool = False  # by default, it compares the last layers only; other objectives of layers compare all
    student_temperature: float = 0.05  # by default; a cosine over it is a logit

    def needs(self, *inputs: str) -> bool:
        """Whether it takes at least one of these inputs."""
        return any(name in self.takes for name in inputs)

    @property
    def reads_scores(self) -> bool:
        """Whether it learns from the teacher's scores of a list, so that the scores of a list must be informative."""
        return self.needs("targets", "labels", "batch_targets")

    @property
    def needs_lists(self) -> bool:
        """Whether it needs candidates."""
        return self.sees in ("lists", "tokens")


_OBJECTIVES: dict[str, Objective] = {}
_REGULARIZERS: dict[str, Callable[[Tensor, int], Tensor]] = {}
OBJECTIVES: dict[str, str] = {}  # descriptions for users
REGULARIZERS: dict[str, str] = {}


def objective(
    name: str,
    about: str,
    takes: tuple[str, ...] = ("scores", "targets", "mask"),
    *,
    sees: Sees = "lists",
    **traits: Any,
) -> Callable[[Function], Function]:
    """Register a function as an objective; the arguments are the attributes of `Objective`."""

    def register(function: Function) -> Function:
        wrong = [key for key in takes if key not in INPUTS]
        if wrong or name in _OBJECTIVES:
            raise ValueError(f"objective {name!r}: registered twice, or takes unknown inputs {wrong}.")
        _OBJECTIVES[name] = Objective(name, about, function, sees, takes, **traits)
        OBJECTIVES[name] = about
        return function

    return register


def regularizer(name: str, about: str, *, takes_terms: bool = False) -> Callable[[Function], Function]:
    """Register a function of (texts, terms) term weights, and with `takes_terms` of the terms kept per text."""

    def register(function: Function) -> Function:
        _REGULARIZERS[name] = function if takes_terms else lambda weights, _: function(weights)
        REGULARIZERS[name] = about
        return function

    return register


def get_objective(name: str) -> Objective:
    """Look up an objective by name; an unknown name is a `UserError` that names the nearest one."""
    if name not in _OBJECTIVES:
        raise unknown("objective", name, _OBJECTIVES)
    return _OBJECTIVES[name]


def get_regularizer(name: str) -> Callable[[Tensor, int], Tensor]:
    """Look up a function of (texts, terms) term weights and the terms kept per text, as `get_objective` does."""
    if name not in _REGULARIZERS:
        raise unknown("regularizer", name, _REGULARIZERS)
    return _REGULARIZERS[name]
