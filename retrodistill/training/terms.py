"""Terms: objectives with weight and temperatures settled, on the lists and embeddings of a batch."""

from __future__ import annotations

import copy
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, NamedTuple

import numpy as np
import torch
from torch import Tensor, nn

from retrodistill import objectives as pure
from retrodistill.core.distributed import processes
from retrodistill.core.errors import UserError
from retrodistill.core.progress import log
from retrodistill.objectives.registry import INPUTS, Objective, get_objective
from retrodistill.training.in_batch import Across, InBatch
from retrodistill.training.lists import Lists
from retrodistill.training.scorers import Scorer

_BLOCK = 1024
_OWN = ("own_scores", "own_shared", "own_known")
_BATCH = ("batch_scores", "batch_targets", "batch_mask", "batch_positives")
_REASONS = {
    "not finite": "with scores that are no numbers",
    "flat": "with equal scores",
    "saturated": "with a tied top",
}


@dataclass(frozen=True)
class Term:
    """One weighted objective with its temperatures settled.

    Attributes:
        name: Its name in the registry.
        weight: Its weight in the sum.
        student_temperature: Student scores are divided by it.
        teacher_temperature: Ranker scores are divided by it.
    """

    name: str
    weight: float = 1.0
    student_temperature: float = 0.05
    teacher_temperature: float = 1.0

    def __post_init__(self) -> None:
        get_objective(self.name)  # refuses an unknown one

    @property
    def objective(self) -> Objective:
        """What the term computes, and what it needs."""
        return get_objective(self.name)

    @property
    def sees_lists(self) -> bool:
        """Whether it sees scores of lists."""
        return self.objective.sees == "lists"

    @property
    def reads_scores(self) -> bool:
        """Whether it needs the teacher's scores of candidates, and lists that say something."""
        return self.objective.reads_scores

    def value(self, inputs: Mapping[str, Any]) -> Tensor:
        """The term, unweighted.

        Args:
            inputs: Keys of `retrodistill.objectives.registry.INPUTS`; scores without temperatures. Lists that teach
                nothing (`retrodistill.objectives.usable_lists`) count nothing where the term reads teacher scores.

        Raises:
            UserError: An input is missing.
        """
        missing = next((name for name in self.objective.takes if inputs.get(name) is None), None)
        if missing is not None:
            raise UserError(f"objective {self.name!r} needs {missing}: {_ADVICE.get(missing, INPUTS[missing])}.")
        return self.objective.function(*(self._input(name, inputs) for name in self.objective.takes))

    def _input(self, name: str, inputs: Mapping[str, Any]) -> Any:
        value = inputs[name]
        if name in _BY_STUDENT_TEMPERATURE:
            return value / self.student_temperature
        if name in _BY_TEACHER_TEMPERATURE:
            return value / self.teacher_temperature
        if name == "mask" and self.objective.needs("targets", "labels"):
            taught = inputs["targets"] if self.objective.needs("targets") else inputs["labels"]
            return value & pure.usable_lists(taught, value)[0][:, None]
        return value


_BY_STUDENT_TEMPERATURE = ("scores", "start_scores", "own_scores", "batch_scores")
_BY_TEACHER_TEMPERATURE = ("targets", "batch_targets")
_ADVICE = {
    "batch_targets": "the teacher's scores of all documents; set candidates.depth: all",
    "t": "how far training is; give the trainer an objective_keeper",
}


class ListView(NamedTuple):
    """Lists of a batch.

    Attributes:
        candidates: (batch, n) or (1, n) corpus positions, -1 for padding.
        targets: (batch, n) teacher scores.
        mask: (batch, n) bool, true where there is a candidate that counts.
        positives: (batch,) place of the pseudo-query's own document, -1 for none.
    """

    candidates: np.ndarray
    targets: Tensor
    mask: Tensor
    positives: Tensor


def list_view(lists: Lists, rows: np.ndarray, device: torch.device) -> ListView:
    """The lists of some texts, on a device; `rows` (batch,) are the texts' rows."""
    targets = torch.from_numpy(np.ascontiguousarray(lists.scores[rows], dtype=np.float32)).to(device)
    everything = np.arange(lists.scores.shape[1])[None, :]
    candidates = everything if lists.documents is None else lists.documents[rows]
    mask = (candidates >= 0) & (candidates != lists.hidden[rows][:, None])
    at = (candidates == lists.positives[rows][:, None]) & mask & (lists.positives[rows] >= 0)[:, None]
    places = np.where(at.any(axis=1), at.argmax(axis=1), -1)
    return ListView(candidates, targets, torch.from_numpy(mask).to(device), torch.from_numpy(places).to(device))


def check_positives_known(terms: Sequence[Term], positives: np.ndarray) -> None:
    """Refuse controls without a document that is known to be right.

    Args:
        terms: Of a stage.
        positives: (texts,) integers, negative where a text has none.

    Raises:
        UserError: A term needs positives, and no text has one.
    """
    for term in terms:
        if term.objective.needs_positives and not (positives >= 0).any():
            raise UserError(
                f"objective {term.name!r} needs texts with a document of their own: take texts.titles or .sentences."
            )


def unusable_counts(lists: Lists) -> dict[str, int]:
    """How many lists teach nothing, by reason, and under ``usable`` how many do teach."""
    found = {"usable": 0}
    for start in range(0, len(lists), _BLOCK):
        view = list_view(lists, np.arange(start, min(start + _BLOCK, len(lists))), torch.device("cpu"))
        usable, counts = pure.usable_lists(view.targets, view.mask)
        for reason, count in {"usable": int(usable.sum()), **counts}.items():
            found[reason] = found.get(reason, 0) + count
    return found


