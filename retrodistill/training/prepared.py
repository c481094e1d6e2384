"""What a stage needs before it trains: texts, lists, temperatures, held-out and selected queries, batches."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, field
from typing import Any

import numpy as np

from retrodistill.candidates.mining import distinct_documents
from retrodistill.candidates.samplers import PlannedBatches, cluster_topics, length_plan, topic_count, topic_plan
from retrodistill.candidates.selection import (
    chosen_texts,
    disagreements,
    labeled,
    prod_selection,
    pseudo_labeled,
)
from retrodistill.core.cache import cached_array
from retrodistill.core.digests import digest
from retrodistill.core.errors import UserError
from retrodistill.core.runtime import log, main_first
from retrodistill.data.collection import judgments_of
from retrodistill.data.texts import Texts
from retrodistill.encoders.embeddings import embed
from retrodistill.encoders.vectors import exact_search
from retrodistill.objectives.classes import PseudoClasses, classes_of
from retrodistill.runs.run import Run
from retrodistill.training.lists import Lists, graded_positions
from retrodistill.training.loss import Term
from retrodistill.training.scoring import ScoredLists, candidate_sources, scored_lists, scores_file, stage_texts
from retrodistill.training.settings import SelectionSettings, StageSettings
from retrodistill.training.texts import TrainingTexts
from retrodistill.training.training_data import StudentSnapshot, TrainingData

_HELD_OUT = 64  # most queries that a monitor encodes each time
_NO_ROWS = np.zeros(0, dtype=np.int64)
_TOPICS = 32  # that a selection draws from
_DEPTH = 100  # documents per list over the whole corpus in which a selection looks for positives


@dataclass(frozen=True)
class Prepared:
    """A stage's texts with all that is stored about them."""

    texts: TrainingTexts
    lists: Lists | None  # candidates with teacher scores, if an objective sees them
    terms: list[Term]
    held_out: np.ndarray  # (n,) rows of texts that are not trained on
    chosen: np.ndarray | None = None  # (texts,) bool, which of them may be trained on; None for all
    notes: list[str] = field(default_factory=list)  # what a reader of the results should know
    classes: PseudoClasses | None = None  # of the texts, if an objective sees them
    unreadable: np.ndarray = field(default_factory=lambda: _NO_ROWS)  # (n,) rows that are not trained on
    free: int = 0  # candidates that the teacher did not score: random documents beside a recorded run or a budget

    @property
    def held_out_queries(self) -> list[str]:
        """Ids of the held-out texts that are real queries."""
        return [self.texts.texts.ids[row] for row in self.held_out if self.texts.sources[row] < 0]


def prepare(stage: StageSettings, data: TrainingData) -> Prepared:
    """Gather texts, score lists, set temperatures, hold some queries out and select others.

    Raises:
        UserError: Nothing to learn from, or labels outside 0 to 1.
    """
    texts = stage_texts(stage, data)
    scored = scored_lists(stage, data, texts) if stage.needs_lists else None
    lists, spread, _, notes, free = (None, 1.0, None, [], 0) if scored is None else scored
    unreadable = _NO_ROWS if data.student is None else data.student.unreadable_rows(texts.texts)
    if len(unreadable):
        notes = [f"{len(unreadable)} training texts have no token that the student knows, and are left out.", *notes]
    if texts.left_out:
        notes = [f"{texts.left_out} texts of documents are test queries, or nearly, and are left out.", *notes]
    notes = [*_unrecorded(stage, data), *notes]
    terms = [
        Term(
            term.name,
            term.weight,
            term.student_temperature,
            term.teacher_temperature or spread / term.target_std,
            term.layers,
        )
        for term in stage.objectives
    ]
    if lists is not None and any(term.objective.needs("labels") for term in terms):
        _check_labels(lists)
    held_out = held_out_rows(texts, lists, data.seed, unreadable)
    classes = _pseudo_classes(stage, data, texts) if stage.needs("classes") else None
    if stage.selection is None or scored is None:
        return Prepared(texts, lists, terms, held_out, None, notes, classes, unreadable, free)
    if stage.selection.reads_positives:
        chosen, note = selected(stage.selection, data, texts, scored)
    else:
        temperatures = next(
            (term.teacher_temperature, term.student_temperature) for term in terms if term.objective.needs_lists
        )
        others = np.concatenate([held_out, unreadable])
        chosen, note = selected_by_gap(stage.selection, data, texts, scored, temperatures, others)
    return Prepared(texts, lists, terms, held_out, chosen, [*notes, note], classes, unreadable, free)


