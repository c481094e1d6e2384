"""Run a recipe from collection to report; what is done already is not done again."""

from __future__ import annotations

import os
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq

from retrodistill.distributed import is_main, main_first
from retrodistill.files import atomic_file, exclusive, make_folder, write_json
from retrodistill.indexes import Index, build_index, load_index
from retrodistill.manifest import Manifest, hardware, library_versions
from retrodistill.models.encoder import Encoder
from retrodistill.pipeline.examples import example_searches, spread_out
from retrodistill.pipeline.job import Job, open_job
from retrodistill.pipeline.quantised import Curves, quantised
from retrodistill.pipeline.students import Distilled, contrastive_twin, distil, remove_work, untrained
from retrodistill.pipeline.systems import (
    Measured,
    baselines,
    comparisons,
    measure,
    of_student,
    space_row,
    target_name,
    with_retention,
)
from retrodistill.recipe import Recipe, StudentSettings, load_recipe, recipe_yaml
from retrodistill.reports import write_page
from retrodistill.reports.results import Results
from retrodistill.runs.formats import write_run
from retrodistill.teachers.recorded import RecordedTeacher

Seconds = dict[str, float]


def run_recipe(
    recipe: str | os.PathLike[str] | Recipe,
    out: str | os.PathLike[str],
    overrides: Sequence[str] = (),
    *,
    command: str = "",
) -> Results:
    """Execute a recipe, or take it up again where it stopped.

    Args:
        recipe: A YAML file, the name of a packaged recipe, or a `Recipe`.
        out: Folder for ``recipe.yaml``, students, indexes, runs, ``per-query.parquet``, ``results.json`` and
            ``report.html``.
        overrides: ``key.path=value`` each.
        command: What to print as the command that gives these numbers again.

    Returns:
        What results.json holds.

    Raises:
        UserError: The recipe or what it names does not fit; nothing is half-written.
    """
    settings = recipe if isinstance(recipe, Recipe) else load_recipe(recipe, overrides)
    seconds: Seconds = {}
    with _timed(seconds, "load"), main_first():
        job = open_job(settings, out)
    make_folder(job.out)
    with exclusive(job.out / ".lock"):
        return _run(job, seconds, command)


def _run(job: Job, seconds: Seconds, command: str) -> Results:
    settings = job.recipe
    if is_main():
        with atomic_file(job.out / "recipe.yaml") as temporary:
            temporary.write_text(recipe_yaml(settings), encoding="utf-8")
    distilled: list[tuple[Distilled, str]] = []
    for name, student, role in _entries(settings):
        with _timed(seconds, f"distil {name}"):
            distilled.append((distil(name, student, job.material, job.out / "students" / name), role))
    if not is_main():
        raise SystemExit(0)  # the other processes of torchrun have done their part
    candidates = baselines(job)
    for made, role in distilled:
        with _timed(seconds, f"index {made.name}"):
            candidates.append(of_student(made, _index(job, made), role))
    curves = {made.name: made.curves for made, _ in distilled if made.curves["losses"]}
    if settings.index.learn:
        compressed, curves = quantised(job, seconds)
        candidates += compressed
    with _timed(seconds, "evaluate"):
        measured = [measure(candidate, job) for candidate in candidates]
    results = _write(job, measured, [made for made, _ in distilled], curves, seconds, command)
    remove_work(job.material)
    return results


def _entries(recipe: Recipe) -> Iterator[tuple[str, StudentSettings, str]]:
    """Every student behind its control, which is named ``control`` where there is one student only."""
    for name, student in recipe.students.items():
        if student.control:
            control = untrained(student) if student.control == "untrained" else contrastive_twin(student)
            yield "control" if len(recipe.students) == 1 else f"{name}-control", control, "control"
        yield name, student, "student"


