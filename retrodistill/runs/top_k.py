"""The k best of many scores, by the one tie rule of the package: higher scores first, equal scores by place."""

from __future__ import annotations

import numpy as np


def top_k(scores: np.ndarray, k: int) -> np.ndarray:
    """Places of the k highest scores of each row.

    Args:
        scores: (n,) or (rows, n), finite or -inf; higher is better.
        k: How many, at least 1.

    Returns:
        (min(k, n),) or (rows, min(k, n)) int64, highest score first, equal scores by ascending place.
    """
    if scores.ndim == 2:
        width = min(k, scores.shape[1])
        return np.array([top_k(row, k) for row in scores], dtype=np.int64).reshape(len(scores), width)
    if k >= len(scores):
        return np.argsort(-scores, kind="stable")
    # A partition is linear in n; what equals its last score is taken in order of place.
    threshold = -np.partition(-scores, k - 1)[k - 1]
    above = np.flatnonzero(scores > threshold)
    level = np.flatnonzero(scores == threshold)[: k - len(above)]
    places = np.sort(np.concatenate([above, level]))
    return places[np.argsort(-scores[places], kind="stable")]
