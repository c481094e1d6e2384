"""Run a recipe from collection to report; what is done already is not done again."""

from __future__ import annotations

import os
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import replace

from retrodistill.core.distributed import is_main, main_first
from retrodistill.core.files import atomic_file, exclusive, make_folder, write_json
from retrodistill.core.manifest import Manifest
from retrodistill.encoders.encoding import encode_with
from retrodistill.evaluation.folder import write_per_query
from retrodistill.evaluation.results import Results
from retrodistill.indexes import build_index, load_index
from retrodistill.rankers.bm25 import BM25Ranker
from retrodistill.rankers.protocol import Ranker
from retrodistill.rankers.reranker import Reranker
from retrodistill.recipes.cards import write_cards
from retrodistill.recipes.job import Job, open_job
from retrodistill.recipes.loading import load_recipe, recipe_yaml
from retrodistill.recipes.quantized import Curves, quantized
from retrodistill.recipes.reporting import report
from retrodistill.recipes.settings import Recipe
from retrodistill.recipes.students import Distilled, remove_work, train_students
from retrodistill.recipes.systems import Measured, baselines, measure, of_student
from retrodistill.recipes.variants import entries, truncated_teachers, variants_of, vectors_note
from retrodistill.report import write_page
from retrodistill.runs.formats import keep_run
from retrodistill.students.registry import kind_of

Seconds = dict[str, float]


def run_recipe(
    recipe: str | os.PathLike[str] | Recipe,
    out: str | os.PathLike[str],
    overrides: Sequence[str] = (),
    *,
    command: str = "",
) -> Results | None:
    """Execute a recipe, or take it up again where it stopped.

    Args:
        recipe: A YAML file, the name of a packaged recipe, or a `Recipe`.
        out: Folder for ``recipe.yaml``, students, indexes, runs, ``per-query.parquet``, ``results.json`` and
            ``report.html``.
        overrides: ``key.path=value`` each.
        command: What to print as the command that gives these numbers again.

    Returns:
        What results.json holds; None in the other processes of torchrun, which only train.

    Raises:
        UserError: The recipe or what it names does not fit; nothing is half-written.
    """
    settings = recipe if isinstance(recipe, Recipe) else load_recipe(recipe, overrides)
    seconds: Seconds = {}
    with encode_with(settings.encoding):
        with _timed(seconds, "load"), main_first():
            job = open_job(settings, out)
        make_folder(job.out)
        with exclusive(job.out / ".lock"):
            return _run(job, seconds, command)


def _run(job: Job, seconds: Seconds, command: str) -> Results | None:
    settings = job.recipe
    if is_main():
        with atomic_file(job.out / "recipe.yaml") as temporary:
            temporary.write_text(recipe_yaml(settings), encoding="utf-8")
    students = {name: student for name, student, _ in entries(settings)}
    folders = {name: job.out / "students" / name for name in students}
    trained = train_students(students, job.training_data, folders, job.teachers, seconds)
    distilled = [(trained[name], role) for name, _, role in entries(settings)]
    if not is_main():
        return None
    candidates = baselines(job) + truncated_teachers(job)
    for made, role, truncate in variants_of(job, distilled):
        with _timed(seconds, f"index {made.name}"):
            candidates.append(of_student(job, made, _searcher(job, made, truncate), role))
    if note := vectors_note(candidates):
        job.notes.append(note)
    if job.rewrites is not None and settings.students:  # what the first student makes of a better query
        first = next(one for one in candidates if one.name == next(iter(settings.students)))
        candidates.append(replace(first, name="rewrites", role="baseline", rewritten=True))
    curves = {made.name: made.curves for made, _ in distilled if made.curves["losses"]}
    if settings.index.learn:
        compressed, curves = quantized(job, seconds)
        candidates += compressed
    with _timed(seconds, "evaluate"):
        measured = [measure(candidate, job) for candidate in candidates]
    results = _write(job, measured, [made for made, _ in distilled], curves, seconds, command)
    write_cards(job, [made for made, _ in distilled], results)
    remove_work(job.training_data)
    return results


def _searcher(job: Job, student: Distilled, truncate: int | None = None) -> Ranker:
    """The student's index, built or loaded; or what scores all documents in its place, or the first of BM25."""
    kind = kind_of(student.encoder.model)
    if not kind.can_search:
        return Reranker(kind.ranker(student.encoder, None), BM25Ranker(), job.recipe.evaluation.rerank, student.name)
    if job.recipe.evaluation.exhaustive and kind.exhaustive is not None:
        searcher: Ranker = kind.exhaustive(student.encoder, student.name)
        return searcher
    folder, wanted = job.out / "indexes" / student.name, job.recipe.index
    if truncate is not None:
        wanted = wanted.model_copy(update={"truncate": truncate})
    inputs = {
        "documents": job.collection.documents.fingerprint,
        "space": student.documents.fingerprint("document"),
        "queries": student.encoder.fingerprint("query"),
    }
    made_from = Manifest("index of a student", inputs, wanted.model_dump(mode="json"))
    if made_from.matches(folder, "made-from.json"):
        return load_index(folder, student.encoder)
    if student.documents is student.encoder:
        kind.store_documents(student.encoder, job.collection.documents.texts)
    settings = wanted.faiss if kind.index == "faiss" else None
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
    for one in measured:
        keep_run(one.run, job.out / "runs" / one.system.name)
    write_per_query({one.system.name: one.per_query for one in measured if one.per_query is not None}, job.out)
    for student in students:
        if student.name in curves:
            seconds[f"train {student.name}"] = student.seconds
    results = report(job, measured, students, curves, seconds, command)
    write_json(job.out / "results.json", results.to_json())
    write_page(results, job.out / "report.html")
    Manifest("job", {"collection": job.collection.fingerprint}, job.recipe.model_dump(mode="json")).write(job.out)
    return results


@contextmanager
def _timed(seconds: Seconds, stage: str) -> Iterator[None]:
    start = time.perf_counter()
    yield
    seconds[stage] = time.perf_counter() - start
