"""One training run of a stage, and the stage that any kind of student can take: both encoders, with gradients."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from contextlib import nullcontext
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import torch
from torch import Tensor, nn

from retrodistill.core.errors import UserError
from retrodistill.encoders.int8_layers import int8_layers
from retrodistill.training.groups import Groups, document_columns, draw_groups, require_groups
from retrodistill.training.layer_loss import LayerLoss, Transformers
from retrodistill.training.loss import DistillationLoss, TeacherVectors
from retrodistill.training.prepared import Prepared, labeled_places, planned_batches, training_rows
from retrodistill.training.scorers import Scorer, TokenBatch
from retrodistill.training.settings import StageSettings
from retrodistill.training.trainer import Drawn, History, Monitor, RankMonitor, TextColumns, evaluating, train
from retrodistill.training.training_data import TrainingData

_MONITORED = 16  # held-out groups that a monitor encodes; their documents cost as much as in training


class StageRun(NamedTuple):
    """A stage as a kind of student trains it."""

    student: Any  # the encoder or pair scorer around the model
    stage: StageSettings
    data: TrainingData
    prepared: Prepared
    folder: Path  # for checkpoints
    what: str  # title of the progress bar
    transformers: Transformers | None = None  # whose layers are compared, where an objective sees them


@dataclass(frozen=True)
class BothEncoders:
    """What a kind of student brings to a stage that trains both encoders.

    `loss_of` wraps the loss for exits and truncations, given ``make(dimensions, alone)`` that makes it. `watch` makes a
    monitor of held-out queries, documents and (queries, n) places of the teacher's best documents.
    """

    scorer: Scorer
    loss_of: Callable[[Callable[[int, bool], DistillationLoss]], nn.Module] = lambda make: make(0, True)
    watch: Callable[[Sequence[str], Sequence[str], np.ndarray], Monitor] | None = None


def train_both(run: StageRun, both: BothEncoders) -> History:
    """Train both sides of a student of any kind, documents encoded with gradients."""
    student, stage, data, prepared = run[:4]
    drawn = drawn_groups(run)
    groups = require_groups(drawn.of_texts(training_rows(prepared, stage)))
    compares_tokens = both.scorer.has_tokens and stage.needs("teacher_tokens")
    teacher = TeacherVectors(tokens=token_teacher(run) if compares_tokens else None)

    def make(cut: int, alone: bool) -> DistillationLoss:
        return DistillationLoss(student.model, prepared.terms, both.scorer, groups, teacher, alone=alone)

    loss = both.loss_of(make)
    monitor = _monitor(run, both, drawn.of_texts(prepared.held_out, times=1))
    texts, documents = prepared.texts.texts.texts, data.collection.documents.column
    columns = {"query": [texts[row] for row in groups.text_rows]}
    drawn_columns = partial(document_columns, groups, documents=documents)
    return fit(run, loss, columns, groups.text_rows, range(len(groups)), monitor, drawn_columns)


def fit(
    run: StageRun,
    loss: nn.Module,
    columns: Mapping[str, Sequence[str]],
    rows: np.ndarray,
    labels: Sequence[int],
    monitor: Monitor | None,
    drawn: Drawn | None = None,
) -> History:
    """Train a stage's student by a loss.

    Columns of texts whose name begins with ``document`` get that prompt, the others the query's. `rows`, (n,), are
    those of the stage's texts that the columns are about, for batches of one topic or of similar length; `labels`,
    (n,), are for the loss and for `drawn`, which gives further columns.
    """
    student, stage, data, prepared, folder, what, transformers = run
    if transformers is not None:
        of_layers = [term for term in prepared.terms if term.objective.sees == "layers"]
        loss = LayerLoss(student.model, loss, of_layers, transformers)
    read = TextColumns(columns, labels, batches=planned_batches(stage, data, prepared.texts.texts, rows), drawn=drawn)
    prompts = {name: student.prompt("document" if name.startswith("document") else "query") for name in read.names}
    read = replace(read, prompts={name: prompt for name, prompt in prompts.items() if prompt})
    # Only the training: what is encoded before it goes into stores of the weights as they are.
    with int8_layers(student.model) if stage.quantize_weights else nullcontext():
        return train(student.model, loss, read, stage.training, folder, seed=data.seed, monitor=monitor, what=what)


def drawn_groups(run: StageRun) -> Groups:
    """Groups of documents from the stage's lists."""
    if run.prepared.lists is None:
        raise UserError(f"a stage with train: {run.stage.train} needs a list objective.")
    return draw_groups(run.prepared.lists, run.stage.groups, run.data.seed)


def token_teacher(run: StageRun) -> Callable[[dict[str, Tensor], int], TokenBatch]:
    """Token vectors by the teacher's multi-vector encoder, from the tokens that the student read."""
    name, members = run.data.teacher.name, run.data.teacher.members
    teacher: Any = next((member.queries for member in members if member.kind == "multi-vector"), None)
    if teacher is None:
        raise UserError(
            f"objective 'token-relations' needs a multi-vector teacher, and {name} is not; set the teacher to "
            "multi-vector:NAME."
        )
    if teacher.model.tokenizer.get_vocab() != run.student.model.tokenizer.get_vocab():
        raise UserError(
            f"objective 'token-relations' compares the same tokens: {teacher.name} has another tokenizer than the "
            "student; start the student from a model with the teacher's tokenizer."
        )
    model = teacher.model.eval().requires_grad_(False)

    def tokens(features: dict[str, Tensor], place: int) -> TokenBatch:
        out = model(features, task=features.get("task", "document" if place else "query"))
        return TokenBatch(out["token_embeddings"], out["attention_mask"].bool())

    return tokens


def _monitor(run: StageRun, both: BothEncoders, held_out: Groups) -> RankMonitor | None:
    """Agreement with the teacher, and with labels, within held-out groups, and the kind's own measures."""
    if len(held_out) < 2:
        return None
    student, prepared, scorer = run.student, run.prepared, both.scorer
    groups = held_out.of_texts(held_out.text_rows[:_MONITORED], times=1)
    texts, documents = prepared.texts.texts.texts, run.data.collection.documents.column
    rows = np.arange(len(groups))
    columns = [[texts[row] for row in groups.text_rows], *document_columns(groups, rows, documents).values()]
    batch = groups.batch(rows, student.model.device)
    mask = batch.mask.cpu().numpy()
    ranked = np.argsort(-np.where(mask, batch.targets.cpu().numpy(), -np.inf), axis=1, kind="stable")
    ranked = np.where(np.take_along_axis(mask, ranked, axis=1), ranked, -1)

    def scores() -> np.ndarray:
        with evaluating(student.model), torch.no_grad():
            features = scorer.features(student, columns)
            predicted = scorer.lists(scorer.encode(student.model, features, groups.text_rows), batch)
        return np.where(mask, predicted.float().cpu().numpy(), -np.inf)

    watch = None
    if both.watch is not None:
        queries = [texts[row] for row in prepared.held_out]
        watch = both.watch(queries, sorted({text for column in columns[1:3] for text in column if text}), ranked)
    listed = np.where(mask, batch.documents, -1)
    return RankMonitor(scores, ranked, watch, labeled_places(prepared, run.data, groups.text_rows, listed))
