"""The loss: a weighted sum of objectives on the scores of a student's scorer, for every kind of student."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal, NamedTuple

import numpy as np
import torch
from torch import Tensor, nn

from retrodistill.core.errors import UserError
from retrodistill.core.json_files import read_json, write_json
from retrodistill.core.runtime import is_main, log, processes
from retrodistill.objectives.classes import PseudoClasses
from retrodistill.objectives.distributions import InterpolationSchedule
from retrodistill.objectives.lists import usable_lists
from retrodistill.objectives.registry import INPUTS, Objective, get_objective
from retrodistill.objectives.scores import check_width
from retrodistill.training.lists import ListBatch, TrainingLists, as_float32
from retrodistill.training.scorers import Scorer, TokenBatch

LayerMap = Literal["uniform", "last"] | Mapping[int, int]  # see `retrodistill.training.layer_loss.layer_pairs`
STATE_FILE = "objectives.json"
_OF_LISTS = {"scores", "targets", "labels", "mask", "own_mask", "positives"}
_BY_STUDENT_TEMPERATURE = ("scores", "start_scores", "own_scores", "batch_scores")
_BY_TEACHER_TEMPERATURE = ("targets", "batch_targets")
_ADVICE = {"t": "the progress of the training; give the trainer an objective_keeper"}
_REASONS = {
    "not finite": "with scores that are not numbers",
    "flat": "with equal scores",
    "saturated": "with a tied top",
}


@dataclass(frozen=True)
class Term:
    """One weighted objective of the registry. Student and teacher scores are divided by their temperatures."""

    name: str
    weight: float = 1.0
    student_temperature: float = 0.05
    teacher_temperature: float = 1.0
    layers: LayerMap | None = None  # which layers an objective of layers compares; None for its own choice

    def __post_init__(self) -> None:
        get_objective(self.name)  # rejects an unknown name

    @property
    def objective(self) -> Objective:
        """Its entry in the registry."""
        return get_objective(self.name)

    def value(self, inputs: Mapping[str, Any]) -> Tensor:
        """The term, unweighted, from `retrodistill.objectives.registry.INPUTS`; scores without temperatures.

        If it reads teacher scores, lists that teach nothing (`retrodistill.objectives.usable_lists`) do not count.
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
            scores = inputs["targets"] if self.objective.needs("targets") else inputs["labels"]
            return value & usable_lists(scores, value)[0][:, None]
        return value


class TeacherVectors(NamedTuple):
    """What objectives that see no scores compare a student with."""

    embeddings: np.ndarray | None = None  # (texts, d), of the training texts, with the student's number of dimensions
    classes: PseudoClasses | None = None  # of these texts
    tokens: Callable[[dict[str, Tensor], int], TokenBatch] | None = None  # from a column's features and its place
    whole: np.ndarray | None = None  # (texts, e), the same in all dimensions; None if these are all
    widths: Sequence[int] = ()  # of the encoders whose embeddings are side by side


