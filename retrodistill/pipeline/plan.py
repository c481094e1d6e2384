"""What a recipe would do: nothing is scored, embedded or written."""

from __future__ import annotations

import os
from collections.abc import Sequence
from typing import Any

from retrodistill.models.contract import STUDENT_MANIFEST
from retrodistill.models.embeddings import seconds_to_embed
from retrodistill.models.encoder import Encoder, load_encoder
from retrodistill.models.names import parse_model_name
from retrodistill.pipeline.job import Job, open_job
from retrodistill.pipeline.students import student_manifest
from retrodistill.recipe import load_recipe
from retrodistill.teachers.dense import DenseTeacher
from retrodistill.teachers.ensemble import Ensemble
from retrodistill.teachers.protocol import Work
from retrodistill.training.settings import StageSettings


def plan_recipe(
    recipe: str | os.PathLike[str], out: str | os.PathLike[str], overrides: Sequence[str] = ()
) -> list[dict[str, Any]]:
    """The steps of a recipe, each with what is left and how long it takes at rates measured now.

    Returns:
        ``[{"step": .., "items": .., "unit": .., "seconds": ..}]``; training time is not known before it starts.

    Raises:
        UserError: As `run_recipe`.
    """
    settings = load_recipe(recipe, overrides)
    job = open_job(settings, out)
    documents = seconds_to_embed(job.space, job.collection.documents.texts, "document")
    steps = [_step(f"embed documents by {job.space.name}", Work(documents[0], "texts", documents[1]))]
    for name, student in settings.students.items():
        if student_manifest(student, job.material).matches(job.out / "students" / name, STUDENT_MANIFEST):
            steps.append(_step(f"{name}: distilled already", Work(0, "stages", 0.0)))
            continue
        for number, stage in enumerate(student.stages, start=1):
            steps.append(_step(f"{name}, stage {number}: teacher {job.teacher.name}", _stage_work(job, stage)))
    return steps


def _stage_work(job: Job, stage: StageSettings) -> Work:
    """What a stage still needs of its teachers.

    Mining needs the embeddings of its dense sources: until these are made, their texts are what is counted and the
    pairs of a cross-encoder cannot be told.
    """
    material = job.material
    texts = material.texts(stage).texts
    encoders = _encoders(job, stage)
    counted = [seconds_to_embed(encoder, texts.texts, "query") for encoder in encoders]
    documents = job.collection.documents.texts  # those of the space are a step of their own
    counted += [seconds_to_embed(encoder, documents, "document") for encoder in encoders if encoder is not job.space]
    missing = Work(sum(items for items, _ in counted), "texts", sum(seconds for _, seconds in counted))
    if missing.items or not stage.needs_lists or stage.candidates.depth == "all":
        return missing
    return job.teacher.remaining(job.collection, texts, material.candidates(stage.candidates, texts))


def _encoders(job: Job, stage: StageSettings) -> list[Encoder]:
    """Whose embeddings a stage needs: to align to them, to mine with them, to score with them."""
    if not stage.needs_lists:
        return [job.space]
    members = job.teacher.members if isinstance(job.teacher, Ensemble) else [job.teacher]
    found = {member.name: member.encoder for member in members if isinstance(member, DenseTeacher)}
    for source in stage.candidates.sources or []:
        if source not in found and parse_model_name(source).kind in ("dense", "static"):
            found[source] = job.space if source == job.recipe.space else load_encoder(source)
    return list(found.values())


def _step(step: str, work: Work) -> dict[str, Any]:
    return {"step": step, "items": work.items, "unit": work.unit, "seconds": round(work.seconds, 1)}
