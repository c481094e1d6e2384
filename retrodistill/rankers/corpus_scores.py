"""Scores of the whole corpus for every query: a matrix, for teachers that give them at no encoding cost."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from retrodistill.core.errors import UserError
from retrodistill.core.progress import bar
from retrodistill.data.collection import Collection
from retrodistill.data.texts import Texts
from retrodistill.rankers.protocol import Ranker

BLOCK = 64  # queries at once: bounds the memory of one step
LARGEST_BYTES = 8 * 2**30


def corpus_scores(queries: Texts, collection: Collection, teacher: Ranker, out: np.ndarray | None = None) -> np.ndarray:
    """Score every document for every query.

    Args:
        queries: Any queries, pseudo-queries too.
        collection: The corpus.
        teacher: A ranker that can score a corpus.
        out: Where to write: a (queries, documents) float32 array, possibly memory-mapped.

    Returns:
        (queries, documents) float32.

    Raises:
        UserError: The teacher scores pairs only, or the matrix would pass 8 GiB.
    """
    shape = (len(queries), len(collection.documents))
    if 4 * shape[0] * shape[1] > LARGEST_BYTES:
        raise UserError(
            f"scores of {shape[0]} queries x {shape[1]} documents take {4 * shape[0] * shape[1] / 2**30:.0f} GiB, more "
            f"than {LARGEST_BYTES >> 30}; set candidates.depth to a number instead of 'all'."
        )
    scorer = teacher.corpus_scorer(queries, collection)
    scores = np.empty(shape, dtype=np.float32) if out is None else out
    with bar(shape[0], f"scoring the corpus ({teacher.name})", "queries") as progress:
        for start in range(0, shape[0], BLOCK):
            rows = slice(start, min(start + BLOCK, shape[0]))
            scores[rows] = scorer(rows)
            progress.update(rows.stop - rows.start)
    return scores


def mean_of_zscores(matrices: Sequence[np.ndarray], weights: Sequence[float]) -> np.ndarray:
    """(q, n) float32 weighted mean of row-wise z-scores, moments in float64; a flat row becomes 0."""
    total = np.zeros(matrices[0].shape, dtype=np.float32)
    for matrix, weight in zip(matrices, weights, strict=True):
        mean = matrix.mean(axis=1, keepdims=True, dtype=np.float64)
        deviation = matrix.std(axis=1, keepdims=True, dtype=np.float64)
        flat = matrix.max(axis=1, keepdims=True) == matrix.min(axis=1, keepdims=True)
        scale = np.where(flat, 0.0, weight / sum(weights) / np.where(flat, 1.0, deviation))
        total += ((matrix - mean) * scale).astype(np.float32)
    return total
