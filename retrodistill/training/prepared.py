"""What a stage needs before it trains: texts, lists, settled terms, held-out and selected queries, batches."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any, NamedTuple

import numpy as np

from retrodistill.candidates.samplers import TopicBatches, cluster_topics, topic_count
from retrodistill.candidates.selection import labeled, prod_selection, pseudo_labeled
from retrodistill.core.errors import UserError
from retrodistill.core.files import atomic_file, digest
from retrodistill.core.runtime import log, main_first
from retrodistill.data.texts import Texts
from retrodistill.encoders.embeddings import embed
from retrodistill.encoders.vectors import exact_search
from retrodistill.objectives import PseudoClasses, classes_of
from retrodistill.runs.run import Run, top_k
from retrodistill.training.lists import Lists, graded_positions
from retrodistill.training.loss import Term
from retrodistill.training.scoring import ScoredLists, candidate_sources, scored_lists, stage_texts
from retrodistill.training.settings import SelectionSettings, StageSettings
from retrodistill.training.texts import TrainingTexts
from retrodistill.training.training_data import TrainingData

_SHOWN = 100  # documents of a list over the whole corpus among which the positives of an ensemble are looked for


class Selected(NamedTuple):
    """The texts that a stage trains on.

    Attributes:
        rows: (texts,) bool.
        note: How many of which kind there were.
    """

    rows: np.ndarray
    note: str


def selected(wanted: SelectionSettings, data: TrainingData, texts: TrainingTexts, taught: ScoredLists) -> Selected:
    """Texts on which the teacher is right and the current student is wrong.

    Raises:
        UserError: Nothing says what is right, or no text is left.
    """
    corpus, last = data.collection.documents, wanted.ranks[1]
    if data.student is None:
        raise UserError("a selection by the student is known when its stage begins, not before.")
    teacher = _hidden_out(taught.run or best_of(taught.lists, texts.texts, corpus), taught.lists, texts, corpus)
    if wanted.positives == "labels":
        right = labeled(data.qrels())
    elif data.labeler is None:
        raise UserError("selection.positives: ensemble needs a teacher beside the stage's; name an ensemble.")
    else:
        scored = data.labeler.score(data.teacher_queries(texts.texts), data.collection, teacher.top(_SHOWN))
        right = {query: set(documents) for query, documents in pseudo_labeled(scored).items()}
    student = data.student.ranks(data.collection, texts.texts, teacher, last + 1)
    found = prod_selection(teacher, _hidden_out(student, taught.lists, texts, corpus), right, wanted.ranks)
    note = (
        f"selection: {len(found.query_ids)} of {found.queries} queries (teacher right, student at rank "
        f"{wanted.ranks[0]} to {last}; positives by {wanted.positives}); left out: {found.unlabeled} without a "
        f"positive, teacher wrong {found.teacher_wrong}, student right {found.student_right}, student further off "
        f"{found.too_far}" + (f", not ranked {found.not_ranked}" if found.not_ranked else "")
    )
    if not found.query_ids:
        raise UserError(f"nothing is selected to train on; widen selection.ranks, or leave selection out. {note}")
    log(note)
    rows = np.zeros(len(texts), dtype=bool)
    rows[texts.texts.positions(found.query_ids)] = True
    return Selected(rows, note)


def best_of(lists: Lists, texts: Texts, corpus: Texts, depth: int = _SHOWN) -> Run:
    """The best documents of lists over the whole corpus, as a run.

    Args:
        lists: Of the texts.
        texts: Their ids.
        corpus: The documents.
        depth: How many of each.
    """
    depth = min(depth, lists.scores.shape[1])
    rows = np.empty((len(lists), depth), dtype=np.int64)
    scores = np.empty((len(lists), depth), dtype=np.float64)
    for row in range(len(lists)):
        values = np.asarray(lists.scores[row])
        rows[row] = top_k(values, depth)
        scores[row] = values[rows[row]]
    return Run.from_matrix(texts.ids, corpus.ids, rows, scores, name="teacher")


def _hidden_out(run: Run, lists: Lists, texts: TrainingTexts, corpus: Texts) -> Run:
    """The run without the documents that are hidden from their pseudo-queries."""
    ids, documents = texts.texts.ids, corpus.ids
    hidden = {ids[row]: documents[lists.hidden[row]] for row in np.flatnonzero(lists.hidden >= 0)}
    return run.without(hidden)


def topic_batches(stage: StageSettings, data: TrainingData, texts: Texts, rows: np.ndarray) -> TopicBatches | None:
    """Batches of one topic each, where the stage wants them.

    Texts are clustered by their embeddings in the space, as the teacher is asked them; the clusters are kept in the
    job's folder, so that a training that is taken up, on another machine too, sees the same batches.

    Args:
        stage: The stage.
        data: Of the student.
        texts: The stage's texts.
        rows: (n,) rows of the texts that are trained on, one for each row of the training's dataset.

    Raises:
        UserError: There is no space, or fewer texts than topics.
    """
    if stage.batches != "topics":
        return None
    if data.space is None:
        raise UserError("batches: topics clusters texts by their embeddings in the space; set 'space'.")
    used, places = np.unique(rows, return_inverse=True)
    trained = data.teacher_queries(texts.select([texts.ids[row] for row in used]))
    topics = stage.topics or topic_count(len(rows), stage.training.batch_size)
    key = digest(trained.fingerprint, data.space.fingerprint("query"), topics, data.seed)
    path = data.folder / "topics" / f"{key}.npy"
    with main_first():
        if not path.exists():
            codes = cluster_topics(embed(data.space, trained.texts, "query"), topics, data.seed)
            with atomic_file(path) as temporary, temporary.open("wb") as file:
                np.save(file, codes)
    return TopicBatches(np.load(path)[places])


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
