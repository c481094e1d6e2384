"""Recorded runs and relevance judgments as rankers."""

from __future__ import annotations

from pathlib import Path

import numpy as np

from retrodistill.core.errors import UserError
from retrodistill.core.files import digest
from retrodistill.data.collection import Collection
from retrodistill.data.texts import Texts
from retrodistill.encoders.names import ModelName
from retrodistill.rankers.protocol import Ranker
from retrodistill.runs.documents import passage_pairs
from retrodistill.runs.formats import read_run
from retrodistill.runs.run import Run, id_codes, look_up


class RecordedRanker(Ranker):
    """Scores computed elsewhere. A pair without a recorded score is an error. Its name is the run's by default."""

    kind = "run"
    can_search = can_score_pairs = is_recorded = is_cheap = True
    run: Run

    def __init__(self, run: Run, name: str | None = None) -> None:
        self.run, self.name = run, name or run.name

    @classmethod
    def of_name(cls, name: ModelName, store: Path | None) -> RecordedRanker:
        """Read the run from its file."""
        return cls(read_run(name.name), str(name))

    def fingerprint(self, collection: Collection) -> str:
        """Digest of the recorded rows."""
        return self.run.fingerprint

    def ranks_documents(self, collection: Collection) -> bool:
        """Whether the run is over whole documents."""
        return bool((collection.whole.documents.positions(id_codes(self.run.table["document_id"])[0]) >= 0).all())

    def search(self, queries: Texts, collection: Collection, k: int) -> Run:
        """The k best recorded documents of each query; none for queries that were not recorded.

        In a collection of passages, a run over whole documents finds all passages of these.
        """
        if collection.parents is not None and self.ranks_documents(collection):
            best = self.search(queries, collection.whole, k)
            return passage_pairs(best, queries, collection)
        _require(self.run, queries, collection)
        return self.run.select(queries.ids).top(k)

    def score(self, queries: Texts, collection: Collection, pairs: Run) -> Run:
        """The pairs with their recorded scores."""
        _require(self.run, queries, collection)
        scores = look_up(self.run, pairs)
        missing = np.isnan(scores)
        if missing.any():
            row = int(np.flatnonzero(missing)[0])
            query, document = pairs.query_ids[pairs.query_codes[row]], pairs.document_ids[row]
            raise UserError(
                f"run {self.run.name} has no score for {int(missing.sum())} of {len(pairs)} candidates, first "
                f"query {query!r} with document {document!r}; mine the candidates from the run itself."
            )
        return pairs.with_scores(scores, self.name)


def _require(run: Run, queries: Texts, collection: Collection) -> None:
    run.require({*collection.queries.ids, *queries.ids}, collection.documents.ids)


def recorded_pairs(run: Run, pairs: Run, name: str) -> Run:
    """The subset of the pairs that a run contains, with its scores."""
    scores = look_up(run, pairs)
    known = np.isfinite(scores)
    return pairs.filter(known).with_scores(scores[known], name)


class JudgmentRanker(Ranker):
    """Scores a pair by its grade in a split's judgments; an unjudged document counts as not relevant.

    Queries of other splits and pseudo-queries get equal scores for all documents and teach nothing; training excludes
    and counts them. The test split is a UserError: measuring a student that saw its judgments is meaningless.
    """

    kind = "judgments"
    can_score_pairs = is_cheap = True

    def __init__(self, split: str) -> None:
        if split == "test":
            raise UserError("judgments:test would teach what is measured; use judgments:train.")
        self.split, self.name = split, f"judgments:{split}"

    def fingerprint(self, collection: Collection) -> str:
        """Digest of the judgments."""
        return digest("judgments", collection.relevance(self.split).fingerprint)

    def score(self, queries: Texts, collection: Collection, pairs: Run) -> Run:
        """The pairs with their grades; negative grades count as 0."""
        _require(pairs, queries, collection)
        grades = collection.passage_labels(collection.relevance(self.split)).to_dict()
        scores = [
            max(0, grades.get(pairs.query_ids[code], {}).get(str(document), 0))
            for code, document in zip(pairs.query_codes, pairs.document_ids, strict=True)
        ]
        return pairs.with_scores(np.array(scores, dtype=np.float32), self.name)
