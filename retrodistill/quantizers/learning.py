"""Distilling a product quantizer: its scores are trained to rank as the teacher's do."""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import TYPE_CHECKING, Any

import numpy as np

from retrodistill.core.errors import UserError
from retrodistill.core.runtime import bar
from retrodistill.encoders.encoder import Encoder
from retrodistill.encoders.modules import with_modules
from retrodistill.encoders.vectors import Vectors, exact_search
from retrodistill.quantizers.codes import (
    ALL,
    Codes,
    Form,
    Rows,
    factory_for,
    read_form,
    read_index,
    read_vectors,
    refined,
    start_index,
    to_faiss,
)
from retrodistill.quantizers.settings import MOST_HELD, QuantizerSettings
from retrodistill.runs.run import top_k

if TYPE_CHECKING:
    from sentence_transformers import SentenceTransformer

    from retrodistill.quantizers.learner import Learner

KEPT = 150_000_000  # inner products that are kept in memory, 600 MB

Teacher = Callable[[np.ndarray, Rows], np.ndarray]
"""From (batch,) int64 rows of the training queries, and rows of m documents, to (batch, m) float32 scores."""


@dataclass(frozen=True)
class Point:
    """One evaluation on the held-out queries."""

    step: int  # number of steps before it
    loss: float  # mean over the steps since the last evaluation; NaN for the first
    agreement: float  # nDCG of the quantized ranking, with the ranks of the teacher's top 10 as gains; 0 to 1


@dataclass(frozen=True, eq=False)
class Learned:
    """A learned quantizer and its start.

    Attributes:
        index: The filled FAISS index; its start where learning did not improve agreement on the held-out queries.
        start: The FAISS index that learning began with (OPQ at the same bytes), filled with the same documents.
        codes: The parts of `index`.
        query_map: (d, d) float32: multiply query vectors by its transpose before search; None where none was learned.
        history: Evaluations on the held-out queries, the first at the start; of single bits, the second when they
            were fitted, before the first step.
        improved: Whether agreement on the held-out queries improved.
        temperature: Divisor of teacher and quantized scores.
        settings: How it was learned.
        factory: Factory of the start.
        start_seconds: Wall time of building the start.
        seconds: Wall time of building the start and learning.
    """

    index: Any
    start: Any
    codes: Codes
    query_map: np.ndarray | None
    history: tuple[Point, ...]
    improved: bool
    temperature: float
    settings: QuantizerSettings
    factory: str
    start_seconds: float
    seconds: float

    @property
    def agreement(self) -> tuple[float, float]:
        """Agreement on held-out queries, of the start and of the result."""
        return self.history[0].agreement, max(point.agreement for point in self.history)


