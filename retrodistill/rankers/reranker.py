"""Re-rankers: the top documents of one ranker, reordered by another."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from retrodistill.core.digests import digest
from retrodistill.core.errors import UserError
from retrodistill.data.collection import Collection
from retrodistill.data.texts import Texts
from retrodistill.rankers.protocol import Ranker, Work
from retrodistill.runs.run import Run

DEPTH = 100


class Reranker(Ranker):
    """Orders the first `depth` documents of a source by a judge's scores; documents below them are dropped.

    The judge scores pairs: a cross-encoder, or a student that stored its documents. The depth is at least 1.
    """

    kind = "rerank"
    can_search = True

    def __init__(self, judge: Ranker, source: Ranker, depth: int = DEPTH, name: str | None = None) -> None:
        if depth < 1:
            raise UserError(f"re-ranking of the top {depth}; give at least 1.")
        self.judge, self.source, self.depth = judge, source, depth
        self.name = name or f"rerank@{depth}:{judge.name}@{source.name}"
        self.is_recorded = judge.is_recorded or source.is_recorded

    def fingerprint(self, collection: Collection) -> str:
        """Digest of judge, source and depth; empty if one is unknown."""
        parts = [self.judge.fingerprint(collection), self.source.fingerprint(collection)]
        return digest("rerank", *parts, self.depth) if all(parts) else ""

    def search(self, queries: Texts, collection: Collection, k: int) -> Run:
        """The candidates in the judge's order, at most `depth` per query."""
        candidates = self.candidates(queries, collection)
        return self.judge.score(queries, collection, candidates).top(k).renamed(self.name)

    def candidates(self, queries: Texts, collection: Collection) -> Run:
        """The source's first `depth` documents of each query, without the query itself."""
        own = collection.own_documents(queries.ids)
        # one more than `depth` if a document that is the query itself would cost a place
        run = self.source.search(queries, collection, min(self.depth + bool(own), len(collection.documents)))
        return run.without(own).top(self.depth)

    def remaining(self, queries: Texts, collection: Collection, pairs: Run) -> Work:
        """The judge's work."""
        return self.judge.remaining(queries, collection, pairs)

    @property
    def can_be_timed(self) -> bool:
        """Whether the judge scores new pairs, and the source is BM25, whose search returns rows."""
        return self.judge.can_time_pairs and self.source.kind == "bm25"

    def query_fn(self, collection: Collection, k: int) -> Callable[[str], Any]:
        """Search with BM25 and score the results."""
        if not self.can_be_timed:
            raise UserError(
                f"{self.name} has no latency: its judge keeps scores or its source is not bm25; time its source."
            )
        search = self.source.query_fn(collection, min(self.depth, len(collection.documents)))
        score = self.judge.pair_fn(collection)

        def answer(text: str) -> Any:
            rows = search(text)[0][0]
            return score(text, rows[rows >= 0])

        return answer

    def bytes_per_document(self, collection: Collection) -> float | None:
        """The source's, and what the judge stores; the texts that a cross-encoder reads are not counted."""
        source, judge = (ranker.bytes_per_document(collection) for ranker in (self.source, self.judge))
        stored = 0.0 if judge is None or self.judge.can_search else judge
        return None if source is None else source + stored

    @property
    def documents_by(self) -> str:
        """The documents that it orders, in words for a table."""
        return f"the first {self.depth} of {self.source.name}"

    @property
    def queries_by(self) -> str:
        """The judge."""
        return self.judge.queries_by or self.judge.name
