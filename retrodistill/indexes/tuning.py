"""The FAISS factory for ``auto``, and the smallest search parameters that reach a recall."""

from __future__ import annotations

import math
import statistics
import time
from collections.abc import Callable
from dataclasses import dataclass, replace
from typing import Any, NamedTuple

import numpy as np

from retrodistill.core.errors import UserError
from retrodistill.indexes.factory import can_refine, faiss, known_parameters, set_parameters, written_parameters

_GRAPH_FROM = 20_000  # documents; below, a scan takes a millisecond or two
_LISTS_FROM = 100_000  # documents, if the links of a graph do not fit
_GRAPH_TO = 500_000  # documents; above, building a graph takes longer than training and filling lists
_LINK_BYTES = 272  # of HNSW32 per document
_CROWDED = 0.93  # share of their recall that coarse codes keep among near neighbors
_PER_LIST = 39  # vectors per list that k-means asks for
_TIMED_QUERIES = 50
# Bytes per dimension, and recall@10 of OPQ as measured; interpolated in between.
_PRODUCT_RECALL = [0, 1 / 24, 1 / 12, 1 / 8, 1 / 4], [0, 0.55, 0.68, 0.75, 0.85]
_FACTORS = [2**power for power in range(7)]  # of refining


@dataclass(frozen=True)
class Choice:
    """A factory and the reason for it.

    Attributes:
        parameters: Search parameters to begin with; `FaissIndex.tune` finds better ones.
        bytes_per_document: Of codes and links. Codebooks, rotation and centroids, which do not grow, and 8 bytes per
            label in inverted lists come on top.
        recall: Share of exact search's ten best that it keeps, as measured (see `choose_factory`).
        fixed_bytes: Of codebooks, rotation and centroids. OPQ is not used if they make the index larger than exact
            vectors.
    """

    factory: str
    parameters: str | None
    reason: str
    bytes_per_document: float
    recall: float
    fixed_bytes: int = 0


