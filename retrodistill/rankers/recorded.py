"""Recorded runs and relevance judgments as rankers."""

from __future__ import annotations

import itertools
from pathlib import Path

import numpy as np
import pyarrow as pa

from retrodistill.core.digests import digest
from retrodistill.core.errors import UserError, sample_of
from retrodistill.core.runtime import log
from retrodistill.data.collection import Collection, of_originals
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
        self._known: tuple[tuple[Texts, ...], Run] | None = None

    @classmethod
    def of_name(cls, name: ModelName, store: Path | None) -> RecordedRanker:
        """Read the run from its file."""
        return cls(read_run(name.name), str(name))

    def fingerprint(self, collection: Collection) -> str:
        """Digest of the recorded rows."""
        return self.run.fingerprint

    def known_run(self, collection: Collection, queries: Texts | None = None) -> Run:
        """See `Ranker.known_run`; the log counts the other rows, and it is a UserError if there are no more."""
        texts = (collection.documents, collection.queries, *([] if queries is None else [queries]))
        if self._known is None or any(a is not b for a, b in itertools.zip_longest(self._known[0], texts)):
            run, line = self.run.known(texts[1:], collection.documents)
            if line is not None and (self._known is None or self._known[0][0] is not collection.documents):
                log(f"{line}; their rows are left out")
            self._known = texts, run
        return self._known[1]

    def ranks_documents(self, collection: Collection) -> bool:
        """Whether the run is over whole documents, of which it may have others."""
        return bool((collection.whole.documents.positions(id_codes(self.run.table["document_id"])[0]) >= 0).any())

    def search(self, queries: Texts, collection: Collection, k: int) -> Run:
        """The k best recorded documents of each query; none for queries that were not recorded.

        Documents that are not in the collection are left out. No query that was recorded is a UserError. In a
        collection of passages, a run over whole documents finds all passages of these.
        """
        if collection.parents is not None and self.ranks_documents(collection):
            best = self.search(queries, collection.whole, k)
            return passage_pairs(best, queries, collection)
        return rows_of(self.known_run(collection, queries), queries).top(k)

    def score(self, queries: Texts, collection: Collection, pairs: Run) -> Run:
        """The pairs with their recorded scores."""
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


def rows_of(run: Run, queries: Texts) -> Run:
    """The rows of the queries; a run of other queries alone is a UserError."""
    rows = run.select(queries.ids)
    if len(queries) and not len(rows):
        raise UserError(
            f"run {run.name} has rows for none of the {len(queries)} queries ({sample_of(queries.ids)}), only for "
            f"{sample_of(run.query_ids)}; use a run of these queries, or another split."
        )
    return rows


def recorded_pairs(run: Run, pairs: Run, name: str) -> Run:
    """The subset of the pairs that a run contains, with its scores."""
    scores = look_up(run, pairs)
    known = np.isfinite(scores)
    return pairs.filter(known).with_scores(scores[known], name)


class JudgmentRanker(Ranker):
    """Scores a pair by its grade in a split's judgments; an unjudged document counts as not relevant.

    Copies of a judged document have its grade.

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
        documents = collection.documents
        grades = of_originals(collection.passage_labels(collection.relevance(self.split)), documents).to_dict()
        rows = documents.originals[pairs.positions(queries, documents)[1]]
        used, places = np.unique(rows, return_inverse=True)
        ids = documents.table["id"].take(pa.array(used)).to_pylist()
        scores = [
            max(0, grades.get(pairs.query_ids[code], {}).get(ids[place], 0))
            for code, place in zip(pairs.query_codes, places, strict=True)
        ]
        return pairs.with_scores(np.array(scores, dtype=np.float32), self.name)
