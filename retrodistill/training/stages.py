"""Stages: one objective, one set of texts, one training run; several in a row make a curriculum."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np

from retrodistill.distributed import main_first
from retrodistill.errors import UserError
from retrodistill.models.embeddings import embed
from retrodistill.models.encoder import Encoder
from retrodistill.models.vectors import exact_search
from retrodistill.students.hybrid import dense_half
from retrodistill.training.hybrid import LexicalHalfLoss, token_bags
from retrodistill.training.lists import Lists, sampled_groups
from retrodistill.training.losses import GroupsLoss, StoredTargetsLoss, Term
from retrodistill.training.material import Material
from retrodistill.training.monitors import HeldOutMonitor
from retrodistill.training.settings import StageSettings
from retrodistill.training.texts import TrainingTexts
from retrodistill.training.trainer import History, text_dataset, train

if TYPE_CHECKING:
    from sentence_transformers import SentenceTransformer

_HELD_OUT = 64
_AGREEMENT_DEPTH = 10


@dataclass(frozen=True)
class Prepared:
    """A stage's texts with all that is stored about them."""

    texts: TrainingTexts
    lists: Lists | None
    terms: list[Term]
    documents: np.ndarray | None
    held_out: np.ndarray


def run_stage(model: SentenceTransformer, stage: StageSettings, material: Material, folder: Path, what: str) -> History:
    """Train a student through one stage, in place.

    Args:
        model: The student.
        stage: What to do.
        material: Texts, teacher and space.
        folder: For checkpoints.
        what: Title of the progress bar.

    Raises:
        UserError: The stage lacks what an objective learns from.
    """
    student = Encoder(model, "dense:student")
    with main_first():
        prepared = prepare(student, stage, material)
    by_towers = {"query": _train_query_tower, "both": _train_both, "lexical": _train_lexical}
    return by_towers[stage.towers](student, stage, material, prepared, folder, what)


def prepare(student: Encoder, stage: StageSettings, material: Material) -> Prepared:
    """Gather texts, score lists, settle temperatures and hold some queries out."""
    texts = material.texts(stage)
    lists, spread = material.lists(stage, texts) if stage.needs_lists else (None, 1.0)
    terms = [
        Term(one.name, one.weight, one.student_temperature, one.teacher_temperature or spread / one.sharpness)
        for one in stage.objectives
    ]
    documents = _stored_documents(student, material) if stage.towers == "query" else None
    return Prepared(texts, lists, terms, documents, _held_out(texts, lists, material.seed))


def _stored_documents(student: Encoder, material: Material) -> np.ndarray:
    """(corpus, d) vectors that the query tower is trained against."""
    encoder = student if material.own_documents or material.space is None else material.space
    documents = embed(encoder, material.collection.documents.texts, "document")
    if documents.shape[1] != student.dimension:
        raise UserError(
            f"the student has {student.dimension} dimensions, the stored documents {documents.shape[1]}; set "
            "student.dimension to 'space'."
        )
    return documents


def _train_query_tower(
    student: Encoder, stage: StageSettings, material: Material, prepared: Prepared, folder: Path, what: str
) -> History:
    texts, stored = prepared.texts, prepared.documents
    if stored is None:
        raise UserError("a stage with towers: query needs stored documents.")
    teacher_vectors = None
    aligning = [term.name for term in prepared.terms if not term.sees_lists]
    if aligning:
        if material.space is None:
            raise UserError(f"objective {aligning[0]!r} needs a dense teacher to align to; set 'space' to one.")
        teacher_vectors = embed(material.space, texts.texts.texts, "query")
    loss = StoredTargetsLoss(
        student.model, prepared.terms, embeddings=teacher_vectors, documents=stored, lists=prepared.lists
    )
    monitor = _monitor(student, prepared, teacher_vectors, lambda: stored)
    return _train_on_texts(student, stage, material.seed, prepared, loss, monitor, folder, what)


def _train_lexical(
    student: Encoder, stage: StageSettings, material: Material, prepared: Prepared, folder: Path, what: str
) -> History:
    if prepared.lists is None:
        raise UserError("a stage with towers: lexical needs a list objective.")
    dense, texts = dense_half(student.model, student.name), prepared.texts.texts.texts
    corpus = material.collection.documents.texts
    with main_first():
        queries, documents = embed(dense, texts, "query"), embed(dense, corpus, "document")
    bags = token_bags(student.model, corpus, student.prompt("document"))
    loss = LexicalHalfLoss(student.model, prepared.terms, queries, documents, bags, prepared.lists)
    monitor = _monitor(student, prepared, None, loss.document_vectors)
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
    rows, texts = _training_rows(prepared, stage), prepared.texts.texts.texts
    dataset = text_dataset({"text": [texts[row] for row in rows]}, rows.tolist())
    prompts = {"text": student.prompt("query")} if student.prompt("query") else None
    return train(
        student.model, loss, dataset, stage.training, folder, seed=seed, prompts=prompts, monitor=monitor, what=what
    )