class _Code(NamedTuple):
    """How a vector is stored."""

    prefix: str
    name: str
    size: float
    recall: float
    fixed: int = 0


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
    up to 1; `bytes_per_document` limits codes and links.

    Raises:
        UserError: There are no documents, the recall is not between 0 and 1, or no code fits the bytes.
    """
    if documents < 1 or dimension < 1:
        raise UserError(f"{documents} documents of {dimension} dimensions; an index needs one or more of each.")
    if recall is not None and not 0 < recall <= 1:
        raise UserError(f"recall={recall:g}: choose a share above 0 and up to 1, e.g. 0.95.")
    codes = _codes(documents, dimension)
    fitting = [code for code in codes if bytes_per_document is None or code.size <= bytes_per_document]
    if not fitting:
        raise UserError(
            f"{bytes_per_document:g} bytes per document: the smallest code for {documents} vectors of {dimension} "
            f"dimensions has {codes[-1].size:g}; allow more bytes."
        )
    choices = [_search(code, documents, dimension, bytes_per_document, recall) for code in fitting]
    if recall is not None:
        kept = [choice for choice in choices if choice.recall >= recall]
        kept = kept or [choice for choice in map(_scan, fitting) if choice.recall >= recall]
        smallest = min(kept, key=lambda choice: choice.bytes_per_document, default=None)
        best = smallest or max(choices, key=lambda choice: choice.recall)
    elif bytes_per_document is not None:
        best = max(choices, key=lambda choice: choice.recall)
    else:
        code = "Flat" if documents < _GRAPH_FROM else "SQ8"
        best = next(choice for choice in choices if code in choice.factory)
    return replace(best, reason=_reason(best, documents, bytes_per_document, recall))


def _codes(documents: int, dimension: int) -> list[_Code]:
    """Ways to store a vector, from most to fewest bytes."""
    crowd = _CROWDED if documents >= _GRAPH_FROM else 1.0
    exact = 4 * dimension
    codes = [
        _Code("", "Flat", exact, 1.0),
        _Code("", "SQfp16", 2 * dimension, 0.999),
        _Code("", "SQ8", dimension, 0.985),
        _Code("", "SQ6", math.ceil(0.75 * dimension), 0.96),
        _Code("", "SQ4", math.ceil(0.5 * dimension), round(0.92 * crowd, 3)),
    ]
    fixed = exact * (dimension + 256)  # OPQ's rotation, and codebooks of 256 codewords
    if documents < max(256, dimension) or fixed >= exact * documents:
        rabitq2 = _Code("", "RaBitQ2", math.ceil(dimension / 4) + 20, 0.8)
        return [*codes, rabitq2, _Code("", "RaBitQ", math.ceil(dimension / 8) + 8, 0.65)]
    for parts in range(dimension // 4, 0, -1):
        if dimension % parts == 0 and fixed + parts * documents < exact * documents:
            kept = round(float(np.interp(parts / dimension, *_PRODUCT_RECALL)), 3)
            recall = round(crowd * kept, 3)
            codes.append(_Code(f"OPQ{parts},", f"PQ{parts}", parts, recall, fixed))
    return codes


def _search(code: _Code, documents: int, dimension: int, most: float | None, recall: float | None) -> Choice:
    """A code with the kind of search that suits the size of the corpus; the reason is only that kind so far."""
    is_exact = recall is not None and recall > 0.99
    fits = most is None or code.size + _LINK_BYTES <= most
    if documents < _GRAPH_FROM or is_exact:
        return _scan(code)
    if documents <= _GRAPH_TO and fits and not code.prefix:
        graph = "HNSW32" if code.name == "Flat" else f"HNSW32,{code.name}"
        kept = round((0.98 if documents < _LISTS_FROM else 0.96) * code.recall, 3)
        return Choice(graph, "efSearch=128", "a graph", code.size + _LINK_BYTES, kept)
    if documents < _LISTS_FROM:
        return _scan(code)
    lists = 2 ** round(math.log2(4 * math.sqrt(documents)))
    lists = min(lists, 2 ** int(math.log2(documents / _PER_LIST)))
    share, kept = (4, 0.98) if recall is not None and recall > 0.95 else (8, 0.95)
    factory, parameters = f"{code.prefix}IVF{lists},{code.name}", f"nprobe={max(1, lists // share)}"
    fixed = code.fixed + 4 * lists * dimension
    return Choice(factory, parameters, f"{lists} inverted lists", code.size, round(kept * code.recall, 3), fixed)


def _scan(code: _Code) -> Choice:
    return Choice(code.prefix + code.name, None, "a scan", code.size, code.recall, code.fixed)


def _reason(choice: Choice, documents: int, most: float | None, recall: float | None) -> str:
    wishes = [f"{documents:,} documents"]
    wishes += [f"at most {most:g} bytes each"] if most is not None else []
    wishes += [f"recall@10 of {recall:g}"] if recall is not None else []
    codebooks = f" and {choice.fixed_bytes / 1e6:,.1f} MB of codebooks" if choice.fixed_bytes else ""
    share = f"about {choice.recall:.2f}" if choice.recall < 1 else "all"
    is_short = recall is not None and choice.recall < recall
    return (
        f"auto: {choice.factory} for {', '.join(wishes)}: {choice.reason}, {choice.bytes_per_document:,.0f} bytes a "
        f"document{codebooks}, keeps {share} of exact search's ten best"
        + ("; no kind within these bytes keeps the recall." if is_short else ".")
    )


@dataclass(frozen=True)
class TuningResult:
    """The chosen parameters and what they reach.

    Attributes:
        parameters: As FAISS reads them, e.g. ``nprobe=12``; empty for an index without parameters.
        recall: Share of exact search's k best documents that are found, mean over `queries` queries, 0 to 1.
        ms: Median time of a single query on one thread, without encoding.
    """

    parameters: str
    recall: float
    target: float
    k: int
    queries: int
    ms: float
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
    """Set an index to the smallest parameters that reach a recall of exact search's k best.

    nprobe (IVF) or efSearch (HNSW) is doubled until the recall is reached, then bisected. An index that refines does so
    for each k_factor_rf of 1, 2, 4... and keeps the fastest pair. If nothing reaches the recall, the best is kept.

    Args:
        index: A filled FAISS index.
        queries: (q, d) float32, held out.
        exact: (q, k or more) int64 labels of exact search's best documents, best first.
        recall: Target recall, above 0 and up to 1.
        k: Documents per query.
    """
    if not 0 < recall <= 1:
        raise UserError(f"recall={recall:g}: choose a share above 0 and up to 1, e.g. 0.95.")
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
    reaching = [result for result in results if result[1] >= recall]
    if reaching:
        values, best, ms = min(reaching, key=lambda result: result[2])
    else:
        values, best, ms = max(results, key=lambda result: result[1])
    if parameters := written_parameters(values):
        set_parameters(index, parameters)
    return TuningResult(parameters, best, recall, k, len(queries), ms, "" if reaching else _advice(index))


def mean_recall(labels: np.ndarray, exact: np.ndarray) -> float:
    """Share of the (q, k) exact labels that are among the (q, any) labels, mean over queries."""
    hits = [len(np.intersect1d(*pair)) for pair in zip(labels, exact, strict=True)]
    return float(np.mean(hits) / exact.shape[1])


def exact_labels(index: Any, queries: np.ndarray, k: int) -> np.ndarray | None:
    """Labels of the k best (q, k), if the index holds its vectors as they were given; None for codes and transforms.

    Flat holds them, and HNSW, IVF and RFlat over Flat.
    """
    index = faiss.downcast_index(index)
    if isinstance(index, faiss.IndexRefine):
        index = faiss.downcast_index(index.refine_index)
    elif isinstance(index, faiss.IndexHNSW):
        index = faiss.downcast_index(index.storage)
    if isinstance(index, faiss.IndexFlat):
        return np.asarray(index.search(queries, k)[1])
    if isinstance(index, faiss.IndexIVFFlat):
        return np.asarray(index.search(queries, k, params=faiss.SearchParametersIVF(nprobe=index.nlist))[1])
    return None


def _milliseconds(index: Any, queries: np.ndarray, k: int) -> float:
    """Median time of single queries on one thread, after a warm-up."""
    threads = faiss.omp_get_max_threads()
    faiss.omp_set_num_threads(1)
    try:
        times = []
        index.search(queries[:5], k)
        for place in range(min(_TIMED_QUERIES, len(queries))):
            start = time.perf_counter()
            index.search(queries[place : place + 1], k)
            times.append(time.perf_counter() - start)
    finally:
        faiss.omp_set_num_threads(threads)
    return 1000 * statistics.median(times)


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

    return [smallest({"k_factor_rf": factor}) for factor in _FACTORS] if len(names) > 1 else [smallest({})]


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
    if can_refine(index):
        return "refine by more exact vectors (RFlat), or choose codes of more bytes."
    if exact_labels(index, np.zeros((1, index.d), dtype=np.float32), 1) is None:
        return "its codes keep no more; choose codes of more bytes, or refine them (',Refine(SQ8)' or ',RFlat')."
    return "its graph reaches no further; build it with more links (HNSW64), or choose IVF or Flat."
