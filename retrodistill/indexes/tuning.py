"""The FAISS factory for ``auto``, and the smallest search parameters that reach a recall."""

from __future__ import annotations

import math
import statistics
from collections.abc import Callable
from dataclasses import dataclass, replace
from functools import partial
from operator import attrgetter
from timeit import timeit
from typing import Any

import numpy as np

from retrodistill.core.errors import UserError
from retrodistill.core.faiss import faiss
from retrodistill.indexes.factory import known_parameters, set_parameters, vector_holder, written_parameters

_GRAPH_FROM = 20_000  # documents; below, a scan takes a millisecond or two
_LISTS_FROM = 100_000  # documents, if the links of a graph do not fit
_GRAPH_TO = 500_000  # documents; above, building a graph takes longer than training and filling lists
_LINK_BYTES = 272  # of HNSW32 per document
_CROWDED = 0.93  # share of their recall that coarse codes keep among near neighbors
_PER_LIST = 39  # vectors per list that k-means asks for
_TIMED_QUERIES = 50
# Bytes per dimension, and recall@10 of OPQ as measured; interpolated in between.
_PRODUCT_RECALL = [0, 1 / 24, 1 / 12, 1 / 8, 1 / 4], [0, 0.55, 0.68, 0.75, 0.85]


@dataclass(frozen=True)
class Choice:
    """A factory and the reason for it."""

    factory: str
    bytes_per_document: float  # of codes and links, without 8 bytes per label in inverted lists
    recall: float  # share of exact search's ten best that it keeps, as measured (see `choose_factory`)
    fixed_bytes: int = 0  # of codebooks, rotation and centroids
    parameters: str | None = None  # for search, to begin with; `FaissIndex.tune` finds better ones
    reason: str = "a scan"


def choose_factory(
    documents: int, dimension: int, *, bytes_per_document: float | None = None, recall: float | None = None
) -> Choice:
    """Choose a FAISS factory.

    Codes: without bytes and recall, ``Flat`` below 20,000 documents and ``SQ8`` from there. With a recall only, the
    fewest bytes that keep it. With bytes, the code that keeps most within them; the reason says so if that is less than
    `recall`. Codes are scalar down to d/2 bytes. Below that, OPQ if it can be trained (on at least 256 and d vectors)
    and its codebooks are smaller than what it saves, otherwise RaBitQ, which needs neither.

    Search: a scan below 20,000 documents. A graph (HNSW) from 20,000 to 500,000 if its 272 bytes per document fit and
    codes are scalar. Otherwise inverted lists from 100,000, about 4 sqrt(n) of which an eighth are visited, or a
    quarter for a recall above .95. A scan if neither keeps `recall`.

    Recall is what MiniLM vectors (384 dimensions) kept, rounded down: scans on SciFact and NFCorpus (see
    ``evaluation/faiss_kinds.py``), graphs on 26,000 and 123,000 perturbed copies of both, lists of scalar codes on the
    123,000 only. Lists of OPQ are an estimate. Real documents are harder to find by lists than copies: an eighth of 64
    lists kept .89 on SciFact and .80 on NFCorpus. So tune: `FaissIndex.tune` measures and sets. `recall` is above 0 and
    up to 1; `bytes_per_document` limits codes and links. A UserError says that no code fits the bytes.
    """
    if documents < 1 or dimension < 1:
        raise UserError(f"{documents} documents of {dimension} dimensions; an index needs one or more of each.")
    _check_recall(recall)
    scans = _scans(documents, dimension)
    fitting = [scan for scan in scans if bytes_per_document is None or scan.bytes_per_document <= bytes_per_document]
    if not fitting:
        raise UserError(
            f"{bytes_per_document:g} bytes per document: the smallest code for {documents} vectors of {dimension} "
            f"dimensions has {scans[-1].bytes_per_document:g}; allow more bytes."
        )
    choices = [_search(scan, documents, dimension, bytes_per_document, recall) for scan in fitting]
    if recall is not None:
        kept = [choice for choice in choices if choice.recall >= recall]
        kept = kept or [scan for scan in fitting if scan.recall >= recall]
        best = min(kept, key=attrgetter("bytes_per_document")) if kept else max(choices, key=attrgetter("recall"))
    elif bytes_per_document is not None:
        best = max(choices, key=attrgetter("recall"))
    else:
        code = "Flat" if documents < _GRAPH_FROM else "SQ8"
        best = next(choice for choice in choices if code in choice.factory)
    return replace(best, reason=_reason(best, documents, bytes_per_document, recall))


