"""A job that compresses documents: OPQ, and quantizers learned from the teacher, at the same bytes."""

from __future__ import annotations

import time
from dataclasses import replace

import numpy as np

from retrodistill.core.errors import UserError
from retrodistill.core.manifest import Manifest
from retrodistill.core.rates import remember
from retrodistill.core.runtime import log
from retrodistill.data.collection import Collection
from retrodistill.data.texts import Texts
from retrodistill.encoders.any_encoder import DENSE, load_encoder
from retrodistill.encoders.embeddings import embed
from retrodistill.encoders.reading import readable
from retrodistill.evaluation.results import Role
from retrodistill.evaluation.systems import System
from retrodistill.indexes.faiss_index import FaissIndex
from retrodistill.indexes.learned import learn_index, save_query_map
from retrodistill.quantizers import QuantizerSettings
from retrodistill.quantizers.codes import reconstructed, start_name
from retrodistill.quantizers.settings import with_query_map
from retrodistill.rankers.corpus import CorpusScores
from retrodistill.recipes.job import Job, learned_factory, texts_of_index
from retrodistill.recipes.measuring import learned_names, learning_key
from retrodistill.recipes.reporting import Curves
from retrodistill.recipes.student_settings import StudentSettings
from retrodistill.recipes.students import train_students
from retrodistill.recipes.systems import MADE_FROM, with_columns
from retrodistill.runs.agreement import rank_agreement
from retrodistill.runs.run import top_k
from retrodistill.training.texts import TrainingTexts

_AGREEMENT_DEPTH = 10


def quantized(job: Job, seconds: dict[str, float]) -> tuple[list[System], Curves]:
    """The systems ``opq`` or ``itq``, ``distilled`` (codes) and ``distilled-queries`` (queries, too) with curves.

    `seconds` receives the time of each step.
    """
    settings = job.recipe.index.learn
    if settings is None:
        raise UserError("the recipe does not compress anything; set index.learn.")
    source, job = job.collection, replace(job, collection=readable(job.space, job.collection))
    texts = texts_of_index(job, job.recipe.index.texts)
    systems, curves = _learned(
        job, source, texts, settings.model_copy(update={"query_map": False}), "distilled", seconds
    )
    if job.recipe.index.encoder is not None:
        trained, curve = _with_encoder(job, texts, systems[-1].ranker, seconds)  # type: ignore[arg-type]
        return [*systems, trained], {**curves, trained.name: curve}
    if "distilled-queries" in learned_names(job):
        more, more_curves = _learned(job, source, texts, with_query_map(settings), "distilled-queries", seconds)
        return [*systems, *more], {**curves, **more_curves}
    return systems, curves


def _with_encoder(
    job: Job, texts: TrainingTexts, index: FaissIndex, seconds: dict[str, float]
) -> tuple[System, dict[str, list[dict[str, float]]]]:
    """The learned index with a query encoder trained against its codes, if that is better on held-out queries."""
    name, stage, settings = "distilled-queries", job.recipe.index.encoder, job.recipe.index.learn
    rows = settings.split(texts.sources, np.random.default_rng(job.recipe.seed))[1]  # type: ignore[union-attr]
    held_out = texts.texts.select([texts.texts.ids[row] for row in rows])
    excluded = set(held_out.ids)
    student = StudentSettings.model_validate({"model": job.recipe.document_encoder, "stages": [stage], "control": None})
    queries = job.train.select([query for query in job.train.ids if query not in excluded])
    data = replace(job.training_data, queries=queries, stored=reconstructed(index.index))
    distilled = train_students({name: student}, data, {name: job.out / "students" / name}, job.teachers)[name]
    seconds[f"train {name}"] = distilled.seconds
    scores = _teacher_scores(job, held_out)
    best = np.concatenate([top_k(block, _AGREEMENT_DEPTH) for block in scores.blocks(np.arange(len(held_out)))])
    encoder = load_encoder(distilled.encoder, DENSE)
    vectors = [embed(each, held_out.texts, "query") for each in (job.space, encoder)]
    rankings = [index.index.search(queries, _AGREEMENT_DEPTH)[1] for queries in vectors]
    before, after = (float(rank_agreement(ranking, best).mean()) for ranking in rankings)
    is_better = after > before
    verdict = "better" if is_better else "not better, so the untrained encoder is kept"
    log(f"{name}: agreement on {len(held_out)} held-out queries {after:.4f}, before training {before:.4f}: {verdict}")
    query_encoder = encoder if is_better else index.queries
    trained = FaissIndex(index.index, index.ids, index.space, query_encoder, index.factory, name)
    trained.parents, trained.columns, trained.parameters = index.parents, index.columns, index.parameters
    trained.save(job.out / "indexes" / name)
    queries_by = f"dense:{name}" if is_better else job.space.name
    return System(name, trained, "student", job.space.name, queries_by), distilled.curves


