"""What a job's results say: rows with what was kept and agreement, tested differences, queries won and lost."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from retrodistill.core.manifest import hardware, library_versions
from retrodistill.core.runtime import log
from retrodistill.evaluation.agreement import agreements
from retrodistill.evaluation.examples import MEASURE, shown_queries
from retrodistill.evaluation.results import Results, SystemResult
from retrodistill.evaluation.significance import paired_tests
from retrodistill.evaluation.systems import Measured
from retrodistill.recipes.job import Job
from retrodistill.recipes.students import Distilled
from retrodistill.recipes.systems import space_row, target_name
from retrodistill.report.headline import best_student
from retrodistill.runs.run import Run

Curves = dict[str, dict[str, list[dict[str, float]]]]


def job_results(
    job: Job,
    measured: Mapping[str, Measured],
    students: Sequence[Distilled],
    curves: Curves,
    seconds: Mapping[str, float],
    command: str,
) -> Results:
    """Everything that results.json and the page say of a job.

    Args:
        job: The recipe with what it names.
        measured: Every system, in the order of the table.
        students: What was distilled.
        curves: Of training, by student.
        seconds: Of each stage.
        command: Command that gives these numbers again.
    """
    recipe, target = job.recipe, target_name(job)
    yardstick = space_row(job) if recipe.index.learn else target
    rows = _rows(job, measured, target, yardstick)
    return Results(
        collection=job.collection.name,
        split=job.split,
        queries=len(job.test),
        systems=rows,
        name=recipe.name,
        command=command,
        hardware=hardware(),
        versions=library_versions(),
        seconds={name: round(value, 2) for name, value in seconds.items()},
        seed=recipe.seed,
        taught_by=target,
        kept_of=None if yardstick == target else yardstick,
        comparisons=_comparisons(measured, recipe.seed),
        curves=curves,
        **_shown(job, measured, rows, yardstick),
        notes=_notes(job, students, target),
        provenance=_provenance(job, students),
    )


def _rows(job: Job, measured: Mapping[str, Measured], target: str | None, yardstick: str | None) -> list[SystemResult]:
    """The rows, each with its agreement with the teacher, and the share of the yardstick's nDCG@10 that it keeps."""
    agreed = _agreements(job, measured, target)
    ceiling = None if yardstick is None else measured[yardstick].row.ndcg10
    rows = []
    for name, one in measured.items():
        kept = ceiling and name != yardstick and one.row.role != "teacher"
        retention = (one.row.ndcg10 or 0.0) / ceiling if ceiling and kept else None
        rows.append(one.with_row(agreement=agreed.get(name), retention=retention).row)
    return rows


def _agreements(job: Job, measured: Mapping[str, Measured], target: str | None) -> dict[str, Any]:
    """Agreement of every other system with the teacher, where it ranks the test queries at no great cost.

    The candidates of all systems are scored again only by teachers whose scores cost next to nothing.
    """
    own = None if target is None else measured[target].load_run()
    known = set() if job.teacher.run is None else set(job.teacher.run.query_ids)
    if own is None and known.isdisjoint(job.teacher_test_queries.ids):
        return {}
    log(f"agreement with {job.teacher.name}")
    runs = {name: one.load_run() for name, one in measured.items() if name != target}
    return agreements(
        job.teacher,
        runs,
        job.collection,
        job.teacher_test_queries,
        job.grades,
        teacher_run=own,
        rescore=job.teacher.is_cheap,
    )


def _comparisons(measured: Mapping[str, Measured], seed: int) -> list[dict[str, Any]]:
    """Each student against every system that is not a student, on the same queries; none without judgments."""
    judged = {name: one for name, one in measured.items() if one.per_query is not None}
    values = {name: one.per_query[MEASURE].to_numpy() for name, one in judged.items()}  # type: ignore[index]
    students = [name for name, one in judged.items() if one.row.role == "student"]
    pairs = [(student, other) for student in students for other in judged if other not in students]
    return paired_tests(pairs, values, MEASURE, seed)


def _shown(
    job: Job, measured: Mapping[str, Measured], rows: Sequence[SystemResult], yardstick: str | None
) -> dict[str, Any]:
    """Rankings of the best student next to those of what it is compared with: the teacher, else BM25."""
    student = best_student(rows)
    if student is None:
        return {}
    reference = next(name for name in (yardstick or "", space_row(job), "bm25") if name in measured)
    return shown_queries(job.task, measured[reference], measured[student.name], job.recipe.evaluation.examples)


def _notes(job: Job, students: Sequence[Distilled], target: str | None) -> list[str]:
    notes = [*job.notes, *(note for student in students for note in student.notes)]
    if job.teacher.run is not None:
        notes.append(_coverage(job, job.teacher.run))
    elif target is None:
        notes.append(
            f"{job.teacher.name} taught the student; it cannot search on its own and is not in the table. Agreement "
            "with it takes its scores of all candidates: retrodistill evaluate run:OUT/runs/NAME.run --teacher ... "
            "measures it."
        )
    return notes


def _coverage(job: Job, recorded: Run) -> str:
    known = set(recorded.query_ids)
    train, test = (sum(query in known for query in split.ids) for split in (job.train, job.test))
    return (
        f"{job.teacher.name} has scores for {train} of {len(job.train)} training queries, which taught the student, "
        f"and for {test} of {len(job.test)} test queries, on which agreement with it is measured; it is not in the "
        "table."
    )


def _provenance(job: Job, students: Sequence[Distilled]) -> dict[str, Any]:
    return {
        "collection": job.collection.fingerprint,
        "documents": str(len(job.collection.documents)),
        "training queries": str(len(job.train)),
        "space": f"{job.space.name} {job.space.document_space}",
        "teacher": f"{job.teacher.name} {job.teacher.fingerprint(job.collection)}",
        **{f"student {student.name}": student.encoder.fingerprint("query") for student in students},
    }
