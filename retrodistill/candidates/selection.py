"""Selection of the queries that a stage trains on."""

from __future__ import annotations

from collections import Counter
from collections.abc import Collection, Mapping
from dataclasses import dataclass

from retrodistill.core.errors import UserError
from retrodistill.data.collection import Qrels
from retrodistill.runs.run import Run

Positives = Mapping[str, Collection[str]]


@dataclass(frozen=True)
class Selection:
    """The queries that a stage trains on, and why the others were excluded. The counts sum to `queries`.

    Attributes:
        query_ids: The selected queries, in the order of the teacher's run.
        queries: Queries of the teacher's run.
        unlabeled: Queries without a positive.
        teacher_wrong: The teacher ranks no positive first.
        not_ranked: The student's run lacks the query.
        student_right: The student ranks a positive above the range.
        too_far: The student ranks the positives below the range, or none at all.
    """

    query_ids: list[str]
    queries: int
    unlabeled: int
    teacher_wrong: int
    not_ranked: int
    student_right: int
    too_far: int


def prod_selection(teacher: Run, student: Run, positives: Positives, ranks: tuple[int, int] = (2, 15)) -> Selection:
    """Queries where the teacher is right and the student is wrong but close (PROD, WWW 2023, last stage).

    A query is selected if the teacher ranks a positive first and the student ranks its best positive within `ranks`.
    PROD has one positive per query. If there are several, the best counts.

    Args:
        teacher: The teacher's scores.
        student: The student's scores of the same candidates, or of a search at least as deep as the range.
        positives: Relevant documents by query: labels (`labeled`), or pseudo-labels of an ensemble if there are
            no labels (`pseudo_labeled`). State in the results which were used.
        ranks: First and last rank of the student that is selected, from 1, inclusive; the first is at least 2.

    Raises:
        UserError: The ranks are not a range, or the range starts at rank 1, where the student is right.
    """
    first, last = ranks
    if not 2 <= first <= last:
        raise UserError(
            f"ranks={first}, {last}: the first is at least 2, where the student is wrong, and not the last."
        )
    top = {query: documents[0] for query, documents, _ in teacher.top(1)}
    found = {query: documents for query, documents, _ in student.top(last)}

    def standing(query: str, best: str) -> str:
        relevant = positives.get(query, ())
        if not relevant:
            return "unlabeled"
        if best not in relevant:
            return "teacher_wrong"
        if query not in found:
            return "not_ranked"
        rank = next((place for place, document in enumerate(found[query], start=1) if document in relevant), last + 1)
        return "student_right" if rank < first else "too_far" if rank > last else "selected"

    told = {query: standing(query, best) for query, best in top.items()}
    counts = Counter(told.values())
    names = ("unlabeled", "teacher_wrong", "not_ranked", "student_right", "too_far")
    chosen = [query for query, what in told.items() if what == "selected"]
    return Selection(chosen, len(told), *(counts[name] for name in names))


def labeled(qrels: Qrels) -> dict[str, set[str]]:
    """Positives from labels: judged documents with a grade above 0."""
    found: dict[str, set[str]] = {}
    for row in qrels.table.to_pylist():
        if row["relevance"] > 0:
            found.setdefault(row["query_id"], set()).add(row["document_id"])
    return found


def pseudo_labeled(run: Run) -> dict[str, set[str]]:
    """Positives without judgments: the documents that an ensemble ranks first.

    They are not labels. Use an ensemble that contains more than the teacher of the stage: a teacher whose own first
    document counts as the positive is right by definition.
    """
    return {query: {documents[0]} for query, documents, _ in run.top(1)}
