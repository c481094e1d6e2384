"""A job that compresses the space's documents: OPQ, and quantisers learned from the teacher, at the same bytes."""

from __future__ import annotations

import time
from dataclasses import replace
from typing import Any

import numpy as np

from retrodistill.errors import UserError
from retrodistill.indexes.asymmetric import AsymmetricIndex
from retrodistill.indexes.learned import LearnedIndex, learn_index, save_query_map
from retrodistill.manifest import Manifest
from retrodistill.pipeline.job import Job, learned_factory
from retrodistill.pipeline.systems import Candidate
from retrodistill.progress import say
from retrodistill.quantisers import QuantiserSettings
from retrodistill.teachers.dense import DenseTeacher
from retrodistill.training.texts import TrainingTexts, training_texts

_MADE_FROM = "made-from.json"
Curves = dict[str, dict[str, list[dict[str, float]]]]


def quantised(job: Job, seconds: dict[str, float]) -> tuple[list[Candidate], Curves]:
    """The systems ``opq``, ``distilled`` (documents' codes learned) and ``distilled-queries`` (a query map besides).

    Args:
        job: Whose recipe has index.learn.
        seconds: Where the time of each step is noted.

    Returns:
        The systems, in order, and their training curves.
    """
    settings = job.recipe.index.learn
    if settings is None:
        raise UserError("a recipe without index.learn compresses nothing; set it.")
    texts = _texts(job)
    fixed = settings.model_copy(update={"query_map": False})
    mapped = settings.model_copy(update={"query_map": True})
    systems, curves = _learned(job, texts, fixed, "distilled", seconds)
    more, further = _learned(job, texts, mapped, "distilled-queries", seconds)
    return [*systems, *more], {**curves, **further}


def _texts(job: Job) -> TrainingTexts:
    wanted = job.recipe.index.texts
    queries = job.train if wanted.queries else job.train.select([])
    return training_texts(
        job.collection,
        queries,
        titles=wanted.titles,
        sentences=wanted.sentences,
        seed=job.recipe.seed,
        barred=job.test,
    )


def _teacher_scores(job: Job, texts: TrainingTexts) -> np.ndarray | None:
    """Scores of a better ranker than the space's own; None where that itself teaches."""
    teacher = job.teacher
    if isinstance(teacher, DenseTeacher) and teacher.encoder.contract("query") == job.space.contract("query"):
        return None
    return job.material.corpus_scores(texts.texts)


def _learned(
    job: Job, texts: TrainingTexts, settings: QuantiserSettings, name: str, seconds: dict[str, float]
) -> tuple[list[Candidate], Curves]:
    """A learned index of the job, loaded where it stands already; the one without a query map comes with its start."""
    settings = settings.model_copy(update={"seed": job.recipe.seed})
    factory, folder = learned_factory(job.recipe, job.space), job.out / "indexes" / name
    start_folder = job.out / "indexes" / "opq"
    inputs = {
        "documents": job.collection.documents.fingerprint,
        "space": job.space.document_space,
        "texts": texts.texts.fingerprint,
        "teacher": job.teacher.fingerprint(job.collection),
    }
    made_from = Manifest("learned index", inputs, {"factory": factory, **settings.model_dump(mode="json")})
    if not (made_from.matches(folder, _MADE_FROM) and (start_folder / _MADE_FROM).exists()):
        begin = time.perf_counter()
        found = learn_index(
            job.collection,
            job.space,
            texts,
            target=factory,
            settings=settings,
            teacher=_teacher_scores(job, texts),
            name=name,
        )
        taken = time.perf_counter() - begin
        if not found.learned.improved:
            say(f"{name}: nothing that was learned ranks held-out queries better than its start, which is kept")
        made_from = replace(made_from, about={"seconds": taken, "curves": _curve(found)})
        _keep(job, found, made_from)
    about = Manifest.read(folder, _MADE_FROM).about
    seconds[f"learn {name}"] = about["seconds"]
    systems = [_candidate(job, AsymmetricIndex.load(folder), "student")]
    if not settings.query_map:
        systems.insert(0, _candidate(job, AsymmetricIndex.load(start_folder), "control"))
    return systems, {name: about["curves"]}


def _keep(job: Job, found: LearnedIndex, made_from: Manifest) -> None:
    """Save the index, its start, and the query encoder with its map, the manifest of what they were made from last."""
    if found.learned.query_map is not None:
        manifest = Manifest("student", made_from.inputs, made_from.settings)
        save_query_map(found, job.out / "students" / found.index.name, manifest)
    for one in (found.index, found.start):
        one.save(job.out / "indexes" / one.name)
        made_from.write(job.out / "indexes" / one.name, _MADE_FROM)


def _curve(found: LearnedIndex) -> dict[str, list[dict[str, float]]]:
    """Loss and held-out agreement, as the report draws them."""
    history = found.learned.history
    return {
        "losses": [{"step": point.step, "loss": point.loss} for point in history if np.isfinite(point.loss)],
        "monitors": [{"step": point.step, "agreement": point.agreement} for point in history],
    }


def _candidate(job: Job, index: AsymmetricIndex, role: Any) -> Candidate:
    by = job.space.name if index.queries is None or index.queries.name == job.space.name else "the same, then a map"
    return Candidate(index.name, role, index, job.space.name, by)
