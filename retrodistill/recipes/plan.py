"""What a recipe would do: nothing is scored, embedded or written."""

from __future__ import annotations

import os
from collections.abc import Sequence
from typing import Any

from retrodistill.encoders.any_encoder import DENSE, load_encoder
from retrodistill.encoders.contract import STUDENT_MANIFEST, encode_with
from retrodistill.encoders.embeddings import seconds_to_embed
from retrodistill.encoders.encoder import Encoder
from retrodistill.encoders.names import parse_model_name
from retrodistill.rankers.protocol import Ranker, Work
from retrodistill.recipes.job import Job, open_job
from retrodistill.recipes.loading import load_recipe
from retrodistill.recipes.settings import Recipe
from retrodistill.recipes.stage_teachers import manifest_after_stage, student_manifest
from retrodistill.recipes.student_settings import StudentSettings
from retrodistill.recipes.students import kind_of_student, work_folder
from retrodistill.recipes.systems import entries, planned_variants
from retrodistill.training.prepared import Prepared, held_out_rows, training_rows
from retrodistill.training.scoring import candidate_pairs, stage_texts
from retrodistill.training.settings import CURRENT_STUDENT, StageSettings
from retrodistill.training.trainer import optimizer_steps
from retrodistill.training.training_data import TrainingData

SAID = "stages"  # unit of steps that say something and count nothing
_DONE = Work(0, SAID, 0.0)
_UNKNOWN = Work(0, "pairs", 0.0)  # nothing that can be counted yet


def plan_recipe(
    recipe: str | os.PathLike[str], out: str | os.PathLike[str], overrides: Sequence[str] = ()
) -> list[dict[str, Any]]:
    """The steps of a recipe, each with what is left and how long it takes at rates measured now.

    Returns:
        ``[{"step": .., "items": .., "unit": .., "seconds": ..}]``; seconds are None where the time is not known before
        it starts, as that of training, whose items are about so many steps. A form that a student is measured in
        besides is a step without items.

    Raises:
        UserError: As `run_recipe`.
    """
    settings = load_recipe(recipe, overrides)
    with encode_with(settings.encoding):
        return _planned(settings, out)


def _planned(settings: Recipe, out: str | os.PathLike[str]) -> list[dict[str, Any]]:
    job = open_job(settings, out)
    documents = seconds_to_embed(job.space, job.collection.documents.texts, "document")
    steps = [_step(f"embed documents by {job.space.name}", Work(documents[0], "texts", documents[1]))]
    trained: dict[str, str] = {}  # stages that several students share, by fingerprint: who comes to them first
    scored: dict[str, str] = {}
    systems, indexes = 0, 0
    for name, student, _ in entries(settings):
        forms = planned_variants(job, name, student)
        folder = job.out / "students" / name
        done = student_manifest(student, job.training_data, job.teachers).matches(folder, STUDENT_MANIFEST)
        systems += 1 + len(forms)
        indexes += _indexes(job, student, [name, *forms], done)
        if not student.stages:
            continue  # a control as it starts
        if done:
            steps.append(_step(f"{name}: distilled already", _DONE))
            continue
        if (folder / STUDENT_MANIFEST).exists():
            steps.append(_step(f"{name}: its settings or what it is made from have changed; trained again", _DONE))
        for number, stage in enumerate(student.stages, start=1):
            what = f"{name}, stage {number}"
            first = trained.setdefault(
                manifest_after_stage(student, job.training_data, number, job.teachers).fingerprint, what
            )
            same = scored.setdefault(_pairs_of(stage), what)
            if first != what:
                steps.append(_step(f"{what}: the same as {first}", _DONE))
            else:
                steps += [_stage_step(job, stage, what, same), _training_step(job, student, number, what)]
        steps += [_step(f"{form}: measured besides", _DONE) for form in forms]
    if systems:
        steps.append(_untimed("index students' documents", indexes, "indexes"))
        steps.append(_untimed("measure students, and what they are held against", systems, "systems"))
    return steps


def _indexes(job: Job, student: StudentSettings, names: Sequence[str], done: bool) -> int:
    """How many of a student's systems have an index to be built: all where it changes, else those that lack one."""
    kind = kind_of_student(student)
    if not kind.can_search or (job.recipe.evaluation.exhaustive and kind.has_own_documents):
        return 0
    return sum(not (done and (job.out / "indexes" / name / "made-from.json").exists()) for name in names)


