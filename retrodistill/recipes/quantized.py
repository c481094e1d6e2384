"""A job that compresses the space's documents: OPQ, and quantizers learned from the teacher, at the same bytes."""

from __future__ import annotations

import time
from dataclasses import replace

import numpy as np

from retrodistill.core.errors import UserError
from retrodistill.core.manifest import Manifest
from retrodistill.core.runtime import log
from retrodistill.encoders.any_encoder import DENSE, load_encoder
from retrodistill.encoders.embeddings import embed
from retrodistill.evaluation.results import Role
from retrodistill.evaluation.systems import System
from retrodistill.indexes.faiss_index import FaissIndex
from retrodistill.indexes.learned import LearnedIndex, learn_index, save_query_map
from retrodistill.quantizers import QuantizerSettings
from retrodistill.quantizers.codes import reconstructed
from retrodistill.recipes.job import Job, learned_factory
from retrodistill.recipes.reporting import Curves
from retrodistill.recipes.student_settings import StudentSettings
from retrodistill.recipes.students import train_students
from retrodistill.recipes.systems import MADE_FROM
from retrodistill.runs.agreement import rank_agreement
from retrodistill.training.scoring import stored_corpus_scores
from retrodistill.training.texts import TrainingTexts, training_texts

_AGREEMENT = 10  # documents per query that held-out rankings are compared by


def quantized(job: Job, seconds: dict[str, float]) -> tuple[list[System], Curves]:
    """The systems ``opq``, ``distilled`` (the documents' codes learned) and ``distilled-queries`` (the queries, too).

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
    # A free transform is a map of the queries already; beside it stands the same map outside of the index.
    mapped = settings.model_copy(update={"query_map": True, "transform": "rotation"})
    systems, curves = _learned(job, texts, fixed, "distilled", seconds)
    if job.recipe.index.encoder is None:
        more, further = _learned(job, texts, mapped, "distilled-queries", seconds)
        return [*systems, *more], {**curves, **further}
    trained, curve = _with_encoder(job, texts, systems[-1].ranker, seconds)  # type: ignore[arg-type]
    return [*systems, trained], {**curves, trained.name: curve}


def _with_encoder(
    job: Job, texts: TrainingTexts, index: FaissIndex, seconds: dict[str, float]
) -> tuple[System, dict[str, list[dict[str, float]]]]:
    """The learned index with a query encoder that was trained against its codes; its own where that was no better.

    Better is measured on the queries that the quantizer was not trained on, and that its encoder is not trained on.
    """
    name, stage, settings = "distilled-queries", job.recipe.index.encoder, job.recipe.index.learn
    rows = settings.split(texts.sources, np.random.default_rng(job.recipe.seed))[1]  # type: ignore[union-attr]
    held = texts.texts.select([texts.texts.ids[row] for row in rows])
    away = set(held.ids)
    student = StudentSettings.model_validate({"model": job.recipe.document_encoder, "stages": [stage], "control": None})
    queries = job.train.select([query for query in job.train.ids if query not in away])
    data = replace(job.training_data, queries=queries, stored=reconstructed(index.index))
    folder = job.out / "students" / name
    made = train_students({name: student}, data, {name: folder}, job.teachers)[name]
    seconds[f"train {name}"] = made.seconds
    wanted = stored_corpus_scores(job.training_data, held).argsort(axis=1)[:, ::-1][:, :_AGREEMENT]
    encoder = load_encoder(made.encoder, DENSE)
    before, after = (
        float(rank_agreement(index.index.search(embed(one, held.texts, "query"), _AGREEMENT)[1], wanted).mean())
        for one in (job.space, encoder)
    )
    worse = after <= before
    said = "no better than the untrained one, which is kept" if worse else "better"
    log(f"{name}: agreement on {len(held)} held-out queries {after:.4f}, before training {before:.4f}: {said}")
    asking = index.queries if worse else encoder
    trained = FaissIndex(index.index, index.ids, index.space, asking, index.factory, name)
    trained.save(job.out / "indexes" / name)
    by = job.space.name if worse else f"dense:{name}"
    return System(name, trained, "student", job.space.name, by), made.curves


def _texts(job: Job) -> TrainingTexts:
    wanted = job.recipe.index.texts
    queries = job.train if wanted.queries else job.train.select([])
    return training_texts(
        job.collection,
        queries,
        titles=wanted.titles,
        sentences=wanted.sentences,
        seed=job.recipe.seed,
        excluded_queries=job.test,
    )


def _teacher_scores(job: Job, texts: TrainingTexts) -> np.ndarray | None:
    """Scores of a better ranker than the space's own; None where that itself teaches."""
    if job.space_teaches:
        return None
    return stored_corpus_scores(job.training_data, texts.texts)


def _learned(
    job: Job, texts: TrainingTexts, settings: QuantizerSettings, name: str, seconds: dict[str, float]
) -> tuple[list[System], Curves]:
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
    if not (made_from.matches(folder, MADE_FROM) and (start_folder / MADE_FROM).exists()):
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
            log(f"{name}: nothing that was learned ranks held-out queries better than its start, which is kept")
        made_from = replace(made_from, about={"seconds": taken, "curves": _curve(found)})
        _keep(job, found, made_from)
    about = Manifest.read(folder, MADE_FROM).about
    seconds[f"learn {name}"] = about["seconds"]
    systems = [_system(job, FaissIndex.load(folder), "student")]
    if not settings.query_map:
        systems.insert(0, _system(job, FaissIndex.load(start_folder), "control"))
    return systems, {name: about["curves"]}


def _keep(job: Job, found: LearnedIndex, made_from: Manifest) -> None:
    """Save the index, its start, and the query encoder with its map, the manifest of what they were made from last."""
    if found.learned.query_map is not None:
        manifest = Manifest("student", made_from.inputs, made_from.settings)
        save_query_map(found, job.out / "students" / found.index.name, manifest)
    for one in (found.index, found.start):
        one.save(job.out / "indexes" / one.name)
        made_from.write(job.out / "indexes" / one.name, MADE_FROM)


def _curve(found: LearnedIndex) -> dict[str, list[dict[str, float]]]:
    """Loss and held-out agreement, as the report draws them."""
    history = found.learned.history
    return {
        "losses": [{"step": point.step, "loss": point.loss} for point in history if np.isfinite(point.loss)],
        "monitors": [{"step": point.step, "agreement": point.agreement} for point in history],
    }


def _system(job: Job, index: FaissIndex, role: Role) -> System:
    by = job.space.name if index.queries is None or index.queries.name == job.space.name else "the same, then a map"
    return System(index.name, index, role, job.space.name, by, str(job.out / "indexes" / index.name))
