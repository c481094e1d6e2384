"""A recorded run as a teacher."""

from __future__ import annotations

import numpy as np

from retrodistill.core.errors import UserError
from retrodistill.data.collection import Collection
from retrodistill.data.texts import Texts
from retrodistill.rankers.protocol import Work
from retrodistill.runs.align import look_up
from retrodistill.runs.run import Run


class RecordedTeacher:
    """Scores that somebody else computed; a pair that was not recorded has none and is refused.

    Args:
        run: The scores.
        name: ``run:FILE``; the run's own name by default.
    """

    def __init__(self, run: Run, name: str | None = None) -> None:
        self.run, self.name = run, name or run.name

    def fingerprint(self, collection: Collection) -> str:
        """Digest of the recorded rows."""
        return self.run.fingerprint

    def score(self, collection: Collection, queries: Texts, candidates: Run) -> Run:
        """The candidates with their recorded scores.

        Raises:
            UserError: The run names unknown ids, or has no score for some candidate.
        """
        self.run.require({*collection.queries.ids, *queries.ids}, collection.documents.ids)
        scores = look_up(self.run, candidates)
        lacking = np.isnan(scores)
        if lacking.any():
            row = int(np.flatnonzero(lacking)[0])
            query, document = candidates.query_ids[candidates.query_codes[row]], candidates.document_ids[row]
            raise UserError(
                f"run {self.run.name} has no score for {int(lacking.sum())} of {len(candidates)} candidates, first "
                f"query {query!r} with document {document!r}; mine the candidates from the run itself."
            )
        return candidates.with_scores(scores, self.name)

    def remaining(self, collection: Collection, queries: Texts, candidates: Run) -> Work:
        """Nothing: it is recorded."""
        return Work(0, "pairs", 0.0)
