"""Exact search and checks of dense vectors, in memory or read in parts."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from typing import Any, Protocol, TypeAlias

import numpy as np

from retrodistill.core.errors import UserError, sample_of
from retrodistill.core.faiss import faiss
from retrodistill.runs.run import TieOrder, ties_among, top_k

_PAIRS = 65536  # per block, which bounds the memory of `pair_products`
_BLOCK = 65536  # documents that exact search reads at once
_READY_BLOCK = 2**20  # of an array that FAISS takes as it is: threads wait for each other at the end of every block
_NEAR = 1e-5  # of a score, above what rounding changes in a product of unit vectors
_TIED = 8  # queries whose products with a whole block are held at once
_SAMPLE, _PER_CENTROID = 65536, 64  # vectors that k-means trains on; FAISS advises 39 to 256 per centroid

Best: TypeAlias = tuple[np.ndarray, np.ndarray]  # (q, k) int64 rows and float32 scores


class Vectors(Protocol):
    """(n, d) vectors by row: an array, or what reads rows when they are asked for."""

    @property
    def shape(self) -> tuple[int, ...]:
        """Their number and dimension."""

    def __getitem__(self, rows: Any, /) -> Any:
        """The (m, d) vectors of a slice, or of (m,) int64 rows."""


def exact_search(queries: np.ndarray, documents: Vectors, k: int, ties: TieOrder | None = None) -> Best:
    """(q, k) int64 rows and float32 scores of the k, at most n, highest inner products, best first, ties by row.

    Of documents that tie for the last places, `ties` keeps those of the lowest keys, by default the lowest rows. Equal
    vectors tie within a block of 2**20 documents of an array, or 65,536 that are read; beyond, rounding may part them.
    """
    count = documents.shape[0]
    k, queries = min(k, count), np.ascontiguousarray(queries, dtype=np.float32)
    if not (k and len(queries)):
        return np.empty((len(queries), k), dtype=np.int64), np.empty((len(queries), k), dtype=np.float32)
    rows, scores = np.empty((len(queries), 0), dtype=np.int64), np.empty((len(queries), 0), dtype=np.float32)
    is_ready = isinstance(documents, np.ndarray) and documents.dtype == np.float32 and documents.flags.c_contiguous
    step = _READY_BLOCK if is_ready else _BLOCK
    for start in range(0, count, step):
        block = np.ascontiguousarray(documents[start : start + step], dtype=np.float32)
        in_block = ties_among(np.arange(start, start + len(block)), ties)
        found, values = _best_of_block(queries, block, min(k, len(block)), in_block)
        rows, scores = join_best((rows, scores), (found + start, values), k, ties)
    return rows, scores


def join_best(first: Best, second: Best, k: int, ties: TieOrder | None = None) -> Best:
    """The k, or fewer, highest of two blocks of results, each best first; equal scores of `first` come first."""
    rows, scores = (np.concatenate(both, axis=1) for both in zip(first, second, strict=True))
    order = np.argsort(-scores, axis=1, kind="stable")
    if ties is not None and order.shape[1] > k:
        last = np.take_along_axis(scores, order[:, k - 1 : k + 1], axis=1)
        for query in np.flatnonzero(last[:, 0] == last[:, 1]).tolist():
            order[query, :k] = top_k(scores[query], k, ties_among(rows[query], ties))
    order = order[:, :k]
    return np.take_along_axis(rows, order, axis=1), np.take_along_axis(scores, order, axis=1)


def _best_of_block(queries: np.ndarray, block: np.ndarray, k: int, ties: TieOrder | None) -> Best:
    # One more than k shows where the last place is tied: FAISS keeps any of the equal scores there.
    scores, rows = faiss.knn(queries, block, min(k + 1, len(block)), metric=faiss.METRIC_INNER_PRODUCT)
    _level_copies(rows, scores, block)
    same = scores[:, 1:] == scores[:, :-1]
    tied = np.flatnonzero(same.any(axis=1))
    order = np.lexsort((rows[tied], -scores[tied]))
    rows[tied] = np.take_along_axis(rows[tied], order, axis=1)
    cut = np.flatnonzero(same[:, k - 1]) if k < len(block) else np.empty(0, dtype=np.int64)
    for start in range(0, len(cut), _TIED):
        some = cut[start : start + _TIED]
        for query, products in zip(some.tolist(), queries[some] @ block.T, strict=True):
            last, above = rows[query, k], int((scores[query] > scores[query, k]).sum())
            group = products == products[last]
            near = np.flatnonzero(np.abs(products - products[last]) <= _NEAR * np.abs(products[last]))
            group[near] |= (block[near] == block[last]).all(axis=1)
            group[rows[query, :above]] = False
            places = np.flatnonzero(group)
            rows[query, above:k] = np.sort(places[top_k(np.zeros(len(places)), k - above, ties_among(places, ties))])
    return rows[:, :k], scores[:, :k]


def _level_copies(rows: np.ndarray, scores: np.ndarray, block: np.ndarray) -> None:
    """Give adjacent results with the same vector the same score: matrix products of equal vectors differ by rounding.

    A product depends on the place of a vector in its block, so that copies would be in any order.
    """
    queries, places = np.nonzero((scores[:, :-1] - scores[:, 1:]) <= _NEAR * np.abs(scores[:, :-1]))
    for start in range(0, len(queries), _PAIRS):
        part = slice(start, start + _PAIRS)
        query, place = queries[part], places[part]
        is_copy = (block[rows[query, place]] == block[rows[query, place + 1]]).all(axis=1)
        for one, at in zip(query[is_copy].tolist(), place[is_copy].tolist(), strict=True):  # in order of places
            scores[one, at + 1] = scores[one, at]


def best_of_blocks(
    blocks: Iterable[tuple[int, np.ndarray]], queries: int, k: int, ties: TieOrder | None = None
) -> tuple[np.ndarray, np.ndarray]:
    """(q, k) int64 rows and float32 scores of the documents of highest score, best first, ties as in `exact_search`.

    A block is the row of its first document and the (q, n) scores of n consecutive documents. Memory grows with k only,
    which is at most the number of documents. A score of NaN is a UserError.
    """
    rows, scores = np.zeros((queries, 0), dtype=np.int64), np.zeros((queries, 0), dtype=np.float32)
    for first, block in blocks:
        if np.isnan(block).any():
            raise UserError("vectors hold NaN, which has no rank: they are damaged or were altered; make them again.")
        scores = np.concatenate([scores, block], axis=1)
        block_rows = np.arange(first, first + block.shape[1])
        rows = np.concatenate([rows, np.tile(block_rows, (queries, 1))], axis=1)
        if scores.shape[1] > 8 * k:  # cut seldom: each cut sorts
            rows, scores = _best(rows, scores, k, ties)
    return _best(rows, scores, k, ties)


def _best(rows: np.ndarray, scores: np.ndarray, k: int, ties: TieOrder | None) -> tuple[np.ndarray, np.ndarray]:
    # rows are ascending or already best first, so that the stable order keeps ties by row
    best = [top_k(values, k, ties_among(own, ties)) for own, values in zip(rows, scores, strict=True)]
    order = np.array(best, dtype=np.int64).reshape(len(scores), min(k, scores.shape[1]))
    return np.take_along_axis(rows, order, axis=1), np.take_along_axis(scores, order, axis=1)


def training_rows(count: int, centroids: int) -> np.ndarray:
    """(m,) int64 rows, drawn evenly, that k-means trains on: all up to 65,536, or up to 64 per centroid if more."""
    size = min(count, max(_SAMPLE, _PER_CENTROID * centroids))
    return np.linspace(0, count - 1, size).astype(np.int64)


def pair_products(queries: Any, documents: Any, q: np.ndarray, d: np.ndarray) -> np.ndarray:
    """(pairs,) float32 inner products of ``queries[q]`` and ``documents[d]``, which are both dense or both CSR."""
    scores = np.empty(len(q), dtype=np.float32)
    for start in range(0, len(q), _PAIRS):
        rows = slice(start, start + _PAIRS)
        left, right = queries[q[rows]], documents[d[rows]]
        is_dense = isinstance(left, np.ndarray)
        scores[rows] = np.einsum("ij,ij->i", left, right) if is_dense else left.multiply(right).sum(axis=1)
    return scores


def normalized(vectors: np.ndarray) -> np.ndarray:
    """(n, d) vectors scaled to length 1; zeros stay zeros."""
    lengths = np.linalg.norm(vectors, axis=1, keepdims=True)
    return vectors / np.where(lengths > 0, lengths, 1.0)


def cosines_to_others(vectors: np.ndarray) -> np.ndarray:
    """(n, n) cosines between vectors; minus infinity of each with itself."""
    unit = normalized(vectors)
    cosines = unit @ unit.T
    np.fill_diagonal(cosines, -np.inf)
    return np.asarray(cosines)


def cosines(left: np.ndarray, right: np.ndarray) -> np.ndarray:
    """(n,) cosines of the rows of two (n, d) arrays; of two zero rows 1, of one 0."""
    both_zero = ~left.any(axis=1) & ~right.any(axis=1)
    return np.where(both_zero, 1.0, (normalized(left) * normalized(right)).sum(axis=1))


def leading(vectors: np.ndarray, dimensions: int | None, *, unit: bool) -> np.ndarray:
    """Truncate (n, d) vectors to their leading dimensions (Matryoshka), normalized again if `unit`; None keeps all."""
    if dimensions is None or dimensions == vectors.shape[1]:
        return vectors
    cut = np.ascontiguousarray(vectors[:, :dimensions])
    return normalized(cut) if unit else cut


def check_finite(vectors: np.ndarray, ids: Sequence[Any], source: str) -> None:
    """Reject NaN and infinite vectors: a NaN document is never found, an infinite one always."""
    bad = np.flatnonzero(~np.isfinite(vectors).all(axis=1)).tolist()
    if len(bad):
        named = sample_of(ids[row] for row in bad)
        raise UserError(f"{source}: {len(bad)} vectors are NaN or infinite ({named}); embed these again or omit them.")


def to_float16(numbers: np.ndarray, source: str) -> np.ndarray:
    """The numbers in float16, which keeps each to a 2,048th of itself; those beyond 65,504 are a UserError."""
    with np.errstate(over="ignore"):
        halved = numbers.astype(np.float16)
    if not np.isfinite(halved).all():
        raise UserError(f"{source} hold numbers that float16 cannot hold (beyond 65,504); use float32.")
    return halved


def check_dimensions(dimensions: Sequence[int], width: int, vectors: str = "the vectors") -> None:
    """Reject truncations beyond the width of a vector."""
    for wanted in dimensions:
        if not 1 <= wanted <= width:
            raise UserError(f"truncation to {wanted} dimensions: {vectors} have {width}; choose from 1 to {width}.")
