"""What a stage trains on: texts, teacher embeddings, candidates with teacher scores."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import NamedTuple, Protocol

import numpy as np

from retrodistill.candidates.samplers import random_documents
from retrodistill.core.errors import UserError
from retrodistill.core.files import atomic_file, digest, read_json, write_json
from retrodistill.core.progress import log
from retrodistill.data.collection import Collection
from retrodistill.data.conversations import asked_better
from retrodistill.data.qrels import Qrels
from retrodistill.data.texts import Texts
from retrodistill.encoders.encoder import Encoder
from retrodistill.objectives.temperature import check_trainable, temperature_for
from retrodistill.rankers.corpus_scores import corpus_scores
from retrodistill.rankers.protocol import Ranker
from retrodistill.runs.align import align
from retrodistill.runs.formats import read_run, write_run
from retrodistill.runs.run import Run
from retrodistill.training.list_settings import CURRENT_STUDENT, is_student
from retrodistill.training.lists import Lists, lists_from_run, lists_over_corpus
from retrodistill.training.pools import candidate_pool, select_within_budget
from retrodistill.training.positives import best_labeled
from retrodistill.training.settings import StageSettings
from retrodistill.training.snapshot import StudentSnapshot
from retrodistill.training.texts import TrainingTexts, training_texts

_SPREAD_SAMPLE = 512  # rows of a corpus matrix that its spread is measured on


class StageTeachers(Protocol):
    """Gives a stage that names a teacher of its own that teacher."""

    def teacher(self, stage: StageSettings, data: TrainingData) -> Ranker:
        """The teacher; one that is a student of the same job is trained as far as the stage wants it."""
        ...

    def fingerprint(self, stage: StageSettings, data: TrainingData) -> str:
        """Digest of what the teacher is, or of what it will be made from."""
        ...


class Scored(NamedTuple):
    """What the teacher scored.

    Attributes:
        run: The scores.
        notes: What a reader of the results should know of the choice of pairs.
    """

    run: Run
    notes: list[str]


class TaughtLists(NamedTuple):
    """Lists with teacher scores.

    Attributes:
        lists: As objectives see them.
        spread: Standard deviation of a list's scores, in the mean over lists.
        run: The scores as a run; None where a list is the whole corpus.
        notes: What a reader of the results should know.
    """

    lists: Lists
    spread: float
    run: Run | None
    notes: list[str]


@dataclass(frozen=True)
class TrainingData:
    """What all stages of one student share.

    Attributes:
        collection: The corpus.
        queries: Training queries; possibly none.
        teacher: What scores lists.
        space: The dense encoder whose vectors the student aligns to (LEAF) and whose documents it searches; None
            where there is none.
        folder: For what is computed on the way.
        seed: Of the sampling of texts.
        own_documents: The student encodes its own documents, and is not trained against those of the space.
        excluded_queries: Queries that must not be trained on, by text: pseudo-queries that equal one are left out.
        stored: (corpus, d) vectors that query towers are trained against in place of the space's, e.g. as the codes of
            a quantized index tell them.
        rewrites: Better queries by the ids of queries: the teacher is asked these, the student the queries themselves.
        labels: Judgments of the training queries.
        labeler: Who says what is right where a stage selects by an ensemble.
        teachers: Where stages with teachers of their own get them.
        student: The student as it stands when a stage begins; None before.
    """

    collection: Collection
    queries: Texts
    teacher: Ranker
    space: Encoder | None
    folder: Path
    seed: int = 0
    own_documents: bool = False
    excluded_queries: Texts | None = None
    stored: np.ndarray | None = None
    rewrites: Texts | None = None
    labels: Qrels | None = None
    labeler: Ranker | None = None
    teachers: StageTeachers | None = None
    student: StudentSnapshot | None = None

    def with_stage_teacher(self, stage: StageSettings) -> TrainingData:
        """The data with the stage's teacher in the place of the job's.

        Raises:
            UserError: The stage names a teacher, and nothing says where it comes from.
        """
        if not stage.has_own_teacher:
            return self
        if self.teachers is None:
            raise UserError("a stage with a teacher or labels of its own is for recipes; run it by 'retrodistill run'.")
        labeler = self.teacher if stage.teacher else self.labeler
        return replace(self, teacher=self.teachers.teacher(stage, self), labeler=labeler)

    def teacher_queries(self, texts: Texts) -> Texts:
        """The texts as the teacher is asked them: rewrites where there are, the same ids."""
        return texts if self.rewrites is None else asked_better(texts, self.rewrites)

    def qrels(self) -> Qrels:
        """Judgments of the training queries.

        Raises:
            UserError: There are none.
        """
        if self.labels is None or not len(self.labels):
            raise UserError(
                "the training queries have no labels; take positives: source_document, or positives: ensemble."
            )
        return self.labels

    def texts(self, stage: StageSettings) -> TrainingTexts:
        """The stage's texts; a recorded teacher knows real queries only."""
        queries = self.queries if stage.texts.queries else self.queries.select([])
        titles, sentences, documents = stage.texts.titles, stage.texts.sentences, stage.texts.documents
        if self.teacher.run is not None and not stage.aligns:
            known = set(self.teacher.run.query_ids)
            queries = queries.select([query for query in queries.ids if query in known])
            titles, sentences, documents = False, 0, False
        return training_texts(
            self.collection,
            queries,
            titles=titles,
            sentences=sentences,
            documents=documents,
            seed=self.seed,
            excluded_queries=self.excluded_queries,
        )

    def lists(self, stage: StageSettings, texts: TrainingTexts) -> TaughtLists:
        """Candidates with teacher scores, and the scores' measured spread.

        Raises:
            UserError: Nothing in them to learn from.
        """
        hide = not stage.needs_own_document
        if stage.candidates.depth == "all":
            scores = self.corpus_scores(texts.texts)
            sample = np.linspace(0, len(scores) - 1, min(_SPREAD_SAMPLE, len(scores)), dtype=int)
            spread = float(np.mean(np.std(scores[sample], axis=1)))
            if spread == 0:
                raise UserError(f"teacher {self.teacher.name} scores all documents equal; there is nothing to learn.")
            lists = lists_over_corpus(scores, texts.sources, hide_source=hide)
            return TaughtLists(self._labeled(stage, lists, texts), spread, None, [])
        scored = self.scored(stage, texts.texts)
        run, dropped = check_trainable(scored.run)
        if any(dropped.values()):
            log(f"left out: {dropped['single']} queries with one candidate, {dropped['flat']} with equal scores")
        spread, documents = temperature_for(run, 1.0), self.collection.documents
        if self.teacher.run is not None and stage.candidates.random:
            drawn = random_documents(run.query_ids, documents.ids, stage.candidates.random, self.seed)
            run = with_unlisted(run, drawn)
        lists = lists_from_run(run, texts.texts, documents, texts.sources, hide_source=hide)
        return TaughtLists(self._labeled(stage, lists, texts), spread, run, scored.notes)

    def scored(self, stage: StageSettings, texts: Texts) -> Scored:
        """Mine and score candidates; kept in the folder and taken from there when nothing has changed."""
        settings, asked = stage.candidates, self.teacher_queries(texts)
        parts: list[object] = [
            self.collection.documents.fingerprint,
            texts.fingerprint,
            self.teacher.fingerprint(self.collection),
            self.sources(stage),
            settings.depth,
            settings.random,
            self.seed,
        ]
        if asked is not texts:
            parts += ["asked", asked.fingerprint]
        if self.student is not None and CURRENT_STUDENT in self.sources(stage):
            parts += [CURRENT_STUDENT, self.student.fingerprint]
        if stage.positives == "labels":
            parts += ["labels", self.qrels().fingerprint]
        if settings.budget is not None:
            parts += ["budget", settings.budget, settings.budget_by, stage.needs_own_document]
        path = self.folder / "scores" / f"{digest(*parts)}.parquet"
        about = path.with_suffix(".json")
        if path.exists():
            return Scored(read_run(path), read_json(about)["notes"] if about.exists() else [])
        pairs, notes = self._pairs(stage, texts)
        run = self.teacher.score(asked, self.collection, pairs)
        if notes:
            write_json(about, {"notes": notes})
        write_run(run, path)
        return Scored(run, notes)

    def candidates(self, stage: StageSettings, texts: Texts) -> Run:
        """The pairs that the stage's teacher scores: mined, with the budget's choice of them; a recorded run's rows."""
        return self._pairs(stage, texts)[0]

    def sources(self, stage: StageSettings) -> list[str]:
        """Who proposes the stage's candidates."""
        return stage.candidates.sources or default_sources(self.teacher)

    def _pairs(self, stage: StageSettings, texts: Texts) -> tuple[Run, list[str]]:
        pool = candidate_pool(self, stage, texts, self.sources(stage))
        if stage.candidates.budget is None:
            return pool, []
        chosen = select_within_budget(self, stage, texts, pool, self.sources(stage))
        log(str(chosen))
        return chosen.run, [str(chosen)]

    def _labeled(self, stage: StageSettings, lists: Lists, texts: TrainingTexts) -> Lists:
        """The lists with labeled documents for positives, where the stage wants these."""
        if stage.positives == "source_document":
            return lists
        return replace(lists, positives=best_labeled(lists, texts, self.collection.documents, self.qrels()))

    def corpus_scores(self, texts: Texts) -> np.ndarray:
        """(texts, corpus) float32 teacher scores, memory-mapped from the folder, where they are kept."""
        documents, texts = self.collection.documents, self.teacher_queries(texts)
        key = digest(documents.fingerprint, texts.fingerprint, self.teacher.fingerprint(self.collection))
        path = self.folder / "scores" / f"{key}.npy"
        if not path.exists():
            with atomic_file(path) as temporary:
                out = np.lib.format.open_memmap(
                    temporary, mode="w+", dtype=np.float32, shape=(len(texts), len(documents))
                )
                corpus_scores(texts, self.collection, self.teacher, out)
                out.flush()
        return np.load(path, mmap_mode="r")


