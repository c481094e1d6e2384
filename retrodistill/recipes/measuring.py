"""How long indexes and measurements take: remembered from earlier runs on this machine, or by a small measurement."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator, Sequence
from functools import partial
from typing import Any

import numpy as np

from retrodistill.core.cache import throw_away_cache
from retrodistill.core.rates import rate_key, remember, remembered
from retrodistill.core.runtime import muted
from retrodistill.encoders.embeddings import seconds_to_embed
from retrodistill.encoders.loading import quiet_libraries
from retrodistill.encoders.vectors import exact_search, normalized, training_rows
from retrodistill.evaluation.cost import BATCHES, fixed_threads
from retrodistill.indexes.factory import build_faiss, empty_index, fewest_vectors
from retrodistill.indexes.faiss_index import resolve_factory
from retrodistill.indexes.registry import build_index
from retrodistill.quantizers.bits import ROUNDS, fit_bits
from retrodistill.quantizers.codes import read_form, read_index, start_index
from retrodistill.quantizers.learning import KEPT, Targets
from retrodistill.quantizers.settings import MOST_HELD, QuantizerSettings
from retrodistill.recipes import sizes
from retrodistill.recipes.job import Job, learned_factory
from retrodistill.recipes.pace import repeated
from retrodistill.recipes.resources import Needs, Step
from retrodistill.recipes.student_settings import StudentSettings
from retrodistill.training.texts import TrainingTexts

_ADDED = 2048  # vectors that an index is filled with to measure its rate
_TIMED = 8  # queries that are answered to measure their time
_SEARCHED = 20_000  # documents that are searched
_MEMORY_SECONDS = 10.0  # of the process that measures memory; a guess: it starts Python and loads the libraries
_WHILE_FILLED = 1.25  # times the bytes of an index; a flat one of 500,000 vectors took 1.12
_LIMIT, _REPEATS, _AT_LEAST = 10.0, 3, 20  # of a latency measurement: seconds, rounds, answers
_THROUGHPUT = 136  # documents that are encoded to measure throughput
_BASELINES = 3  # systems besides students; a guess: BM25, the document encoder, and an ensemble or another teacher
_ROW = 4e-6  # seconds that measures, agreement, and files take per document of a ranking; a guess
_LEARNED_TEXTS, _LEARNING_STEPS = 256, 32  # queries and steps of a short learning of an index


def index_needs(job: Job, encoder: Any, vectors: float) -> Needs:
    """Of building an index of all documents; `vectors` is the bytes of their stored vectors. Memory is without texts.

    Mapped files are not counted, because the system drops their pages before it runs out of memory.
    """
    kind = job.recipe.index.kind_for([encoder.kind])
    settings: Any = job.recipe.index.of(kind)
    if kind.name == "multi-vector":  # codes are written to the cache, block by block, and then copied
        per_vector = {"float32": 5.0 * encoder.dimension, "residual": 2 + encoder.dimension * settings.bits / 8}
        size = vectors * per_vector.get(settings.codec, 2.0 * encoder.dimension) / (2 * encoder.dimension)
        return Needs(0.0, out=size, cache=size)
    if kind.name != "faiss":
        return Needs(3 * vectors, out=vectors, cache=vectors)
    width, documents = min(settings.truncate or encoder.dimension, encoder.dimension), len(job.collection.documents)
    with muted():
        factory, parameters = resolve_factory(settings, documents, width)
    size = float(documents * empty_index(factory, width, documents, parameters).sa_code_size())
    trained_on = sizes.FLOAT * width * len(training_rows(documents, 0))
    return Needs(_WHILE_FILLED * size + 2 * trained_on, out=size, cache=vectors)


def index_seconds(job: Job, student: StudentSettings, encoder: Any) -> float:
    """Seconds to embed all documents, if the student does that, and to index them."""
    documents, seconds = job.collection.documents, 0.0
    with throw_away_cache(), muted(), quiet_libraries():
        if student.documents == "student":
            is_stored = student.kind.parts == ("lexical",) or (student.stages and student.stages[-1].train == "head")
            if is_stored:  # vectors are made from what training stores
                seconds += _rate(lambda: encoder.model.tokenizer(repeated(job.collection, _ADDED).documents.texts))
            else:
                seconds += seconds_to_embed(encoder, documents.column, "document")[1] / len(documents)
        kind = job.recipe.index.kind_for([encoder.kind])
        settings: Any = job.recipe.index.of(kind)
        if kind.name != "faiss":
            few = repeated(job.collection, _ADDED // 8)
            build_index(few, encoder, settings=settings)  # encodes the distinct texts
            seconds += _rate(lambda: build_index(few, encoder, settings=settings), len(few.documents))
        else:
            width = min(settings.truncate or encoder.dimension, encoder.dimension)
            factory, parameters = resolve_factory(settings, len(documents), width)
            fewest = fewest_vectors(empty_index(factory, width, len(documents), parameters))
            vectors = _random_vectors(min(len(documents), max(_ADDED, fewest)), width)
            seconds += _rate(lambda: build_faiss(factory, vectors), len(vectors))
    return seconds * len(documents)


def measuring_seconds(job: Job, systems: Sequence[tuple[StudentSettings, Any]]) -> float:
    """Seconds to measure students, given with their models, and what they are compared with, and to write reports."""
    if (rates := remembered(_measuring_key(job))) is not None:
        return rates["seconds"]
    queries, documents = job.test, job.collection.documents
    with throw_away_cache(), muted(), fixed_threads(job.recipe.evaluation.threads):
        few = repeated(job.collection, min(len(documents), _ADDED))
        vectors = _random_vectors(min(len(documents), _SEARCHED), job.space.dimension)
        probe = queries.select(queries.ids[:_TIMED])
        scale = len(documents) / len(vectors)
        dense = scale * _rate(lambda: exact_search(vectors[: len(probe)], vectors, 10), len(probe))
        job.bm25.search(probe, few, min(10, len(few.documents)))
        lexical = _rate(lambda: job.bm25.search(probe, few, min(10, len(few.documents))), len(probe))
        lexical *= len(documents) / len(few.documents)
        others = 2  # the document encoder, and an ensemble or another teacher
        if job.recipe.index.learn:
            others = _learned_systems(job) + 1 + (len(job.teacher.members) > 1)
        seconds = _measured(job, 0.0, lexical) + others * _measured(job, _encoding(job, job.space, probe.texts), dense)
        seconds += _throughput(job, job.space)
        for student, model in systems:
            encoder = student.kind.wrap(model, f"{student.kind.name}:student", None)
            if not student.kind.can_search:
                pairs = [(probe.texts[0], text) for text in few.documents.column[:_TIMED]]
                answer = _rate(partial(encoder.score, pairs), len(pairs))
                seconds += _measured(job, answer * job.recipe.evaluation.rerank, lexical)
                continue
            seconds += _measured(job, _encoding(job, encoder, probe.texts), dense)
            seconds += _throughput(job, encoder) if student.documents == "student" else 0.0
    return seconds + ranking_rows(job, len(systems)) * _ROW


def ranking_rows(job: Job, systems: int) -> int:
    """Documents in the rankings of a number of students and of what they are compared with."""
    depth = min(job.recipe.evaluation.depth, len(job.collection.whole.documents))
    return (systems + _learned_systems(job) + _BASELINES) * len(job.test) * depth


def _learned_systems(job: Job) -> int:
    """Number of learned indexes and the one that they start from."""
    return 1 + len(learned_names(job)) if job.recipe.index.learn else 0


def remember_measuring(job: Job, seconds: float) -> None:
    """Keep the time of a job's measurements and reports."""
    remember(_measuring_key(job), {"seconds": seconds})


