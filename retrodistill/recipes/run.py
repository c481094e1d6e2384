"""Run a recipe from collection to report; finished work is not repeated."""

from __future__ import annotations

import gc
import os
import shutil
import time
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

from retrodistill.core.checksums import file_checksum
from retrodistill.core.files import atomic_file
from retrodistill.core.json_files import write_json
from retrodistill.core.locks import exclusive
from retrodistill.core.manifest import Manifest
from retrodistill.core.paths import make_folder
from retrodistill.core.runtime import is_main, main_first, release_freed_memory
from retrodistill.core.spending import LEDGER, Spending, spend
from retrodistill.encoders.contract import encode_with
from retrodistill.evaluation.evaluating import evaluate_systems
from retrodistill.evaluation.results import Results
from retrodistill.evaluation.systems import PER_QUERY, write_per_query
from retrodistill.recipes import systems
from retrodistill.recipes.against_bm25 import labeled_warnings
from retrodistill.recipes.cards import write_cards
from retrodistill.recipes.job import Job, open_job
from retrodistill.recipes.loading import load_recipe, recipe_yaml
from retrodistill.recipes.measuring import remember_measuring
from retrodistill.recipes.plan import check_job
from retrodistill.recipes.quantized import quantized
from retrodistill.recipes.reporting import job_results
from retrodistill.recipes.settings import Recipe
from retrodistill.recipes.students import timed, train_students, work_folder
from retrodistill.recipes.tracked import track_results, tracked_job
from retrodistill.report import write_page
from retrodistill.runs.formats import save_run


def run_recipe(
    recipe: str | os.PathLike[str] | Recipe,
    out: str | os.PathLike[str],
    overrides: Sequence[str] = (),
    *,
    command: str = "",
) -> Results | None:
    """Run a recipe, or resume it where it stopped.

    The folder `out` gets ``recipe.yaml``, students, indexes, runs, ``per-query.parquet``, ``results.json`` and
    ``report.html``; the report shows the `command` that reproduces its numbers. Overrides are ``key.path=value`` each.

    Returns:
        The content of results.json; None in the other processes of torchrun, which only train.

    Raises:
        UserError: The recipe or what it names does not fit; nothing is half-written.
    """
    settings = recipe if isinstance(recipe, Recipe) else load_recipe(recipe, overrides)
    seconds: dict[str, float] = {}
    with encode_with(settings.encoding), spend(settings.spending, ledger=Path(out) / LEDGER) as spending:
        with timed(seconds, "load"), main_first():
            job = open_job(settings, out)
            check_job(job)
        gc.collect()  # models that the check made
        release_freed_memory()
        make_folder(job.out)
        with exclusive(job.out / ".lock"), tracked_job(job):
            return _run(job, seconds, command, spending)


def _run(job: Job, seconds: dict[str, float], command: str, spending: Spending) -> Results | None:
    settings = job.recipe
    if is_main():
        with atomic_file(job.out / "recipe.yaml") as temporary:
            temporary.write_text(recipe_yaml(settings), encoding="utf-8")
    planned = list(systems.students_to_train(settings))
    students = {name: student for name, student, _ in planned}
    folders = {name: job.out / "students" / name for name in students}
    trained = train_students(students, job.training_data, folders, job.teachers, seconds)
    trained = {name: replace(trained[name], role=role) for name, _, role in planned}
    if not is_main():
        return None
    compared = systems.baselines(job) + systems.truncated_teachers(job)
    for student in systems.variants_of(job, trained.values()):
        with timed(seconds, f"index {student.name}"):
            compared.append(systems.student_system(job, student))
    if note := systems.vectors_note(compared):
        job.notes.append(note)
    if rewritten := systems.rewritten_student(job, compared):
        compared.append(rewritten)
    curves = {name: student.curves for name, student in trained.items() if student.curves["losses"]}
    seconds.update({f"train {name}": trained[name].seconds for name in curves})
    if settings.index.learn:
        compressed, curves = quantized(job, seconds)
        compared += compressed
    started = time.perf_counter()
    with timed(seconds, "evaluate"):
        job.notes[:0] = labeled_warnings(job, trained.values(), compared)
        measured = evaluate_systems(compared, job.task, job.evaluation)
    written = [save_run(system.load_run(), job.out / "runs" / name) for name, system in measured.items()]
    write_per_query(list(measured.values()), job.out)
    results = job_results(job, measured, list(trained.values()), curves, seconds, command)
    results = results.model_copy(update={"spending": spending.to_json()})
    write_json(job.out / "results.json", results.to_json())
    write_page(results, job.out / "report.html")
    track_results(job, results, curves)
    written += [file for file in (job.out / PER_QUERY,) if file.is_file()]
    files = {file.relative_to(job.out).as_posix(): file_checksum(file) for file in written}
    inputs = {"collection": job.collection.fingerprint}
    Manifest("job", inputs, settings.model_dump(mode="json", exclude={"tracking"}), files=files).write(job.out)
    write_cards(job, trained.values(), results)
    remember_measuring(job, time.perf_counter() - started)
    shutil.rmtree(work_folder(job.training_data), ignore_errors=True)
    return results
