"""Terms: objectives with weight and temperatures settled, on the lists and embeddings of a batch."""

from __future__ import annotations

import copy
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, NamedTuple

import numpy as np
import torch
from torch import Tensor, nn

from retrodistill import objectives as pure
from retrodistill.core.distributed import processes
from retrodistill.core.errors import UserError, unknown
from retrodistill.core.progress import log
from retrodistill.objectives.registry import LIST_OBJECTIVES, NEED_MORE, NEED_POSITIVES, OBJECTIVES, TEACHERLESS
from retrodistill.training.in_batch import Across, InBatch
from retrodistill.training.lists import Lists
from retrodistill.training.scorers import Scorer

_BLOCK = 1024
_ALL = "set candidates.depth: all"
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
        teacher_temperature: Teacher scores are divided by it.
    """

    name: str
    weight: float = 1.0
    student_temperature: float = 0.05
    teacher_temperature: float = 1.0

    def __post_init__(self) -> None:
        if self.name not in OBJECTIVES:
            raise unknown("objective", self.name, OBJECTIVES)

    @property
    def sees_lists(self) -> bool:
        """Whether it needs candidates; the others need the teacher's embeddings."""
        return self.name in LIST_OBJECTIVES

    @property
    def reads_scores(self) -> bool:
        """Whether it needs the teacher's scores of candidates, and lists that say something."""
        return self.sees_lists and self.name not in TEACHERLESS

    def on_lists(self, scores: Tensor, targets: Tensor, mask: Tensor, positives: Tensor) -> Tensor:
        """The term of (batch, n) lists, unweighted; `positives` (batch,) are places, -1 for none.

        Lists that teach nothing (`retrodistill.objectives.usable_lists`) count nothing.

        Raises:
            UserError: An objective that needs more than lists: `TermsLoss.list_terms` has it.
        """
        if self.name == "contrastive":
            return pure.contrastive(scores, positives, mask, student_temperature=self.student_temperature)
        if self.name == "bce":  # its labels have their scale
            usable = pure.usable_lists(targets, mask)[0]
            return pure.binary_cross_entropy(scores / self.student_temperature, targets, mask & usable[:, None])
        if self.name not in _LISTS and self.name != "pld":
            raise UserError(
                f"objective {self.name!r} needs more than lists and works with train: query_encoder or both_encoders."
            )
        scores, targets, mask = self.scaled(scores, targets, mask)
        if self.name == "pld":
            return pure.pld(scores, targets, mask, positives)
        return _LISTS[self.name](scores, targets, mask)

    def scaled(self, scores: Tensor, targets: Tensor, mask: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """Scores over their temperatures, and the mask without lists that teach nothing."""
        usable = pure.usable_lists(targets, mask)[0]
        return scores / self.student_temperature, targets / self.teacher_temperature, mask & usable[:, None]

    def on_embeddings(self, student: Tensor, teacher: Tensor) -> Tensor:
        """The term of (batch, d) embeddings of the same texts, unweighted."""
        if self.name == "mi-alpha":
            return pure.mi_alpha(student, teacher, temperature=self.student_temperature)
        return _EMBEDDINGS[self.name](student, teacher)


_LISTS: dict[str, Callable[[Tensor, Tensor, Tensor], Tensor]] = {
    "kl": pure.kl_divergence,
    "reverse-kl": pure.reverse_kl,
    "balanced-kl": pure.balanced_kl,
    "listnet": pure.listnet,
    "mse": lambda scores, targets, mask: pure.mse(scores, targets, mask, free_zero=True),
    "margin-mse": pure.margin_mse,
    "margin-mse-all": lambda scores, targets, mask: pure.margin_mse(scores, targets, mask, pairs="all"),
    "ranknet": pure.ranknet,
    "lambdaloss": pure.lambda_loss,
    "listmle": pure.listmle,
    "sinkhorn": pure.sinkhorn,
}
_EMBEDDINGS: dict[str, Callable[[Tensor, Tensor], Tensor]] = {
    "leaf": pure.leaf,
    "cosine": pure.cosine,
    "relations": pure.relation_matching,
    "nd": pure.norm_and_direction,
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
        if term.name in NEED_POSITIVES and not (positives >= 0).any():
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


def lists_only(terms: Sequence[Term], beyond: frozenset[str] = frozenset()) -> list[Term]:
    """The terms, where all of them see lists.

    Args:
        terms: Of a stage.
        beyond: Objectives that need more than lists and are given it.

    Raises:
        UserError: One aligns single texts, or needs what is not given.
    """
    for term in terms:
        if not term.sees_lists:
            raise UserError(
                f"objective {term.name!r} aligns single texts; use it in a stage with train: query_encoder."
            )
        if term.name in NEED_MORE - beyond:
            raise UserError(
                f"objective {term.name!r} needs more than lists and works with train: query_encoder or both_encoders."
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
        parts: dict[str, Tensor] = {}
        for place, term in enumerate(self.terms):
            if not term.sees_lists:
                continue
            temperature = term.student_temperature
            if term.name == "taid":
                value = self._interpolated(place, term, scores, targets, mask)
            elif term.name == "lwf":
                if start_scores is None:
                    raise UserError("objective 'lwf' needs scores by the student of the stage's start.")
                value = pure.without_forgetting(scores, start_scores, mask, student_temperature=temperature)
            elif term.name == "in-batch":
                if in_batch is None:
                    raise UserError("objective 'in-batch' needs to know which document is whose.")
                value = pure.in_batch_contrastive(*in_batch, student_temperature=temperature)
            elif term.name == "in-batch-margin-mse":
                if across is None:
                    raise UserError(f"objective {term.name!r} needs the teacher's scores of all documents; {_ALL}.")
                given = (across.scores / temperature, across.targets / term.teacher_temperature)
                value = pure.in_batch_margin_mse(*given, across.positives, across.mask)
            else:
                value = term.on_lists(scores, targets, mask, positives)
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

    def _interpolated(self, place: int, term: Term, scores: Tensor, targets: Tensor, mask: Tensor) -> Tensor:
        """TAID at the schedule's t, which then moves on."""
        if self.progress is None:
            raise UserError("objective 'taid' must be told how far training is: give the trainer an objective_keeper.")
        schedule = self._schedules.setdefault(place, pure.InterpolationSchedule())
        value = pure.taid(*term.scaled(scores, targets, mask), t=schedule.t)
        if torch.is_grad_enabled():
            loss = value.detach().clone()
            if processes() > 1:  # one t for all
                torch.distributed.all_reduce(loss)
                loss = loss / processes()
            schedule.update(float(loss), self.progress)
        return value

    def _keep_start(self, model: nn.Module) -> None:
        """Freeze a copy of the student as it is, where a term compares with it."""
        if any(term.name == "lwf" for term in self.terms):
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
        """Whether an objective is among the terms."""
        return any(term.name == name for term in self.terms)

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
