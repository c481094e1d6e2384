"""The systems of a job's table, and how each is measured."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import pyarrow as pa

from retrodistill.core.progress import log
from retrodistill.encoders.vector_files import VectorFile
from retrodistill.evaluation.comparing import paired_tests
from retrodistill.evaluation.cost import measure_cost
from retrodistill.evaluation.evaluating import search
from retrodistill.evaluation.measures import evaluate_run, means
from retrodistill.evaluation.results import System, of_measures
from retrodistill.rankers.bm25 import BM25Ranker
from retrodistill.rankers.cross_encoder import CrossEncoderRanker
from retrodistill.rankers.dense import DenseRanker
from retrodistill.rankers.ensemble import Ensemble
from retrodistill.rankers.loading import load_ranker
from retrodistill.rankers.protocol import Ranker
from retrodistill.rankers.reranker import Reranker
from retrodistill.recipes.job import Job, can_answer
from retrodistill.recipes.students import Distilled
from retrodistill.runs.run import Run
from retrodistill.students.states import StoredStatesRanker


@dataclass(frozen=True)
class Candidate:
    """A system before it is measured; one that is not `served` has neither latency nor bytes per document.

    Teachers are asked the rewrites of test queries, where a recipe has such, and so is whoever is `rewritten`. `source`
    is what `load_candidate` takes for it, as text, where another process can load it.
    """

    name: str
    role: str
    retriever: Ranker
    documents_by: str
    queries_by: str
    served: bool = True
    rewritten: bool = False
    source: str | None = None


@dataclass(frozen=True)
class Measured:
    """A measured system: its row, its results and, where there are judgments, its values for each query."""

    system: System
    run: Run
    per_query: pa.Table | None


def baselines(job: Job) -> list[Candidate]:
    """BM25, the space's own model, and what the students learn from where that is something else and can search."""
    space = job.space.name
    found = [
        Candidate("bm25", "baseline", BM25Ranker(), "bm25", "bm25", source="bm25"),
    ]
    if can_answer(job):
        recorded = isinstance(job.space, VectorFile)  # looking vectors up is not what its API takes
        own = DenseRanker(job.space)
        found.append(Candidate(space_row(job), "teacher", own, space, space, served=not recorded, source=space))
    target = target_name(job)
    if target == "target":
        found.append(_target(job))
    if isinstance(job.teacher, Ensemble):
        return [*found, *([_ensemble(job.teacher, "teacher")] if target else [])]
    return [*found, *([_ensemble(job.beside, "baseline")] if isinstance(job.beside, Ensemble) else [])]


def _target(job: Job) -> Candidate:
    """A teacher of its own row: a dense model other than the space's, or a cross-encoder behind BM25."""
    teacher = job.teacher
    if isinstance(teacher, CrossEncoderRanker):
        depth = job.recipe.evaluation.rerank
        ranker = Reranker(teacher, BM25Ranker(), depth, "target")
        return Candidate("target", "teacher", ranker, f"the first {depth} of bm25", teacher.name, served=False)
    model = load_ranker(teacher.queries)
    return Candidate("target", "teacher", model, teacher.name, teacher.name, source=teacher.name)


def _ensemble(ensemble: Ensemble, role: str) -> Candidate:
    by = " + ".join(
        f"{weight:g} {member.name}" for member, weight in zip(ensemble.members, ensemble.weights, strict=True)
    )
    return Candidate("ensemble", role, ensemble, by, by, served=ensemble.can_be_timed)


def of_student(job: Job, student: Distilled, index: Ranker, role: str) -> Candidate:
    """A student behind its index; nothing is served without one."""
    own, source = _shown(student.encoder.name), str(job.out / "indexes" / student.name)
    documents = own if student.documents is student.encoder else student.documents.name
    if isinstance(index, Reranker):
        own, documents = f"{index.judge.kind}:{student.name}", index.documents_by
        source = f"rerank@{index.depth}:{job.out / 'students' / student.name}@bm25"
    if isinstance(index, StoredStatesRanker):
        return Candidate(student.name, role, index, documents, own, served=False)
    return Candidate(student.name, role, index, documents, own, source=source)


def measure(candidate: Candidate, job: Job) -> Measured:
    """Retrieve the test queries, measure each, time some."""
    settings = job.recipe.evaluation
    log(f"measuring {candidate.name}")
    retriever = candidate.retriever
    rewritten = job.rewrites is not None and (candidate.rewritten or candidate.role == "teacher")
    asked = job.asked_test if rewritten else job.test
    run = search(retriever, job.collection, asked, settings.depth)
    per_query = None if job.grades is None else evaluate_run(run, job.grades, job.measures)
    cost = None
    if settings.latency_queries and candidate.served:
        texts = asked.texts[: settings.latency_queries]
        source = candidate.source if settings.memory else None
        cost = measure_cost(
            retriever, job.collection, texts, settings.threads, source=source, place=job.recipe.collection
        )
    row: dict[str, Any] = {
        "name": candidate.name,
        "role": candidate.role,
        **of_measures({} if per_query is None else means(per_query)),
        "query_ms": None if cost is None else cost.timings[0].total,
        "cost": cost,
        "bytes_per_document": retriever.bytes_per_document(job.collection) if candidate.served else None,
        "documents_by": candidate.documents_by,
        "queries_by": f"{candidate.queries_by} (rewrites)" if rewritten else candidate.queries_by,
    }
    return Measured(System.model_validate(row), run.renamed(candidate.name), per_query)


def space_row(job: Job) -> str:
    """The space's own model on both sides: ``teacher``, or ``exact`` where an index of its vectors is learned."""
    return "exact" if job.recipe.index.learn else "teacher"


def target_name(job: Job) -> str | None:
    """The system that the students learn from: ``teacher`` where that is the space's own model.

    ``target`` is a row of its own: another dense model, or a cross-encoder that orders BM25's first documents. None
    where it cannot answer test queries: a recorded run, or an ensemble with one.
    """
    teacher = job.teacher
    if isinstance(teacher, Ensemble):
        recorded = teacher.is_recorded
        return None if recorded else "ensemble"
    if isinstance(teacher, BM25Ranker):
        return "bm25"
    if isinstance(teacher, CrossEncoderRanker):
        return "target"
    if isinstance(teacher, DenseRanker):
        if not can_answer(job) and teacher.queries.name == job.space.name:
            return None
        return space_row(job) if teacher.queries.contract("query") == job.space.contract("query") else "target"
    return None


def with_retention(measured: Sequence[Measured], target: str | None) -> list[System]:
    """The rows, each with the share of the target's nDCG@10 that it keeps."""
    scores = {one.system.name: one.system.ndcg10 for one in measured}
    ceiling = scores.get(target or "")
    return [
        one.system
        if not ceiling or one.system.role == "teacher" or one.system.name == target
        else one.system.model_copy(update={"retention": (one.system.ndcg10 or 0.0) / ceiling})
        for one in measured
    ]


def comparisons(measured: Sequence[Measured], seed: int, which: str = "ndcg@10") -> list[dict[str, Any]]:
    """Each student against every system that is no student, on the same queries; none without judgments."""
    values = {one.system.name: one.per_query[which].to_numpy() for one in measured if one.per_query is not None}
    judged = [one.system for one in measured if one.per_query is not None]
    pairs = [(a.name, b.name) for a in judged if a.role == "student" for b in judged if b.role != "student"]
    return paired_tests(pairs, values, which, seed)


def _shown(name: str) -> str:
    """A student's name without the folders above it."""
    kind, _, place = name.partition(":")
    return f"{kind}:{place.rstrip('/').rsplit('/', 1)[-1]}"
