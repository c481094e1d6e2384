"""Which texts a stage trains on, and in which order: the selection of PROD, the topics of TAS-B."""

from __future__ import annotations

from typing import NamedTuple

import numpy as np

from retrodistill.candidates.samplers import TopicBatches, cluster_topics, topic_count
from retrodistill.candidates.selection import labeled, prod_selection, pseudo_labeled
from retrodistill.core.errors import UserError
from retrodistill.core.files import atomic_file, digest
from retrodistill.core.runtime import log, main_first
from retrodistill.data.texts import Texts
from retrodistill.encoders.embeddings import embed
from retrodistill.runs.run import Run, top_k
from retrodistill.training.lists import Lists
from retrodistill.training.scoring import ScoredLists
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
