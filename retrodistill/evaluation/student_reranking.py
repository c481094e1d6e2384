"""Students that re-rank: what a cross-encoder, PreTT or TK makes of another system's first documents."""

from __future__ import annotations

from collections.abc import Callable
from typing import TYPE_CHECKING, Any

import numpy as np

from retrodistill.core.errors import UserError
from retrodistill.data.collection import Collection
from retrodistill.data.texts import Texts
from retrodistill.rankers.bm25 import BM25
from retrodistill.rankers.cross_encoder import CrossEncoderTeacher
from retrodistill.rankers.protocol import pair_positions
from retrodistill.rankers.retrievers import LexicalRetriever, Retriever
from retrodistill.runs.run import Run
from retrodistill.students.cross_encoder import CrossEncoderStudent

if TYPE_CHECKING:
    from retrodistill.students.document_states import StoredDocuments

DEPTH = 100


class StudentReranker:
    """Orders the first `depth` documents of a source by a student's scores; those behind them are dropped.

    PreTT and TK score documents that they stored before; a cross-encoder reads each pair, and its scores are kept like
    a teacher's.

    Args:
        student: The student.
        source: Finds the candidates: a retriever, or a recorded run.
        depth: Candidates per query.
        name: What its runs are called.

    Raises:
        UserError: A depth below 1.
    """

    def __init__(
        self, student: CrossEncoderStudent, source: Retriever, depth: int = DEPTH, name: str | None = None
    ) -> None:
        if depth < 1:
            raise UserError(f"re-ranking of the top {depth}; give at least 1.")
        self.student, self.source, self.depth = student, source, depth
        self.name = name or f"rerank@{depth}:{student.name}@{source.name}"

    @property
    def stores(self) -> bool:
        """Whether the student's documents are stored."""
        return self.student.kind != "cross-encoder"

    @property
    def candidates_by(self) -> str:
        """Whose documents it orders, in words for a table."""
        return f"the first {self.depth} of {self.source.name}"

    @property
    def can_be_timed(self) -> bool:
        """Whether it answers new queries by itself, from BM25's candidates on."""
        return isinstance(self.source, LexicalRetriever)

    def retrieve(self, collection: Collection, queries: Texts, k: int) -> Run:
        """The candidates in the student's order, at most `depth` a query."""
        candidates = first_documents(self.source, collection, queries, self.depth)
        if self.stores:
            run = candidates.with_scores(self._scores(collection, queries, candidates), self.name)
        else:
            run = CrossEncoderTeacher(self.student.model, self.student.name).score(collection, queries, candidates)
        return run.top(k).renamed(self.name)

    def query_fn(self, collection: Collection, k: int) -> Callable[[str], Any]:
        """Searches by BM25 and scores what it finds, nothing of the query cached.

        Raises:
            UserError: Another source, whose own time would be missing.
        """
        if not self.can_be_timed:
            raise UserError(f"{self.name} has no latency here: its source is not bm25; time that on its own.")
        ranker, depth = BM25(collection.documents), min(self.depth, len(collection.documents))
        if self.stores:
            stored = self._stored(collection)
            return lambda text: stored.score(text, _found(ranker, text, depth))
        documents = collection.documents
        ids, student = documents.ids, self.student

        def answer(text: str) -> np.ndarray:
            chosen = documents.select([ids[row] for row in _found(ranker, text, depth)]).texts
            return student.score([(text, document) for document in chosen])

        return answer

    def bytes_per_document(self, collection: Collection) -> float | None:
        """The source's, and what the student stores; a cross-encoder reads the texts, which are not counted."""
        found = self.source.bytes_per_document(collection)
        if found is None or not self.stores:
            return found
        return found + self._stored(collection).bytes_per_document

    def _stored(self, collection: Collection) -> StoredDocuments:
        from retrodistill.students.document_states import stored_documents

        return stored_documents(self.student, collection.documents.texts)

    def _scores(self, collection: Collection, queries: Texts, candidates: Run) -> np.ndarray:
        """(rows,) float32 of a run's pairs."""
        stored, texts = self._stored(collection), queries.texts
        asked, rows = pair_positions(collection, queries, candidates)
        scores = np.zeros(len(rows), dtype=np.float32)
        for query in np.unique(asked):
            places = np.flatnonzero(asked == query)
            scores[places] = stored.score(texts[query], rows[places])
        return scores


def first_documents(source: Retriever, collection: Collection, queries: Texts, depth: int) -> Run:
    """What a re-ranker orders: the first `depth` documents of each query, none that is its own query."""
    # One more: such a one is left out of the results, and would cost a place.
    found = source.retrieve(collection, queries, min(depth + 1, len(collection.documents)))
    return found.without({query: query for query in queries.ids}).top(depth)


def _found(ranker: BM25, text: str, depth: int) -> np.ndarray:
    """(n,) rows of the documents that BM25 finds."""
    rows = ranker.search([text], depth)[0][0]
    return rows[rows >= 0]
