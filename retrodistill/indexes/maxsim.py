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
from retrodistill.indexes.tokens import RoundedTokens, TokenStore

_UNIT = 2.0**-8  # largest relative error of rounding to bfloat16
_SINGLE = 2.0**-22  # times the dimension: more than float32 errs in a product, of either kind
_QUERY_TOKENS = 1024  # of a block


def best_of_store(
    store: TokenStore, queries: Tokens, k: int, rows: np.ndarray | None = None
) -> tuple[np.ndarray, np.ndarray]:
    """(q, k) int64 rows and float32 scores of highest MaxSim, best first, ties by row; k is at most the number of rows.

    Args:
        store: The documents.
        queries: Token vectors of the queries, at least one each.
        k: Number of documents per query.
        rows: (m,) ascending rows to choose from, by default all.
    """
    rows = np.arange(len(store)) if rows is None else rows
    if 2 * k >= len(rows) or not _has_bfloat16():
        places, scores = best_documents(queries, store.blocks(rows), k)
        return rows[places], scores
    best = np.empty((len(queries), k), dtype=np.int64)
    scores = np.empty((len(queries), k), dtype=np.float32)
    for query, possible in enumerate(_possible(store, queries, k, rows)):
        places, scores[query] = best_documents(queries.slice(query, query + 1), store.blocks(possible), k)
        best[query] = possible[places[0]]
    return best, scores


def _possible(store: TokenStore, queries: Tokens, k: int, rows: np.ndarray) -> list[np.ndarray]:
    """For each query the ascending rows of the documents that can be among the best k."""
    lowest = np.full((len(queries), k), -np.inf, dtype=np.float32)  # the k highest lower bounds so far
    found: list[tuple[np.ndarray, np.ndarray, np.ndarray]] = []  # queries, places, upper bounds
    for start, documents in store.rounded_blocks(rows):
        scores, errors = _bounds(queries, documents)
        lowest = -np.partition(-np.concatenate([lowest, scores - errors], axis=1), k - 1, axis=1)[:, :k]
        highest = scores + errors
        query, place = np.nonzero(highest >= lowest.min(axis=1)[:, None])
        found.append((query, place + start, highest[query, place]))
    query, place, highest = (np.concatenate(parts) for parts in zip(*found, strict=True))
    kept = highest >= lowest.min(axis=1)[query]
    query, place = query[kept], place[kept]
    order = np.argsort(query, kind="stable")
    counts = np.bincount(query, minlength=len(queries))
    return np.split(rows[place[order]], np.cumsum(counts)[:-1])


def _bounds(queries: Tokens, documents: RoundedTokens) -> tuple[np.ndarray, np.ndarray]:
    """(q, n) float32 MaxSim of rounded vectors, and how far it can be from the exact score."""
    import torch

    scores = np.empty((len(queries), len(documents.norms)), dtype=np.float32)
    errors = np.empty_like(scores)
    for start, stop in blocks_of(queries.bounds, _QUERY_TOKENS):
        block = queries.slice(start, stop)
        exact = torch.from_numpy(np.ascontiguousarray(block.vectors))
        rounded = exact.bfloat16()
        nearest = np.maximum.reduceat(
            torch.mm(rounded, documents.vectors.T).float().numpy(), documents.bounds[:-1], axis=1
        )
        norm, error = (torch.linalg.vector_norm(each, dim=1).numpy() for each in (exact, exact - rounded.float()))
        per_token = error + (_UNIT + _SINGLE * queries.dimension) * (norm + error)
        first = block.bounds[:-1]
        scores[start:stop] = np.add.reduceat(nearest, first)
        errors[start:stop] = np.outer(np.add.reduceat(per_token, first), documents.norms)
        errors[start:stop] += _UNIT * np.add.reduceat(np.abs(nearest), first)
    return scores, errors * (1 + 4 * _UNIT)  # terms of second order


def _has_bfloat16() -> bool:
    """Whether the CPU has instructions for products of bfloat16, as torch reports them."""
    import torch

    has: dict[str, bool] = getattr(torch.cpu, "get_capabilities", dict)()  # absent before torch 2.10
    return bool(has.get("avx512_bf16") or has.get("amx_bf16"))
