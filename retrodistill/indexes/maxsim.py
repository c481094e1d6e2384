"""Exact MaxSim over a token store: 8-bit products exclude most documents, and float32 products rank the others.

Where a processor multiplies 8-bit numbers natively, this takes a part of the time of float32 products alone. The
result is the same, because a document is excluded only if rounding cannot have moved it out of the best k:

    | <q, d> - <q^, d^> |  <=  |q| |d - d^| + |q - q^| |d^|,   |d^| <= |d| + |d - d^|

bounds the error of a product, ^ for rounded to 8 bits; products of rounded vectors are exact. A maximum errs by no more
than the products do, and MaxSim by the sum over query tokens.

float32 errs, too. For n dimensions, m query tokens and u = 2^-24, a computed product errs by at most n u |q| |d| in any
order of its sum, the sum of m maxima by m u times their lengths, and each length above by a part of (n/2 + 4) u and, if
it is that of an error, by 2 u |q| or 2 u |d|. Rounding moves no vector by more than its length, so these change the
bound by at most (3 n + 30) u |q| |d|. All of it is less than 8 (n + m + 4) u |q| |d|, which is added. This holds
as long as |q| |d| is zero or above 1e-30, so that float32 does not underflow.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import numpy as np

from retrodistill.encoders.multi_vector import Tokens, best_documents, blocks_of
from retrodistill.indexes.int8 import Int8Tokens, limits_of, to_int8
from retrodistill.indexes.tokens import TokenStore
from retrodistill.runs.run import TieOrder, ties_among

_SINGLE = 2.0**-21  # 8 u
_QUERY_TOKENS = 64  # of a block, whose products take 4 MiB
_SCORES = 2**18  # whose bounds are compared at once, in 2 MiB: block by block that takes as long as the maxima do


def best_of_store(
    store: TokenStore, queries: Tokens, k: int, rows: np.ndarray | None = None, ties: TieOrder | None = None
) -> tuple[np.ndarray, np.ndarray]:
    """(q, k) int64 rows and float32 scores of the documents of highest MaxSim, best first, ties as in `exact_search`.

    They are among (m,) ascending `rows`, by default all; if those are fewer than k, so are the results. Queries need at
    least one token each.
    """
    rows = np.arange(len(store)) if rows is None else rows
    if not len(queries) or 2 * k >= len(rows) or not _has_int8():
        places, scores = best_documents(queries, store.blocks(rows), k, ties_among(rows, ties))
        return rows[places], scores
    best = np.empty((len(queries), k), dtype=np.int64)
    scores = np.empty((len(queries), k), dtype=np.float32)
    for query, possible in enumerate(_possible(store, queries, k, rows)):
        only = queries.slice(query, query + 1)
        places, scores[query] = best_documents(only, store.blocks(possible), k, ties_among(possible, ties))
        best[query] = possible[places[0]]
    return best, scores


def _has_int8() -> bool:
    """Whether this processor has instructions for products of 8-bit numbers, with which PyTorch is fast and exact."""
    import torch

    # absent from older versions of torch
    has: dict[str, Any] = getattr(torch.cpu, "get_capabilities", dict)()
    return bool(has.get("avx512_vnni") or has.get("amx_int8"))


def _possible(store: TokenStore, queries: Tokens, k: int, rows: np.ndarray) -> list[np.ndarray]:
    """For each query the ascending rows of the documents that can be among the best k."""
    lowest = np.full((len(queries), k), -np.inf)  # the k highest lower bounds so far
    found: list[tuple[np.ndarray, np.ndarray, np.ndarray]] = []  # queries, places, upper bounds
    for start, scores, errors in _bounds(store, queries, rows):
        lowest = -np.partition(-np.concatenate([lowest, scores - errors], axis=1), k - 1, axis=1)[:, :k]
        highest = scores + errors
        # Not less, in place of greater or equal: bounds of very large vectors can be NaN, which exclude nothing.
        query, place = np.nonzero(~(highest < lowest.min(axis=1)[:, None]))
        found.append((query, start + place, highest[query, place]))
    query, places, highest = (np.concatenate(parts) for parts in zip(*found, strict=True))
    kept = ~(highest < lowest.min(axis=1)[query])
    query, places = query[kept], places[kept]
    counts = np.bincount(query, minlength=len(queries))
    return np.split(rows[places[np.argsort(query, kind="stable")]], np.cumsum(counts)[:-1])


def _bounds(store: TokenStore, queries: Tokens, rows: np.ndarray) -> Iterator[tuple[int, np.ndarray, np.ndarray]]:
    """Place of the first of some documents of rows, their (q, n) rounded scores, and how far these can be off."""
    scan = _RoundedQueries(queries)
    scores: list[np.ndarray] = []
    limits: list[np.ndarray] = []
    first = 0
    for start, documents in store.rounded_blocks(rows):
        scores.append(scan.scores(documents))
        limits.append(documents.limits)
        stop = start + len(documents.limits)
        if (stop - first) * len(queries) >= _SCORES or stop == len(rows):
            yield first, *scan.bounds(np.concatenate(scores, axis=1), np.concatenate(limits))
            scores, limits, first = [], [], stop


class _RoundedQueries:
    """Queries in 8 bits, and what rounding can change."""

    def __init__(self, queries: Tokens) -> None:
        each = Tokens(np.ascontiguousarray(queries.vectors), np.arange(len(queries.vectors) + 1))  # a scale per token
        scales, errors, norms = limits_of(each).T
        single = _SINGLE * (queries.dimension + np.repeat(queries.lengths, queries.lengths) + 4)
        per_token = np.stack([norms + errors, errors + single * norms], axis=1)
        self._errors = np.add.reduceat(per_token, queries.bounds[:-1])  # (q, 2): per error and length of a document
        self._vectors = to_int8(each.vectors.copy(), each.bounds, scales)
        self._scales, self._bounds = scales[:, None], queries.bounds

    def scores(self, documents: Int8Tokens) -> np.ndarray:
        """(q, n) float64 MaxSim of rounded vectors, in units of the documents' scales."""
        import torch

        scores = np.empty((len(self._errors), len(documents.limits)))
        for start, stop in blocks_of(self._bounds, _QUERY_TOKENS):
            bounds = self._bounds[start : stop + 1]
            own = slice(bounds[0], bounds[-1])
            # the only product of 8-bit numbers that PyTorch has on a CPU
            products = torch._int_mm(self._vectors[own], documents.vectors.T).numpy()
            nearest = np.maximum.reduceat(products, documents.bounds[:-1], axis=1) * self._scales[own]
            scores[start:stop] = np.add.reduceat(nearest, bounds[:-1] - bounds[0])
        return scores

    def bounds(self, scores: np.ndarray, limits: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        """(q, n) float64 MaxSim of rounded vectors, and how far it can be from the exact score."""
        return scores * limits[:, 0], self._errors @ limits[:, 1:].T
