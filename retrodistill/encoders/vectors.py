"""Exact search among vectors in memory."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np

from retrodistill.core.errors import UserError, sample_of


def exact_search(queries: np.ndarray, documents: np.ndarray, k: int) -> tuple[np.ndarray, np.ndarray]:
    """The k documents of highest inner product (faiss IndexFlatIP).

    Args:
        queries: (q, d) float32.
        documents: (n, d) float32.
        k: At most n.

    Returns:
        rows (q, k) int64 and scores (q, k) float32, best first.
    """
    scores, rows = flat_index(documents).search(np.ascontiguousarray(queries, dtype=np.float32), min(k, len(documents)))
    return rows, scores


def flat_index(documents: np.ndarray) -> Any:
    """A faiss IndexFlatIP over (n, d) vectors."""
    import faiss

    index = faiss.IndexFlatIP(documents.shape[1])
    index.add(np.ascontiguousarray(documents, dtype=np.float32))
    return index


def pair_products(queries: np.ndarray, documents: np.ndarray, q: np.ndarray, d: np.ndarray) -> np.ndarray:
    """(pairs,) float32 inner products of ``queries[q]`` and ``documents[d]``, in blocks that bound the memory."""
    scores = np.empty(len(q), dtype=np.float32)
    step = 65536
    for start in range(0, len(q), step):
        rows = slice(start, start + step)
        scores[rows] = np.einsum("ij,ij->i", queries[q[rows]], documents[d[rows]])
    return scores


def leading(vectors: np.ndarray, dimensions: int | None, *, unit: bool) -> np.ndarray:
    """The leading dimensions of (n, d) vectors (Matryoshka truncation), made unit vectors again where they are to be.

    None leaves the vectors as they are.
    """
    if dimensions is None or dimensions == vectors.shape[1]:
        return vectors
    cut = np.ascontiguousarray(vectors[:, :dimensions])
    if not unit:
        return cut
    lengths = np.linalg.norm(cut, axis=1, keepdims=True)
    return cut / np.where(lengths > 0, lengths, 1.0)


def check_finite(vectors: np.ndarray, ids: list[str], what: str) -> None:
    """Refuse NaN and infinite vectors by name: a NaN document is never found, an infinite one always.

    Raises:
        UserError: Names the first few ids.
    """
    bad = np.flatnonzero(~np.isfinite(vectors).all(axis=1))
    if len(bad):
        raise UserError(
            f"{what}: {len(bad)} vectors are NaN or infinite ({sample_of(ids[row] for row in bad)}); "
            "embed these again or leave them out."
        )


def check_dimensions(dimensions: Sequence[int], whole: int) -> None:
    """Reject truncations beyond the width of a vector.

    Raises:
        UserError: Names the first.
    """
    for one in dimensions:
        if not 1 <= one <= whole:
            raise UserError(f"truncation to {one} dimensions: the vectors have {whole}; choose from 1 to {whole}.")
