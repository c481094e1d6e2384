"""What all stages of a student share, and the student at the start of a stage."""

from __future__ import annotations

import hashlib
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np

from retrodistill.core.digests import digest
from retrodistill.core.errors import UserError
from retrodistill.data.collection import Collection, Qrels, of_originals
from retrodistill.data.conversations import with_rewrites
from retrodistill.data.leaks import ExcludedQueries
from retrodistill.data.parallel import Parallel
from retrodistill.data.texts import Texts
from retrodistill.encoders.embeddings import embed
from retrodistill.encoders.encoder import Encoder
from retrodistill.encoders.vectors import exact_search, pair_products
from retrodistill.rankers.protocol import Ranker, distinct_texts, pair_texts
from retrodistill.runs.run import Run
from retrodistill.training.settings import CURRENT_STUDENT


class StudentSnapshot:
    """The student at the start of a stage: it proposes candidates and shows what it has yet to learn.

    Its `kind`, of `retrodistill.students.registry`, knows whether and how it searches. The `space` encodes its
    documents, unless it does so itself; `stored`, (corpus, d) document vectors, replace the space's.
    """

    def __init__(self, student: Any, kind: Any, space: Encoder | None = None, stored: np.ndarray | None = None) -> None:
        self.student, self.kind, self.space, self.stored = student, kind, space, stored

    @cached_property
    def fingerprint(self) -> str:
        """Digest of its documents and of its weights at the first call, before training changes them."""
        documents = (self.space or self.student).fingerprint("document")
        stored = None if self.stored is None else hashlib.blake2b(self.stored.tobytes(), digest_size=8).hexdigest()
        return digest(self.student.fingerprint("query"), documents, stored)

    def unreadable_rows(self, queries: Texts) -> np.ndarray:
        """(m,) int64 rows of the queries that it cannot read; of one that reads pairs, blank ones."""
        reader = getattr(self.student, "reader", None)
        return queries.blank_rows if reader is None else reader("query").unreadable_rows(queries)

    def vectors(self, collection: Collection) -> np.ndarray:
        """(corpus, d) vectors of a dense student's documents."""
        if not self.kind.is_dense:
            raise UserError(f"{self.student.name} has no dense vectors.")
        documents, texts = self.stored, collection.documents.column
        if documents is None:
            if self.space is None:
                self.kind.store_documents(self.student, texts)
            documents = embed(self.space or self.student, texts, "document")
        if documents.shape[1] != self.student.dimension:
            raise UserError(
                f"the student has {self.student.dimension} dimensions, the stored documents {documents.shape[1]}; set "
                "student.dimension to 'space'."
            )
        return documents

    def search(self, collection: Collection, queries: Texts, k: int) -> Run:
        """The k documents that it ranks highest for each query."""
        k = min(k, len(collection.documents))
        if self.kind.is_dense:
            encoded = embed(self.student, queries.texts, "query")
            rows, scores = exact_search(encoded, self.vectors(collection), k)
            return Run.from_matrix(queries.ids, collection.documents.ids, rows, scores, name=CURRENT_STUDENT)
        if self.kind.can_search:
            ranker: Ranker = self.kind.ranker(self.student, None)
            return ranker.search(queries, collection, k).renamed(CURRENT_STUDENT)
        raise UserError(f"{self.student.name} scores pairs and cannot search; take candidates from bm25 or dense.")

    def ranks(self, collection: Collection, queries: Texts, candidates: Run, k: int) -> Run:
        """Its k best documents: of the corpus if it can search, of the candidates if it scores pairs."""
        if self.kind.can_search:
            return self.search(collection, queries, k)
        return self.score(collection, queries, candidates).top(k)

    def score(self, collection: Collection, queries: Texts, pairs: Run) -> Run:
        """The pairs with its scores, higher is better; it encodes only their texts."""
        if not self.kind.can_search:
            texts = list(zip(*pair_texts(queries, collection, pairs), strict=True))
            return pairs.with_scores(self.student.score(texts).astype(np.float64), CURRENT_STUDENT)
        if self.stored is not None:
            rows, columns = pairs.positions(queries, collection.documents)
            encoded = embed(self.student, queries.texts, "query")
            return pairs.with_scores(pair_products(encoded, self.stored, rows, columns), CURRENT_STUDENT)
        if self.space is None:
            _, query_texts, _, document_texts = distinct_texts(queries, collection, pairs)
            self.kind.store_queries(self.student, query_texts)
            self.kind.store_documents(self.student, document_texts)
        ranker: Ranker = self.kind.ranker(self.student, self.space or self.student)
        return ranker.score(queries, collection, pairs).renamed(CURRENT_STUDENT)


@dataclass(frozen=True)
class TrainingData:
    """What all stages of one student share."""

    collection: Collection
    queries: Texts  # possibly none
    teacher: Ranker  # scores the lists; a recipe puts a stage's own teacher here before the stage is trained
    space: Encoder | None  # whose vectors the student aligns to (LEAF) and whose documents it searches, if any
    folder: Path  # for intermediate results
    seed: int = 0  # of the sampling of texts
    own_documents: bool = False  # the student encodes its own documents, and is not trained against those of the space
    excluded: ExcludedQueries | None = None  # test queries and, with rewrites, theirs
    stored: np.ndarray | None = None  # (corpus, d) vectors to train against in place of the space's, e.g. decoded codes
    rewrites: Texts | None = None  # better queries by query id: only the teacher gets these, not the student
    parallel: Parallel | None = None  # texts that every stage trains on; the teacher reads sources, not translations
    labels: Qrels | None = None  # judgments of the training queries
    labeler: Ranker | None = None  # ranks the positives first if a stage selects by an ensemble
    student: StudentSnapshot | None = None  # as it is when a stage begins; None before
    bm25: str = "bm25"  # name of the lexical search that proposes candidates where a stage says `bm25` or nothing
    bought: tuple[str, ...] = ()  # files of scores whose pairs the student's earlier stages bought from the teacher

    def teacher_queries(self, texts: Texts) -> Texts:
        """The texts as the teacher gets them, with the same ids: rewrites and sources in the place of the others."""
        for better in (self.rewrites, None if self.parallel is None else self.parallel.sources):
            texts = texts if better is None else with_rewrites(texts, better)
        return texts

    def qrels(self) -> Qrels:
        """Judgments of the training queries, for copies those of the first; it is a `UserError` if there are none."""
        if self.labels is None or not len(self.labels):
            raise UserError(
                "the training queries have no labels; take positives: source_document, positives: ensemble, or "
                "keep_by: agreement."
            )
        return of_originals(self.labels, self.collection.documents)
