"""What a stage trains on: texts, teacher embeddings, candidates with teacher scores."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from retrodistill.candidates.mining import mine
from retrodistill.candidates.samplers import random_documents
from retrodistill.collections.collection import Collection
from retrodistill.collections.texts import Texts
from retrodistill.errors import UserError
from retrodistill.files import atomic_file, digest
from retrodistill.models.encoder import Encoder
from retrodistill.objectives.temperature import check_trainable, temperature_for
from retrodistill.progress import say
from retrodistill.runs.align import align
from retrodistill.runs.formats import read_run, write_run
from retrodistill.runs.run import Run
from retrodistill.teachers.corpus_scores import corpus_scores
from retrodistill.teachers.dense import DenseTeacher
from retrodistill.teachers.ensemble import Ensemble
from retrodistill.teachers.protocol import Teacher
from retrodistill.teachers.recorded import RecordedTeacher
from retrodistill.training.lists import Lists, lists_from_run, lists_over_corpus
from retrodistill.training.settings import CandidateSettings, StageSettings
from retrodistill.training.texts import TrainingTexts, training_texts

_SPREAD_SAMPLE = 512  # rows of a corpus matrix that its spread is measured on


@dataclass(frozen=True)
class Material:
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
        barred: Queries that must not be trained on, by text: pseudo-queries that equal one are left out.
        stored: (corpus, d) vectors that query towers are trained against in place of the space's, e.g. as the codes of
            a quantised index tell them.
    """

    collection: Collection
    queries: Texts
    teacher: Teacher
    space: Encoder | None
    folder: Path
    seed: int = 0
    own_documents: bool = False
    barred: Texts | None = None
    stored: np.ndarray | None = None

    def texts(self, stage: StageSettings) -> TrainingTexts:
        """The stage's texts; a recorded teacher knows real queries only."""
        queries = self.queries if stage.texts.queries else self.queries.select([])
        titles, sentences, documents = stage.texts.titles, stage.texts.sentences, stage.texts.documents
        if isinstance(self.teacher, RecordedTeacher) and not stage.aligns:
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
            barred=self.barred,
        )

    def lists(self, stage: StageSettings, texts: TrainingTexts) -> tuple[Lists, float]:
        """Candidates with teacher scores, and the scores' measured spread.

        Raises:
            UserError: Nothing in them to learn from.
        """
        hide = not stage.is_contrastive
        if stage.candidates.depth == "all":
            scores = self.corpus_scores(texts.texts)
            sample = np.linspace(0, len(scores) - 1, min(_SPREAD_SAMPLE, len(scores)), dtype=int)
            spread = float(np.mean(np.std(scores[sample], axis=1)))
            if spread == 0:
                raise UserError(f"teacher {self.teacher.name} scores all documents equal; there is nothing to learn.")
            return lists_over_corpus(scores, texts.sources, hide_source=hide), spread
        run, dropped = check_trainable(self.scored(stage.candidates, texts.texts))
        if any(dropped.values()):
            say(f"left out: {dropped['single']} queries with one candidate, {dropped['flat']} with equal scores")
        spread, documents = temperature_for(run, 1.0), self.collection.documents
        if isinstance(self.teacher, RecordedTeacher) and stage.candidates.random:
            drawn = random_documents(run.query_ids, documents.ids, stage.candidates.random, self.seed)
            run = with_unlisted(run, drawn)
        return lists_from_run(run, texts.texts, documents, texts.sources, hide_source=hide), spread

    def scored(self, settings: CandidateSettings, texts: Texts) -> Run:
        """Mine and score candidates; kept in the folder and taken from there when nothing has changed."""
        sources = settings.sources or default_sources(self.teacher)
        key = digest(
            self.collection.documents.fingerprint,
            texts.fingerprint,
            self.teacher.fingerprint(self.collection),
            sources,
            settings.depth,
            settings.random,
            self.seed,
        )
        path = self.folder / "scores" / f"{key}.parquet"
        if path.exists():
            return read_run(path)
        run = self.teacher.score(self.collection, texts, self.candidates(settings, texts))
        write_run(run, path)
        return run

    def candidates(self, settings: CandidateSettings, texts: Texts) -> Run:
        """Mine candidates; a recorded teacher's are its own rows."""
        if isinstance(self.teacher, RecordedTeacher):
            return self.teacher.run.select(texts.ids)
        sources = settings.sources or default_sources(self.teacher)
        depth = min(int(settings.depth), len(self.collection.documents))
        return mine(self.collection, texts, sources, depth, random=settings.random, seed=self.seed)

    def corpus_scores(self, texts: Texts) -> np.ndarray:
        """(texts, corpus) float32 teacher scores, memory-mapped from the folder, where they are kept."""
        documents = self.collection.documents
        key = digest(documents.fingerprint, texts.fingerprint, self.teacher.fingerprint(self.collection))
        path = self.folder / "scores" / f"{key}.npy"
        if not path.exists():
            with atomic_file(path) as temporary:
                out = np.lib.format.open_memmap(
                    temporary, mode="w+", dtype=np.float32, shape=(len(texts), len(documents))
                )
                corpus_scores(self.collection, texts, self.teacher, out)
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


def check_recorded(teacher: Teacher, collection: Collection, queries: Texts, stages: Sequence[StageSettings]) -> None:
    """Check, before any stage runs, that a recorded run fits the collection and can teach the lists that are needed.

    Raises:
        UserError: It names unknown ids, holds nothing for these queries, or nothing to learn from: one candidate each,
            equal scores.
    """
    if not isinstance(teacher, RecordedTeacher):
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


def default_sources(teacher: Teacher) -> list[str]:
    """Who proposes candidates where the recipe does not say: bm25 and the dense members of the teacher."""
    members = teacher.members if isinstance(teacher, Ensemble) else [teacher]
    dense = [member.name for member in members if isinstance(member, DenseTeacher)]
    return ["bm25", *dense]