def _scans(documents: int, dimension: int) -> list[Choice]:
    """Scans of each code, from most to fewest bytes."""
    crowd = _CROWDED if documents >= _GRAPH_FROM else 1.0
    exact = 4 * dimension
    scans = [
        Choice("Flat", exact, 1.0),
        Choice("SQfp16", 2 * dimension, 0.999),
        Choice("SQ8", dimension, 0.985),
        Choice("SQ6", math.ceil(0.75 * dimension), 0.96),
        Choice("SQ4", math.ceil(0.5 * dimension), round(0.92 * crowd, 3)),
    ]
    fixed = exact * (dimension + 256)  # OPQ's rotation, and codebooks of 256 codewords
    if documents < max(256, dimension) or fixed >= exact * documents:
        rabitq2 = Choice("RaBitQ2", math.ceil(dimension / 4) + 20, 0.8)
        return [*scans, rabitq2, Choice("RaBitQ", math.ceil(dimension / 8) + 8, 0.65)]
    for parts in range(dimension // 4, 0, -1):
        if dimension % parts == 0 and fixed + parts * documents < exact * documents:
            kept = round(float(np.interp(parts / dimension, *_PRODUCT_RECALL)), 3)
            scans.append(Choice(f"OPQ{parts},PQ{parts}", parts, round(crowd * kept, 3), fixed))
    return scans


def _search(scan: Choice, documents: int, dimension: int, most: float | None, recall: float | None) -> Choice:
    """The code of a scan with the kind of search that suits the size of the corpus, which is the reason so far."""
    if documents < _GRAPH_FROM or (recall or 0) > 0.99:
        return scan
    *rotation, code = scan.factory.split(",")
    size = scan.bytes_per_document
    if documents <= _GRAPH_TO and (most is None or size + _LINK_BYTES <= most) and not rotation:
        kept = round((0.98 if documents < _LISTS_FROM else 0.96) * scan.recall, 3)
        graph = "HNSW32" if code == "Flat" else f"HNSW32,{code}"
        return Choice(graph, size + _LINK_BYTES, kept, parameters="efSearch=128", reason="a graph")
    if documents < _LISTS_FROM:
        return scan
    lists = 2 ** min(round(math.log2(4 * math.sqrt(documents))), int(math.log2(documents / _PER_LIST)))
    share, kept = (4, 0.98) if (recall or 0) > 0.95 else (8, 0.95)
    factory, nprobe = ",".join([*rotation, f"IVF{lists}", code]), f"nprobe={max(1, lists // share)}"
    fixed = scan.fixed_bytes + 4 * lists * dimension
    return Choice(factory, size, round(kept * scan.recall, 3), fixed, nprobe, f"{lists} inverted lists")


def _reason(choice: Choice, documents: int, most: float | None, recall: float | None) -> str:
    size = "" if most is None else f", at most {most:g} bytes each"
    wanted = "" if recall is None else f", recall@10 of {recall:g}"
    codebooks = f" and {choice.fixed_bytes / 1e6:,.1f} MB of codebooks" if choice.fixed_bytes else ""
    share = f"about {choice.recall:.2f}" if choice.recall < 1 else "all"
    end = "; no kind within these bytes keeps the recall." if choice.recall < (recall or 0) else "."
    return (
        f"auto: {choice.factory} for {documents:,} documents{size}{wanted}: {choice.reason}, "
        f"{choice.bytes_per_document:,.0f} bytes a document{codebooks}, keeps {share} of exact search's ten best{end}"
    )


@dataclass(frozen=True)
class TuningResult:
    """The chosen parameters and what they reach."""

    parameters: str  # as FAISS reads them, e.g. `nprobe=12`; empty for an index without parameters
    recall: float  # share of exact search's k best documents that are found, mean over queries, 0 to 1
    target: float
    k: int
    queries: int  # their number
    ms: float  # median time of a single query on one thread, without encoding
    advice: str = ""  # what to do if the target is out of reach

    @property
    def reached(self) -> bool:
        """Whether the recall is at least the target."""
        return self.recall >= self.target

    def __str__(self) -> str:
        settings = self.parameters or "no parameters to set"
        measured = f"recall@{self.k} {self.recall:.3f} on {self.queries} queries, {self.ms:.2f} ms a query"
        if self.reached:
            return f"{settings}: {measured} (target {self.target:g})"
        return f"{settings}: {measured}; {self.target:g} is out of reach: {self.advice}"


def tune(index: Any, queries: np.ndarray, exact: np.ndarray, *, recall: float = 0.95, k: int = 10) -> TuningResult:
    """Set a filled FAISS index to the smallest parameters that reach a recall of exact search's k best.

    nprobe (IVF) or efSearch (HNSW) is doubled until the recall is reached, then bisected. An index that refines does so
    for each k_factor_rf of 1, 2, 4... and keeps the fastest pair. If nothing reaches the recall, the best is kept.
    Queries are (q, d) float32, held out; `exact` is (q, k or more) int64 labels, best first; `recall` is above 0 and up
    to 1.
    """
    _check_recall(recall)
    if not len(queries):
        raise UserError("no queries to tune on; give training queries or sentences of the documents.")
    if exact.shape[0] != len(queries) or not 1 <= k <= exact.shape[1]:
        raise UserError(
            f"exact neighbors of shape {exact.shape} for {len(queries)} queries and k={k}; give k for each query."
        )

    def recall_of(values: dict[str, int]) -> float:
        if values:
            set_parameters(index, written_parameters(values))
        return mean_recall(index.search(queries, k)[1], exact[:, :k])

    trials = _trials(index, recall_of, recall, k)
    results = [(values, recall_of(values), _milliseconds(index, queries, k)) for values in trials]
    # the fastest of those that reach it, otherwise the best
    values, best, ms = min(results, key=lambda result: (0, result[2]) if result[1] >= recall else (1, -result[1]))
    if parameters := written_parameters(values):
        set_parameters(index, parameters)
    return TuningResult(parameters, best, recall, k, len(queries), ms, "" if best >= recall else _advice(index))


def _check_recall(recall: float | None) -> None:
    if recall is not None and not 0 < recall <= 1:
        raise UserError(f"recall={recall:g}: choose a share above 0 and up to 1, e.g. 0.95.")


def mean_recall(labels: np.ndarray, exact: np.ndarray) -> float:
    """Share of the (q, k) exact labels that are among the (q, any) labels, mean over queries."""
    hits = [len(np.intersect1d(*pair)) for pair in zip(labels, exact, strict=True)]
    return float(np.mean(hits) / exact.shape[1])


def exact_labels(index: Any, queries: np.ndarray, k: int) -> np.ndarray | None:
    """Labels of the k best (q, k), if the index holds its vectors as they were given (`vector_holder`), else None."""
    holder = vector_holder(index)
    every_list = faiss.SearchParametersIVF(nprobe=holder.nlist) if isinstance(holder, faiss.IndexIVF) else None
    return None if holder is None else np.asarray(holder.search(queries, k, params=every_list)[1])


def _milliseconds(index: Any, queries: np.ndarray, k: int) -> float:
    """Median time of single queries on one thread, after a warm-up."""
    threads = faiss.omp_get_max_threads()
    faiss.omp_set_num_threads(1)
    try:
        index.search(queries[:5], k)
        searches = [partial(index.search, query, k) for query in queries[:_TIMED_QUERIES, None]]
        return 1000 * statistics.median(timeit(search, number=1) for search in searches)
    finally:
        faiss.omp_set_num_threads(threads)


def _trials(index: Any, recall_of: Callable[[dict[str, int]], float], target: float, k: int) -> list[dict[str, int]]:
    """Parameters that reach the target, or come nearest: one set, or one for each factor of refining."""
    known = known_parameters(index)
    names = [name for name in ("nprobe", "efSearch", "k_factor_rf") if name in known]
    if not names:
        return [{}]
    first = names[0]
    most = -(-index.ntotal // k) if first == "k_factor_rf" else min(known[first], index.ntotal)

    def smallest(others: dict[str, int]) -> dict[str, int]:
        return {first: _smallest(lambda value: recall_of({first: value, **others}), max(1, most), target), **others}

    return [smallest({"k_factor_rf": 2**power}) for power in range(7)] if len(names) > 1 else [smallest({})]


def _smallest(recall_at: Callable[[int], float], most: int, target: float) -> int:
    """The smallest value that reaches the target, or the one with the highest recall."""
    recalls: dict[int, float] = {}

    def reaches(value: int) -> bool:
        recalls[value] = recall_at(value)
        return recalls[value] >= target

    low, high = 0, 1
    while not reaches(high):
        if high == most:
            return max(recalls, key=lambda value: (recalls[value], -value))
        low, high = high, min(2 * high, most)
    while high - low > 1:
        middle = (low + high) // 2
        low, high = (low, middle) if reaches(middle) else (middle, high)
    return high


def _advice(index: Any) -> str:
    if "k_factor_rf" in known_parameters(index):
        return "refine by more exact vectors (RFlat), or choose codes of more bytes."
    if vector_holder(index) is None:
        return "its codes keep no more; choose codes of more bytes, or refine them (',Refine(SQ8)' or ',RFlat')."
    return "its graph reaches no further; build it with more links (HNSW64), or choose IVF or Flat."
