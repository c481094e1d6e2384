"""Stages: one objective, one set of texts, one training run; several in a row make a curriculum."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np

from retrodistill.distributed import main_first
from retrodistill.errors import UserError
from retrodistill.models.embeddings import embed
from retrodistill.models.encoder import Encoder
from retrodistill.students.hybrid import dense_half
from retrodistill.students.kinds import AnyStudent, as_student
from retrodistill.training.group_stages import train_both, train_head
from retrodistill.training.hybrid import LexicalHalfLoss, token_bags
from retrodistill.training.losses import StoredTargetsLoss
from retrodistill.training.material import Material
from retrodistill.training.monitors import HeldOutMonitor
from retrodistill.training.prepared import Prepared, prepare, teacher_rows, training_rows
from retrodistill.training.settings import StageSettings
from retrodistill.training.trainer import History, text_dataset, train

_AGREEMENT_DEPTH = 10


def run_stage(model: Any, stage: StageSettings, material: Material, folder: Path, what: str) -> History:
    """Train a student through one stage, in place.

    Args:
        model: The student: a sentence-transformers model of any kind.
        stage: What to do.
        material: Texts, teacher and space.
        folder: For checkpoints.
        what: Title of the progress bar.

    Raises:
        UserError: The stage lacks what an objective learns from.
    """
    student = as_student(model)
    with main_first():
        prepared = prepare(stage, material)
    by_towers: dict[str, Callable[..., History]] = {
        "query": _train_query_tower,
        "both": train_both,
        "lexical": _train_lexical,
        "head": train_head,
    }
    return by_towers[stage.towers](student, stage, material, prepared, folder, what)


def _dense(student: AnyStudent, towers: str) -> Encoder:
    if not isinstance(student, Encoder):
        raise UserError(f"towers: {towers} is for dense and static students; set towers: both, or head.")
    return student


def _stored_documents(student: Encoder, material: Material) -> np.ndarray:
    """(corpus, d) vectors that the query tower is trained against."""
    encoder = student if material.own_documents or material.space is None else material.space
    documents = material.stored
    if documents is None:
        documents = embed(encoder, material.collection.documents.texts, "document")
    if documents.shape[1] != student.dimension:
        raise UserError(
            f"the student has {student.dimension} dimensions, the stored documents {documents.shape[1]}; set "
            "student.dimension to 'space'."
        )
    return documents


def _train_query_tower(
    asked: AnyStudent, stage: StageSettings, material: Material, prepared: Prepared, folder: Path, what: str
) -> History:
    student, texts = _dense(asked, "query"), prepared.texts
    with main_first():
        stored = _stored_documents(student, material)
    teacher_vectors = None
    aligning = [term.name for term in prepared.terms if not term.sees_lists]
    if aligning:
        if material.space is None:
            raise UserError(f"objective {aligning[0]!r} needs a dense teacher to align to; set 'space' to one.")
        teacher_vectors = embed(material.space, texts.texts.texts, "query")
    loss = StoredTargetsLoss(
        student.model, prepared.terms, embeddings=teacher_vectors, documents=stored, lists=prepared.lists
    )
    monitor = _monitor(student, prepared, lambda: stored, teacher_vectors, stored)
    return _train_on_texts(student, stage, material.seed, prepared, loss, monitor, folder, what)


def _train_lexical(
    asked: AnyStudent, stage: StageSettings, material: Material, prepared: Prepared, folder: Path, what: str
) -> History:
    student = _dense(asked, "lexical")
    if prepared.lists is None:
        raise UserError("a stage with towers: lexical needs a list objective.")
    dense, texts = dense_half(student.model, student.name), prepared.texts.texts.texts
    corpus = material.collection.documents.texts
    with main_first():
        queries, documents = embed(dense, texts, "query"), embed(dense, corpus, "document")
    bags = token_bags(student.model, corpus, student.prompt("document"))
    loss = LexicalHalfLoss(student.model, prepared.terms, queries, documents, bags, prepared.lists)
    monitor = _monitor(student, prepared, loss.document_vectors)
    return _train_on_texts(student, stage, material.seed, prepared, loss, monitor, folder, what)


def _train_on_texts(
    student: Encoder,
    stage: StageSettings,
    seed: int,
    prepared: Prepared,
    loss: StoredTargetsLoss | LexicalHalfLoss,
    monitor: HeldOutMonitor | None,
    folder: Path,
    what: str,
) -> History:
    """Train on single texts, each labelled with its row: what it is scored against is stored."""
    rows, texts = training_rows(prepared, stage), prepared.texts.texts.texts
    dataset = text_dataset({"text": [texts[row] for row in rows]}, rows.tolist())
    prompts = {"text": student.prompt("query")} if student.prompt("query") else None
    return train(
        student.model, loss, dataset, stage.training, folder, seed=seed, prompts=prompts, monitor=monitor, what=what
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
