"""Exact MaxSim over ragged token vectors, in blocks and without padding."""

from __future__ import annotations

from collections.abc import Iterable

import numpy as np

from retrodistill.encoders.multi_vector import Tokens
from retrodistill.runs.run import top_k

_QUERY_TOKENS, _DOCUMENT_TOKENS = 1024, 16384  # of a block, whose products take 64 MiB


def maxsim(queries: Tokens, documents: Tokens) -> np.ndarray:
    """Score every query with every document: sum_i max_j <q_i, d_j> (ColBERT, arXiv 2004.12832, equation 3).

    Args:
        queries: Each with at least one token.
        documents: Each with at least one token.

    Returns:
        (queries, documents) float32.
    """
    scores = np.empty((len(queries), len(documents)), dtype=np.float32)
    for first, last in blocks_of(documents.bounds, _DOCUMENT_TOKENS):
        found = documents.slice(first, last)
        for start, stop in blocks_of(queries.bounds, _QUERY_TOKENS):
            asked = queries.slice(start, stop)
            nearest = np.maximum.reduceat(asked.vectors @ found.vectors.T, found.bounds[:-1], axis=1)
            scores[start:stop, first:last] = np.add.reduceat(nearest, asked.bounds[:-1], axis=0)
    return scores


def best_documents(queries: Tokens, blocks: Iterable[tuple[int, Tokens]], k: int) -> tuple[np.ndarray, np.ndarray]:
    """The k documents of highest MaxSim of each query, over blocks of documents; memory grows with k, not with them.

    Args:
        queries: (q) texts' tokens.
        blocks: Row of the first document and the tokens of a few documents, until all were given.
        k: At most as many as there are documents.

    Returns:
        rows (q, k) int64 and scores (q, k) float32, best first, ties by row.
    """
    scores = np.zeros((len(queries), 0), dtype=np.float32)
    rows = np.zeros((len(queries), 0), dtype=np.int64)
    for first, documents in blocks:
        found = maxsim(queries, documents)
        scores = np.concatenate([scores, found], axis=1)
        here = np.broadcast_to(np.arange(first, first + len(documents)), found.shape)
        rows = np.concatenate([rows, here], axis=1)
        if scores.shape[1] > 8 * k:
            rows, scores = _top(rows, scores, k)
    return _top(rows, scores, k)


def blocks_of(bounds: np.ndarray, tokens: int) -> Iterable[tuple[int, int]]:
    """Cut texts into (start, stop) blocks within a maximum number of tokens; a longer text is its own block."""
    start = 0
    while start < len(bounds) - 1:
        stop = int(np.searchsorted(bounds, bounds[start] + tokens, side="right")) - 1
        stop = max(stop, start + 1)
        yield start, stop
        start = stop


def _top(rows: np.ndarray, scores: np.ndarray, k: int) -> tuple[np.ndarray, np.ndarray]:
    """Rows come in ascending order or already cut best first, so that a stable sort keeps ties by row."""
    order = top_k(scores, k)
    return np.take_along_axis(rows, order, axis=1), np.take_along_axis(scores, order, axis=1)
