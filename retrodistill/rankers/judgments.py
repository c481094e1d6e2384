"""Relevance judgments as a teacher, for training a cross-encoder where no ranker can teach it."""

from __future__ import annotations

import numpy as np

from retrodistill.core.errors import UserError
from retrodistill.core.files import digest
from retrodistill.data.collection import Collection
from retrodistill.data.texts import Texts
from retrodistill.rankers.protocol import Ranker
from retrodistill.runs.run import Run


class JudgmentRanker(Ranker):
    """Scores a pair by its grade in a split's judgments; an unjudged document counts as not relevant.

    Queries of other splits and pseudo-queries have equal scores throughout and teach nothing: training leaves them out
    and counts them.

    Args:
        split: Split of the judgments: ``train``, ``dev``, any but the measured one.

    Raises:
        UserError: The test split: a figure of a student that saw its judgments is void.
    """

    kind = "judgments"
    can_score_pairs = is_cheap = True

    def __init__(self, split: str) -> None:
        if split == "test":
            raise UserError("judgments:test would teach what is measured; take judgments:train.")
        self.split, self.name = split, f"judgments:{split}"

    def fingerprint(self, collection: Collection) -> str:
        """Digest of the judgments."""
        return digest("judgments", collection.relevance(self.split).fingerprint)

    def score(self, queries: Texts, collection: Collection, pairs: Run) -> Run:
        """The pairs with their grades; negative grades count as 0.

        Raises:
            UserError: The split has no judgments, or the pairs name unknown ids.
        """
        pairs.require({*collection.queries.ids, *queries.ids}, collection.documents.ids)
        grades = collection.relevance(self.split).to_dict()
        scores = [
            max(0, grades.get(pairs.query_ids[code], {}).get(str(document), 0))
            for code, document in zip(pairs.query_codes, pairs.document_ids, strict=True)
        ]
        return pairs.with_scores(np.array(scores, dtype=np.float32), self.name)