class DistillationLoss(nn.Module):
    """Weighted terms of a batch, from a student's scores and a teacher's.

    The trainer's labels are rows of the lists, or rows of the texts in a stage without lists.

    Args:
        terms: Their weighted sum is the loss.
        scorer: Of the student's kind and of the part that is trained.
        lists: Candidates and teacher scores, for objectives that see lists.
        teacher: Embeddings, classes or tokens, for objectives that see these.
        alone: False for one of several under a wrapper (exits, truncations): the first one reports the lists that teach
            nothing and keeps the student of the stage's start.

    Raises:
        UserError: An objective lacks what it learns from, or does not fit the student, or no list teaches anything.
    """

    def __init__(
        self,
        model: Any,
        terms: Sequence[Term],
        scorer: Scorer,
        lists: TrainingLists | None = None,
        teacher: TeacherVectors = TeacherVectors(),  # noqa: B008 - immutable
        *,
        alone: bool = True,
    ) -> None:
        super().__init__()
        self.model, self.terms, self.scorer = model, list(terms), scorer
        self.progress: float | None = None  # share of the training's steps that are done, set by `objective_keeper`
        self.left_out: dict[str, int] = {}  # lists that teach nothing, by reason, if a term reads the teacher's scores
        self.start: Any = None  # the stage's first student, if a term needs it and the scorer keeps a whole model
        self._lists, self._teacher = lists, teacher
        self._schedules: dict[int, InterpolationSchedule] = {}
        self._seen = {term.objective.sees for term in terms}
        for term in terms:
            if term.objective.sees != "layers":  # `LayerLoss` takes these
                _check(term, scorer, lists, teacher)
        if alone and lists is not None and any(term.objective.reads_scores for term in terms):
            self.left_out = _report(lists.usable())
        if alone and self._needs("start_scores"):
            self.start = scorer.keep_start(model)

    def forward(
        self, sentence_features: Iterable[Any], labels: Tensor, prompt: str | None = None, task: str | None = None
    ) -> dict[str, Tensor]:
        """Encode the columns, which a cross-encoder gets as texts, and compute the weighted terms.

        `labels` are (batch,) integer rows of the lists, or of the texts. The trainer of cross-encoders passes `prompt`
        and `task`; they are not used, since the scorer reads the model's own.
        """
        columns, rows = list(sentence_features), _rows(labels)
        texts = rows if self._lists is None else self._lists.text_rows[rows]
        tokens = self._teacher_tokens(columns)
        start = None
        if self.start is not None:
            self.start.eval()
            with torch.no_grad():  # copied, because a model writes into the features that it is given
                start = self.scorer.encode(self.start, _copied(columns), texts)
        views = self.scorer.views(columns)
        encoded = self.scorer.encode(self.model, columns, texts)
        batch = self._batch(rows)
        parts = self._terms(encoded, rows, batch, start)
        if batch is None:
            return parts
        if tokens is not None:
            parts |= self._token_terms(encoded, tokens, batch)
        for name, weight, view in views(encoded) if views is not None else []:
            inputs = {"scores": self.scorer.lists(view, batch), **_from_teacher(batch)}
            parts |= self._sum("lists", inputs, weight, f"@{name}")
        return parts

    def compute_loss_from_embeddings(
        self, embeddings: Any, labels: Tensor, start_embeddings: Any = None
    ) -> dict[str, Tensor]:
        """Weighted terms by name; the trainer sums and logs them. Terms of one name are added up.

        `embeddings` are what the scorer encodes the columns to, for single vectors one tensor (batch, d) per column;
        `start_embeddings` the same by the student of the stage's start, if that is a whole model.
        """
        rows = _rows(labels)
        return self._terms(embeddings, rows, self._batch(rows), start_embeddings)

    def start_epoch(self, epoch: int) -> None:
        """Draw the groups of an epoch, which counts from 0; other lists are the same in every epoch."""
        if self._lists is not None:
            self._lists.start_epoch(epoch)

    def objective_state(self) -> dict[str, dict[str, float]]:
        """What a checkpoint must keep for a resumed training: schedules by the place of their term, JSON-ready."""
        return {str(place): schedule.state() for place, schedule in self._schedules.items()}

    def load_objective_state(self, state: dict[str, dict[str, float]]) -> None:
        """Restore what `objective_state` returned."""
        self._schedules = {int(place): InterpolationSchedule.from_state(values) for place, values in state.items()}

    def get_config_dict(self) -> dict[str, Any]:
        """The terms with their weights and temperatures, for the model card."""
        terms = [vars(term) for term in self.terms]
        return {"terms": [{key: value for key, value in term.items() if value is not None} for term in terms]}

    def _needs(self, *inputs: str) -> bool:
        return any(term.objective.needs(*inputs) for term in self.terms)

    def _batch(self, rows: np.ndarray) -> ListBatch | None:
        """The lists of a batch, if a term sees them."""
        if self._lists is None or not any(term.objective.needs_lists for term in self.terms):
            return None
        return self._lists.batch(rows, next(self.model.parameters()).device)

    def _terms(self, encoded: Any, rows: np.ndarray, batch: ListBatch | None, start: Any) -> dict[str, Tensor]:
        """Weighted terms on lists and embeddings; ``encoded`` and ``start`` are as the scorer's `encode` returns."""
        prepared = self.scorer.prepared(encoded)
        start = None if start is None else self.scorer.prepared(start)
        lists = batch if "lists" in self._seen else None
        parts = {} if lists is None else self._sum("lists", self._list_inputs(prepared, lists, start))
        if "embeddings" in self._seen and self._teacher.embeddings is not None:
            student = self.scorer.embeddings(prepared)
            teacher = as_float32(self._teacher.embeddings[rows], student.device)
            inputs: dict[str, Any] = {"student": student, "teacher": teacher, "classes": self._teacher.classes}
            whole = self._teacher.whole
            inputs["whole_teacher"] = teacher if whole is None else as_float32(whole[rows], student.device)
            inputs["teacher_widths"] = self._teacher.widths
            parts |= self._sum("embeddings", inputs)
        if lists is not None:
            parts |= self.scorer.own_terms(encoded, lists, self.progress)
        return parts

    def _list_inputs(self, encoded: Any, batch: ListBatch, start: Any) -> dict[str, Any]:
        scores = self.scorer.lists(encoded, batch)
        inputs = {"scores": scores, **_from_teacher(batch)}
        if self._needs("start_scores") and (start is not None or self.start is None):
            with torch.no_grad():
                inputs["start_scores"] = self.scorer.start_lists(encoded if start is None else start, batch)
        if self._needs("own_scores"):
            own = np.asarray(batch.own, dtype=np.int64)
            shared = own[:, None] == own[None, :]
            if self._lists is not None:  # passages of one document, which is relevant to both texts, or labels say so
                shared = shared | self._lists.excuses(batch.texts, own) | self._lists.relevant(batch.texts, own)
            inputs["own_scores"] = self.scorer.own_documents(encoded, batch)
            if self._lists is not None and self._lists.text_codes is not None:  # one text, taken from two documents
                codes = self._lists.text_codes[batch.texts]
                shared = shared | (codes[:, None] == codes[None, :])
            inputs["own_shared"] = torch.from_numpy(shared).to(scores.device)
            inputs["own_known"] = torch.from_numpy(own >= 0).to(scores.device)
        if self._needs("batch_scores") and self._lists is not None:
            batch_scores, documents = self.scorer.batch_documents(encoded, batch)
            by_teacher = self._lists.teacher_on(batch, documents)
            if by_teacher is not None:
                inputs |= {"batch_scores": batch_scores, "batch_targets": by_teacher[0]}
                inputs |= _own_places(documents, batch.own, by_teacher[1])
        return inputs

    def _sum(self, sees: str, inputs: Mapping[str, Any], weight: float = 1.0, suffix: str = "") -> dict[str, Tensor]:
        """Weighted terms of one sort, by name; with a suffix, those that need nothing but a list's scores."""
        parts: dict[str, Tensor] = {}
        for place, term in enumerate(self.terms):
            if term.objective.sees != sees or (suffix and not set(term.objective.takes) <= _OF_LISTS):
                continue
            value = weight * term.weight * self._value(place, term, inputs)
            key = term.name + suffix
            parts[key] = parts[key] + value if key in parts else value
        return parts

    def _value(self, place: int, term: Term, inputs: Mapping[str, Any]) -> Tensor:
        """The term, unweighted. A term with a schedule is taken at the schedule's t, which then moves on."""
        inputs = {**inputs, "student_temperature": term.student_temperature}
        if not term.objective.needs("t") or self.progress is None:
            return term.value(inputs)
        schedule = self._schedules.setdefault(place, InterpolationSchedule())
        value = term.value({**inputs, "t": schedule.t})
        if torch.is_grad_enabled():
            loss = value.detach().clone()
            if processes() > 1:  # all processes need the same t
                torch.distributed.all_reduce(loss)
                loss = loss / processes()
            schedule.update(float(loss), self.progress)
        return value

    def _teacher_tokens(self, columns: Sequence[Any]) -> list[TokenBatch] | None:
        if self._teacher.tokens is None or not self._needs("teacher_tokens"):
            return None
        with torch.no_grad():
            return [self._teacher.tokens(column, place) for place, column in enumerate(_copied(columns))]

    def _token_terms(self, encoded: Any, tokens: list[TokenBatch], batch: ListBatch) -> dict[str, Tensor]:
        """Token terms, averaged over the columns; padding of a list does not count."""
        counted = [torch.ones_like(batch.mask[:, 0]), *batch.mask.T]
        parts: dict[str, Tensor] = {}
        for student, teacher, counts in zip(encoded, tokens, counted, strict=True):
            mask = student.mask & teacher.mask & counts[:, None]
            inputs = {"student_tokens": student.vectors, "teacher_tokens": teacher.vectors, "token_mask": mask}
            for name, value in self._sum("tokens", inputs).items():
                parts[name] = parts.get(name, 0.0) + value / len(counted)
        return parts


