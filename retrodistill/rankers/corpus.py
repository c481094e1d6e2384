"""Scores of queries with any documents of a corpus, computed for the rows that are asked for and never stored."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable, Iterator, Sequence
from typing import Any

import numpy as np

from retrodistill.encoders.vectors import pair_products

BLOCK = 64  # queries at once, which bounds the memory of their scores with a whole corpus
REFERENCE = 20_000  # documents; a sample of a larger corpus tells mean and deviation of a query's scores


class CorpusScores(ABC):
    """Raw float32 scores of (q,) queries with (n,) documents, higher is better."""

    shape: tuple[int, int]  # (q, n)

    @abstractmethod
    def of(self, queries: np.ndarray, documents: np.ndarray | None = None) -> np.ndarray:
        """(a, b) scores of the queries and the documents at these rows; of all n documents by default."""

    @abstractmethod
    def pairs(self, queries: np.ndarray, documents: np.ndarray) -> np.ndarray:
        """(p,) scores of pairs, from (p,) rows of queries and of documents."""

    def reference(self) -> np.ndarray | None:
        """(`REFERENCE`,) ascending rows of documents that stand for a larger corpus; None for the whole corpus."""
        if self.shape[1] <= REFERENCE:
            return None
        return np.sort(np.random.default_rng(self.shape[1]).choice(self.shape[1], REFERENCE, replace=False))

    def blocks(self, queries: np.ndarray, documents: np.ndarray | None = None) -> Iterator[np.ndarray]:
        """As `of`, for `BLOCK` queries at a time."""
        return (self.of(queries[start : start + BLOCK], documents) for start in range(0, len(queries), BLOCK))


class Products(CorpusScores):
    """Inner products of (q, d) queries and (n, d) documents, both dense or both CSR.

    Documents may be `Vectors` that are read by row; then all of them cannot be asked for at once.
    """

    def __init__(self, queries: Any, documents: Any) -> None:
        self.queries, self.documents = queries, documents
        self.shape = (queries.shape[0], documents.shape[0])

    def of(self, queries: np.ndarray, documents: np.ndarray | None = None) -> np.ndarray:
        """See `CorpusScores.of`."""
        products = self.queries[queries] @ (self.documents if documents is None else self.documents[documents]).T
        return np.asarray(products if isinstance(products, np.ndarray) else products.toarray(), dtype=np.float32)

    def pairs(self, queries: np.ndarray, documents: np.ndarray) -> np.ndarray:
        """See `CorpusScores.pairs`."""
        return pair_products(self.queries, self.documents, queries, documents)


class MeanOfZScores(CorpusScores):
    """The weighted mean of members' scores, each standardized per query over the corpus.

    Mean and standard deviation are those of a query's scores with all documents, or with a fixed sample of a large
    corpus, in float64. A member that scores all of them equal counts as 0.
    """

    def __init__(self, members: Sequence[CorpusScores], weights: Sequence[float]) -> None:
        self.members, self.shape = list(members), members[0].shape
        self._shares = np.asarray(weights, dtype=np.float64) / sum(weights)
        self._sample = self.reference()
        self._moments = np.full((len(self.members), 2, self.shape[0]), np.nan)  # means, factors

    def of(self, queries: np.ndarray, documents: np.ndarray | None = None) -> np.ndarray:
        """See `CorpusScores.of`."""
        return self._fused(self._measured(queries)[:, :, :, None], lambda member: member.of(queries, documents))

    def pairs(self, queries: np.ndarray, documents: np.ndarray) -> np.ndarray:
        """See `CorpusScores.pairs`."""
        return self._fused(self._measured(queries), lambda member: member.pairs(queries, documents))

    def _fused(self, moments: np.ndarray, score: Callable[[CorpusScores], np.ndarray]) -> np.ndarray:
        total = np.float32(0)
        for member, (means, factors) in zip(self.members, moments, strict=True):
            total = total + ((score(member) - means) * factors).astype(np.float32)
        return np.asarray(total)

    def _measured(self, queries: np.ndarray) -> np.ndarray:
        """(members, 2, queries) means and factors, measured for queries that lack them."""
        new = np.unique(queries)
        new = new[np.isnan(self._moments[0, 0, new])]
        for start in range(0, len(new), BLOCK):
            rows = new[start : start + BLOCK]
            for moments, member, share in zip(self._moments, self.members, self._shares, strict=True):
                scores = member.of(rows, self._sample)
                deviation = scores.std(axis=1, dtype=np.float64)
                is_flat = scores.max(axis=1) == scores.min(axis=1)
                moments[0, rows] = scores.mean(axis=1, dtype=np.float64)
                moments[1, rows] = np.where(is_flat, 0.0, share / np.where(is_flat, 1.0, deviation))
        return self._moments[:, :, queries]
