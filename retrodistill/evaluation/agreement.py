"""Agreement of systems with a teacher on one collection; only the ceiling needs judgments."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import numpy as np

from retrodistill.core.errors import UserError
from retrodistill.data.collection import Collection
from retrodistill.data.texts import Texts
from retrodistill.evaluation.measures import Grades, evaluate_run, means
from retrodistill.evaluation.results import Agreement, Bin
from retrodistill.rankers.documents import score_documents, search_documents
from retrodistill.rankers.loading import load_ranker
from retrodistill.rankers.protocol import Ranker
from retrodistill.rankers.recorded import recorded_pairs
from retrodistill.runs.agreement import kendall, overlap, ranking_overlap, score_bins
from retrodistill.runs.documents import by_document
from retrodistill.runs.run import Run, align, look_up

DEPTH = 100  # documents per query: of the teacher's list, and of the candidates that it re-ranks


def agreements(
    teacher: Any,
    runs: Mapping[str, Run],
    collection: Collection,
    queries: Texts,
    qrels: Grades | None,
    *,
    teacher_run: Run | None = None,
    rescore: bool = True,
) -> dict[str, Agreement]:
    """Agreement of each run's rankings with the teacher's.

    A teacher that can search is compared by its own search. One that only scores pairs (a cross-encoder) is compared
    by its order of the documents in the top 100 of any run, the same list for all runs. A recorded run is compared on
    its own queries.

    The teacher is what `load_ranker` takes. Documents that are the query itself are excluded. Judgments (`qrels`) are
    for the ceiling. `teacher_run` has the teacher's own results, if they are known. With `rescore`, the teacher scores
    every system's top 100, for the ceiling and the calibration; without, there is no ceiling, and the calibration uses
    the pairs in `teacher_run`.

    Raises:
        UserError: The teacher cannot be loaded, or has no score for any query.
    """
    teacher, count = load_ranker(teacher), len(queries)
    if teacher.run is not None:
        recorded = set(teacher.run.query_ids)
        queries = queries.select([query for query in queries.ids if query in recorded])
        qrels = qrels and {query: grades for query, grades in qrels.items() if query in recorded}
    own = collection.own_documents(queries.ids)
    systems = {name: run.select(queries.ids).without(own) for name, run in runs.items()}
    # A teacher cannot score documents that are not in the collection, which a recorded run may have.
    tops = {name: run.top(DEPTH).known([queries], collection.whole.documents)[0] for name, run in systems.items()}
    if teacher_run is not None:
        known = teacher_run.select(queries.ids)
    elif teacher.can_search:
        known = search_documents(teacher, queries, collection, min(DEPTH + 1, len(collection.whole.documents)))
    else:
        known = _scored(teacher, collection, queries, align(list(tops.values()))[0])
    target = known.without(own).top(DEPTH)
    if not len(target):
        raise UserError(f"teacher {teacher.name} has no score for any of the {count} queries; use another.")
    agreement = {}
    for name, run in systems.items():
        top = tops[name]
        scored = _scored(teacher, collection, queries, top) if rescore else recorded_pairs(known, top, teacher.name)
        taus = list(kendall(run, target, DEPTH).values())
        agreement[name] = Agreement(
            teacher=teacher.name,
            queries=len(queries),
            overlap10=_mean(overlap(run, target, 10)),
            rank_biased_overlap=min(1.0, _mean(ranking_overlap(run, target, depth=DEPTH))),  # rounding can exceed 1
            kendall_tau=float(np.mean(taus)) if taus else None,
            reached=_ndcg(run, qrels) if qrels else None,
            ceiling=_ndcg(scored, qrels) if qrels and rescore else None,
            calibration=[Bin.model_validate(point) for point in score_bins(look_up(top, scored), scored.scores)],
        )
    return agreement


def _scored(teacher: Ranker, collection: Collection, queries: Texts, pairs: Run) -> Run:
    """The pairs with the teacher's scores; only the recorded pairs of a recorded run."""
    if teacher.run is None:
        return score_documents(teacher, queries, collection, pairs)
    run = teacher.run
    if collection.parents is not None and not teacher.ranks_documents(collection):  # it is over passages
        run = by_document(run)
    return recorded_pairs(run, pairs, teacher.name)


def _ndcg(run: Run, qrels: Grades) -> float:
    return means(evaluate_run(run, qrels, ["ndcg@10"]))["ndcg@10"]


def _mean(values: Mapping[str, float]) -> float:
    return float(np.mean(list(values.values())))
