"""What a job's report says: rows with what was kept and agreement, tested differences, queries won and lost."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from retrodistill.core.manifest import hardware, library_versions
from retrodistill.core.progress import log
from retrodistill.evaluation.agreement import agreements
from retrodistill.evaluation.examples import Side, side_by_side, spread_out, won_and_lost
from retrodistill.evaluation.results import Agreement, Results, System
from retrodistill.recipes.job import Job
from retrodistill.recipes.students import Distilled
from retrodistill.recipes.systems import Measured, comparisons, space_row, target_name, with_retention
from retrodistill.report.headline import best_student
from retrodistill.runs.run import Run

Curves = Mapping[str, dict[str, list[dict[str, float]]]]


def report(
    job: Job,
    measured: Sequence[Measured],
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
        command: What to print as the command that gives these numbers again.
    """
    recipe, target = job.recipe, target_name(job)
    yardstick = space_row(job) if recipe.index.learn else target
    agreed = _agreements(job, measured, target)
    rows = [one.model_copy(update={"agreement": agreed.get(one.name)}) for one in with_retention(measured, yardstick)]
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
        comparisons=comparisons(measured, recipe.seed),
        curves=dict(curves),
        **_shown(job, measured, rows, yardstick),
        notes=_notes(job, students, target),
        provenance=_provenance(job, students),
    )


def _shown(job: Job, measured: Sequence[Measured], rows: list[System], yardstick: str | None) -> dict[str, Any]:
    """Rankings of the best student beside those of what it is held against: the teacher, else BM25."""
    by_name = {one.system.name: one for one in measured}
    student = best_student(rows)
    if student is None:
        return {}
    wanted = (yardstick, space_row(job), "bm25")
    reference = by_name[next(name for name in wanted if name in by_name)]
    sides = [Side.of(one.system.name, one.run, one.per_query) for one in (reference, by_name[student.name])]
    count = job.recipe.evaluation.examples
    chosen = {"examples": spread_out(job.test.ids, count)}
    if count:
        chosen["won"], chosen["lost"] = won_and_lost(sides[0], sides[1])
    return {
        "sides": [side.name for side in sides],
        **{name: side_by_side(job.collection, job.grades, ids, sides[0], sides[1]) for name, ids in chosen.items()},
    }


def _agreements(job: Job, measured: Sequence[Measured], target: str | None) -> dict[str, Agreement]:
    """Agreement of every other system with the teacher, where it ranks the test queries at no great cost.

    The candidates of all systems are scored again only by teachers whose scores cost next to nothing.
    """
    runs = {one.system.name: one.run for one in measured if one.system.name != target}
    own = next((one.run for one in measured if one.system.name == target), None)
    if own is None:
        recorded = set() if job.teacher.run is None else set(job.teacher.run.query_ids)
        if recorded.isdisjoint(job.asked_test.ids):
            return {}
    log(f"agreement with {job.teacher.name}")
    cheap = job.teacher.is_cheap
    return agreements(job.teacher, runs, job.collection, job.asked_test, job.grades, wanted=own, rescore=cheap)


def _notes(job: Job, students: Sequence[Distilled], target: str | None) -> list[str]:
    notes = [*job.notes, *(note for student in students for note in student.notes)]
    if job.teacher.run is not None:
        notes.append(_coverage(job, job.teacher.run, job.teacher.name))
    elif target is None:
        notes.append(
            f"{job.teacher.name} taught the student; it cannot search on its own and is not in the table. Agreement "
            "with it takes its scores of all candidates: retrodistill evaluate run:OUT/runs/NAME.run --teacher ... "
            "measures it."
        )
    return notes


def _coverage(job: Job, run: Run, name: str) -> str:
    known = set(run.query_ids)
    train, test = (sum(query in known for query in split.ids) for split in (job.train, job.test))
    return (
        f"{name} has scores for {train} of {len(job.train)} training queries, which taught the student, "
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
