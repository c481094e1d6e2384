"""A ranker that gets other versions of the queries, for ensembles whose members read different ones."""

from __future__ import annotations

from retrodistill.core.digests import digest
from retrodistill.data.collection import Collection
from retrodistill.data.conversations import with_rewrites
from retrodistill.data.texts import Texts
from retrodistill.rankers.corpus import CorpusScores
from retrodistill.rankers.protocol import Ranker, Work
from retrodistill.runs.run import Run


class RewrittenRanker(Ranker):
    """A ranker that reads the rewrite of each query that has one, by its ID, and other queries as they are.

    Args:
        ranker: The ranker.
        rewrites: The rewrites.
        label: What they are, for its name.
    """

    def __init__(self, ranker: Ranker, rewrites: Texts, label: str) -> None:
        self.ranker, self.rewrites, self.name = ranker, rewrites, f"{ranker.name} ({label})"
        self.can_search, self.can_score_pairs = ranker.can_search, ranker.can_score_pairs
        self.can_score_corpus, self.is_cheap = ranker.can_score_corpus, ranker.is_cheap

    def fingerprint(self, collection: Collection) -> str:
        """Digest of the ranker and of the rewrites; empty if the ranker's is."""
        own = self.ranker.fingerprint(collection)
        return digest("rewritten", own, self.rewrites.fingerprint) if own else ""

    def ranks_documents(self, collection: Collection) -> bool:
        """As the ranker."""
        return self.ranker.ranks_documents(collection)

    def holds(self, collection: Collection) -> bool:
        """As the ranker."""
        return self.ranker.holds(collection)

    def search(self, queries: Texts, collection: Collection, k: int) -> Run:
        """The best k documents of each rewrite."""
        return self.ranker.search(self._rewritten(queries), collection, k)

    def stream(self, queries: Texts, collection: Collection, k: int) -> Run:
        """As `search`, with the ranker's memory."""
        return self.ranker.stream(self._rewritten(queries), collection, k)

    def score(self, queries: Texts, collection: Collection, pairs: Run) -> Run:
        """The same pairs with the raw scores of the rewrites."""
        return self.ranker.score(self._rewritten(queries), collection, pairs)

    def remaining(self, queries: Texts, collection: Collection, pairs: Run) -> Work:
        """What `score` has left to compute."""
        return self.ranker.remaining(self._rewritten(queries), collection, pairs)

    def corpus_scores(self, queries: Texts, collection: Collection) -> CorpusScores:
        """The scores of any rewrites and documents."""
        return self.ranker.corpus_scores(self._rewritten(queries), collection)

    def bytes_per_document(self, collection: Collection) -> float | None:
        """0: the documents are those of the ranker, which are not stored again."""
        return 0.0

    def _rewritten(self, queries: Texts) -> Texts:
        return with_rewrites(queries, self.rewrites)
