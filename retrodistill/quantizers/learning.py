"""Distilling a vector quantizer: its scores are trained to rank as the teacher does."""

from __future__ import annotations

import time
from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np

from retrodistill.core.progress import bar
from retrodistill.quantizers.checks import checked_pair, checked_sources
from retrodistill.quantizers.export import to_faiss
from retrodistill.quantizers.settings import QuantizerSettings
from retrodistill.quantizers.start import Codes, factory_for, read_form, read_index, start_index
from retrodistill.quantizers.targets import Targets, Teacher

if TYPE_CHECKING:
    from retrodistill.quantizers.steps import Learner


@dataclass(frozen=True)
class Point:
    """One look at the held-out queries.

    Attributes:
        step: After so many steps.
        loss: Mean over the steps since the last look; NaN before the first.
        agreement: With the teacher's top 10 (nDCG of the quantized ranking with the teacher's ranks as gains), 0 to 1.
    """

    step: int
    loss: float
    agreement: float


@dataclass(frozen=True, eq=False)
class Learned:
    """A learned quantizer beside what it started from.

    Attributes:
        index: The filled FAISS index, plain.
        start: The FAISS index that learning began with (OPQ at the same bytes), filled with the same documents.
        codes: The parts of `index`.
        query_map: (d, d) float32: multiply query vectors by its transpose before search; None where none was learned.
        history: Looks at the held-out queries, the first at the start.
        improved: Whether the held-out queries got better; if not, `index` is the start.
        temperature: That teacher and quantized scores were divided by.
        settings: All of them.
        factory: Of the start.
        start_seconds: Wall time of building the start.
        seconds: Wall time of both, learning included.
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
    def bytes_per_document(self) -> int:
        """Of the codes; lists cost FAISS 8 more for the id."""
        return self.codes.bytes_per_document

    @property
    def agreement(self) -> tuple[float, float]:
        """On held-out queries: of the start, and of the result."""
        return self.history[0].agreement, max(point.agreement for point in self.history)


def learn_quantizer(
    documents: np.ndarray,
    queries: np.ndarray,
    target: int | str | Any,
    settings: QuantizerSettings | None = None,
    *,
    sources: np.ndarray | None = None,
    teacher: Teacher | None = None,
    names: Sequence[str] | None = None,
) -> Learned:
    """Learn a product quantizer by distillation (Distill-VQ, Xiao et al. 2022, arXiv 2204.00185).

    Args:
        documents: (n, d) float32 vectors; the index holds them in this order.
        queries: (q, d) float32 training queries: a log, pseudo-queries, or both.
        target: Bytes per document, a factory string (``OPQ16,PQ16``, ``OPQ16,IVF64,PQ16x4``, ``PQ8``), or a filled
            FAISS index of that kind to start from.
        settings: How it is learned; the defaults by default.
        sources: (q,) document that a pseudo-query was taken from, -1 for real queries. Its own document is not shown
            to a pseudo-query, which would learn to find nothing else.
        teacher: Scores to learn from, by rows of `queries`; the exact inner products by default.
        names: (n,) document ids, for messages.

    Returns:
        The learned index and its start. Never worse on the held-out queries than the start.

    Raises:
        UserError: Too few or bad vectors, queries of another dimension or none, a target that does not fit.
    """
    settings = settings or QuantizerSettings()
    documents, queries = checked_pair(documents, queries, names)
    sources = checked_sources(sources, len(queries), len(documents))
    started = time.perf_counter()
    factory, begin = _start(target, documents, settings)
    start_seconds = time.perf_counter() - started
    from retrodistill.quantizers.steps import Learner  # torch

    parts = read_index(begin)
    learner = Learner(parts, Targets(queries, documents, teacher), sources, settings)
    history, best = _train(learner, settings)
    improved = best is not None
    codes, query_map = best if best is not None else (parts, None)
    index = to_faiss(codes)
    return Learned(
        index=index,
        start=begin,
        codes=codes,
        query_map=query_map,
        history=tuple(history),
        improved=improved,
        temperature=learner.temperature,
        settings=settings,
        factory=factory,
        start_seconds=start_seconds,
        seconds=time.perf_counter() - started,
    )


def _start(target: int | str | Any, documents: np.ndarray, settings: QuantizerSettings) -> tuple[str, Any]:
    """The factory's name and the filled index to begin with."""
    from retrodistill.core.errors import UserError

    if isinstance(target, (int, str)):
        factory = factory_for(target, documents.shape[1]) if isinstance(target, int) else target
        read_form(factory, documents.shape[1])
        return factory, start_index(factory, documents, seed=settings.seed, iterations=settings.start_iterations)
    if target.ntotal != len(documents) or target.d != documents.shape[1]:
        raise UserError(
            f"an index of {target.ntotal} vectors of {target.d} dimensions to start from, and documents of shape "
            f"{documents.shape}; fill it with these documents."
        )
    return type(target).__name__, target


def _train(learner: Learner, settings: QuantizerSettings) -> tuple[list[Point], tuple[Codes, np.ndarray | None] | None]:
    """The looks at the held-out queries, and the best parts, or None where nothing was better than the start."""
    history = [Point(0, float("nan"), learner.agreement())]
    best, losses = None, []
    looks = {round(settings.steps * look / settings.evaluations) for look in range(1, settings.evaluations + 1)} - {0}
    with bar(settings.steps, "learning the quantizer", "steps") as progress:
        for step in range(1, settings.steps + 1):
            losses.append(learner.step())
            progress.update()
            if step in looks:
                learner.reassign(step)
                point = Point(step, float(np.mean(losses)), learner.agreement())
                if point.agreement > max(seen.agreement for seen in history):
                    best = learner.parts(), learner.map_as_array()
                history.append(point)
                losses = []
                progress.set_postfix(loss=f"{point.loss:.4f}", held_out=f"{point.agreement:.4f}")
    return history, best
