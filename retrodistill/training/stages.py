"""Stages: one objective, one set of texts, one training run; several in a row make a curriculum."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
from torch import nn

from retrodistill.core.distributed import main_first
from retrodistill.core.errors import UserError
from retrodistill.encoders.embeddings import embed
from retrodistill.encoders.encoder import Encoder
from retrodistill.students.hybrid import dense_half
from retrodistill.students.kinds import AnyStudent, as_student
from retrodistill.students.matryoshka import LeadingVectors
from retrodistill.training.curricula import topic_batches
from retrodistill.training.group_stages import train_both, train_head
from retrodistill.training.hybrid import LexicalHalfLoss, token_bags
from retrodistill.training.losses import StoredTargetsLoss
from retrodistill.training.monitors import HeldOutMonitor
from retrodistill.training.prepared import Prepared, learned_from, prepare, teacher_rows, training_rows
from retrodistill.training.settings import StageSettings
from retrodistill.training.snapshot import StudentSnapshot
from retrodistill.training.trainer import History, text_dataset, train
from retrodistill.training.training_data import TrainingData
from retrodistill.training.variants import check_matryoshka, loss_of_variants

_AGREEMENT_DEPTH = 10


def run_stage(model: Any, stage: StageSettings, data: TrainingData, folder: Path, what: str) -> History:
    """Train a student through one stage, in place.

    Args:
        model: The student: a sentence-transformers model of any kind.
        stage: What to do.
        data: Texts, teacher and space.
        folder: For checkpoints.
        what: Title of the progress bar.

    Raises:
        UserError: The stage lacks what an objective learns from.
    """
    student = as_student(model)
    check_matryoshka(student, stage)
    space = None if data.own_documents else data.space
    data = replace(data, student=StudentSnapshot(as_student(model), space, data.stored))
    with main_first():
        prepared = prepare(stage, data)
    by_part: dict[str, Callable[..., History]] = {
        "query_encoder": _train_query_tower,
        "both_encoders": train_both,
        "lexical": _train_lexical,
        "head": train_head,
    }
    history = by_part[stage.train](student, stage, data, prepared, folder, what)
    history.notes = [*prepared.notes, *history.notes]
    learned = learned_from(prepared, stage, data)
    history.learned = {**learned, "steps": history.steps, "seconds": history.seconds}
    return history


def _dense(student: AnyStudent, train: str) -> Encoder:
    if not isinstance(student, Encoder):
        raise UserError(f"train: {train} is for dense and static students; set train: both_encoders, or head.")
    return student


def _standing(data: TrainingData) -> StudentSnapshot:
    if data.student is None:
        raise UserError("a stage's data lacks the student as it stands.")
    return data.student


def _train_query_tower(
    asked: AnyStudent, stage: StageSettings, data: TrainingData, prepared: Prepared, folder: Path, what: str
) -> History:
    student, texts = _dense(asked, "query_encoder"), prepared.texts
    with main_first():
        stored = _standing(data).vectors(data.collection)
    teacher_vectors = None
    aligning = [term.name for term in prepared.terms if not term.sees_lists]
    if aligning:
        if data.space is None:
            raise UserError(f"objective {aligning[0]!r} needs a dense teacher to align to; set 'space' to one.")
        teacher_vectors = embed(data.space, data.teacher_queries(texts.texts).texts, "query")
    unit = student.similarity == "cosine"

    def leading(vectors: np.ndarray | None, cut: int) -> Any:
        return vectors if vectors is None or cut == vectors.shape[1] else LeadingVectors(vectors, cut, unit=unit)

    def make(cut: int, alone: bool) -> StoredTargetsLoss:
        return StoredTargetsLoss(
            student.model,
            prepared.terms,
            embeddings=leading(teacher_vectors, cut),
            documents=leading(stored, cut),
            lists=prepared.lists,
            alone=alone,
        )

    loss = loss_of_variants(student, stage, make)
    monitor = _monitor(student, prepared, lambda: stored, teacher_vectors, stored)
    return _train_on_texts(student, stage, data, prepared, loss, monitor, folder, what)


def _train_lexical(
    asked: AnyStudent, stage: StageSettings, data: TrainingData, prepared: Prepared, folder: Path, what: str
) -> History:
    student = _dense(asked, "lexical")
    if prepared.lists is None:
        raise UserError("a stage with train: lexical needs a list objective.")
    dense, texts = dense_half(student.model, student.name), prepared.texts.texts.texts
    corpus = data.collection.documents.texts
    with main_first():
        queries, documents = embed(dense, texts, "query"), embed(dense, corpus, "document")
    bags = token_bags(student.model, corpus, student.prompt("document"))
    loss = LexicalHalfLoss(student.model, prepared.terms, queries, documents, bags, prepared.lists)
    monitor = _monitor(student, prepared, loss.document_vectors)
    return _train_on_texts(student, stage, data, prepared, loss, monitor, folder, what)


def _train_on_texts(
    student: Encoder,
    stage: StageSettings,
    data: TrainingData,
    prepared: Prepared,
    loss: nn.Module,
    monitor: HeldOutMonitor | None,
    folder: Path,
    what: str,
) -> History:
    """Train on single texts, each labeled with its row: what it is scored against is stored."""
    rows, texts = training_rows(prepared, stage), prepared.texts.texts.texts
    dataset = text_dataset({"text": [texts[row] for row in rows]}, rows.tolist())
    prompts = {"text": student.prompt("query")} if student.prompt("query") else None
    return train(
        student.model,
        loss,
        dataset,
        stage.training,
        folder,
        seed=data.seed,
        prompts=prompts,
        monitor=monitor,
        what=what,
        batches=topic_batches(stage, data, prepared.texts.texts, rows),
    )


def _monitor(
    student: Encoder,
    prepared: Prepared,
    documents: Callable[[], np.ndarray],
    teacher_vectors: np.ndarray | None = None,
    stored: np.ndarray | None = None,
) -> HeldOutMonitor | None:
    if len(prepared.held_out) < 2:
        return None
    every = prepared.texts.texts.texts
    ranked = teacher_rows(prepared, _AGREEMENT_DEPTH, teacher_vectors, stored)
    return HeldOutMonitor(student, [every[row] for row in prepared.held_out], ranked, documents)
