"""Queries to look at: rankings of two systems side by side, for the largest changes and for evenly spaced queries."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from retrodistill.evaluation.results import Example, Hit, Missed
from retrodistill.evaluation.significance import LEAST
from retrodistill.evaluation.systems import Measured, Task
from retrodistill.runs.run import Run

MEASURE = "ndcg@10"
CHANGED = 20  # maximum number of won queries, and of lost queries
_SHOWN = 5  # documents of a ranking
_TITLE, _TEXT = 160, 1200  # characters

Ranking = dict[str, tuple[int, float]]  # by document, in rank order: rank from 1, and score


def shown_queries(task: Task, reference: Measured, other: Measured, count: int) -> dict[str, Any]:
    """The fields sides, examples, won, and lost of `Results`: `count` evenly spaced examples, or no queries for 0."""
    chosen = {"examples": spread_out(task.queries.ids, count)}
    if count:
        chosen["won"], chosen["lost"] = won_and_lost(reference.values(MEASURE), other.values(MEASURE))
    shown = {name: side_by_side(task, queries, reference, other) for name, queries in chosen.items()}
    return {"sides": [reference.name, other.name], **shown}


def won_and_lost(
    reference: Mapping[str, float], other: Mapping[str, float], most: int = CHANGED
) -> tuple[list[str], list[str]]:
    """Ids of at most `most` queries that `other` answers better, and worse, with the largest difference first."""
    queries = [query for query in reference if query in other]
    gains = np.array([other[query] - reference[query] for query in queries])
    won = [queries[at] for at in np.argsort(-gains, kind="stable")[:most] if gains[at] > LEAST]
    lost = [queries[at] for at in np.argsort(gains, kind="stable")[:most] if gains[at] < -LEAST]
    return won, lost


def spread_out(queries: Sequence[str], count: int) -> list[str]:
    """`count` of the queries, evenly spaced, so that the examples are not cherry-picked."""
    count = min(count, len(queries))
    return [queries[place * len(queries) // count] for place in range(count)]


def side_by_side(task: Task, queries: Sequence[str], reference: Measured, other: Measured) -> list[Example]:
    """The top five of both systems for some queries, and the ranks of relevant documents that neither has there."""
    both = [_rankings(side.load_run(), queries) for side in (reference, other)]
    grades, values = task.grades or {}, [side.values(MEASURE) for side in (reference, other)]
    relevant = {query: {name for name, grade in grades.get(query, {}).items() if grade > 0} for query in queries}
    whole = task.collection.whole
    corpus = whole.documents  # which may lack judged documents
    known = {query: {name for name in relevant[query] if name in corpus} for query in queries}
    missed = {query: _missed(known[query], [rankings.get(query, {}) for rankings in both]) for query in queries}
    shown = {name for rankings in both for query in queries for name in _first(rankings.get(query, {}))}
    names = sorted(shown.union(*missed.values()))
    # Only the shown documents are looked up: the corpus may be large. A recorded run may show documents of another.
    in_corpus = [name for name, row in zip(names, whole.documents.positions(names), strict=True) if row >= 0]
    titles, bodies = whole.titles.select(in_corpus), whole.bodies.select(in_corpus)
    texts: dict[str, dict[str, Any]] = {name: {"title": "", "text": ""} for name in names}
    for name in in_corpus:
        texts[name] = {"title": snippet(titles[name], _TITLE), "text": snippet(bodies[name], _TEXT)}

    def hits(query: str, ranking: Ranking) -> list[Hit]:
        return [
            Hit(document_id=name, relevant=name in relevant[query], score=ranking[name][1], **texts[name])
            for name in _first(ranking)
        ]

    def rank(ranking: Ranking, name: str) -> int | None:
        return ranking[name][0] if name in ranking else None

    def example(query: str) -> Example:
        teacher, student = (rankings.get(query, {}) for rankings in both)
        unseen = [
            Missed(document_id=name, **texts[name], teacher_rank=rank(teacher, name), student_rank=rank(student, name))
            for name in missed[query]
        ]
        return Example(
            query=task.collection.queries[query],
            query_id=query,
            relevant=sorted(relevant[query]),
            teacher=hits(query, teacher),
            student=hits(query, student),
            missed=unseen,
            teacher_value=values[0].get(query),
            student_value=values[1].get(query),
        )

    return [example(query) for query in queries]


def _rankings(run: Run, queries: Sequence[str]) -> dict[str, Ranking]:
    rankings = {}
    for query, documents, scores in run.select(queries).ranked():
        scored = enumerate(zip(documents, scores, strict=True), start=1)
        rankings[query] = {str(name): (rank, float(score)) for rank, (name, score) in scored}
    return rankings


def _first(ranking: Ranking) -> list[str]:
    return list(ranking)[:_SHOWN]


def _missed(relevant: set[str], rankings: Sequence[Ranking]) -> list[str]:
    """At most five relevant documents that no system shows: those with the best rank first, then the others by id."""
    shown = {name for ranking in rankings for name in _first(ranking)}
    best = {
        name: min((ranking[name][0] for ranking in rankings if name in ranking), default=np.inf)
        for name in relevant - shown
    }
    return sorted(best, key=lambda name: (best[name], name))[:_SHOWN]


def snippet(text: str, length: int) -> str:
    """The beginning of a text on one line, at most `length` characters, cut between words if there are any."""
    flat = " ".join(text[: 8 * length].split())
    if len(flat) <= length and len(text) <= 8 * length:
        return flat
    cut = flat[: length - 1]
    space = cut.rfind(" ", len(cut) * 3 // 4)  # a language without spaces is cut between letters
    return cut[: space if space > 0 else None].rstrip() + "…"