def _index(job: Job, student: Distilled) -> Index:
    """The student's index, built or loaded."""
    folder, wanted = job.out / "indexes" / student.name, job.recipe.index
    inputs = {
        "documents": job.collection.documents.fingerprint,
        "space": student.documents.fingerprint("document"),
        "queries": student.encoder.fingerprint("query"),
    }
    made_from = Manifest("index of a student", inputs, wanted.model_dump(mode="json"))
    if made_from.matches(folder, "made-from.json"):
        return load_index(folder, student.encoder)
    settings = wanted.faiss if isinstance(student.documents, Encoder) else None
    index = build_index(job.collection, student.documents, student.encoder, name=student.name, settings=settings)
    index.save(folder)
    made_from.write(folder, "made-from.json")
    return index


def _write(
    job: Job,
    measured: list[Measured],
    students: list[Distilled],
    curves: Curves,
    seconds: Seconds,
    command: str,
) -> Results:
    recipe, target = job.recipe, target_name(job)
    for one in measured:
        write_run(one.run, job.out / "runs" / f"{one.system.name}.run")
    _write_per_query(measured, job.out / "per-query.parquet")
    for student in students:
        if student.name in curves:
            seconds[f"train {student.name}"] = student.seconds
    by_name = {one.system.name: one for one in measured}
    shown = next(iter(recipe.students), "distilled")
    notes = list(job.notes)
    if isinstance(job.teacher, RecordedTeacher):
        notes.append(_coverage(job, job.teacher))
    elif target is None:
        notes.append(f"{job.teacher.name} taught the student; it cannot search on its own and is not in the table.")
    results = Results(
        collection=job.collection.name,
        split=recipe.split.test,
        queries=len(measured[0].per_query),
        systems=with_retention(measured, space_row(job) if recipe.index.learn else target),
        name=recipe.name,
        command=command,
        hardware=hardware(),
        versions=library_versions(),
        seconds={name: round(value, 2) for name, value in seconds.items()},
        seed=recipe.seed,
        taught_by=target,
        comparisons=comparisons(measured, recipe.seed),
        curves=curves,
        examples=example_searches(
            job.collection,
            recipe.split.test,
            spread_out(job.test.ids, recipe.evaluation.examples),
            by_name.get(target or space_row(job), by_name["bm25"]),
            by_name[shown],
        ),
        notes=notes,
        provenance=_provenance(job, students),
    )
    write_json(job.out / "results.json", results.to_json())
    write_page(results, job.out / "report.html")
    Manifest("job", {"collection": job.collection.fingerprint}, recipe.model_dump(mode="json")).write(job.out)
    return results


def _write_per_query(measured: list[Measured], path: Path) -> None:
    tables = [
        one.per_query.add_column(0, "system", pa.array([one.system.name] * len(one.per_query))) for one in measured
    ]
    with atomic_file(path) as temporary:
        pq.write_table(pa.concat_tables(tables), temporary)


def _coverage(job: Job, teacher: RecordedTeacher) -> str:
    known = set(teacher.run.query_ids)
    train, test = (sum(query in known for query in split.ids) for split in (job.train, job.test))
    return (
        f"{teacher.name} has scores for {train} of {len(job.train)} training queries, which taught the student, "
        f"and for {test} of {len(job.test)} test queries, which nothing here used; it is not in the table."
    )


def _provenance(job: Job, students: list[Distilled]) -> dict[str, Any]:
    return {
        "collection": job.collection.fingerprint,
        "documents": str(len(job.collection.documents)),
        "training queries": str(len(job.train)),
        "space": f"{job.space.name} {job.space.document_space}",
        "teacher": f"{job.teacher.name} {job.teacher.fingerprint(job.collection)}",
        **{f"student {student.name}": student.encoder.fingerprint("query") for student in students},
    }


@contextmanager
def _timed(seconds: Seconds, stage: str) -> Iterator[None]:
    start = time.perf_counter()
    yield
    seconds[stage] = time.perf_counter() - start
