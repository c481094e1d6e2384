"""Warnings where a student will probably lose to BM25, by queries that were held out from training.

With labels of training queries, both search for the held-out ones; test queries, which have labels then, too, are for
the table and not for advice. In a collection without labels, both are compared by their agreement with the teacher:
what BM25 reaches, too, shows no quality beyond BM25's.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence

from retrodistill.data.collection import judgments_of
from retrodistill.evaluation.evaluating import search
from retrodistill.evaluation.measures import evaluate_run
from retrodistill.evaluation.results import WARNING, SystemResult
from retrodistill.evaluation.significance import compare_paired
from retrodistill.evaluation.systems import System
from retrodistill.recipes.job import Job
from retrodistill.recipes.students import Distilled
from retrodistill.report import text
from retrodistill.students.registry import kind_of

_LEAST = 20  # held-out queries with labels; fewer say too little
_MARGIN = 0.02  # of rank-biased overlap, within which agreements count as equal
_ADVICE = "Add BM25 to the search: fuse the results of both, or train a hybrid (recipe dense-ensemble)."


def labeled_warnings(job: Job, students: Iterable[Distilled], systems: Sequence[System]) -> list[str]:
    """A line for each student with a lower nDCG@10 than BM25 on its held-out training queries that have labels."""
    rankers, lines = {system.name: system.ranker for system in systems}, []
    for student in _searching(students):
        queries = job.train.select([query for query in student.held_out if query in job.train])
        judged = judgments_of(queries, job.training_qrels).to_dict()
        grades = {query: of_query for query, of_query in judged.items() if max(of_query.values()) > 0}
        if len(grades) < _LEAST:
            continue
        queries = queries.select(list(grades))
        own, bm25 = (
            evaluate_run(search(ranker, job.collection, queries, 10), grades, ["ndcg@10"])["ndcg@10"].to_numpy()
            for ranker in (rankers[student.name], rankers["bm25"])
        )
        tested = compare_paired(own, bm25, seed=job.recipe.seed)
        if tested["difference"] < 0:
            lines.append(
                f"{WARNING}{student.name} has a lower nDCG@10 than BM25 on {len(grades)} held-out training queries: "
                f"{text.measure(own.mean())} against {text.measure(bm25.mean())} ({text.significance(tested)}, "
                f"{text.probability(tested['p'])}). {_ADVICE}"
            )
    return lines


def unlabeled_warnings(students: Iterable[Distilled], rows: Mapping[str, SystemResult]) -> list[str]:
    """A line for each student that agrees with the teacher no more than BM25 does, by the rows of the table."""
    lines, bm25 = [], rows["bm25"].agreement
    for student in _searching(students):
        own = rows[student.name].agreement
        if bm25 is None or own is None or bm25.rank_biased_overlap < own.rank_biased_overlap - _MARGIN:
            continue
        shared = [text.measure(agreement.rank_biased_overlap) for agreement in (bm25, own)]
        lines.append(
            f"{WARNING}{student.name} may be no better than BM25, which agrees with {own.teacher} as much: rank-biased "
            f"overlap {shared[0]} against {shared[1]} on {own.queries} queries. Label some "
            f"queries to find out. {_ADVICE}"
        )
    return lines


def _searching(students: Iterable[Distilled]) -> list[Distilled]:
    """The students that search by themselves, without controls."""
    return [one for one in students if one.role == "student" and kind_of(one.encoder.model).can_search]
