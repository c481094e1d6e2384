"""Samplers: which of a query's candidates a training group takes, and documents from the whole corpus."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from retrodistill.candidates.topics import balanced_places
from retrodistill.core.errors import UserError, unknown
from retrodistill.runs.run import Run

SAMPLERS = {
    "top-k": "the best by the teacher",
    "stratified": "the best one, then one drawn from each of equally many ranks",
    "random": "the best one, then uniformly from the rest of the list",
    "margin-balanced": "the best one, then by margins to it: a bin of equal width uniformly, one from it (TAS-B)",
}


def random_documents(query_ids: Sequence[str], document_ids: Sequence[str], count: int, seed: int) -> Run:
    """A run of documents drawn from the corpus without replacement, `count` per query, all with score 0.

    Args:
        query_ids: (q,) queries.
        document_ids: (n,) the corpus.
        count: Per query; at most n are drawn.
        seed: Of the drawing; the same seed draws the same documents.
    """
    generator = np.random.default_rng([seed, len(query_ids), len(document_ids)])
    count = min(count, len(document_ids))
    rows = (
        np.stack([generator.choice(len(document_ids), count, replace=False) for _ in query_ids])
        if query_ids
        else (np.zeros((0, count), dtype=np.int64))
    )
    return Run.from_matrix(query_ids, document_ids, rows, np.zeros(rows.shape), name="random")


def sample_places(
    name: str, available: int, count: int, generator: np.random.Generator, scores: np.ndarray | None = None
) -> np.ndarray:
    """Choose places of a list that is ranked by the teacher, best first.

    The best document is always taken: it is the positive of margin objectives.

    Args:
        name: One of `SAMPLERS`.
        available: Length of the list, at least 1.
        count: How many to take, at least 1; all places where the list is shorter.
        generator: Where chance comes from.
        scores: (available,) the teacher's, best first; only ``margin-balanced`` asks for them.

    Returns:
        (min(count, available),) int64 ascending places.

    Raises:
        UserError: Unknown sampler, or one that asks for scores where there are none.
    """
    if name not in SAMPLERS:
        raise unknown("sampler", name, SAMPLERS)
    if count < 1:
        raise UserError(f"a group of {count} documents; take at least 1.")
    if count >= available or name == "top-k":
        return np.arange(min(count, available))
    if count == 1:
        return np.zeros(1, dtype=np.int64)
    if name == "margin-balanced":
        if scores is None:
            raise UserError("sampler margin-balanced needs the teacher's scores of the list; give them.")
        margins = np.asarray(scores[0] - scores[1:], dtype=np.float64)
        return np.concatenate([[0], 1 + np.sort(balanced_places(margins, count - 1, generator))])
    if name == "random":
        return np.concatenate([[0], np.sort(generator.choice(np.arange(1, available), count - 1, replace=False))])
    edges = np.linspace(1, available, count).round().astype(np.int64)
    return np.concatenate([[0], generator.integers(edges[:-1], np.maximum(edges[1:], edges[:-1] + 1))])