def _training_step(job: Job, student: StudentSettings, number: int, what: str) -> dict[str, Any]:
    """A stage's training, counted from 1; what a killed job kept is not trained again."""
    way = manifest_after_stage(student, job.training_data, number, job.teachers)
    if way.matches(work_folder(job.training_data) / way.fingerprint, STUDENT_MANIFEST):
        return _step(f"{what}: trained already", _DONE)
    count = _steps(job, student.stages[number - 1])
    if count is None:
        return _step(f"{what}: train, its steps are known when it begins", _DONE)
    return _untimed(f"{what}: train", count, "steps")


def _steps(job: Job, stage: StageSettings) -> int | None:
    """About how many steps a stage trains, lists that teach nothing aside; None where a selection decides."""
    if stage.selection is not None:
        return stage.training.max_steps or None
    texts = stage_texts(stage, _stage_data(job, stage))
    prepared = Prepared(texts, None, [], held_out_rows(texts, None, job.recipe.seed))
    draws = stage.groups.draws if stage.train in ("both_encoders", "head") else 1
    return optimizer_steps(len(training_rows(prepared, stage)) * draws, stage.training)


def _stage_data(job: Job, stage: StageSettings) -> TrainingData:
    """The stage's data; with the job's teacher where a student teaches, which is not known yet."""
    if job.teachers is None or job.teachers.needs_students(stage):
        return job.training_data
    return job.teachers.data_of(stage, job.training_data)


def _pairs_of(stage: StageSettings) -> str:
    """What decides a stage's texts and pairs: where it is the same, they are made once."""
    needs = (stage.aligns, stage.needs_lists, stage.needs_own_document)
    return stage.model_dump_json(include={"teacher", "labels", "texts", "candidates", "positives"}) + str(needs)


def _stage_step(job: Job, stage: StageSettings, what: str, same: str) -> dict[str, Any]:
    """A stage's step; what depends on a student that is not trained yet cannot be counted."""
    named = " + ".join(one.model for one in stage.teacher) or job.teacher.name
    if job.teachers is not None and job.teachers.needs_students(stage):
        return _step(f"{what}: teacher {named}, known when that student stands there", _UNKNOWN)
    if CURRENT_STUDENT in (stage.candidates.sources or []):
        return _step(f"{what}: teacher {named}, candidates known when the student stands there", _UNKNOWN)
    if same != what:
        return _step(f"{what}: teacher {named}, texts and pairs as of {same}", Work(0, "pairs", 0.0))
    return _step(f"{what}: teacher {named}", _stage_work(job, stage))


def _stage_work(job: Job, stage: StageSettings) -> Work:
    """What a stage still needs of its teachers.

    Mining needs the embeddings of its dense sources: until these are made, their texts are what is counted and the
    pairs of a cross-encoder cannot be told.
    """
    data = _stage_data(job, stage)
    texts = stage_texts(stage, data).texts
    asked = data.teacher_queries(texts)
    encoders = _encoders(job, stage, data.teacher)
    counted = [seconds_to_embed(encoder, asked.texts, "query") for encoder in encoders]
    documents = job.collection.documents.texts  # those of the space are a step of their own
    counted += [seconds_to_embed(encoder, documents, "document") for encoder in encoders if encoder is not job.space]
    missing = Work(sum(items for items, _ in counted), "texts", sum(seconds for _, seconds in counted))
    if missing.items or not stage.needs_lists or stage.candidates.depth == "all":
        return missing
    return data.teacher.remaining(asked, job.collection, candidate_pairs(stage, data, texts)[0])


def _encoders(job: Job, stage: StageSettings, teacher: Ranker) -> list[Encoder]:
    """Whose embeddings a stage needs: to align to them, to mine with them, to score with them."""
    if not stage.needs_lists:
        return [job.space]
    found = {member.name: member.queries for member in teacher.members if member.queries is not None}
    for source in stage.candidates.sources or []:
        if source not in found and parse_model_name(source).kind in ("dense", "static"):
            found[source] = job.space if source == job.recipe.document_encoder else load_encoder(source, DENSE)
    return list(found.values())


def _untimed(step: str, items: int, unit: str) -> dict[str, Any]:
    return {"step": step, "items": items, "unit": unit, "seconds": None}


def _step(step: str, work: Work) -> dict[str, Any]:
    return {"step": step, "items": work.items, "unit": work.unit, "seconds": round(work.seconds, 1)}
