"""Queries to look at: two systems' rankings side by side, the ones that changed most, and ones that nobody picked."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np
import pyarrow as pa

from retrodistill.collections.collection import Collection
from retrodistill.measures.ranking import Grades
from retrodistill.reports.results import Example, Hit
from retrodistill.runs.run import Run

MEASURE = "ndcg@10"
CHANGED = 20  # queries to show that are won, and as many that are lost
_SHOWN = 5  # documents of a ranking
_TITLE, _TEXT = 160, 300  # letters
_TIE = 1e-9  # as in `outcomes`


@dataclass(frozen=True)
class Side:
    """A system whose rankings are shown.

    Attributes:
        name: The system's.
        run: Its results.
        values: nDCG@10 by query; empty where there are no judgements.
    """

    name: str
    run: Run
    values: Mapping[str, float]

    @classmethod
    def of(cls, name: str, run: Run, per_query: pa.Table | None) -> Side:
        """From a table query_id and measures; None, or one without nDCG@10, gives no values."""
        if per_query is None or MEASURE not in per_query.column_names:
            return cls(name, run, {})
        return cls(name, run, dict(zip(per_query["query_id"].to_pylist(), per_query[MEASURE].to_pylist(), strict=True)))


def won_and_lost(reference: Side, other: Side, most: int = CHANGED) -> tuple[list[str], list[str]]:
    """Ids of the queries that `other` answers better, and worse, from the largest difference on, at most so many."""
    queries = [query for query in reference.values if query in other.values]
    gains = np.array([other.values[query] - reference.values[query] for query in queries])
    order = np.argsort(-gains, kind="stable")
    won = [queries[at] for at in order[:most] if gains[at] > _TIE]
    lost = [queries[at] for at in np.argsort(gains, kind="stable")[:most] if gains[at] < -_TIE]
    return won, lost


def spread_out(queries: Sequence[str], count: int) -> list[str]:
    """`count` of the queries, evenly spaced, so that nobody picked them."""
    count = min(count, len(queries))
    return [queries[place * len(queries) // count] for place in range(count)]


def side_by_side(
    collection: Collection, grades: Grades | None, queries: Sequence[str], reference: Side, other: Side
) -> list[Example]:
    """The top five of both systems for some queries.

    Args:
        collection: Where texts come from.
        grades: Judgements that mark what is relevant; None for none.
        queries: Ids of the queries to show, in this order.
        reference: One system.
        other: The other, as a rule the student.
    """
    found = []
    tops = [{query: hits for query, *hits in side.run.select(queries).top(_SHOWN)} for side in (reference, other)]
    for query in queries:
        relevant = {document for document, grade in (grades or {}).get(query, {}).items() if grade > 0}
        teacher, student = (
            [_hit(collection, document, float(score), relevant) for document, score in zip(*top[query], strict=True)]
            if query in top
            else []
            for top in tops
        )
        found.append(
            Example(
                query=collection.queries[query],
                query_id=query,
                relevant=sorted(relevant),
                teacher=teacher,
                student=student,
                teacher_value=reference.values.get(query),
                student_value=other.values.get(query),
            )
        )
    return found


def snippet(text: str, length: int) -> str:
    """The beginning of a text on one line, at most so many letters, cut between words where there are any."""
    flat = " ".join(text[: 8 * length].split())
    if len(flat) <= length and len(text) <= 8 * length:
        return flat
    cut = flat[: length - 1]
    space = cut.rfind(" ", len(cut) * 3 // 4)  # a language without spaces is cut between letters
    return cut[: space if space > 0 else None].rstrip() + "…"


def _hit(collection: Collection, document: str, score: float, relevant: set[str]) -> Hit:
    return Hit(
        document_id=document,
        title=snippet(collection.titles[document], _TITLE),
        text=snippet(collection.bodies[document], _TEXT),
        relevant=document in relevant,
        score=score,
    )