def _check(term: Term, scorer: Scorer, lists: TrainingLists | None, teacher: TeacherVectors) -> None:
    """Reject a term that does not fit the student or the teacher."""
    objective, needs = term.objective, term.objective.needs
    tokens, in_batch = objective.sees == "tokens", needs("own_scores", "batch_scores")
    if objective.sees == "embeddings":
        problems = [
            (not scorer.has_embeddings, "aligns single texts; use it in a stage with train: query_encoder."),
            (teacher.embeddings is None, "needs a dense teacher, whose embeddings it aligns to."),
            (
                needs("teacher_widths") and len(teacher.widths) < 2,
                "needs several teachers; set document_encoder to concat:KIND:NAME+KIND:NAME.",
            ),
            (objective.dot_only and scorer.cosine, "shapes lengths, which cosine students lack; take cosine or leaf."),
        ]
    else:
        problems = [
            (tokens and not scorer.has_tokens, "compares token vectors; use multi-vector with train: both_encoders."),
            (tokens and teacher.tokens is None, "needs a multi-vector teacher; set the teacher to multi-vector:NAME."),
            (lists is None, "needs candidates with teacher scores and stored documents."),
            (in_batch and not scorer.has_vectors, "needs vectors, and a cross-encoder has none; take contrastive."),
        ]
    if lists is not None:
        no_corpus, no_own = lists.teacher is None, not lists.shows_positives.any()
        problems += [
            (
                needs("batch_targets") and no_corpus,
                "needs teacher scores of any document; use a teacher such as bm25 or dense.",
            ),
            (objective.needs_positives and no_own, "needs texts with their own document: texts.titles or .sentences."),
        ]
        if objective.has_pairs:
            check_width(lists.width)
    for is_wrong, problem in problems:
        if is_wrong:
            raise UserError(f"objective {term.name!r} {problem}")


