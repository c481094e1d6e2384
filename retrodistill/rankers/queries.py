"""Checks of a ranker's input: query texts and the number of documents to return."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

from retrodistill.core.errors import UserError
from retrodistill.data.collection import Collection
from retrodistill.data.texts import Texts
from retrodistill.runs.run import Run

Queries = str | Sequence[str] | Mapping[str, str] | Texts
DEPTH = 10  # documents per query by default


def check_k(k: int, documents: int) -> None:
    """Reject a k above the number of documents.

    Raises:
        UserError: k is below 1 or above the number of documents.
    """
    if not 1 <= k <= documents:
        raise UserError(f"k={k}: the corpus has {documents} documents; choose k from 1 to {documents}.")


def wanted_depth(k: int | None, documents: int) -> int:
    """The given k; by default 10, or all documents where there are fewer.

    Raises:
        UserError: k is below 1 or above the number of documents, or there are no documents.
    """
    k = min(DEPTH, documents) if k is None and documents else k or 0
    check_k(k, documents)
    return k


def cut_depth(k: int | None, documents: int) -> int | None:
    """The given k, at most the number of documents."""
    return None if k is None else min(k, documents)


def within(collection: Collection, run: Run) -> Run:
    """The run of an index, known to name documents of the collection only.

    Raises:
        UserError: The collection lacks documents of the run.
    """
    run.require(run.query_ids, collection.documents.ids)
    return run


def plain_queries(queries: Queries) -> Texts:
    """Queries with ids as they are, empty texts too: a collection may hold such, and they find nothing."""
    return queries if isinstance(queries, Texts) else as_queries(queries)


def as_queries(queries: Queries) -> Texts:
    """One text, several (their ids are "0", "1"...), or queries with ids: checked, as queries with ids.

    Raises:
        UserError: A query has no text, or is not a text.
    """
    if not isinstance(queries, Texts):
        listed = [queries] if isinstance(queries, str) else queries
        pairs = list(listed.items() if isinstance(listed, Mapping) else enumerate(listed))
        for id_, text in pairs:
            if not isinstance(text, str):
                raise UserError(f"query {id_!r} is {type(text).__name__}; give texts, or a mapping of ids to texts.")
        queries = Texts.from_pairs((str(id_), text) for id_, text in pairs)
    check_queries(queries.texts)
    return queries


def check_queries(texts: list[str]) -> None:
    """Refuse empty queries.

    Raises:
        UserError: A query has no text; its place is named.
    """
    empty = [place for place, text in enumerate(texts) if not text.strip()]
    if empty:
        raise UserError(f"query {empty[0] + 1} of {len(texts)} is empty; a query needs at least one word.")