def _train_both(
    student: Encoder, stage: StageSettings, material: Material, prepared: Prepared, folder: Path, what: str
) -> History:
    if prepared.lists is None:
        raise UserError("a stage with towers: both needs a list objective.")
    groups = stage.groups
    rows, documents, scores = sampled_groups(
        prepared.lists, groups.documents, groups.sampler, material.seed, groups.draws
    )
    allowed = np.isin(rows, _training_rows(prepared, stage))
    rows, documents, scores = rows[allowed], documents[allowed], scores[allowed]
    at = (documents == prepared.lists.positives[rows][:, None]) & (documents >= 0)
    positives = np.where(at.any(axis=1), at.argmax(axis=1), -1)
    loss = GroupsLoss(student.model, prepared.terms, scores, documents >= 0, positives, documents)
    query_texts, document_texts = prepared.texts.texts.texts, material.collection.documents.texts
    columns = {"query": [query_texts[row] for row in rows]}
    for place in range(groups.documents):  # a masked place holds the empty text, which the loss never counts
        columns[f"document_{place + 1}"] = [document_texts[row] if row >= 0 else "" for row in documents[:, place]]
    prompts = {name: student.prompt("query" if name == "query" else "document") for name in columns}
    return train(
        student.model,
        loss,
        text_dataset(columns, range(len(rows))),
        stage.training,
        folder,
        seed=material.seed,
        prompts={name: prompt for name, prompt in prompts.items() if prompt} or None,
        monitor=_monitor(student, prepared, None, None),
        what=what,
    )


def _held_out(texts: TrainingTexts, lists: Lists | None, seed: int) -> np.ndarray:
    """Rows kept for the monitor: real queries where there are any, at most one in ten and at most 64."""
    known = np.ones(len(texts), dtype=bool) if lists is None else _list_sizes(lists) >= 2
    real = np.flatnonzero(known & (texts.sources < 0))
    pool = real if len(real) >= 10 else np.flatnonzero(known)
    count = min(_HELD_OUT, len(pool) // 10)
    return np.sort(np.random.default_rng(seed).choice(pool, count, replace=False))


def _list_sizes(lists: Lists) -> np.ndarray:
    """(texts,) int64 candidates that count."""
    if lists.documents is None:
        return lists.scores.shape[1] - (lists.hidden >= 0).astype(np.int64)
    return ((lists.documents >= 0) & (lists.documents != lists.hidden[:, None])).sum(axis=1)


def _training_rows(prepared: Prepared, stage: StageSettings) -> np.ndarray:
    """Rows to train on: not held out, with a usable list, real queries repeated as asked."""
    usable = np.ones(len(prepared.texts), dtype=bool)
    usable[prepared.held_out] = False
    lists = prepared.lists
    if lists is not None and not stage.aligns:
        usable &= _list_sizes(lists) >= 2
    if stage.is_contrastive:
        usable &= prepared.texts.sources >= 0
    rows = np.flatnonzero(usable)
    if not len(rows):
        raise UserError("no training text is left that the objective can learn from; mine deeper or add texts.")
    real = rows[prepared.texts.sources[rows] < 0]
    return np.concatenate([rows, *[real] * (stage.texts.repeat_queries - 1)])


def _monitor(
    student: Encoder, prepared: Prepared, teacher_vectors: np.ndarray | None, documents: Callable[[], np.ndarray] | None
) -> HeldOutMonitor | None:
    held_out = prepared.held_out
    if len(held_out) < 2:
        return None
    every = prepared.texts.texts.texts
    rows = _teacher_rows(prepared, teacher_vectors, _AGREEMENT_DEPTH)
    return HeldOutMonitor(student, [every[row] for row in held_out], rows, documents)


def _teacher_rows(prepared: Prepared, teacher_vectors: np.ndarray | None, k: int) -> np.ndarray:
    """(held out, k) corpus positions that the teacher ranks highest; -1 where it has fewer."""
    held_out, lists = prepared.held_out, prepared.lists
    if lists is None:
        if teacher_vectors is None or prepared.documents is None:
            raise UserError("a stage without lists needs teacher embeddings and stored documents.")
        return exact_search(teacher_vectors[held_out], prepared.documents, k)[0]
    scores = np.array(lists.scores[held_out])
    if lists.documents is None:
        return np.argsort(-scores, axis=1, kind="stable")[:, :k]
    documents = lists.documents[held_out]
    order = np.argsort(np.where(documents >= 0, -scores, np.inf), axis=1, kind="stable")[:, :k]
    rows = np.take_along_axis(documents, order, axis=1)
    return np.pad(rows, ((0, 0), (0, k - rows.shape[1])), constant_values=-1)
