"""Samplers: which of a query's candidates a training group takes, and documents from the whole corpus."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from retrodistill.errors import UserError, unknown
from retrodistill.runs.run import Run

SAMPLERS = {
    "top-k": "the best by the teacher",
    "stratified": "the best one, then one drawn from each of equally many ranks",
    "random": "the best one, then uniformly from the rest of the list",
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


def sample_places(name: str, available: int, count: int, generator: np.random.Generator) -> np.ndarray:
    """Choose places of a list that is ranked by the teacher, best first.

    The best document is always taken: it is the positive of margin objectives.

    Args:
        name: One of `SAMPLERS`.
        available: Length of the list, at least 1.
        count: How many to take, at least 1; all places where the list is shorter.
        generator: Where chance comes from.

    Returns:
        (min(count, available),) int64 ascending places.

    Raises:
        UserError: Unknown sampler.
    """
    if name not in SAMPLERS:
        raise unknown("sampler", name, SAMPLERS)
    if count < 1:
        raise UserError(f"a group of {count} documents; take at least 1.")
    if count >= available or name == "top-k":
        return np.arange(min(count, available))
    if count == 1:
        return np.zeros(1, dtype=np.int64)
    if name == "random":
        return np.concatenate([[0], np.sort(generator.choice(np.arange(1, available), count - 1, replace=False))])
    edges = np.linspace(1, available, count).round().astype(np.int64)
    return np.concatenate([[0], generator.integers(edges[:-1], np.maximum(edges[1:], edges[:-1] + 1))])