def _unrecorded(stage: StageSettings, data: TrainingData) -> Iterator[str]:
    """Notes on the texts that a recorded teacher has no scores of, which `stage_texts` leaves out."""
    recorded = None if stage.aligns else data.teacher.known_run(data.collection)
    if recorded is None:
        return
    known = set(recorded.query_ids)
    if stage.texts.queries and (lacking := sum(query not in known for query in data.queries.ids)):
        yield f"{data.teacher.name} has no scores of {lacking} training queries, which are left out."
    if stage.texts.has_pseudo_queries:
        yield f"{data.teacher.name} is recorded and has no scores of texts of documents, which are left out."


def _check_labels(lists: Lists) -> None:
    scores = lists.scores[lists.documents >= 0]
    if scores.size and not 0 <= scores.min() <= scores.max() <= 1:
        raise UserError(
            f"bce learns labels from 0 to 1, and the teacher's go from {scores.min():.3g} to {scores.max():.3g}; set "
            "labels: sigmoid for logits, or cosine."
        )


def _pseudo_classes(stage: StageSettings, data: TrainingData, texts: TrainingTexts) -> PseudoClasses:
    """Pseudo-classes for ``lelp``: a class is the texts that share a source document, or the best labeled one."""
    if data.space is None:
        raise UserError("objective 'lelp' needs a dense teacher, whose embeddings it splits; set 'document_encoder'.")
    documents = texts.sources.copy()
    if stage.reads_labels:
        for row, grades in graded_positions(texts.texts, data.collection.documents, data.qrels()).items():
            documents[row] = max(grades, key=lambda position: (grades[position], -position))
    embeddings = embed(data.space, data.teacher_queries(texts.texts).texts, "query")
    parts = next(term.parts for term in stage.objectives if term.objective.needs("classes"))
    return classes_of(embeddings, documents, parts, seed=data.seed)


def selected(
    settings: SelectionSettings, data: TrainingData, texts: TrainingTexts, scored: ScoredLists
) -> tuple[np.ndarray, str]:
    """(texts,) bool, those on which the teacher is right and the student is wrong, and a note with all counts."""
    corpus, (first, last) = data.collection.documents, settings.ranks
    snapshot = _snapshot(data)
    teacher, hidden_pairs = _scored_lists(data, texts, scored)
    if settings.positives == "labels":
        positives = labeled(data.qrels())
    elif data.labeler is None:
        raise UserError("selection.positives: ensemble needs a teacher other than the stage's; name an ensemble.")
    else:
        queries = data.teacher_queries(texts.texts)
        positives = pseudo_labeled(data.labeler.score(queries, data.collection, teacher.top(_DEPTH)))
    ranks = snapshot.ranks(data.collection, texts.texts, teacher, last + 1)
    student = distinct_documents(ranks, corpus).without(hidden_pairs)
    selection = prod_selection(teacher, student, positives, settings.ranks)
    counts = selection.counts
    note = (
        f"selection: {counts['selected']} of {counts.total()} queries (teacher right, student at rank {first} to "
        f"{last}; positives by {settings.positives}); left out: {counts['unlabeled']} without a positive, "
        f"teacher wrong {counts['teacher_wrong']}, student right {counts['student_right']}, "
        f"student further off {counts['too_far']}"
    )
    note += f", not ranked {counts['not_ranked']}" if counts["not_ranked"] else ""
    if not selection.query_ids:
        raise UserError(f"nothing is selected to train on; widen selection.ranks, or leave selection out. {note}")
    log(note)
    rows = np.zeros(len(texts), dtype=bool)
    rows[texts.texts.positions(selection.query_ids)] = True
    return rows, note