def _report(counts: dict[str, int]) -> dict[str, int]:
    """Log and return how many lists teach nothing, by reason; it is an error if no list teaches anything."""
    left_out = {reason: count for reason, count in counts.items() if reason != "usable"}
    reasons = [f"{left_out[reason]} lists {words}" for reason, words in _REASONS.items() if left_out[reason]]
    if not counts["usable"]:
        also = f"; {', '.join(reasons)}" if reasons else ""
        raise UserError(
            f"no list teaches anything: {left_out['single']} with fewer than two candidates{also}. Mine deeper, or "
            "take the teacher's raw scores."
        )
    if reasons:
        log(f"left out: {', '.join(reasons)}")
    return left_out


def _from_teacher(batch: ListBatch) -> dict[str, Tensor]:
    masks = {"mask": batch.mask, "own_mask": batch.own_mask}
    return {"targets": batch.targets, "labels": batch.targets, **masks, "positives": batch.positives}


def _own_places(documents: np.ndarray, own: np.ndarray, mask: Tensor) -> dict[str, Tensor]:
    """The place of each text's own document in a batch, and a (batch, m) mask that counts further copies of it out."""
    at = (documents[None, :] == own[:, None]) & (own >= 0)[:, None]
    places = np.where(at.any(axis=1), at.argmax(axis=1), -1)
    again = at & (np.arange(len(documents))[None, :] != places[:, None])
    counts = torch.from_numpy(~again & (documents >= 0)[None, :]).to(mask.device)
    return {"batch_mask": mask & counts, "batch_positives": torch.from_numpy(places).to(mask.device)}


def _rows(labels: Tensor) -> np.ndarray:
    return labels.cpu().numpy().astype(np.int64)


def _copied(columns: Sequence[Any]) -> list[Any]:
    return [dict(column) if isinstance(column, Mapping) else column for column in columns]


def objective_keeper(loss: nn.Module) -> Any:
    """A trainer callback that sets a loss's epoch and progress, and saves and restores its schedules.

    The trainer saves neither a loss nor its state: without this a resumed TAID would start its target over. `loss` is a
    `DistillationLoss` or a wrapper around some; any other loss is left alone.
    """
    from transformers import TrainerCallback

    losses = [module for module in loss.modules() if isinstance(module, DistillationLoss)]

    class ObjectiveKeeper(TrainerCallback):
        def on_train_begin(self, args: Any, state: Any, control: Any, **_: Any) -> None:
            path = _state_path(args.output_dir, state.global_step)
            if state.global_step and path.exists():  # without the file, schedules follow the straight line
                _restore(losses, path)

        def on_epoch_begin(self, args: Any, state: Any, control: Any, train_dataloader: Any = None, **_: Any) -> None:
            for module in losses:
                module.start_epoch(state.global_step // len(train_dataloader))

        def on_step_begin(self, args: Any, state: Any, control: Any, **_: Any) -> None:
            for module in losses:
                module.progress = state.global_step / max(state.max_steps, 1)

        def on_save(self, args: Any, state: Any, control: Any, **_: Any) -> None:
            states = [module.objective_state() for module in losses]
            if any(states) and is_main():
                write_json(_state_path(args.output_dir, state.global_step), {"losses": states})

    return ObjectiveKeeper()


def _restore(losses: Sequence[DistillationLoss], path: Path) -> None:
    try:
        for module, saved in zip(losses, read_json(path)["losses"], strict=False):
            module.load_objective_state(saved)
    except (KeyError, TypeError) as error:
        raise UserError(f"{path} does not hold the state of objectives; delete its checkpoint and go on.") from error


def _state_path(folder: str, step: int) -> Path:
    return Path(folder) / f"checkpoint-{step}" / STATE_FILE