def lists_only(terms: Sequence[Term], beyond: object = None) -> list[Term]:
    """The terms, where all of them see lists.

    Raises:
        UserError: One aligns single texts.
    """
    for term in terms:
        if not term.sees_lists:
            raise UserError(
                f"objective {term.name!r} aligns single texts; use it in a stage with train: query_encoder."
            )
    return list(terms)


class TermsLoss(nn.Module):
    """A loss of weighted terms: their values, their state, and what the model card of sentence-transformers tells.

    Attributes:
        terms: The objectives.
        progress: Share of the training's steps that are done, from 0 to 1, as `objective_keeper` tells; None before.
        left_out: Number of lists that teach nothing, by reason; empty where no term reads the teacher's scores.
    """

    terms: list[Term]

    def __init__(self) -> None:
        super().__init__()
        self.progress: float | None = None
        self.left_out: dict[str, int] = {}
        self._schedules: dict[int, pure.InterpolationSchedule] = {}
        self._start: Any = None

    def list_terms(
        self,
        scores: Tensor,
        targets: Tensor,
        mask: Tensor,
        positives: Tensor,
        *,
        start_scores: Tensor | None = None,
        in_batch: InBatch | None = None,
        across: Across | None = None,
    ) -> dict[str, Tensor]:
        """Weighted list terms by name; terms of one name are added up.

        Args:
            scores: (batch, n) student scores.
            targets: (batch, n) teacher scores.
            mask: (batch, n) bool, true where there is a candidate that counts.
            positives: (batch,) place of the pseudo-query's own document, -1 for none.
            start_scores: (batch, n) scores by the student of the stage's start, for ``lwf``.
            in_batch: The texts with each other's documents, for ``in-batch``.
            across: The texts with the batch's documents by their teacher, for ``in-batch-margin-mse``.

        Raises:
            UserError: A term lacks what it needs.
        """
        inputs = {
            **{"scores": scores, "targets": targets, "labels": targets, "mask": mask, "positives": positives},
            "start_scores": start_scores,
            **({} if in_batch is None else dict(zip(_OWN, in_batch, strict=True))),
            **({} if across is None else dict(zip(_BATCH, across, strict=True))),
        }
        parts: dict[str, Tensor] = {}
        for place, term in enumerate(self.terms):
            if term.sees_lists:
                value = self._value(place, term, inputs)
                parts[term.name] = parts.get(term.name, 0.0) + term.weight * value
        return parts

    @property
    def start(self) -> Any:
        """The student of the stage's start, where a term compares with it; else None."""
        return self._start

    def objective_state(self) -> dict[str, dict[str, float]]:
        """What a checkpoint must keep for a resumed training: schedules by the place of their term, JSON-ready."""
        return {str(place): schedule.state() for place, schedule in self._schedules.items()}

    def load_objective_state(self, state: dict[str, dict[str, float]]) -> None:
        """Take up where `objective_state` was written."""
        self._schedules = {int(place): pure.InterpolationSchedule.from_state(values) for place, values in state.items()}

    def get_config_dict(self) -> dict[str, Any]:
        """The terms with their weights and temperatures."""
        return {"terms": [vars(term) for term in self.terms]}

    def _value(self, place: int, term: Term, inputs: Mapping[str, Any]) -> Tensor:
        """The term, unweighted; one with a schedule at the schedule's t, which then moves on."""
        if not term.objective.needs("t") or self.progress is None:
            return term.value(inputs)
        schedule = self._schedules.setdefault(place, pure.InterpolationSchedule())
        value = term.value({**inputs, "t": schedule.t})
        if torch.is_grad_enabled():
            loss = value.detach().clone()
            if processes() > 1:  # one t for all
                torch.distributed.all_reduce(loss)
                loss = loss / processes()
            schedule.update(float(loss), self.progress)
        return value

    def _keep_start(self, model: nn.Module) -> None:
        """Freeze a copy of the student as it is, where a term compares with it."""
        if any(term.objective.needs("start_scores") for term in self.terms):
            self._start = copy.deepcopy(model).requires_grad_(False)

    def _start_encoded(self, columns: Sequence[Any], scorer: Scorer) -> list[Any] | None:
        """The columns by the student of the stage's start, without dropout; None where no term asks."""
        if self._start is None:
            return None
        self._start.eval()
        with torch.no_grad():  # a model writes into the features that it is given
            copies = [dict(column) if isinstance(column, Mapping) else column for column in columns]
            return scorer.encode(self._start, copies)

    def asks(self, name: str) -> bool:
        """Whether an objective, or an input of one, is wanted by the terms."""
        return any(name == term.name or term.objective.needs(name) for term in self.terms)

    def _report(self, counts: dict[str, int]) -> None:
        """Keep, tell and check how many lists teach nothing.

        Raises:
            UserError: None does.
        """
        self.left_out = {reason: count for reason, count in counts.items() if reason != "usable"}
        told = [f"{self.left_out[reason]} lists {words}" for reason, words in _REASONS.items() if self.left_out[reason]]
        if not counts["usable"]:
            also = f"; {', '.join(told)}" if told else ""
            raise UserError(
                f"no list teaches anything: {self.left_out['single']} with fewer than two candidates{also}. Mine "
                "deeper, or take the teacher's raw scores."
            )
        if told:
            log(f"left out: {', '.join(told)}")