def selected_by_gap(
    settings: SelectionSettings,
    data: TrainingData,
    texts: TrainingTexts,
    scored: ScoredLists,
    temperatures: tuple[float, float],
    others: np.ndarray = _NO_ROWS,
) -> tuple[np.ndarray, str]:
    """(texts,) bool, a share of the texts by how far the student is from the teacher, and a note with the counts.

    `temperatures` are the teacher's and the student's; (n,) rows of `others` are not chosen from.
    """
    teacher, _ = _scored_lists(data, texts, scored)
    teacher = teacher.select(set(teacher.query_ids) - {texts.texts.ids[row] for row in others})
    if not len(teacher):
        raise UserError("selection: no text with candidates is left to choose from; mine deeper, or add texts.")
    snapshot, queries, topics = _snapshot(data), texts.texts.select(teacher.query_ids), None
    gaps = disagreements(teacher, snapshot.score(data.collection, queries, teacher), temperatures)
    if settings.by == "topics":
        if data.space is None:
            raise UserError("selection.by: topics clusters texts by their dense embeddings; set 'document_encoder'.")
        vectors = embed(data.space, data.teacher_queries(queries).texts, "query")
        topics = cluster_topics(vectors, min(settings.topics or _TOPICS, len(queries)), data.seed)
    seed = int(digest(data.seed, snapshot.fingerprint)[:8], 16)  # another one for the next stage
    chosen = chosen_texts(settings.by, gaps, settings.share or 1.0, topics=topics, seed=seed)
    note = (
        f"selection: {int(chosen.sum())} of {len(chosen)} texts, by {settings.by}; disagreement of student and teacher "
        f"{gaps[chosen].mean():.3f} nats on these, {gaps.mean():.3f} on all"
    )
    log(note)
    rows = np.zeros(len(texts), dtype=bool)
    rows[texts.texts.positions(queries.ids)[chosen]] = True
    return rows, note


def _snapshot(data: TrainingData) -> StudentSnapshot:
    if data.student is None:
        raise UserError("a selection by the student is known when its stage begins, not before.")
    return data.student


def _scored_lists(data: TrainingData, texts: TrainingTexts, scored: ScoredLists) -> tuple[Run, dict[str, str]]:
    """The teacher's scores of each text's candidates, and the document that is hidden from each, by text."""
    corpus, hidden, teacher = data.collection.documents, scored.lists.hidden, scored.run
    hidden_pairs = {texts.texts.ids[row]: corpus.ids[hidden[row]] for row in np.flatnonzero(hidden >= 0)}
    if teacher is None:  # lists are the whole corpus
        rows, scores = scored.lists.best(np.arange(len(texts)), _DEPTH)
        teacher = Run.from_matrix(texts.texts.ids, corpus.ids, rows, scores, name="teacher")
    return distinct_documents(teacher, corpus).without(hidden_pairs), hidden_pairs


def planned_batches(stage: StageSettings, data: TrainingData, texts: Texts, rows: np.ndarray) -> PlannedBatches | None:
    """Batches of one topic or of similar length, if the stage wants them.

    `rows` are the text of each row of the training's dataset. For topics, texts are clustered by the embeddings in the
    space of what the teacher gets for them. The clusters are stored in the job's folder, so a resumed training sees the
    same batches, on another machine too.
    """
    if stage.batches == "shuffled":
        return None
    if stage.batches == "length":
        lengths = np.fromiter(map(len, texts.texts), dtype=np.int64, count=len(texts))
        return PlannedBatches(lengths[rows], length_plan)
    if data.space is None:
        raise UserError("batches: topics clusters texts by their dense embeddings; set 'document_encoder'.")
    encoder = data.space
    used, places = np.unique(rows, return_inverse=True)
    trained = data.teacher_queries(texts.select([texts.ids[row] for row in used]))
    topics = stage.topics or topic_count(len(rows), stage.training.batch_size)
    key = digest(trained.fingerprint, encoder.fingerprint("query"), topics, data.seed)
    path = data.folder / "topics" / f"{key}.npy"

    def cluster() -> np.ndarray:
        return cluster_topics(embed(encoder, trained.texts, "query"), topics, data.seed)

    with main_first():
        codes = cached_array(path, cluster)
    return PlannedBatches(codes[places], topic_plan)


