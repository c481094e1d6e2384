"""Agreement of systems with a teacher on one collection; judgments are needed for the ceiling alone."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import numpy as np

from retrodistill.core.errors import UserError
from retrodistill.data.collection import Collection
from retrodistill.data.texts import Texts
from retrodistill.evaluation.measures import Grades, evaluate_run, means
from retrodistill.evaluation.results import Agreement, Bin
from retrodistill.rankers.loading import load_ranker
from retrodistill.rankers.protocol import Ranker
from retrodistill.rankers.recorded import recorded_pairs
from retrodistill.runs.agreement import kendall, overlap, ranking_overlap, score_bins
from retrodistill.runs.align import align, look_up
from retrodistill.runs.run import Run

DEPTH = 100  # documents a query: of the teacher's list, and of the candidates that it re-ranks


def agreements(
    teacher: Any,
    runs: Mapping[str, Run],
    collection: Collection,
    queries: Texts,
    qrels: Grades | None,
    *,
    wanted: Run | None = None,
    rescore: bool = True,
) -> dict[str, Agreement]:
    """How far each run ranks as the teacher does.

    A teacher that can search is compared by its own search; one that scores pairs only (a cross-encoder) by its order
    of the documents that any of the runs has in its top 100, the same list for all. A recorded teacher is compared on
    the queries that it has.

    Args:
        teacher: What `load_ranker` takes.
        runs: Of the systems; documents that are their own query are left out.
        collection: Where they searched.
        queries: What they were asked.
        qrels: Judgments for the ceiling; None where there are none.
        wanted: The teacher's own results where they are known already.
        rescore: Score every system's top 100 by the teacher, for the ceiling and the calibration; where False, there is
            no ceiling, and the calibration has the pairs that `wanted` holds.

    Raises:
        UserError: The teacher cannot be loaded, or has a score for none of the queries.
    """
    judge, asked = load_ranker(teacher), len(queries)
    if judge.run is not None:
        known_queries = set(judge.run.query_ids)
        queries = queries.select([query for query in queries.ids if query in known_queries])
        qrels = qrels and {query: grades for query, grades in qrels.items() if query in known_queries}
    own = {query: query for query in queries.ids}
    tops = {name: run.select(queries.ids).without(own).top(DEPTH) for name, run in runs.items()}
    if wanted is not None:
        wanted = wanted.select(queries.ids)
    elif not judge.can_search:
        wanted = _scored(judge, collection, queries, align(list(tops.values()))[0])
    else:
        wanted = judge.stream(queries, collection, min(DEPTH + 1, len(collection.documents)))
    known, wanted = wanted, wanted.without(own).top(DEPTH)
    if not len(wanted):
        raise UserError(f"teacher {judge.name} has no score for any of the {asked} queries; use another.")
    found = {}
    for name, top in tops.items():
        scored = _scored(judge, collection, queries, top) if rescore else recorded_pairs(known, top, judge.name)
        whole = runs[name].select(queries.ids).without(own)
        quality = {
            "reached": _ndcg(whole, qrels) if qrels else None,
            "ceiling": _ndcg(scored, qrels) if qrels and rescore else None,
        }
        found[name] = _agreement((judge.name, len(queries)), (whole, top), (wanted, scored), quality)
    return found


def _agreement(
    judge: tuple[str, int], own: tuple[Run, Run], judged: tuple[Run, Run], quality: Mapping[str, float | None]
) -> Agreement:
    """Of a system's whole run and its top, and of the teacher's list and its scores of that top."""
    (teacher, count), (run, top), (wanted, scored) = judge, own, judged
    taus = list(kendall(run, wanted, DEPTH).values())
    return Agreement(
        teacher=teacher,
        queries=count,
        overlap10=_mean(overlap(run, wanted, 10)),
        rank_biased_overlap=min(1.0, _mean(ranking_overlap(run, wanted, depth=DEPTH))),
        kendall_tau=float(np.mean(taus)) if taus else None,
        **quality,
        calibration=[Bin(**point) for point in score_bins(look_up(top, scored), scored.scores)],  # type: ignore[arg-type]
    )


def _scored(teacher: Ranker, collection: Collection, queries: Texts, pairs: Run) -> Run:
    """The pairs with the teacher's scores; of a recorded teacher, those that it has."""
    if teacher.run is None:
        return teacher.score(queries, collection, pairs)
    teacher.run.require({*collection.queries.ids, *queries.ids}, collection.documents.ids)
    return recorded_pairs(teacher.run, pairs, teacher.name)


def _ndcg(run: Run, qrels: Grades) -> float:
    return means(evaluate_run(run, qrels, ["ndcg@10"]))["ndcg@10"]


def _mean(values: Mapping[str, float]) -> float:
    return float(np.mean(list(values.values())))
