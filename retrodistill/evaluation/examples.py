"""Queries to look at: two systems' rankings side by side, the ones that changed most, and ones that nobody picked."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

import numpy as np

from retrodistill.data.collection import Collection
from retrodistill.evaluation.results import Example, Hit, Missed
from retrodistill.evaluation.significance import LEAST
from retrodistill.evaluation.systems import Measured, Task
from retrodistill.runs.run import Run

MEASURE = "ndcg@10"
CHANGED = 20  # queries to show that are won, and as many that are lost
_SHOWN = 5  # documents of a ranking
_TITLE, _TEXT = 160, 1200  # letters


class _Place(NamedTuple):
    """Where a document stands in a ranking, counted from 1, and its score."""

    rank: int
    score: float


def shown_queries(task: Task, reference: Measured, other: Measured, count: int) -> dict[str, Any]:
    """What results.json says of single queries: ``sides``, ``examples``, ``won`` and ``lost``.

    Args:
        task: Queries, judgments, and where texts come from.
        reference: One system.
        other: The other, usually the student.
        count: Examples, evenly spaced; with 0, no query is shown at all.
    """
    chosen = {"examples": spread_out(task.queries.ids, count)}
    if count:
        chosen["won"], chosen["lost"] = won_and_lost(reference.values(MEASURE), other.values(MEASURE))
    shown = {name: side_by_side(task, queries, reference, other) for name, queries in chosen.items()}
    return {"sides": [reference.name, other.name], **shown}


def won_and_lost(
    reference: Mapping[str, float], other: Mapping[str, float], most: int = CHANGED
) -> tuple[list[str], list[str]]:
    """Ids of the queries that `other` answers better, and worse, from the largest difference on, at most `most` each.

    Args:
        reference: A measure by query.
        other: The same measure of the other system.
        most: Queries in each list.
    """
    queries = [query for query in reference if query in other]
    gains = np.array([other[query] - reference[query] for query in queries])
    order = np.argsort(-gains, kind="stable")
    won = [queries[at] for at in order[:most] if gains[at] > LEAST]
    lost = [queries[at] for at in np.argsort(gains, kind="stable")[:most] if gains[at] < -LEAST]
    return won, lost


def spread_out(queries: Sequence[str], count: int) -> list[str]:
    """`count` of the queries, evenly spaced, so that nobody picked them."""
    count = min(count, len(queries))
    return [queries[place * len(queries) // count] for place in range(count)]


def side_by_side(task: Task, queries: Sequence[str], reference: Measured, other: Measured) -> list[Example]:
    """The top five of both systems for some queries, and the ranks of relevant documents that neither has there."""
    both = [_rankings(side.load_run(), queries) for side in (reference, other)]
    grades, values = task.grades or {}, [side.values(MEASURE) for side in (reference, other)]
    relevant = {query: {name for name, grade in grades.get(query, {}).items() if grade > 0} for query in queries}
    missed = {query: _missed(relevant[query], [rankings.get(query, {}) for rankings in both]) for query in queries}
    shown = {name for rankings in both for query in queries for name in _first(rankings.get(query, {}))}
    shown |= {name for names in missed.values() for name in names}
    texts = _Shown(task.collection, sorted(shown))
    examples = []
    for query in queries:
        teacher, student = (rankings.get(query, {}) for rankings in both)
        examples.append(
            Example(
                query=task.collection.queries[query],
                query_id=query,
                relevant=sorted(relevant[query]),
                teacher=[texts.hit(name, teacher[name].score, relevant[query]) for name in _first(teacher)],
                student=[texts.hit(name, student[name].score, relevant[query]) for name in _first(student)],
                missed=[texts.missed(name, teacher.get(name), student.get(name)) for name in missed[query]],
                teacher_value=values[0].get(query),
                student_value=values[1].get(query),
            )
        )
    return examples


def _rankings(run: Run, queries: Sequence[str]) -> dict[str, dict[str, _Place]]:
    """By query, the documents in rank order with rank and score."""
    return {
        query: {
            str(name): _Place(rank, float(score))
            for rank, (name, score) in enumerate(zip(*found, strict=True), start=1)
        }
        for query, *found in run.select(queries).ranked()
    }


def _first(ranking: Mapping[str, _Place]) -> list[str]:
    return list(ranking)[:_SHOWN]


def _missed(relevant: set[str], rankings: Sequence[Mapping[str, _Place]]) -> list[str]:
    """Relevant documents that no system shows, at most five: those that one found first, then the others by id."""
    shown = {name for ranking in rankings for name in _first(ranking)}

    def best(name: str) -> tuple[float, str]:
        return min((ranking[name].rank for ranking in rankings if name in ranking), default=np.inf), name

    return sorted(relevant - shown, key=best)[:_SHOWN]


def snippet(text: str, length: int) -> str:
    """The beginning of a text on one line, at most so many letters, cut between words where there are any."""
    flat = " ".join(text[: 8 * length].split())
    if len(flat) <= length and len(text) <= 8 * length:
        return flat
    cut = flat[: length - 1]
    space = cut.rfind(" ", len(cut) * 3 // 4)  # a language without spaces is cut between letters
    return cut[: space if space > 0 else None].rstrip() + "…"


class _Shown:
    """Titles and texts of some documents; of a large corpus, no others are looked up."""

    def __init__(self, collection: Collection, names: Sequence[str]) -> None:
        self.titles, self.bodies = collection.titles.select(names), collection.bodies.select(names)

    def hit(self, name: str, score: float, relevant: set[str]) -> Hit:
        """A document of a ranking."""
        return Hit(document_id=name, relevant=name in relevant, score=score, **self._texts(name))

    def missed(self, name: str, teacher: _Place | None, student: _Place | None) -> Missed:
        """A relevant document that neither system shows."""
        ranks = [None if place is None else place.rank for place in (teacher, student)]
        return Missed(document_id=name, teacher_rank=ranks[0], student_rank=ranks[1], **self._texts(name))

    def _texts(self, name: str) -> dict[str, str]:
        return {"title": snippet(self.titles[name], _TITLE), "text": snippet(self.bodies[name], _TEXT)}