def learned_from(prepared: Prepared, stage: StageSettings, data: TrainingData) -> dict[str, Any]:
    """How much a stage learned from, and at which temperatures, for its model card.

    It holds the numbers of ``texts``, of real ``queries`` among them, of ``held_out`` texts, of ``selected`` ones if
    the stage selects, and of ``pairs`` with teacher scores; the ``sources`` that proposed these, empty if none were
    needed; with a budget, the file of the ``scores``; and by objective the ``temperatures`` that student and teacher
    scores were divided by.
    """
    texts, lists, sources = prepared.texts, prepared.lists, []
    if stage.needs_lists:  # the rows of a recorded run are the candidates
        recorded = data.teacher.run is not None
        sources = [data.teacher.name] if recorded else candidate_sources(stage, data)
    return {
        "texts": len(texts),
        "queries": int((texts.sources < 0).sum()),
        "held_out": len(prepared.held_out),
        **({} if prepared.chosen is None else {"selected": int(prepared.chosen.sum())}),
        "pairs": 0 if lists is None else int(lists.sizes.sum()) - prepared.free,
        "sources": sources,
        **({} if stage.candidates.budget is None else {"scores": scores_file(stage, data, texts.texts).name}),
        "temperatures": {
            term.name: {"student": float(term.student_temperature), "teacher": float(term.teacher_temperature)}
            for term in prepared.terms
            if term.objective.reads_scores
        },
    }


def held_out_rows(
    texts: TrainingTexts, lists: Lists | None, seed: int, unreadable: np.ndarray = _NO_ROWS
) -> np.ndarray:
    """Rows kept for the monitor: real queries if there are enough, at most one in ten and at most 64."""
    known = np.ones(len(texts), dtype=bool) if lists is None else lists.sizes >= 2
    known[unreadable] = False
    real = np.flatnonzero(known & (texts.sources < 0))
    pool = real if len(real) >= 10 else np.flatnonzero(known)
    count = min(_HELD_OUT, len(pool) // 10)
    return np.sort(np.random.default_rng(seed).choice(pool, count, replace=False))


def labeled_places(
    prepared: Prepared, data: TrainingData, rows: np.ndarray, documents: np.ndarray | None = None
) -> dict[int, dict[int, int]]:
    """Labels above 0 of the texts at (n,) `rows`: grades by place in `rows` and corpus position; texts without are out.

    With `documents`, (m,) or (n, m) corpus positions, -1 for padding, grades are by place in these instead, and labels
    of other documents are left out.
    """
    if data.labels is None:
        return {}
    texts = prepared.texts.texts.select([prepared.texts.texts.ids[row] for row in rows])
    graded = graded_positions(texts, data.collection.documents, judgments_of(texts, [data.labels]))
    if documents is None:
        return graded
    lists, found = np.broadcast_to(documents, (len(rows), documents.shape[-1])), {}
    for row, grades in graded.items():
        places = np.flatnonzero(np.isin(lists[row], list(grades)))
        found[row] = {place: grades[int(lists[row, place])] for place in places.tolist()}
    return {row: grades for row, grades in found.items() if grades}


def training_rows(prepared: Prepared, stage: StageSettings) -> np.ndarray:
    """Rows to train on: readable, not held out, with a usable list, real queries repeated as the stage says."""
    usable = np.ones(len(prepared.texts), dtype=bool)
    usable[prepared.held_out] = usable[prepared.unreadable] = False
    lists = prepared.lists
    if lists is not None and not stage.aligns:
        usable &= lists.sizes >= 2
    only_positives = stage.needs_own_document or all(term.objective.needs_positives for term in prepared.terms)
    if lists is not None and only_positives:
        usable &= lists.shows_positives
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

    Stages without lists need (texts, d) teacher embeddings and (corpus, d) document vectors instead.
    """
    held_out, lists = prepared.held_out, prepared.lists
    if lists is None:
        if teacher_vectors is None or documents is None:
            raise UserError("a stage without lists needs teacher embeddings and stored documents.")
        return exact_search(teacher_vectors[held_out], documents, k)[0]
    return lists.best(held_out, k)[0]