def _learned(
    job: Job,
    source: Collection,
    texts: TrainingTexts,
    settings: QuantizerSettings,
    name: str,
    seconds: dict[str, float],
) -> tuple[list[System], Curves]:
    """A learned index, loaded if it exists; the one without a query map comes with the index that it starts from.

    The job's collection is what the document encoder can read of `source`.
    """
    settings = settings.model_copy(update={"seed": job.recipe.seed})
    factory, folder = learned_factory(job.recipe, job.space), job.out / "indexes" / name
    start_folder = job.out / "indexes" / start_name(factory)
    inputs = {
        "documents": job.collection.documents.fingerprint,
        "space": job.space.fingerprint("document"),
        "queries": job.space.fingerprint("query"),
        "texts": texts.texts.fingerprint,
        "teacher": job.teacher.fingerprint(job.collection),
    }
    columns = job.recipe.index.columns_of(job.collection)
    made_from = Manifest("learned index", inputs, {"factory": factory, **settings.model_dump(mode="json")})
    # Indexes that are learned in different ways start from the same one.
    before = {"factory": factory, "seed": settings.seed, "start_iterations": settings.start_iterations}
    start_from = Manifest(
        "index before learning", {name: inputs[name] for name in ("documents", "space", "queries")}, before
    )
    if not (made_from.matches(folder, MADE_FROM) and start_from.matches(start_folder, MADE_FROM)):
        started = time.perf_counter()
        # Without scores, the document encoder's own teach.
        teacher = None if job.space_teaches else _teacher_scores(job, texts.texts)
        learned = learn_index(
            job.collection, job.space, texts, target=factory, settings=settings, teacher=teacher, name=name
        )
        taken = time.perf_counter() - started
        remember(learning_key(job, settings), {"seconds": taken})
        if not learned.learned.improved:
            log(f"{name}: learning did not improve the ranking of held-out queries, so the start is kept")
        history = learned.learned.history
        curves = {
            "losses": [{"step": point.step, "loss": point.loss} for point in history if np.isfinite(point.loss)],
            "monitors": [{"step": point.step, "agreement": point.agreement} for point in history],
        }
        made_from = replace(made_from, about={"seconds": taken, "curves": curves})
        if learned.learned.query_map is not None:
            save_query_map(learned, job.out / "students" / name, Manifest("student", inputs, made_from.settings))
        for index, of_index in ((learned.start, start_from), (learned.index, made_from)):
            index.columns = columns
            index.set_source(source)
            index.save(job.out / "indexes" / index.name)
            of_index.write(job.out / "indexes" / index.name, MADE_FROM)
    about = Manifest.read(folder, MADE_FROM).about
    seconds[f"learn {name}"] = about["seconds"]
    systems = [_system(job, with_columns(FaissIndex.load(folder), folder, columns), "student")]
    if not settings.query_map:
        start = with_columns(FaissIndex.load(start_folder), start_folder, columns)
        systems.insert(0, _system(job, start, "control"))
    return systems, {name: about["curves"]}


def _teacher_scores(job: Job, texts: Texts) -> CorpusScores:
    return job.teacher.corpus_scores(job.training_data.teacher_queries(texts), job.collection)


def _system(job: Job, index: FaissIndex, role: Role) -> System:
    by = job.space.name if index.queries is None or index.queries.name == job.space.name else "the same, then a map"
    return System(index.name, index, role, job.space.name, by, str(job.out / "indexes" / index.name))
