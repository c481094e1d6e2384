"""Relevance judgments as a teacher: for training a cross-encoder where no ranker is at hand to teach."""

from __future__ import annotations

import numpy as np

from retrodistill.core.errors import UserError
from retrodistill.core.files import digest
from retrodistill.data.collection import Collection
from retrodistill.data.texts import Texts
from retrodistill.rankers.protocol import Work
from retrodistill.runs.run import Run


class JudgmentTeacher:
    """Scores a pair by its grade in a split's judgments; a document that nobody judged counts as not relevant.

    Queries of other splits and pseudo-queries have equal scores throughout and teach nothing: training leaves them out
    and counts them.

    Args:
        split: Whose judgments: ``train``, ``dev``, any but the one that is measured.

    Raises:
        UserError: The test split: a number from a student that saw its judgments is void.
    """

    def __init__(self, split: str) -> None:
        if split == "test":
            raise UserError("judgments:test would teach what is measured; take judgments:train.")
        self.split, self.name = split, f"judgments:{split}"

    def fingerprint(self, collection: Collection) -> str:
        """Digest of the judgments."""
        return digest("judgments", collection.relevance(self.split).fingerprint)

    def score(self, collection: Collection, queries: Texts, candidates: Run) -> Run:
        """The candidates with their grades; negative grades count as 0.

        Raises:
            UserError: The split has no judgments, or the candidates name unknown ids.
        """
        candidates.require({*collection.queries.ids, *queries.ids}, collection.documents.ids)
        grades = collection.relevance(self.split).to_dict()
        asked = [candidates.query_ids[code] for code in candidates.query_codes]
        pairs = zip(asked, candidates.document_ids, strict=True)
        scores = [max(0, grades.get(query, {}).get(str(document), 0)) for query, document in pairs]
        return candidates.with_scores(np.array(scores, dtype=np.float32), self.name)

    def remaining(self, collection: Collection, queries: Texts, candidates: Run) -> Work:
        """Nothing: people judged."""
        return Work(0, "pairs", 0.0)