@dataclass(frozen=True, eq=False)
class Targets:
    """Scores to learn from: a teacher's, or by default the exact inner products."""

    queries: np.ndarray  # (q, d) float32
    documents: Vectors  # (n, d) float32; an array up to `MOST_HELD` of them
    sources: np.ndarray  # (q,) int64, the document that a pseudo-query was taken from; -1 for real queries
    teacher: Teacher | None = None  # inner products without one
    hidden: np.ndarray | None = None  # (q,) int64, the document that a query is not trained on; by default its source

    @property
    def parts(self) -> list[slice]:
        """Rows of parts of the documents, each spread over all of them, that fit into memory."""
        count = -(-self.documents.shape[0] // MOST_HELD)
        return [slice(first, None, count) for first in range(count)]

    def within(self, part: slice) -> Targets:
        """The targets among a part of the documents, by their places in it, but for `sources` and `hidden`."""
        if part.step == 1:
            return self
        rows, teacher = np.arange(self.documents.shape[0])[part], self.teacher
        in_part = None if teacher is None else lambda queries, places: teacher(queries, rows[places])
        return Targets(self.queries, read_vectors(self.documents, part), self.sources, in_part, self.hidden)

    @cached_property
    def _products(self) -> np.ndarray | None:
        """(q, n) inner products where they fit into memory: computing them again is a third of a step's work."""
        fits = len(self.parts) == 1 and len(self.queries) * self.documents.shape[0] <= KEPT
        return self.queries @ self.documents[ALL].T if fits and self.teacher is None else None

    def scores(self, rows: np.ndarray, columns: Rows = ALL) -> np.ndarray:
        """(batch, m) float32 scores of all documents or of `columns`; a teacher's are checked."""
        if self._products is not None:
            return self._products[rows][:, columns]
        if self.teacher is None:
            return self.queries[rows] @ self.documents[columns].T
        scores = np.asarray(self.teacher(rows, columns), dtype=np.float32)
        expected = len(rows), len(np.arange(self.documents.shape[0])[columns])
        if scores.shape != expected or not np.isfinite(scores).all():
            raise UserError(
                f"the teacher gives scores of shape {scores.shape} for {expected[0]} queries and {expected[1]} "
                "documents, or some that are not finite; a teacher must score every document."
            )
        return scores

    def best(self, rows: np.ndarray, k: int) -> np.ndarray:
        """(rows, k) int64 documents of the highest scores, best first."""
        if self.teacher is None:
            return exact_search(self.queries[rows], self.documents, k)[0]
        return np.concatenate([top_k(self.scores(rows[start : start + 256]), k) for start in range(0, len(rows), 256)])

    def spread(self, rows: np.ndarray) -> float:
        """Standard deviation of a query's scores over the corpus, mean over up to 256 of `rows`; 0 is an error."""
        sample = rows[np.linspace(0, len(rows) - 1, min(256, len(rows)), dtype=np.int64)]
        spread = float(np.mean([self.scores(block).std() for block in sample[:, None]]))
        if not spread > 0:
            raise UserError("the teacher gives every document the same score; there is nothing to learn.")
        return spread


def learn_quantizer(
    documents: Vectors,
    queries: np.ndarray,
    target: int | str | Any,
    settings: QuantizerSettings | None = None,
    *,
    sources: np.ndarray | None = None,
    hidden: np.ndarray | None = None,
    teacher: Teacher | None = None,
    names: Sequence[str] | None = None,
) -> Learned:
    """Learn a product quantizer by distillation (Distill-VQ, Xiao et al. 2022, arXiv 2204.00185).

    Args:
        documents: (n, d) float32 vectors; the index holds them in this order. More than 262,144 are read when they are
            needed: each query learns from its best documents in one of several parts of the corpus, and held-out
            queries rank one part.
        queries: (q, d) float32 training queries: a log, pseudo-queries, or both.
        target: Bytes per document, a factory string (``OPQ16,PQ16``, ``OPQ16,IVF64,PQ16x4``, ``PQ8``, or
            ``ITQ384,PQ384x1`` for bits, each also with a refinement such as ``,Refine(SQ8)``), or a filled FAISS index
            of that kind to start from.
        settings: How to learn.
        sources: (q,) the document that a pseudo-query was taken from, -1 for real queries.
        hidden: (q,) the document that a query is not trained on, -1 for none. By default the sources, since a
            pseudo-query would learn to find nothing else.
        teacher: Scores to learn from; exact inner products by default.
        names: (n,) document ids, for messages.

    Returns:
        The learned index and its start. On the held-out queries, and the documents that they rank, it is never worse.

    Raises:
        UserError: Too few or bad vectors, no queries or queries of another dimension, or a target that does not fit.
    """
    settings = settings or QuantizerSettings()
    queries, documents, sources = _checked(documents, queries, sources, names)
    targets = Targets(queries, documents, sources, teacher, hidden)
    started = time.perf_counter()
    factory, start, refinement = _start(target, targets.documents, settings, names)
    start_seconds = time.perf_counter() - started
    from retrodistill.quantizers.learner import Learner  # imports torch

    parts = read_index(start)
    learner = Learner(parts, targets, settings)
    history, best = _train(learner, settings)
    codes, query_map = best or (parts, None)
    index, start = to_faiss(codes), to_faiss(parts) if parts.single_bits else start
    if refinement is not None:
        index, start = (refined(each, refinement, targets.documents, names) for each in (index, start))
    return Learned(
        index=index,
        start=start,
        codes=codes,
        query_map=query_map,
        history=tuple(history),
        improved=best is not None,
        temperature=learner.temperature,
        settings=settings,
        factory=factory,
        start_seconds=start_seconds,
        seconds=time.perf_counter() - started,
    )


def query_student(encoder: Encoder, query_map: np.ndarray) -> SentenceTransformer:
    """A model that ends with a learned (d, d) query map, for queries of the learned index; it encodes no documents.

    It has the modules of the encoder that the map was learned with (shared, not copied), a linear map, and for cosine
    similarity a normalization. A map of another width, or an encoder with a Router (several ends), is a `UserError`.
    """
    import torch
    from sentence_transformers.base.modules import Dense
    from sentence_transformers.sentence_transformer.modules import Normalize

    width = encoder.dimension
    if query_map.shape != (width, width):
        raise UserError(f"a query map of shape {query_map.shape} for vectors of {width} dimensions; learn it on them.")
    modules = list(encoder.model)
    if any(type(module).__name__ == "Router" for module in modules):
        raise UserError(f"model {encoder.name} has towers; give its query tower as a model of its own.")
    projection = Dense(width, width, bias=False, activation_function=torch.nn.Identity())
    with torch.no_grad():
        projection.linear.weight.copy_(torch.from_numpy(query_map))
    cosine = encoder.similarity == "cosine"
    # The map was learned on unit vectors: a cosine model that does not end with a normalization gets one before it.
    before = [] if not cosine or isinstance(modules[-1], Normalize) else [Normalize()]
    after = [Normalize()] if cosine else []
    return with_modules(encoder.model, [*modules, *before, projection, *after], "SentenceTransformer")


def checked_form(factory: str, dimension: int, settings: QuantizerSettings) -> Form:
    """The parsed factory; a `UserError` if it cannot be learned like this."""
    form = read_form(factory, dimension)
    if form.refinement and settings.query_map:
        raise UserError(
            f"factory {factory!r} ranks by the documents' vectors again, which mapped queries do not fit; leave the "
            "refinement or the query map out."
        )
    return form


def _start(
    target: int | str | Any, documents: Vectors, settings: QuantizerSettings, names: Sequence[str] | None
) -> tuple[str, Any, str | None]:
    """The factory's name, the filled index to start from, and what refines it."""
    count, dimension = documents.shape
    if isinstance(target, int):
        target = factory_for(target, dimension)
    if isinstance(target, str):
        rounds, refinement = settings.start_iterations, checked_form(target, dimension, settings).refinement
        start = start_index(target, documents, seed=settings.seed, iterations=rounds, names=names)
        return target, start, refinement
    if (target.ntotal, target.d) != (count, dimension):
        raise UserError(
            f"an index of {target.ntotal} vectors of {target.d} dimensions to start from, and documents of shape "
            f"{documents.shape}; fill it with these documents."
        )
    return type(target).__name__, target, None


def _train(learner: Learner, settings: QuantizerSettings) -> tuple[list[Point], tuple[Codes, np.ndarray | None] | None]:
    """The evaluations, and the best parts and query map; None where nothing was better than the start."""
    history = [Point(0, float("nan"), learner.agreement())]
    best, losses = None, []
    if learner.quantizer.start.single_bits:
        learner.fit_bits()
        history.append(Point(0, float("nan"), learner.agreement()))
        best = learner.state() if history[1].agreement > history[0].agreement else None
    evaluated = {round(settings.steps * number / settings.evaluations) for number in range(1, settings.evaluations + 1)}
    with bar(settings.steps, "learning the quantizer", "steps") as progress:
        for step in range(1, settings.steps + 1):
            losses.append(learner.step())
            progress.update()
            if step in evaluated:
                learner.reassign(step)
                point = Point(step, float(np.mean(losses)), learner.agreement())
                if point.agreement > max(seen.agreement for seen in history):
                    best = learner.state()
                history.append(point)
                losses = []
                progress.set_postfix(loss=f"{point.loss:.4f}", held_out=f"{point.agreement:.4f}")
    return history, best


def _checked(
    documents: Vectors, queries: np.ndarray, sources: np.ndarray | None, names: Sequence[str] | None
) -> tuple[np.ndarray, Vectors, np.ndarray]:
    """Queries, documents and sources, as `Targets` takes them."""
    if not len(queries):
        raise UserError(
            "no training queries to learn from; give a log of queries, or use sentences and titles of the documents "
            "(retrodistill.training.texts.training_texts)."
        )
    for vectors, what in ((documents, "documents"), (queries, "training queries")):
        if len(vectors.shape) != 2 or not vectors.shape[1]:
            raise UserError(f"{what}: an array of shape {vectors.shape}; give vectors of shape (n, dimension).")
    count, dimension = documents.shape
    if names is not None and len(names) != count:
        raise UserError(f"{len(names)} ids for {count} documents; give one id per vector.")
    if dimension != queries.shape[1]:
        widths = f"documents of {dimension} dimensions and queries of {queries.shape[1]}"
        raise UserError(f"{widths}; embed both with the same model.")
    if len(queries) < 2:
        raise UserError("1 training query; at least 2 are needed, one of them to decide when to stop.")
    sources = np.full(len(queries), -1, dtype=np.int64) if sources is None else np.asarray(sources, dtype=np.int64)
    if sources.shape != (len(queries),) or sources.max() >= count:
        raise UserError(
            f"sources of shape {sources.shape}, up to {sources.max(initial=-1)}, for {len(queries)} queries and "
            f"{count} documents; give the row of each query's own document, or -1."
        )
    if count <= MOST_HELD:
        documents = read_vectors(documents, ALL, names)
    return read_vectors(queries, ALL, what="training queries"), documents, sources
