"""Example searches, teacher beside student."""

from __future__ import annotations

import textwrap

from retrodistill.collections import Collection
from retrodistill.pipeline.systems import Measured
from retrodistill.reports.results import Example, Hit

_SHOWN, _WIDTH = 5, 400


def example_searches(
    collection: Collection, split: str, queries: list[str], teacher: Measured, student: Measured
) -> list[Example]:
    """The top five of both systems for some queries.

    Args:
        collection: Where texts and judgements come from.
        split: Whose judgements mark what is relevant.
        queries: Ids of the queries to show.
        teacher: One system.
        student: The other.
    """
    relevance = collection.relevance(split).to_dict()
    found = []
    for query in queries:
        relevant = {document for document, grade in relevance.get(query, {}).items() if grade > 0}
        sides = [_hits(collection, side, query, relevant) for side in (teacher, student)]
        found.append(
            Example(query=collection.queries[query], relevant=sorted(relevant), teacher=sides[0], student=sides[1])
        )
    return found


def spread_out(queries: list[str], count: int) -> list[str]:
    """`count` of the queries, evenly spaced, so that nobody picked them."""
    count = min(count, len(queries))
    return [queries[place * len(queries) // count] for place in range(count)]


def _hits(collection: Collection, side: Measured, query: str, relevant: set[str]) -> list[Hit]:
    return [
        Hit(
            document_id=document,
            text=textwrap.shorten(collection.documents[document], _WIDTH, placeholder="…"),
            relevant=document in relevant,
            score=score,
        )
        for _, documents, scores in side.run.select([query]).top(_SHOWN)
        for document, score in zip(documents, scores.tolist(), strict=True)
    ]
