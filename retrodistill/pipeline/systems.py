"""The systems of a job's table, and how each is measured."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import pyarrow as pa

from retrodistill.indexes.protocol import Index
from retrodistill.measures.latency import query_latency
from retrodistill.measures.ranking import evaluate_run, means
from retrodistill.measures.significance import compare_paired
from retrodistill.models.retrievers import DenseRetriever, LexicalRetriever, Retriever, load_retriever
from retrodistill.models.vector_files import VectorFile
from retrodistill.pipeline.job import Job, can_answer
from retrodistill.pipeline.students import Distilled
from retrodistill.progress import say
from retrodistill.reports.results import System
from retrodistill.runs.run import Run
from retrodistill.teachers.dense import DenseTeacher
from retrodistill.teachers.ensemble import Ensemble
from retrodistill.teachers.lexical import LexicalTeacher
from retrodistill.teachers.recorded import RecordedTeacher


@dataclass(frozen=True)
class Candidate:
    """A system before it is measured; one that is not `served` has neither latency nor bytes per document."""

    name: str
    role: str
    retriever: Retriever
    documents_by: str
    queries_by: str
    served: bool = True


@dataclass(frozen=True)
class Measured:
    """A measured system: its row, its results and its value for each query."""

    system: System
    run: Run
    per_query: pa.Table


def baselines(job: Job) -> list[Candidate]:
    """BM25, the space's own model, and what the students learn from where that is something else and can search."""
    space = job.space.name
    found = [
        Candidate("bm25", "baseline", LexicalRetriever(), "bm25", "bm25"),
    ]
    if can_answer(job):
        recorded = isinstance(job.space, VectorFile)  # looking vectors up is not what its API takes
        found.append(Candidate(space_row(job), "teacher", DenseRetriever(job.space), space, space, served=not recorded))
    target = target_name(job)
    if target == "target":
        model = load_retriever(job.teacher.encoder)  # type: ignore[attr-defined]
        found.append(Candidate(target, "teacher", model, job.teacher.name, job.teacher.name))
    if isinstance(job.teacher, Ensemble):
        return [*found, *([_ensemble(job.teacher, "teacher")] if target else [])]
    return [*found, *([_ensemble(job.beside, "baseline")] if isinstance(job.beside, Ensemble) else [])]


def _ensemble(ensemble: Ensemble, role: str) -> Candidate:
    by = " + ".join(
        f"{weight:g} {member.name}" for member, weight in zip(ensemble.members, ensemble.weights, strict=True)
    )
    served = all(isinstance(member, (LexicalTeacher, DenseTeacher)) for member in ensemble.members)
    return Candidate("ensemble", role, ensemble, by, by, served)


def of_student(student: Distilled, index: Index, role: str) -> Candidate:
    """A student behind its index."""
    own = _shown(student.encoder.name)
    documents = own if student.documents is student.encoder else student.documents.name
    return Candidate(student.name, role, index, documents, own)


def measure(candidate: Candidate, job: Job) -> Measured:
    """Retrieve the test queries, measure each, time some."""
    settings = job.recipe.evaluation
    say(f"measuring {candidate.name}")
    retriever = candidate.retriever
    run = retriever.retrieve(job.collection, job.test, min(settings.depth, len(job.collection.documents)))
    per_query = evaluate_run(run, job.collection.relevance(job.recipe.split.test).to_dict())
    timing = None
    if settings.latency_queries and candidate.served:
        respond = retriever.responder(job.collection, min(100, len(job.collection.documents)))
        timing = query_latency(respond, job.test.texts[: settings.latency_queries])
    row: dict[str, Any] = {
        "name": candidate.name,
        "role": candidate.role,
        **means(per_query),
        "query_ms": timing,
        "bytes_per_document": retriever.bytes_per_document(job.collection) if candidate.served else None,
        "documents_by": candidate.documents_by,
        "queries_by": candidate.queries_by,
    }
    return Measured(System.model_validate(row), run.top(settings.depth).renamed(candidate.name), per_query)


def space_row(job: Job) -> str:
    """The space's own model on both sides: ``teacher``, or ``exact`` where an index of its vectors is learned."""
    return "exact" if job.recipe.index.learn else "teacher"


def target_name(job: Job) -> str | None:
    """The system that the students learn from: ``teacher`` where that is the space's own model.

    None where it cannot answer test queries: a recorded run, an ensemble with one, a cross-encoder on its own.
    """
    teacher = job.teacher
    if isinstance(teacher, Ensemble):
        recorded = any(isinstance(member, RecordedTeacher) for member in teacher.members)
        return None if recorded else "ensemble"
    if isinstance(teacher, LexicalTeacher):
        return "bm25"
    if isinstance(teacher, DenseTeacher):
        if not can_answer(job) and teacher.encoder.name == job.space.name:
            return None
        return space_row(job) if teacher.encoder.contract("query") == job.space.contract("query") else "target"
    return None


def with_retention(measured: list[Measured], target: str | None) -> list[System]:
    """The rows, each with the share of the target's nDCG@10 that it keeps."""
    scores = {one.system.name: one.system.ndcg10 for one in measured}
    ceiling = scores.get(target or "")
    return [
        one.system
        if not ceiling or one.system.role == "teacher" or one.system.name == target
        else one.system.model_copy(update={"retention": (one.system.ndcg10 or 0.0) / ceiling})
        for one in measured
    ]


def comparisons(measured: list[Measured], seed: int, which: str = "ndcg@10") -> list[dict[str, Any]]:
    """Each student against every system that is no student, on the same queries."""
    found = []
    for student in (one for one in measured if one.system.role == "student"):
        for other in (one for one in measured if one.system.role != "student"):
            values = compare_paired(student.per_query[which].to_numpy(), other.per_query[which].to_numpy(), seed=seed)
            found.append({"a": student.system.name, "b": other.system.name, "measure": which, **values})
    return found


def _shown(name: str) -> str:
    """A student's name without the folders above it."""
    kind, _, place = name.partition(":")
    return f"{kind}:{place.rstrip('/').rsplit('/', 1)[-1]}"
