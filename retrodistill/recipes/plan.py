"""Plan a recipe without running it: the steps that are left and how long they take. Nothing is trained or stored.

To measure rates, the plan encodes up to 64 of the texts that a step embeds and scores up to 32 of the pairs that a
cross-encoder scores. These results are discarded.
"""

from __future__ import annotations

import os
from collections.abc import Sequence
from typing import Any

from retrodistill.encoders.any_encoder import DENSE, load_encoder
from retrodistill.encoders.contract import STUDENT_MANIFEST, encode_with
from retrodistill.encoders.embeddings import seconds_to_embed
from retrodistill.encoders.names import parse_model_name
from retrodistill.rankers.protocol import Work
from retrodistill.recipes.job import Job, open_job
from retrodistill.recipes.loading import load_recipe
from retrodistill.recipes.settings import Recipe
from retrodistill.recipes.stage_teachers import manifest_after_stage, student_manifest
from retrodistill.recipes.student_settings import StudentSettings
from retrodistill.recipes.students import work_folder
from retrodistill.recipes.systems import MADE_FROM, planned_variants, students_to_train
from retrodistill.training.prepared import Prepared, held_out_rows, training_rows
from retrodistill.training.scoring import candidate_pairs, stage_texts
from retrodistill.training.settings import CURRENT_STUDENT, StageSettings
from retrodistill.training.trainer import optimizer_steps
from retrodistill.training.training_data import TrainingData

NOTHING_TO_COUNT = "stages"  # unit of steps that only inform


def plan_recipe(
    recipe: str | os.PathLike[str], out: str | os.PathLike[str], overrides: Sequence[str] = ()
) -> list[dict[str, Any]]:
    """The steps of a recipe with what is left to do and how long that takes, at rates measured now.

    Returns:
        ``[{"step": .., "items": .., "unit": .., "seconds": ..}]``. Seconds are None if the time is known only once the
        step starts, such as for training, whose number of steps is approximate.
    """
    settings = load_recipe(recipe, overrides)
    with encode_with(settings.encoding):
        return _plan(settings, out)


def _plan(settings: Recipe, out: str | os.PathLike[str]) -> list[dict[str, Any]]:
    job = open_job(settings, out)
    count, seconds = seconds_to_embed(job.space, job.collection.documents.texts, "document")
    steps = [_step(f"embed documents with {job.space.name}", count, "texts", seconds)]
    # Stages that several students share, by fingerprint, and stages with the same pairs: the first one of each.
    trained: dict[str, str] = {}
    scored: dict[str, str] = {}
    systems, indexes = 0, 0
    for name, student, _ in students_to_train(settings):
        variants = planned_variants(job, name, student)
        folder = job.out / "students" / name
        is_done = student_manifest(student, job.training_data, job.teachers).matches(folder, STUDENT_MANIFEST)
        systems += 1 + len(variants)
        if student.kind.can_search and not (settings.evaluation.exhaustive and student.kind.has_own_documents):
            built = [is_done and (job.out / "indexes" / each / MADE_FROM).exists() for each in (name, *variants)]
            indexes += built.count(False)
        if not student.stages:
            continue  # a control before training
        if is_done:
            steps.append(_step(f"{name}: already distilled"))
            continue
        if (folder / STUDENT_MANIFEST).exists():
            steps.append(_step(f"{name}: its settings or inputs have changed, so it is trained again"))
        for number, stage in enumerate(student.stages, start=1):
            title = f"{name}, stage {number}"
            fingerprint = manifest_after_stage(student, job.training_data, number, job.teachers).fingerprint
            first = trained.setdefault(fingerprint, title)
            # Everything that determines a stage's texts and pairs, which are made once per key.
            pairs = stage.model_dump_json(include={"teacher", "labels", "texts", "candidates", "positives"})
            pairs += str((stage.aligns, stage.needs_lists, stage.needs_own_document))
            same_pairs = scored.setdefault(pairs, title)
            if first != title:
                steps.append(_step(f"{title}: the same as {first}"))
            else:
                steps += [_stage_step(job, stage, title, same_pairs), _training_step(job, student, number, title)]
        steps += [_step(f"{variant}: also measured") for variant in variants]
    if systems:
        steps.append(_step("index students' documents", indexes, "indexes", None))
        steps.append(_step("measure students and what they are compared with", systems, "systems", None))
    return steps


