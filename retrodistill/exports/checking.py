"""Whether another system finds what exact search over the source vectors finds."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
from scipy import sparse

from retrodistill.encoders.multi_vector import Tokens
from retrodistill.exports.records import Exportable, Kind, Vectors

_QUERY_TOKENS = 32  # of a document that serves as a multi-vector query
_TIE = 1e-4  # of the query's best score: below it two scores are a tie, and either document may stand in the top


def scores_of(queries: Any, documents: Any) -> np.ndarray:
    """(q, n) float32 scores of every query with every document, both of one kind of `Vectors`.

    Inner products; for token vectors MaxSim: the sum over query tokens of the best document token's inner product
    (ColBERT, arXiv 2004.12832, eq. 3), and no score, -inf, for a document without tokens.
    """
    if isinstance(queries, Tokens):
        return _maxsim(queries, documents)
    if isinstance(queries, np.ndarray):
        return np.asarray(queries @ documents.T, dtype=np.float32)
    return (queries @ documents.T).toarray().astype(np.float32, copy=False)


def sampled_rows(documents: int, sample: int) -> np.ndarray:
    """(min(sample, documents),) ascending rows, spread evenly: the same ones every time."""
    return np.unique(np.linspace(0, documents - 1, min(sample, documents)).astype(np.int64))


def sampled_vectors(records: Exportable, rows: np.ndarray) -> Vectors:
    """Vectors of the documents of some rows."""
    return stacked(records.kind, [records.block(int(row), int(row) + 1) for row in rows])


def stacked(kind: Kind, blocks: Sequence[Vectors]) -> Vectors:
    """Several blocks as one."""
    if kind == "dense":
        return np.concatenate([np.asarray(block) for block in blocks])
    if kind == "sparse":
        return sparse.vstack(list(blocks), format="csr")
    tokens = [block[text] for block in blocks if isinstance(block, Tokens) for text in range(len(block))]
    return Tokens.of(tokens, tokens[0].shape[1])


def as_queries(vectors: Vectors) -> Vectors:
    """Documents' vectors as queries: of a long text the first token vectors only, as many as a query has."""
    if not isinstance(vectors, Tokens):
        return vectors
    return Tokens.of((vectors[text][:_QUERY_TOKENS] for text in range(len(vectors))), vectors.dimension)


def agreement(records: Exportable, queries: Vectors, found: Sequence[np.ndarray], k: int) -> np.ndarray:
    """How much of the exact top k another system found, per query, ties tolerated.

    Args:
        records: The source.
        queries: Query vectors of the source's kind.
        found: For each query, rows of the documents that the other system found, at most k.
        k: Depth.

    Returns:
        (q,) shares in [0, 1]. A found document counts if its exact score is at least that of the exact k-th, less a
        ten-thousandth of the best; documents without any score (no entry or token in common) need not be found.
    """
    best = np.full((len(found), k), -np.inf, dtype=np.float32)
    own = [np.full(len(rows), -np.inf, dtype=np.float32) for rows in found]
    for start, stop, block in records.blocks():
        scores = scores_of(queries, block)
        if records.kind == "sparse":
            scores[scores <= 0] = -np.inf
        joined = np.concatenate([best, scores], axis=1)
        best = -np.partition(-joined, k - 1, axis=1)[:, :k]
        for query, rows in enumerate(found):
            here = (rows >= start) & (rows < stop)
            own[query][here] = scores[query][rows[here] - start]
    best = -np.sort(-best, axis=1)
    shares = np.ones(len(found))
    for query, mine in enumerate(own):
        wanted = int(np.isfinite(best[query]).sum())
        if wanted:
            enough = best[query, wanted - 1] - _TIE * abs(best[query, 0])
            shares[query] = min(1.0, float((mine >= enough).sum()) / wanted)
    return shares


def _maxsim(queries: Tokens, documents: Tokens) -> np.ndarray:
    products = queries.vectors @ documents.vectors.T
    filled = np.flatnonzero(documents.lengths)
    scores = np.full((len(queries), len(documents)), -np.inf, dtype=np.float32)
    if len(filled):
        best = np.maximum.reduceat(products, documents.bounds[filled], axis=1)  # (query tokens, documents)
        for query, (start, stop) in enumerate(zip(queries.bounds[:-1], queries.bounds[1:], strict=True)):
            if stop > start:
                scores[query, filled] = best[start:stop].sum(axis=0)
    return scores
