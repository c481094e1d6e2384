"""BM25 as a teacher."""

from __future__ import annotations

import numpy as np

from retrodistill.data.collection import Collection
from retrodistill.data.texts import Texts
from retrodistill.rankers.bm25 import BM25
from retrodistill.rankers.corpus_scores import CorpusScorer
from retrodistill.rankers.protocol import Work, pair_positions
from retrodistill.runs.run import Run


class LexicalTeacher:
    """BM25 scores; a pair that shares no term has 0, which is its true score."""

    name = "bm25"

    def fingerprint(self, collection: Collection) -> str:
        """Settings and corpus: the corpus' statistics decide the scores."""
        return BM25(collection.documents).fingerprint

    def score(self, collection: Collection, queries: Texts, candidates: Run) -> Run:
        """The candidates with BM25 scores."""
        columns = pair_positions(collection, queries, candidates)[1]
        ordered = queries.select(candidates.query_ids)
        scores = np.empty(len(candidates))
        for place, corpus_scores in enumerate(BM25(collection.documents).scores(ordered.texts)):
            rows = slice(candidates.bounds[place], candidates.bounds[place + 1])
            scores[rows] = corpus_scores[columns[rows]]
        return candidates.with_scores(scores, self.name)

    def corpus_scorer(self, collection: Collection, queries: Texts) -> CorpusScorer:
        """Scores of the whole corpus, a block of queries at a time."""
        ranker, texts = BM25(collection.documents), queries.texts
        return lambda rows: np.stack(list(ranker.scores(texts[rows])))

    def remaining(self, collection: Collection, queries: Texts, candidates: Run) -> Work:
        """Nothing is stored: BM25 scores thousands of pairs a millisecond."""
        return Work(0, "pairs", 0.0)
