"""Resumable scoring of candidates by every teacher, and the plan of the remaining work."""

from __future__ import annotations

import os
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np

from retrodistill.core.errors import UserError
from retrodistill.core.runtime import bar
from retrodistill.data.collection import Collection
from retrodistill.data.texts import Texts
from retrodistill.rankers.loading import load_ranker
from retrodistill.rankers.protocol import Ranker, Work
from retrodistill.runs.run import Run

BLOCK = 64  # queries at once: bounds the memory of one step
LARGEST_BYTES = 8 * 2**30


def score(
    collection: Collection,
    candidates: Run,
    teachers: Sequence[Any],
    *,
    queries: Texts | None = None,
    store: str | os.PathLike[str] | None = None,
) -> list[Run]:
    """Score candidates with teachers. A run that was killed resumes where it stopped.

    Args:
        collection: Where the texts are.
        candidates: The pairs.
        teachers: Model names or objects (see `load_ranker`).
        queries: The queries' texts, where they are not the collection's own (pseudo-queries).
        store: Folder for scores and embeddings; the shared cache by default.

    Returns:
        One run per teacher with raw scores, each over the same pairs.

    Raises:
        UserError: Unknown ids, a pair without a score, a store of another teacher.
    """
    wanted = collection.queries if queries is None else queries
    return [teacher.score(wanted, collection, candidates) for teacher in _load(teachers, store)]


def remaining(
    collection: Collection,
    candidates: Run,
    teachers: Sequence[Any],
    *,
    queries: Texts | None = None,
    store: str | os.PathLike[str] | None = None,
) -> dict[str, Work]:
    """The remaining work of each teacher with an estimate of its time. Arguments as for `score`."""
    wanted = collection.queries if queries is None else queries
    return {teacher.name: teacher.remaining(wanted, collection, candidates) for teacher in _load(teachers, store)}


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


def _load(teachers: Sequence[Any], store: str | os.PathLike[str] | None) -> list[Ranker]:
    """All of them before the first works, so that a wrong name fails before hours of scoring."""
    if isinstance(teachers, str):
        raise UserError(f"teachers={teachers!r}: give a list, e.g. [{teachers!r}].")
    root = None if store is None else Path(store)
    return [load_ranker(teacher, root, needs="score") for teacher in teachers]
