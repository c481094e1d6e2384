"""What a stage needs before it trains: texts, lists, settled terms, and queries that are held out."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any

import numpy as np

from retrodistill.core.errors import UserError
from retrodistill.encoders.embeddings import embed
from retrodistill.encoders.vectors import exact_search
from retrodistill.objectives import PseudoClasses, classes_of
from retrodistill.runs.run import top_k
from retrodistill.training.curricula import selected
from retrodistill.training.lists import Lists, graded_positions
from retrodistill.training.loss import Term
from retrodistill.training.scoring import candidate_sources, scored_lists, stage_texts
from retrodistill.training.settings import StageSettings
from retrodistill.training.texts import TrainingTexts
from retrodistill.training.training_data import TrainingData

_HELD_OUT = 64


@dataclass(frozen=True)
class Prepared:
    """A stage's texts with all that is stored about them.

    Attributes:
        texts: Queries and pseudo-queries.
        lists: Candidates with teacher scores, where an objective sees them.
        terms: Objectives with their temperatures.
        held_out: Rows of texts that are not trained on.
        chosen: (texts,) bool, which of them may be trained on; None for all.
        notes: What a reader of the results should know.
        classes: Pseudo-classes of the texts, where an objective sees them.
    """

    texts: TrainingTexts
    lists: Lists | None
    terms: list[Term]
    held_out: np.ndarray
    chosen: np.ndarray | None = None
    notes: list[str] = field(default_factory=list)
    classes: PseudoClasses | None = None


def prepare(stage: StageSettings, data: TrainingData) -> Prepared:
    """Gather texts, score lists, settle temperatures, hold some queries out and select others.

    Raises:
        UserError: Nothing to learn from, or labels that are none.
    """
    texts = stage_texts(stage, data)
    taught = scored_lists(stage, data, texts) if stage.needs_lists else None
    lists, spread = (taught.lists, taught.spread) if taught is not None else (None, 1.0)
    terms = [
        Term(one.name, one.weight, one.student_temperature, one.teacher_temperature or spread / one.target_std)
        for one in stage.objectives
    ]
    if lists is not None and any(term.objective.needs("labels") for term in terms):
        _check_labels(lists)
    held_out, notes = held_out_rows(texts, lists, data.seed), [] if taught is None else taught.notes
    classes = pseudo_classes_of(stage, data, texts) if stage.needs_classes else None
    if stage.selection is None or taught is None:
        return Prepared(texts, lists, terms, held_out, notes=notes, classes=classes)
    chosen = selected(stage.selection, data, texts, taught)
    return Prepared(texts, lists, terms, held_out, chosen.rows, [*notes, chosen.note], classes)


def pseudo_classes_of(stage: StageSettings, data: TrainingData, texts: TrainingTexts) -> PseudoClasses:
    """Pseudo-classes of the stage's texts, for ``lelp``: a class is the texts that one document is right for.

    That is the document that a pseudo-query was taken from and, with positives: labels, a query's best labeled one.

    Raises:
        UserError: There is no document encoder, or no document is right for enough texts.
    """
    if data.space is None:
        raise UserError("objective 'lelp' needs a dense teacher, whose embeddings it splits; set 'document_encoder'.")
    documents = texts.sources.copy()
    if stage.positives == "labels":
        for row, grades in graded_positions(texts, data.collection.documents, data.qrels()).items():
            documents[row] = max(grades, key=lambda position: (grades[position], -position))
    embeddings = embed(data.space, data.teacher_queries(texts.texts).texts, "query")
    parts = next(term.parts for term in stage.objectives if term.objective.needs("classes"))
    return classes_of(embeddings, documents, parts, seed=data.seed)


def _check_labels(lists: Lists) -> None:
    there = np.ones(lists.scores.shape, dtype=bool) if lists.documents is None else lists.documents >= 0
    scores = lists.scores[there]
    if len(scores) and not 0 <= scores.min() <= scores.max() <= 1:
        raise UserError(
            f"bce learns labels from 0 to 1, and the teacher's go from {scores.min():.3g} to {scores.max():.3g}; set "
            "labels: sigmoid for logits, or cosine."
        )


def learned_from(prepared: Prepared, stage: StageSettings, data: TrainingData) -> dict[str, Any]:
    """How much a stage learned from, and at which temperatures: what its model card says.

    Returns:
        ``texts`` (of them ``queries`` real ones, ``held_out``, and ``selected`` where a stage selects), ``pairs`` with
        teacher scores, ``sources`` that proposed these (empty where none were needed), and by objective
        ``temperatures``: what student and teacher scores were divided by.
    """
    recorded = data.teacher.run is not None  # whose rows are the candidates
    texts, lists = prepared.texts, prepared.lists
    return {
        "texts": len(texts),
        "queries": int((texts.sources < 0).sum()),
        "held_out": len(prepared.held_out),
        **({} if prepared.chosen is None else {"selected": int(prepared.chosen.sum())}),
        "pairs": 0 if lists is None else int(lists.sizes.sum()),
        "sources": ([data.teacher.name] if recorded else candidate_sources(stage, data.teacher))
        if stage.needs_lists
        else [],
        "temperatures": {
            term.name: {"student": float(term.student_temperature), "teacher": float(term.teacher_temperature)}
            for term in prepared.terms
            if term.objective.reads_scores
        },
    }


def held_out_rows(texts: TrainingTexts, lists: Lists | None, seed: int) -> np.ndarray:
    """Rows kept for the monitor: real queries where there are any, at most one in ten and at most 64."""
    known = np.ones(len(texts), dtype=bool) if lists is None else lists.sizes >= 2
    real = np.flatnonzero(known & (texts.sources < 0))
    pool = real if len(real) >= 10 else np.flatnonzero(known)
    count = min(_HELD_OUT, len(pool) // 10)
    return np.sort(np.random.default_rng(seed).choice(pool, count, replace=False))


def training_rows(prepared: Prepared, stage: StageSettings) -> np.ndarray:
    """Rows to train on: not held out, with a usable list, real queries repeated as asked."""
    usable = np.ones(len(prepared.texts), dtype=bool)
    usable[prepared.held_out] = False
    lists = prepared.lists
    if lists is not None and not stage.aligns:
        usable &= lists.sizes >= 2
    if stage.needs_own_document:
        usable &= prepared.texts.sources >= 0
    elif lists is not None and all(term.objective.needs_positives for term in prepared.terms):
        usable &= (lists.positives >= 0) & (lists.positives != lists.hidden)
    if prepared.chosen is not None:
        usable &= prepared.chosen
    rows = np.flatnonzero(usable)
    if not len(rows):
        raise UserError("no training text is left that the objective can learn from; mine deeper or add texts.")
    real = rows[prepared.texts.sources[rows] < 0]
    return np.concatenate([rows, *[real] * (stage.texts.repeat_queries - 1)])


def teacher_rows(
    prepared: Prepared, k: int, teacher_vectors: np.ndarray | None = None, documents: np.ndarray | None = None
) -> np.ndarray:
    """(held out, k) corpus positions that the teacher ranks highest; -1 where it has fewer.

    Args:
        prepared: Of the stage.
        k: How many.
        teacher_vectors: (texts, d) teacher embeddings, for stages without lists.
        documents: (corpus, d) document vectors, for stages without lists.

    Raises:
        UserError: Neither lists nor vectors.
    """
    held_out, lists = prepared.held_out, prepared.lists
    if lists is None:
        if teacher_vectors is None or documents is None:
            raise UserError("a stage without lists needs teacher embeddings and stored documents.")
        return exact_search(teacher_vectors[held_out], documents, k)[0]
    scores = np.array(lists.scores[held_out])
    if lists.documents is None:
        return top_k(scores, k)
    candidates = lists.documents[held_out]
    order = top_k(np.where(candidates >= 0, scores, -np.inf), k)
    rows = np.take_along_axis(candidates, order, axis=1)
    return np.pad(rows, ((0, 0), (0, k - rows.shape[1])), constant_values=-1)