def _training_step(job: Job, student: StudentSettings, number: int, title: str) -> dict[str, Any]:
    manifest, stage = manifest_after_stage(student, job.training_data, number, job.teachers), student.stages[number - 1]
    if manifest.matches(work_folder(job.training_data) / manifest.fingerprint, STUDENT_MANIFEST):
        return _step(f"{title}: already trained")
    count = stage.training.max_steps
    if stage.selection is None:  # about as many as if every list taught something
        texts = stage_texts(stage, _stage_data(job, stage))
        prepared = Prepared(texts, None, [], held_out_rows(texts, None, job.recipe.seed))
        draws = stage.groups.draws if stage.draws_groups else 1
        count = optimizer_steps(len(training_rows(prepared, stage)) * draws, stage.training)
    elif not count:
        return _step(f"{title}: train; the number of steps is known when it starts")
    return _step(f"{title}: train", count, "steps", None)


def _stage_data(job: Job, stage: StageSettings) -> TrainingData:
    """The stage's data; with the job's teacher if students teach, which are not trained yet."""
    return job.training_data if job.teachers.needs_students(stage) else job.teachers.data_of(stage, job.training_data)


def _stage_step(job: Job, stage: StageSettings, title: str, same_pairs: str) -> dict[str, Any]:
    what = f"{title}: teacher {' + '.join(member.model for member in stage.teacher) or job.teacher.name}"
    if job.teachers.needs_students(stage):
        return _step(f"{what}, known when that student is trained", unit="pairs")
    if CURRENT_STUDENT in (stage.candidates.sources or []):
        return _step(f"{what}, candidates known when the student is trained so far", unit="pairs")
    if same_pairs != title:
        return _step(f"{what}, the same texts and pairs as {same_pairs}", unit="pairs")
    work = _stage_work(job, stage)
    return _step(what, work.items, work.unit, work.seconds)


def _stage_work(job: Job, stage: StageSettings) -> Work:
    """What a stage still needs from its teachers: texts to embed, or, once mining has all embeddings, pairs."""
    data = _stage_data(job, stage)
    texts = stage_texts(stage, data).texts
    queries = data.teacher_queries(texts)
    # Embeddings to align with, or to mine or score with.
    encoders = {job.space.name: job.space}
    if stage.needs_lists:
        encoders = {member.name: member.queries for member in data.teacher.members if member.queries is not None}
        for source in stage.candidates.sources or []:
            if source not in encoders and parse_model_name(source).kind in ("dense", "static"):
                encoders[source] = job.space if source == job.recipe.document_encoder else load_encoder(source, DENSE)
    counted = [seconds_to_embed(encoder, queries.texts, "query") for encoder in encoders.values()]
    documents = job.collection.documents.texts  # the document encoder has a step of its own
    others = [encoder for encoder in encoders.values() if encoder is not job.space]
    counted += [seconds_to_embed(encoder, documents, "document") for encoder in others]
    missing = Work(sum(items for items, _ in counted), "texts", sum(seconds for _, seconds in counted))
    if missing.items or not stage.needs_lists or stage.any_document:
        return missing
    return data.teacher.remaining(queries, job.collection, candidate_pairs(stage, data, texts)[0])


def _step(step: str, items: int = 0, unit: str = NOTHING_TO_COUNT, seconds: float | None = 0.0) -> dict[str, Any]:
    seconds = None if seconds is None else round(seconds, 1)
    return {"step": step, "items": items, "unit": unit, "seconds": seconds}
