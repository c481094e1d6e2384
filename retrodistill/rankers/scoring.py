"""Resumable scoring of candidates by every teacher, and an estimate of the remaining work."""

from __future__ import annotations

import os
from collections.abc import Sequence
from typing import Any

from retrodistill.core.errors import UserError
from retrodistill.core.paths import path_of
from retrodistill.core.runtime import log
from retrodistill.data.collection import Collection
from retrodistill.data.texts import Texts
from retrodistill.rankers.loading import load_ranker
from retrodistill.rankers.protocol import Ranker, Work, with_content
from retrodistill.runs.run import Run


def score(
    collection: Collection,
    candidates: Run,
    teachers: Sequence[Any],
    *,
    queries: Texts | None = None,
    store: str | os.PathLike[str] | None = None,
) -> list[Run]:
    """Score candidates with teachers. An interrupted run resumes where it stopped.

    Args:
        collection: The corpus, and the queries by default.
        candidates: The pairs; those of unknown queries or documents are left out, and the log counts them.
        teachers: Model names or objects (see `load_ranker`).
        queries: Other queries, such as pseudo-queries.
        store: Folder for scores and embeddings; the shared cache by default.

    Returns:
        One run per teacher with raw scores, each over the same pairs.

    Raises:
        UserError: No pair of known ids, a pair without a score, or a store of another teacher.
    """
    chosen = collection.queries if queries is None else queries
    rankers, pairs = _load(teachers, store), known_pairs(candidates, chosen, collection)
    return [ranker.score(chosen, collection, pairs) for ranker in rankers]


def remaining(
    collection: Collection,
    candidates: Run,
    teachers: Sequence[Any],
    *,
    queries: Texts | None = None,
    store: str | os.PathLike[str] | None = None,
) -> dict[str, Work]:
    """The remaining work of each teacher, with an estimate of its time. Arguments as for `score`."""
    chosen = collection.queries if queries is None else queries
    rankers, pairs = _load(teachers, store), known_pairs(candidates, chosen, collection)
    return {ranker.name: ranker.remaining(chosen, collection, pairs) for ranker in rankers}


def known_pairs(candidates: Run, queries: Texts, collection: Collection) -> Run:
    """The candidates without unknown queries and documents, which the log counts; a UserError if none is left."""
    pairs, line = candidates.known([queries], collection.documents)
    if line is not None:
        log(f"{line}; their rows are left out")
    return with_content(pairs, queries, collection)


def _load(teachers: Sequence[Any], store: str | os.PathLike[str] | None) -> list[Ranker]:
    """Load all teachers before the first one works, so that a wrong name fails before hours of scoring."""
    if isinstance(teachers, str):
        raise UserError(f"teachers={teachers!r}: give a list, e.g. [{teachers!r}].")
    root = None if store is None else path_of(store)
    return [load_ranker(teacher, root, needs="score") for teacher in teachers]
