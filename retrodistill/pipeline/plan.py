"""What a recipe would do: nothing is scored, embedded or written."""

from __future__ import annotations

import os
from collections.abc import Sequence
from typing import Any

from retrodistill.models.embeddings import seconds_to_embed
from retrodistill.models.encoder import STUDENT_MANIFEST
from retrodistill.pipeline.job import Job, open_job
from retrodistill.pipeline.students import student_manifest
from retrodistill.recipe import load_recipe
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
    material = job.material
    texts = material.texts(stage).texts
    if not stage.needs_lists or stage.candidates.depth == "all":
        return Work(*_with_unit(seconds_to_embed(job.space, texts.texts, "query")))
    return job.teacher.remaining(job.collection, texts, material.candidates(stage.candidates, texts))


def _with_unit(counted: tuple[int, float]) -> tuple[int, str, float]:
    return counted[0], "texts", counted[1]


def _step(step: str, work: Work) -> dict[str, Any]:
    return {"step": step, "items": work.items, "unit": work.unit, "seconds": round(work.seconds, 1)}
