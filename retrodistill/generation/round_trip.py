"""The round-trip filter: a query that does not find its own document is probably not about it."""

from __future__ import annotations

from typing import Any

import numpy as np

from retrodistill.core.runtime import bar
from retrodistill.data.collection import Collection
from retrodistill.data.pseudo_queries import source_document
from retrodistill.data.texts import Texts
from retrodistill.rankers.loading import load_ranker
from retrodistill.rankers.protocol import check_k

_PART = 8192  # queries that are searched at once, which bounds memory


def keep_round_trips(queries: Texts, collection: Collection, ranker: Any, depth: int = 1) -> Texts:
    """Keep the pseudo-queries for which a ranker finds their source document among its first `depth`.

    Round-trip consistency (Alberti et al. 2019, arXiv 1906.05416; Promptagator, arXiv 2209.11755). Copies of the
    document count as the document, and where it is in passages, any of them does.

    Args:
        queries: As `retrodistill.data.pseudo_queries.load_generated` reads them, or `generate_queries` makes them.
        collection: Of the documents.
        ranker: What `load_ranker` takes, such as ``bm25`` or ``dense:NAME``; it has to search.
        depth: Documents, or passages, among which the source has to be.

    Raises:
        UserError: The ranker cannot search, or there are not so many documents.
    """
    finder, documents = load_ranker(ranker, needs="search"), collection.documents
    check_k(depth, len(documents))
    sources = documents.positions([source_document(id_) or "" for id_ in queries.ids])
    same = documents.originals if collection.parents is None else collection.parents.rows
    lost = []
    with bar(len(queries), f"round trip ({finder.name})", "queries") as progress:
        for start in range(0, len(queries), _PART):
            part = Texts(queries.table.slice(start, _PART))
            rows, columns = finder.search(part, collection, depth).positions(part, documents)
            own = sources[start + rows]
            found = np.unique(rows[same[columns] == same[own]])
            lost.append(start + np.setdiff1d(np.arange(len(part)), found))
            progress.update(len(part))
    return queries.without(np.concatenate(lost)) if lost else queries
