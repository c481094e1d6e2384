"""Exact MaxSim over a token store: bfloat16 products exclude most documents, and float32 products rank the others.

Where a processor multiplies bfloat16 natively, this takes a part of the time of float32 products alone. The result is
the same, because a document is excluded only if the rounding errors cannot have moved it out of the best k:

With unit roundoff u = 2^-8, ^ for rounded to bfloat16, and |d^| <= n for all tokens of a document,

    | <q, d> - <q^, d^> |  <=  |q - q^| |d| + |q^| |d - d^|,   |d - d^| <= u / (1 - u) n,   |d| <= n / (1 - u)

bounds the error of a product. The product is accumulated in float32 and then rounded to bfloat16 itself, an error of
at most u times its size. A maximum errs by no more than the products do, and MaxSim by the sum over query tokens.
"""

from __future__ import annotations

import numpy as np

from retrodistill.encoders.multi_vector import Tokens, best_documents, blocks_of
from retrodistill.encoders.precision import has_bfloat16
from retrodistill.indexes.tokens import RoundedTokens, TokenStore

_UNIT = 2.0**-8  # largest relative error of rounding to bfloat16
_SINGLE = 2.0**-22  # times the dimension: more than float32 errs in a product, of either kind
_QUERY_TOKENS = 128  # of a block


def best_of_store(store: TokenStore, queries: Tokens, k: int) -> tuple[np.ndarray, np.ndarray]:
    """(q, k) int64 rows and float32 scores of the documents of highest MaxSim, best first, ties by row.

    `k` is at most the number of documents. Queries need at least one token each.
    """
    if not len(queries) or 2 * k >= len(store) or not has_bfloat16("cpu"):
        return best_documents(queries, store.blocks(), k)
    rows = np.empty((len(queries), k), dtype=np.int64)
    scores = np.empty((len(queries), k), dtype=np.float32)
    for query, possible in enumerate(_possible(store, queries, k)):
        places, scores[query] = best_documents(queries.slice(query, query + 1), store.blocks(possible), k)
        rows[query] = possible[places[0]]
    return rows, scores


def _possible(store: TokenStore, queries: Tokens, k: int) -> list[np.ndarray]:
    """For each query the ascending rows of the documents that can be among the best k."""
    lowest = np.full((len(queries), k), -np.inf, dtype=np.float32)  # the k highest lower bounds so far
    found: list[tuple[np.ndarray, np.ndarray, np.ndarray]] = []  # queries, rows, upper bounds
    rounded = _RoundedQueries(queries)
    for start, documents in store.rounded_blocks():
        scores, errors = rounded.bounds(documents)
        lowest = -np.partition(-np.concatenate([lowest, scores - errors], axis=1), k - 1, axis=1)[:, :k]
        highest = scores + errors
        query, place = np.nonzero(highest >= lowest.min(axis=1)[:, None])
        found.append((query, start + place, highest[query, place]))
    query, rows, highest = (np.concatenate(parts) for parts in zip(*found, strict=True))
    kept = highest >= lowest.min(axis=1)[query]
    query, rows = query[kept], rows[kept]
    counts = np.bincount(query, minlength=len(queries))
    return np.split(rows[np.argsort(query, kind="stable")], np.cumsum(counts)[:-1])


class _RoundedQueries:
    """Queries in bfloat16, and what their rounding can change."""

    def __init__(self, queries: Tokens) -> None:
        import torch

        exact = torch.from_numpy(np.ascontiguousarray(queries.vectors))
        rounded = exact.bfloat16()
        norms, errors = (torch.linalg.vector_norm(each, dim=1) for each in (exact, exact - rounded.float()))
        errors += (_UNIT + _SINGLE * queries.dimension) * (norms + errors)
        self._errors = np.add.reduceat(errors.numpy(), queries.bounds[:-1])  # (q,) per norm of a document's vectors
        self._blocks = [
            (
                slice(start, stop),
                rounded[queries.bounds[start] : queries.bounds[stop]],
                queries.slice(start, stop).bounds,
            )
            for start, stop in blocks_of(queries.bounds, _QUERY_TOKENS)
        ]

    def bounds(self, documents: RoundedTokens) -> tuple[np.ndarray, np.ndarray]:
        """(q, n) float32 MaxSim of rounded vectors, and how far it can be from the exact score."""
        scores = np.empty((len(self._errors), len(documents.norms)), dtype=np.float32)
        errors = np.outer(self._errors, documents.norms)
        for rows, vectors, bounds in self._blocks:
            products = (vectors @ documents.vectors.T).float().numpy()
            nearest = np.maximum.reduceat(products, documents.bounds[:-1], axis=1)
            scores[rows] = np.add.reduceat(nearest, bounds[:-1])
            errors[rows] += _UNIT * np.add.reduceat(np.abs(nearest), bounds[:-1])
        return scores, errors * (1 + 4 * _UNIT)  # terms of second order
