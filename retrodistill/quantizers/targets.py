"""What the quantized scores are to become like: exact dense scores, or those of a better ranker."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import cached_property

import numpy as np

from retrodistill.core.errors import UserError
from retrodistill.encoders.vectors import exact_search
from retrodistill.runs.run import Run, id_codes
from retrodistill.runs.top_k import top_k

_VALUES_KEPT = 150_000_000  # 600 MB

Teacher = Callable[[np.ndarray], np.ndarray]
"""From (batch,) int64 rows of the training queries to (batch, n) float32 scores of all documents."""


@dataclass(frozen=True, eq=False)
class Targets:
    """Scores to learn from: a teacher's, or by default the exact inner products, which need no whole row.

    Attributes:
        queries: (q, d) float32.
        documents: (n, d) float32.
        teacher: Scores by rows of the queries; None for the inner products.
    """

    queries: np.ndarray
    documents: np.ndarray
    teacher: Teacher | None = None

    @cached_property
    def _table(self) -> np.ndarray | None:
        """(q, n) inner products where they fit into memory: computed once, they are a third of a step's work."""
        if self.teacher is not None or len(self.queries) * len(self.documents) > _VALUES_KEPT:
            return None
        return self.queries @ self.documents.T

    def scores(self, rows: np.ndarray, columns: np.ndarray | None = None) -> np.ndarray:
        """(batch, n) float32 scores, of all documents or of the `columns`.

        Raises:
            UserError: The teacher gives another shape, or scores that are not finite.
        """
        if self._table is not None:
            return self._table[rows] if columns is None else self._table[rows][:, columns]
        if self.teacher is None:
            return self.queries[rows] @ (self.documents if columns is None else self.documents[columns]).T
        scores = np.asarray(self.teacher(rows), dtype=np.float32)
        if scores.shape != (len(rows), len(self.documents)) or not np.isfinite(scores).all():
            raise UserError(
                f"the teacher gives scores of shape {scores.shape} for {len(rows)} queries and {len(self.documents)} "
                "documents, or some that are not finite; a teacher scores every document."
            )
        return scores if columns is None else scores[:, columns]

    def best(self, rows: np.ndarray, k: int) -> np.ndarray:
        """(rows, k) int64 documents of the highest scores, best first."""
        if self.teacher is None:
            return exact_search(self.queries[rows], self.documents, k)[0]
        found = []
        for start in range(0, len(rows), 256):
            scores = self.scores(rows[start : start + 256])
            found.append(top_k(scores, k))
        return np.concatenate(found)

    def spread(self, rows: np.ndarray) -> float:
        """Standard deviation of a query's scores over the corpus, mean over up to 256 of the `rows`.

        Raises:
            UserError: All scores of every query are equal.
        """
        sample = rows[np.linspace(0, len(rows) - 1, min(256, len(rows)), dtype=np.int64)]
        spread = float(np.mean([self.scores(block).std() for block in sample[:, None]]))
        if not spread > 0:
            raise UserError("the teacher gives every document the same score; there is nothing to learn.")
        return spread


def run_teacher(
    run: Run,
    query_ids: Sequence[str],
    document_ids: Sequence[str],
    queries: np.ndarray,
    documents: np.ndarray,
) -> Teacher:
    """A recorded ranker as teacher: it reorders its candidates, the dense scores place all other documents.

    A list's recorded scores are brought to the mean and the standard deviation of the dense scores of the same
    candidates, so that both kinds of scores stand on one scale. Queries that the run does not know keep dense scores.

    Args:
        run: Recorded scores of some of the training queries.
        query_ids: (q,) ids of the training queries.
        document_ids: (n,) ids of the corpus.
        queries: (q, d) their vectors.
        documents: (n, d) vectors of the corpus.

    Raises:
        UserError: A document or all queries of the run are unknown here.
    """
    places = {document: place for place, document in enumerate(document_ids)}
    unknown = [document for document in id_codes(run.table["document_id"])[0] if document not in places]
    if unknown:
        raise UserError(
            f"run {run.name}: {len(unknown)} of its documents are not in the corpus, first {str(unknown[0])!r}; use a "
            "run made on this collection."
        )
    lists = {
        query: (np.array([places[document] for document in found], dtype=np.int64), scores)
        for query, found, scores in run
    }
    if not set(query_ids) & lists.keys():
        raise UserError(f"run {run.name} knows none of the {len(query_ids)} training queries; record it on them.")

    def teach(rows: np.ndarray) -> np.ndarray:
        table = queries[rows] @ documents.T
        for line, row in enumerate(rows):
            found, scores = lists.get(query_ids[int(row)], (None, None))
            if found is not None and scores is not None and len(found) > 1 and np.ptp(scores) > 0:
                own = table[line, found]
                table[line, found] = own.mean() + own.std() * (scores - scores.mean()) / scores.std()
        return table

    return teach
