"""Stages in which documents take part: encoded with gradients (``both``), or stored before the head (``head``)."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator
from pathlib import Path
from typing import Any, cast

import numpy as np
import torch

from retrodistill.core.distributed import main_first
from retrodistill.core.errors import UserError
from retrodistill.encoders.contract import Role
from retrodistill.encoders.encoder import Encoder
from retrodistill.encoders.multi_vector import MultiVectorModel
from retrodistill.encoders.sparse import SparseTextEncoder
from retrodistill.students.cross_encoder import CrossEncoderStudent
from retrodistill.students.document_states import below_stored
from retrodistill.students.kinds import AnyStudent, kind_of
from retrodistill.students.states import stored_states
from retrodistill.training.curricula import topic_batches
from retrodistill.training.groups import Groups, require_groups
from retrodistill.training.head_monitors import head_monitor
from retrodistill.training.heads import HeadLoss, TermHeadLoss, TokenHeadLoss
from retrodistill.training.losses import GroupsLoss
from retrodistill.training.monitors import HeldOutMonitor, Monitored, RankMonitor
from retrodistill.training.prepared import Prepared, training_rows
from retrodistill.training.regularizers import Regularizer, SparsityAlarm, sparse_only
from retrodistill.training.scorers import scorer_of
from retrodistill.training.settings import StageSettings
from retrodistill.training.trainer import History, text_dataset, train
from retrodistill.training.training_data import TrainingData
from retrodistill.training.variants import loss_of_variants

_LOOKED_AT = 16  # held-out groups that a monitor encodes; documents cost as much there as in training


def train_both(
    student: AnyStudent, stage: StageSettings, data: TrainingData, prepared: Prepared, folder: Path, what: str
) -> History:
    """Train both sides of a student of any kind, documents encoded with gradients.

    Raises:
        UserError: No list objective, or nothing to learn from.
    """
    regularizers = sparse_only([Regularizer.of(one) for one in stage.regularizers], kind_of(student.model))
    every = _groups(stage, data, prepared)
    groups = require_groups(every.of(training_rows(prepared, stage)))

    def make(cut: int, alone: bool) -> GroupsLoss:
        given = (groups.scores, groups.mask, groups.positives, groups.documents, regularizers)
        return GroupsLoss(
            student.model, prepared.terms, *given, corpus=groups, own_tokens=stage.own_tokens, alone=alone
        )

    loss = loss_of_variants(student, stage, make) if isinstance(student, Encoder) else make(0, True)
    alarm = SparsityAlarm()
    monitor = _monitor(student, data, prepared, every.of(prepared.held_out, times=1), alarm)
    prompts = {name: student.prompt("query" if name == "query" else "document") for name in _names(groups)}
    history = train(
        student.model,
        loss,
        text_dataset(_columns(groups, data, prepared), range(len(groups))),
        stage.training,
        folder,
        seed=data.seed,
        prompts={name: prompt for name, prompt in prompts.items() if prompt} or None,
        monitor=monitor,
        what=what,
        batches=topic_batches(stage, data, prepared.texts.texts, groups.rows),
    )
    history.notes = alarm.notes
    return history


def train_head(
    student: AnyStudent, stage: StageSettings, data: TrainingData, prepared: Prepared, folder: Path, what: str
) -> History:
    """Train what stands behind the transformer of a sparse or multi-vector student, on both sides.

    Of a PreTT or TK that is what reads query and document together; documents' states below it are stored.

    Raises:
        UserError: Another kind of student, no list objective, or nothing to learn from.
    """
    if isinstance(student, CrossEncoderStudent):
        with contextlib.ExitStack() as stack:
            with main_first():
                stack.enter_context(below_stored(student, data.collection.documents.texts))
            return train_both(student, stage, data, prepared, folder, what)
    if not isinstance(student, (SparseTextEncoder, MultiVectorModel)):
        raise UserError(
            "train: head is for sparse and multi-vector students; set train: query_encoder or both_encoders."
        )
    regularizers = sparse_only([Regularizer.of(one) for one in stage.regularizers], kind_of(student.model))
    every = _groups(stage, data, prepared)
    groups = require_groups(every.of(training_rows(prepared, stage)))
    corpus, texts = data.collection.documents.texts, prepared.texts.texts.texts
    with main_first():
        documents = stored_states(student, corpus, "document")
        queries = stored_states(student, texts, "query") if isinstance(student, MultiVectorModel) else None
    frozen = [parameter for parameter in student.model.parameters() if not parameter.requires_grad]
    loss: HeadLoss
    if isinstance(student, SparseTextEncoder):
        loss = TermHeadLoss(student, prepared.terms, groups, documents, regularizers, data.seed, corpus)
    else:
        loss = TokenHeadLoss(student, prepared.terms, groups, documents, queries)  # type: ignore[arg-type]
    alarm = SparsityAlarm()
    monitor = head_monitor(loss, student, prepared, alarm, data.seed)
    columns = {"query": [texts[row] for row in groups.rows]}
    prompt = student.prompt("query")
    history = train(
        student.model,
        loss,
        text_dataset(columns, range(len(groups))),
        stage.training,
        folder,
        seed=data.seed,
        prompts={"query": prompt} if prompt else None,
        monitor=monitor,
        what=what,
        batches=topic_batches(stage, data, prepared.texts.texts, groups.rows),
    )
    student.model.requires_grad_(True)  # a stage behind this one may train all of it
    for parameter in frozen:
        parameter.requires_grad_(False)
    history.notes = alarm.notes
    return history


def _groups(stage: StageSettings, data: TrainingData, prepared: Prepared) -> Groups:
    if prepared.lists is None:
        raise UserError(f"a stage with train: {stage.train} needs a list objective.")
    return Groups.draw(prepared.lists, stage.groups, data.seed)


def _names(groups: Groups) -> list[str]:
    return ["query", *(f"document_{place + 1}" for place in range(groups.documents.shape[1]))]


def _columns(groups: Groups, data: TrainingData, prepared: Prepared) -> dict[str, list[str]]:
    """Texts of the columns; a masked place holds the empty text, which the loss never counts."""
    queries, documents = prepared.texts.texts.texts, data.collection.documents.texts
    sides = [[documents[row] if row >= 0 else "" for row in column] for column in groups.documents.T]
    return dict(zip(_names(groups), [[queries[row] for row in groups.rows], *sides], strict=True))


def _monitor(
    student: AnyStudent,
    data: TrainingData,
    prepared: Prepared,
    held_out: Groups,
    alarm: SparsityAlarm,
) -> Monitored | None:
    """Agreement within held-out groups; of dense students also whether queries collapse, of sparse ones their terms."""
    if len(held_out) < 2:
        return None
    shown = held_out.of(held_out.rows[:_LOOKED_AT], times=1)
    columns = list(_columns(shown, data, prepared).values())
    teacher = np.where(shown.mask, shown.scores, -np.inf)
    ranked = np.argsort(-teacher, axis=1, kind="stable")
    ranked = np.where(np.take_along_axis(shown.mask, ranked, axis=1), ranked, -1)
    scorer = scorer_of(student.model)

    def scores() -> np.ndarray:
        with _evaluating(student.model), torch.no_grad():
            found = scorer.lists(scorer.encode(student.model, _features(student, columns)))
        return np.where(shown.mask, found.float().cpu().numpy(), -np.inf)

    sparse = cast("SparseTextEncoder", student)

    def terms() -> dict[str, float]:
        documents = sorted({text for column in columns[1:3] for text in column if text})
        with _evaluating(student.model):
            vectors = sparse.encode(documents, "document")
        alive = np.diff(vectors.indptr)
        alarm(alive.tolist(), vectors.shape[1])
        return {"terms": float(alive.mean())}

    watch = None
    if isinstance(student, SparseTextEncoder):
        watch = terms
    elif isinstance(student, Encoder):
        texts = [prepared.texts.texts.texts[row] for row in prepared.held_out]
        watch = HeldOutMonitor(student, texts, ranked, None)
    return RankMonitor(scores, ranked, watch)


def _features(student: AnyStudent, columns: list[list[str]]) -> list[Any]:
    """A batch as the trainer would hand it over: features of each column, a cross-encoder's texts."""
    from sentence_transformers.util import batch_to_device

    if kind_of(student.model) == "cross-encoder":
        return list(columns)
    found = []
    for place, column in enumerate(columns):
        role: Role = "document" if place else "query"
        features = student.model.preprocess(column, prompt=student.prompt(role) or None, task=role)
        features.setdefault("task", role)
        found.append(batch_to_device(features, student.model.device))
    return found


@contextlib.contextmanager
def _evaluating(model: torch.nn.Module) -> Iterator[None]:
    """A model without dropout for a while."""
    training = model.training
    model.eval()
    try:
        yield
    finally:
        model.train(training)
