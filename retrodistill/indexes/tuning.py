"""Search parameters for a target recall: the smallest nprobe, efSearch and refining factor that reach it."""

from __future__ import annotations

import statistics
import time
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import numpy as np

from retrodistill.core.errors import UserError
from retrodistill.indexes.factory import can_refine, known_parameters, set_parameters, written_parameters

_TIMED_QUERIES = 50
_FACTORS = [2**power for power in range(7)]  # of refining


@dataclass(frozen=True)
class TuningResult:
    """The chosen parameters and what they reach.

    Attributes:
        parameters: As FAISS reads them, e.g. ``nprobe=12``; empty for an index without parameters.
        recall: Share of exact search's k best documents that are found, mean over the queries, 0 to 1.
        target: The recall that was asked for.
        k: Depth of both.
        queries: Number of queries.
        ms: Median time of a single query on one thread, without encoding.
        advice: What to do if the target is out of reach; empty if it is reached.
    """

    parameters: str
    recall: float
    target: float
    k: int
    queries: int
    ms: float
    advice: str = ""

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
        index: A filled FAISS index; it is left with the chosen parameters.
        queries: (q, d) float32, held out: training queries or sentences of documents, never test queries.
        exact: (q, k or more) int64 labels of exact search's best documents, best first.
        recall: Target recall, above 0 and up to 1.
        k: Documents per query.

    Raises:
        UserError: There are no queries, the recall is not between 0 and 1, or there are fewer exact neighbors than k.
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
    parameters = written_parameters(values)
    if parameters:
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
    import faiss

    index = faiss.downcast_index(index)
    if isinstance(index, faiss.IndexRefine):
        index = faiss.downcast_index(index.refine_index)
    elif isinstance(index, faiss.IndexHNSW):
        index = faiss.downcast_index(index.storage)
    if isinstance(index, faiss.IndexFlat):
        return np.asarray(index.search(queries, k)[1])
    if isinstance(index, faiss.IndexIVFFlat):
        library: Any = faiss  # its stubs lack the arguments
        return np.asarray(index.search(queries, k, params=library.SearchParametersIVF(nprobe=index.nlist))[1])
    return None


def _milliseconds(index: Any, queries: np.ndarray, k: int) -> float:
    """Median time of single queries on one thread, after a warm-up."""
    import faiss

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