def with_unlisted(run: Run, drawn: Run) -> Run:
    """A recorded run with documents that it does not list, which get the lowest score of their query's list.

    Whoever recorded the run left them out because they were worse than what it lists: nothing is known but that.

    Args:
        run: The recorded scores.
        drawn: Pairs to add, of the same queries; those that are listed keep their score.
    """
    pairs, scores = align([run, drawn], run.name)
    lowest = np.minimum.reduceat(run.scores, run.bounds[:-1])
    return pairs.with_scores(np.where(np.isnan(scores[:, 0]), lowest[pairs.query_codes], scores[:, 0]))


def check_recorded(teacher: Ranker, collection: Collection, queries: Texts, stages: Sequence[StageSettings]) -> None:
    """Check, before any stage runs, that a recorded run fits the collection and can teach the lists that are needed.

    Raises:
        UserError: It names unknown ids, holds nothing for these queries, or nothing to learn from: one candidate each,
            equal scores.
    """
    if teacher.run is None:
        return
    teacher.run.require(collection.queries.ids, collection.documents.ids)
    if not any(stage.needs_lists for stage in stages):
        return
    if any(stage.needs_lists and stage.candidates.depth == "all" for stage in stages):
        raise UserError(f"{teacher.name} is recorded and holds lists: leave candidates.depth out, it cannot be 'all'.")
    known = teacher.run.select(queries.ids)
    if not len(known):
        raise UserError(f"{teacher.name} has rows for none of the {len(queries)} training queries; record some.")
    check_trainable(known)


def default_sources(teacher: Ranker) -> list[str]:
    """Who proposes candidates where the recipe does not say: bm25 and the dense members of the teacher."""
    dense = [member.name for member in teacher.members if member.queries is not None and member.can_search]
    return ["bm25", *(name for name in dense if not is_student(name))]
