"""Exact search and checks of dense vectors in memory."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np

from retrodistill.core.errors import UserError, sample_of

_PAIRS = 65536  # per block, which bounds the memory of `pair_products`
_SCORES, _LEAST = 2**23, 1024  # of a block of exact search: its scores, and its documents at least


def exact_search(queries: np.ndarray, documents: np.ndarray, k: int) -> tuple[np.ndarray, np.ndarray]:
    """(q, k) int64 rows and float32 scores of the k, at most n, highest inner products, best first, ties by row.

    FAISS multiplies matrices for many queries only. For fewer, PyTorch multiplies blocks of documents, which takes a
    part of the time (evaluation/benchmarks/exact_search.py).
    """
    import faiss
    import torch

    k, queries = min(k, len(documents)), np.ascontiguousarray(queries, dtype=np.float32)
    if k and queries.size >= faiss.cvar.distance_compute_blas_threshold:
        whole = np.ascontiguousarray(documents, dtype=np.float32)
        scores, rows = faiss.knn(queries, whole, k, metric=faiss.METRIC_INNER_PRODUCT)
    else:
        best, found = torch.empty((len(queries), 0)), torch.empty((len(queries), 0), dtype=torch.int64)
        step = max(_LEAST, _SCORES // max(1, len(queries)))
        for start in range(0, len(documents), step):
            part = torch.from_numpy(np.ascontiguousarray(documents[start : start + step], dtype=np.float32))
            values, places = (torch.from_numpy(queries) @ part.T).topk(min(k, len(part)), dim=1, sorted=False)
            best, order = torch.cat([best, values], dim=1).topk(min(k, start + len(part)), dim=1)
            found = torch.cat([found, places + start], dim=1).gather(1, order)
        scores, rows = best.numpy(), found.numpy()
    ranks = np.lexsort((rows, -scores))
    return np.take_along_axis(rows, ranks, axis=1), np.take_along_axis(scores, ranks, axis=1)


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


def leading(vectors: np.ndarray, dimensions: int | None, *, unit: bool) -> np.ndarray:
    """Truncate (n, d) vectors to their leading dimensions (Matryoshka), normalized again if `unit`; None keeps all."""
    if dimensions is None or dimensions == vectors.shape[1]:
        return vectors
    cut = np.ascontiguousarray(vectors[:, :dimensions])
    return normalized(cut) if unit else cut


def check_finite(vectors: np.ndarray, ids: list[str], source: str) -> None:
    """Reject NaN and infinite vectors: a NaN document is never found, an infinite one always."""
    bad = np.flatnonzero(~np.isfinite(vectors).all(axis=1))
    if len(bad):
        named = sample_of(ids[row] for row in bad)
        raise UserError(f"{source}: {len(bad)} vectors are NaN or infinite ({named}); embed these again or omit them.")


def check_dimensions(dimensions: Sequence[int], width: int, vectors: str = "the vectors") -> None:
    """Reject truncations beyond the width of a vector."""
    for wanted in dimensions:
        if not 1 <= wanted <= width:
            raise UserError(f"truncation to {wanted} dimensions: {vectors} have {width}; choose from 1 to {width}.")