def _measuring_key(job: Job) -> str:
    recipe = job.recipe.model_dump(mode="json", include={"document_encoder", "teacher", "ensemble", "index", "bm25"})
    students = {
        name: student.model_dump(mode="json", exclude={"stages", "initialize"})
        for name, student in job.recipe.students.items()
    }
    evaluation = job.recipe.evaluation.model_dump(mode="json")
    return rate_key("measuring", job.collection.fingerprint, recipe, students, evaluation)


def _measured(job: Job, encode: float, search: float) -> float:
    """Seconds to measure a system, from the seconds to encode and to search one query."""
    evaluation, one = job.recipe.evaluation, encode + search
    seconds = len(job.test) * one
    if evaluation.latency_queries:
        count = min(len(job.test), evaluation.latency_queries)
        for batch in BATCHES:
            answers = _REPEATS * -(-count // batch)
            within = max(_AT_LEAST, int(_LIMIT / max(batch * one, 1e-9)))
            seconds += (min(answers, within) + max(1, 10 // batch)) * batch * one
        seconds += _MEMORY_SECONDS if evaluation.memory else 0.0
    return seconds


def _encoding(job: Job, encoder: Any, texts: Sequence[str]) -> float:
    """Seconds to encode a query alone."""
    if not encoder.has_weights:
        return 0.0
    encoder.encode(texts[:1], "query")
    return _rate(lambda: [encoder.encode([text], "query") for text in texts], len(texts))


def _throughput(job: Job, encoder: Any) -> float:
    """Seconds to measure the throughput of an encoder of documents."""
    if not encoder.has_weights or not job.recipe.evaluation.latency_queries:
        return 0.0
    return seconds_to_embed(encoder, repeated(job.collection, _TIMED).documents.column, "document")[1] * (
        _THROUGHPUT / _TIMED
    )


def _rate(work: Callable[[], Any], items: int = _ADDED) -> float:
    """Seconds per item of some work."""
    started = time.perf_counter()
    work()
    return (time.perf_counter() - started) / items


def _random_vectors(count: int, width: int) -> np.ndarray:
    return normalized(np.random.default_rng(0).standard_normal((count, width), dtype=np.float32))


def learned_names(job: Job) -> list[str]:
    """Names of the indexes that a job learns; with index.encoder, the last one trains a query encoder instead.

    Mapped queries do not fit the vectors of a refinement.
    """
    refinement = read_form(learned_factory(job.recipe, job.space), job.space.dimension).refinement
    return ["distilled"] if job.recipe.index.encoder is not None or refinement else ["distilled", "distilled-queries"]


def learning_steps(job: Job, held: float, texts: TrainingTexts, count: int, *, is_timed: bool) -> Iterator[Step]:
    """The steps of a job that learns an index from `count` texts, some of which are given."""
    settings, dimension = job.recipe.index.learn or QuantizerSettings(), job.space.dimension
    form, documents = read_form(learned_factory(job.recipe, job.space), dimension), job.collection.documents
    memory = held + sizes.strings(documents) + sizes.learning(form, len(documents), count, dimension, settings)
    index, student = sizes.learned_index(form, documents, dimension), 0.0
    if job.space.has_weights:  # the document encoder and a map of its queries
        student = sizes.FLOAT * sizes.parameters(job.space.model, whole=True).all
    left = [name for name in learned_names(job) if not (job.out / "indexes" / name).exists()]
    seconds = _learning_seconds(job, settings, texts, count) if left and is_timed else 0.0
    for name in learned_names(job):
        if name not in left:
            yield Step(f"learn {name}: already learned", phase="learn")
            continue
        out = 2 * index if name == "distilled" else index + student  # its start's index comes with the first
        needs = Needs(memory, out=out, advice="set index.learn.whole, index.learn.sampled, or index.texts.limit lower")
        yield Step(f"learn {name}", settings.steps, "steps", seconds, needs, "learn")


def learning_key(job: Job, settings: QuantizerSettings) -> str:
    """Key of the time that learning an index takes."""
    kept = settings.model_dump(mode="json", exclude={"seed", "query_map", "transform", "learning_rate"})
    return rate_key("learning", learned_factory(job.recipe, job.space), kept, job.collection.documents.fingerprint)


def _learning_seconds(job: Job, settings: QuantizerSettings, texts: TrainingTexts, count: int) -> float:
    """Seconds to learn an index, by short learnings of as many random vectors, and of as few queries as will do."""
    if (rates := remembered(learning_key(job, settings))) is not None:
        return rates["seconds"]
    from retrodistill.quantizers.learner import Learner  # imports torch

    factory, documents = learned_factory(job.recipe, job.space), min(len(job.collection.documents), MOST_HELD)
    held_out = len(settings.split(texts.sources, np.random.default_rng(settings.seed))[1])
    few = count
    if documents > settings.whole:  # the best documents of each query are searched, which takes as long for each
        few = min(count, max(held_out + _LEARNED_TEXTS, KEPT // documents + 1))
    vectors, queries = (_random_vectors(size, job.space.dimension) for size in (documents, few))
    held_out_share = settings.model_copy(update={"held_out": held_out / few, "held_out_most": held_out})
    targets = Targets(queries, vectors, np.full(few, -1, dtype=np.int64))
    begun = time.perf_counter()
    start = start_index(factory, vectors, iterations=1)
    trained = time.perf_counter()
    learner = Learner(read_index(start), targets, held_out_share)
    learner.step()  # the first is slower
    seconds = time.perf_counter() - begun
    round_of_start = max(0.0, _rate(lambda: start_index(factory, vectors, iterations=3), 1) - (trained - begun)) / 2
    step = _rate(lambda: [learner.step() for _ in range(_LEARNING_STEPS)], _LEARNING_STEPS)
    seconds += (settings.start_iterations - 1) * round_of_start + settings.steps * step
    seconds += (settings.evaluations + 1) * _rate(learner.agreement, 1)
    if (parts := learner.quantizer.start).single_bits:
        seconds += ROUNDS * _rate(lambda: fit_bits(parts, vectors, rounds=1), 1)
    if few < count:
        search = _rate(lambda: exact_search(queries[:_LEARNED_TEXTS], vectors, settings.depth), _LEARNED_TEXTS)
        seconds += (count - few) * search
    return seconds
