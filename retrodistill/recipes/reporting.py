"""The results of a job: rows with agreement and retention, tested differences, queries won and lost."""

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
from retrodistill.recipes.against_bm25 import unlabeled_warnings
from retrodistill.recipes.job import Job
from retrodistill.recipes.students import Distilled
from retrodistill.recipes.systems import space_row, teacher_row
from retrodistill.report.headline import best_student

Curves = dict[str, dict[str, list[dict[str, float]]]]


def job_results(
    job: Job,
    measured: Mapping[str, Measured],
    students: Sequence[Distilled],
    curves: Curves,
    seconds: Mapping[str, float],
    command: str,
) -> Results:
    """The content of results.json and of the report; `measured` has every system in the order of the table."""
    recipe, teacher = job.recipe, teacher_row(job)
    reference = space_row(job) if recipe.index.learn else teacher
    rows = _rows(job, measured, teacher, reference)
    unlabeled = [] if job.collection.qrels else unlabeled_warnings(students, {row.name: row for row in rows})
    shown: dict[str, Any] = {}
    left_out = len(job.collection.split(recipe.split.train)) - len(job.train)
    if student := best_student(rows):
        other = next(name for name in (reference or "", space_row(job), "bm25") if name in measured)
        shown = shown_queries(job.task, measured[other], measured[student.name], recipe.evaluation.examples)
    return Results(
        collection=job.collection.name,
        split=job.task.split,
        queries=len(job.test),
        systems=rows,
        name=recipe.name,
        command=command,
        hardware=hardware(),
        versions=library_versions(),
        seconds={name: round(value, 2) for name, value in seconds.items()},
        seed=recipe.seed,
        taught_by=teacher,
        kept_of=None if reference == teacher else reference,
        comparisons=_comparisons(measured, recipe.seed),
        curves=curves,
        **shown,
        notes=[*unlabeled, *_notes(job, students, teacher)],
        provenance={
            "collection": job.collection.fingerprint,
            "documents": str(len(job.collection.whole.documents)),
            **({} if job.collection.parents is None else {"passages": str(len(job.collection.documents))}),
            "training queries": str(len(job.train)),
            "training queries left out": f"{left_out} ({recipe.split.leaks} duplicates of test queries)",
            "space": f"{job.space.name} {job.space.document_space}",
            "teacher": f"{job.teacher.name} {job.teacher.fingerprint(job.collection)}",
            **{f"student {student.name}": student.encoder.fingerprint("query") for student in students},
        },
    )


def _rows(job: Job, measured: Mapping[str, Measured], teacher: str | None, reference: str | None) -> list[SystemResult]:
    """The rows with agreement with the teacher, and with the share of the reference's nDCG@10 that they retain."""
    agreed = _agreements(job, measured, teacher)
    full = None if reference is None else measured[reference].row.ndcg10
    rows = []
    for name, system in measured.items():
        is_compared = name != reference and system.row.role != "teacher"
        retention = (system.row.ndcg10 or 0.0) / full if full and is_compared else None
        rows.append(system.with_row(agreement=agreed.get(name), retention=retention).row)
    return rows


def _agreements(job: Job, measured: Mapping[str, Measured], teacher: str | None) -> dict[str, Any]:
    """Agreement of every other system with the teacher, if that has a ranking of test queries."""
    run = None if teacher is None else measured[teacher].load_run()
    recorded = set() if job.teacher.run is None else set(job.teacher.run.query_ids)
    if run is None and recorded.isdisjoint(job.teacher_test_queries.ids):
        return {}
    log(f"agreement with {job.teacher.name}")
    runs = {name: system.load_run() for name, system in measured.items() if name != teacher}
    # Only cheap teachers score the candidates of all systems again.
    queries, cheap = job.teacher_test_queries, job.teacher.is_cheap
    return agreements(job.teacher, runs, job.collection, queries, job.task.grades, teacher_run=run, rescore=cheap)


def _comparisons(measured: Mapping[str, Measured], seed: int) -> list[dict[str, Any]]:
    """Each student against every other kind of system, on the same queries; empty without judgments."""
    judged = {name: system for name, system in measured.items() if system.per_query is not None}
    values = {name: system.per_query[MEASURE].to_numpy() for name, system in judged.items()}  # type: ignore[index]
    students = [name for name, system in judged.items() if system.row.role == "student"]
    pairs = [(student, other) for student in students for other in judged if other not in students]
    return paired_tests(pairs, values, MEASURE, seed)


def _notes(job: Job, students: Sequence[Distilled], teacher: str | None) -> list[str]:
    # Several stages and students may have the same notes.
    notes = list(dict.fromkeys([*job.notes, *(note for student in students for note in student.notes)]))
    if job.teacher.run is not None:
        known = set(job.teacher.run.query_ids)
        train, test = (sum(query in known for query in split.ids) for split in (job.train, job.test))
        notes.append(
            f"{job.teacher.name} has scores for {train} of {len(job.train)} training queries, which taught the "
            f"student, and for {test} of {len(job.test)} test queries, on which agreement with it is measured; it is "
            "not in the table."
        )
    elif teacher is None:
        notes.append(
            f"{job.teacher.name} taught the student but cannot search, so it is not in the table. Measuring agreement "
            "with it requires scoring all candidates: retrodistill evaluate run:OUT/runs/NAME.run --teacher ..."
        )
    return notes
