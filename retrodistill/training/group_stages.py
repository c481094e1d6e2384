"""One training run of a stage, and the stage that any kind of student can take: both encoders, with gradients."""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import torch
from torch import nn

from retrodistill.core.errors import UserError
from retrodistill.training.curricula import topic_batches
from retrodistill.training.groups import Groups, require_groups
from retrodistill.training.losses import GroupsLoss, OwnTokens, Regularize
from retrodistill.training.monitors import Monitored, RankMonitor
from retrodistill.training.prepared import Prepared, training_rows
from retrodistill.training.scorers import Scorer
from retrodistill.training.settings import StageSettings
from retrodistill.training.trainer import History, Monitor, text_dataset, train
from retrodistill.training.training_data import TrainingData

_LOOKED_AT = 16  # held-out groups that a monitor encodes; documents cost as much there as in training


class StageRun(NamedTuple):
    """A stage as a kind of student trains it.

    Attributes:
        student: The encoder or pair scorer around the model.
        stage: Its settings.
        data: Texts, teacher and document encoder.
        prepared: Texts and lists of the stage.
        folder: For checkpoints.
        what: Title of the progress bar.
    """

    student: Any
    stage: StageSettings
    data: TrainingData
    prepared: Prepared
    folder: Path
    what: str


@dataclass(frozen=True)
class BothEncoders:
    """What a kind of student brings to a stage that trains both encoders.

    Attributes:
        scorer: Scores lists.
        loss_of: Wraps the loss, which it makes by ``make(dimensions, alone)``, for exits and truncations.
        start: The model that ``lwf`` compares with; the student's own where None.
        regularize: Terms on what the model encodes, by name.
        own_tokens: Objectives on scores of which one side is its own tokens (VDR).
        watch: Makes a monitor of held-out queries, documents and (queries, n) places of the teacher's best documents.
    """

    scorer: Scorer
    loss_of: Callable[[Callable[[int, bool], GroupsLoss]], nn.Module] = lambda make: make(0, True)
    start: Any = None
    regularize: Regularize | None = None
    own_tokens: OwnTokens | None = None
    watch: Callable[[Sequence[str], Sequence[str], np.ndarray], Monitored] | None = None


def train_both(run: StageRun, both: BothEncoders) -> History:
    """Train both sides of a student of any kind, documents encoded with gradients.

    Raises:
        UserError: No list objective, or nothing to learn from.
    """
    student, stage, data, prepared = run[:4]
    every = draw_groups(run)
    groups = require_groups(every.of(training_rows(prepared, stage)))

    def make(cut: int, alone: bool) -> GroupsLoss:
        return GroupsLoss(
            student.model,
            prepared.terms,
            groups.scores,
            groups.mask,
            groups.positives,
            groups.documents,
            scorer=both.scorer,
            corpus=groups,
            regularize=both.regularize,
            own_tokens=both.own_tokens,
            start=both.start,
            alone=alone,
        )

    loss = both.loss_of(make)
    monitor = _monitor(run, both, every.of(prepared.held_out, times=1))
    return fit(run, loss, _columns(groups, data, prepared), groups.rows, range(len(groups)), monitor)


def fit(
    run: StageRun,
    loss: nn.Module,
    columns: Mapping[str, Sequence[str]],
    rows: np.ndarray,
    labels: Sequence[int],
    monitor: Monitor | None,
) -> History:
    """Train a stage's student by a loss.

    Args:
        run: The stage.
        loss: Of the student's model.
        columns: Texts by column; those called ``query`` or ``text`` get the query prompt.
        rows: (n,) rows of the stage's texts that the columns are about, for batches of one topic.
        labels: (n,) what the loss takes as labels.
        monitor: Called at intervals.
    """
    student, stage, data, prepared, folder, what = run
    prompts = {name: student.prompt("document" if name.startswith("document") else "query") for name in columns}
    return train(
        student.model,
        loss,
        text_dataset(columns, labels),
        stage.training,
        folder,
        seed=data.seed,
        prompts={name: prompt for name, prompt in prompts.items() if prompt} or None,
        monitor=monitor,
        what=what,
        batches=topic_batches(stage, data, prepared.texts.texts, rows),
    )


def draw_groups(run: StageRun) -> Groups:
    """Groups of documents from the stage's lists.

    Raises:
        UserError: No objective of the stage sees lists.
    """
    if run.prepared.lists is None:
        raise UserError(f"a stage with train: {run.stage.train} needs a list objective.")
    return Groups.draw(run.prepared.lists, run.stage.groups, run.data.seed)


def _columns(groups: Groups, data: TrainingData, prepared: Prepared) -> dict[str, list[str]]:
    """Texts of the columns; a masked place holds the empty text, which the loss never counts."""
    queries, documents = prepared.texts.texts.texts, data.collection.documents.texts
    columns = {"query": [queries[row] for row in groups.rows]}
    for place, column in enumerate(groups.documents.T):
        columns[f"document_{place + 1}"] = [documents[row] if row >= 0 else "" for row in column]
    return columns


def _monitor(run: StageRun, both: BothEncoders, held_out: Groups) -> RankMonitor | None:
    """Agreement within held-out groups, and what the kind watches besides."""
    if len(held_out) < 2:
        return None
    student, prepared, scorer = run.student, run.prepared, both.scorer
    shown = held_out.of(held_out.rows[:_LOOKED_AT], times=1)
    columns = list(_columns(shown, run.data, prepared).values())
    teacher = np.where(shown.mask, shown.scores, -np.inf)
    ranked = np.argsort(-teacher, axis=1, kind="stable")
    ranked = np.where(np.take_along_axis(shown.mask, ranked, axis=1), ranked, -1)

    def scores() -> np.ndarray:
        with evaluating(student.model), torch.no_grad():
            predicted = scorer.lists(scorer.encode(student.model, scorer.features(student, columns)))
        return np.where(shown.mask, predicted.float().cpu().numpy(), -np.inf)

    watch = None
    if both.watch is not None:
        queries = [prepared.texts.texts.texts[row] for row in prepared.held_out]
        documents = sorted({text for column in columns[1:3] for text in column if text})
        watch = both.watch(queries, documents, ranked)
    return RankMonitor(scores, ranked, watch)


@contextlib.contextmanager
def evaluating(model: nn.Module) -> Iterator[None]:
    """A model without dropout for a while."""
    training = model.training
    model.eval()
    try:
        yield
    finally:
        model.train(training)
