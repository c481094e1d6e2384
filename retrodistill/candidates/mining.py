"""Mining: who gets scored. Several retrievers propose, the union keeps who proposed what."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from retrodistill.candidates.samplers import random_documents
from retrodistill.core.errors import UserError
from retrodistill.data.collection import Collection
from retrodistill.data.texts import Texts
from retrodistill.rankers.loading import load_ranker
from retrodistill.runs.fusion import union
from retrodistill.runs.run import Run


def mine(
    collection: Collection,
    queries: Texts | str,
    sources: Sequence[Any],
    depth: int = 100,
    *,
    random: int = 0,
    seed: int = 0,
) -> Run:
    """Propose candidates for queries.

    Args:
        collection: Where the documents are.
        queries: Queries, or the name of a split.
        sources: Model names (``bm25``, ``dense:...``, ``run:FILE``) or objects (runs, encoders, indexes).
        depth: At most so many documents per query and source.
        random: So many documents drawn from the corpus for each query besides; their source is ``random``.
        seed: Of the drawing.

    Returns:
        A run with `sources` (names joined by ``+``), ordered by the sum of reciprocal ranks over the sources; what
        was drawn at random only stands last, with score 0.

    Raises:
        UserError: No source, a depth below 1, a split without queries, or a source that cannot search.
    """
    if isinstance(sources, str):
        raise UserError(f"sources={sources!r}: give a list, e.g. [{sources!r}].")
    if not sources:
        raise UserError("no source of candidates; give at least one, e.g. ['bm25'].")
    if depth < 1 or random < 0:
        raise UserError(f"depth={depth}, random={random}: depth is at least 1 and random at least 0.")
    wanted = collection.split(queries) if isinstance(queries, str) else queries
    if not len(wanted):
        raise UserError(f"collection {collection.name} has no queries to mine for in {queries!r}; name another split.")
    rankers = [load_ranker(source, needs="search") for source in sources]
    runs = [ranker.search(wanted, collection, depth) for ranker in rankers]
    if random:
        runs.append(random_documents(wanted.ids, collection.documents.ids, random, seed))
    return union(runs, weights=[1.0] * len(sources) + [0.0] * (len(runs) - len(sources)))
