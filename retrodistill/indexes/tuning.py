"""Search parameters for a wanted recall: the smallest nprobe, efSearch and refining factor that reach it."""

from __future__ import annotations

import statistics
import time
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import numpy as np

from retrodistill.core.errors import UserError
from retrodistill.indexes.factory import inside, known_parameters, set_parameters, written_parameters

_TIMED = 50  # queries
_FACTORS = 7  # of refining: 1, 2, 4... 64


@dataclass(frozen=True)
class TuningResult:
    """What was chosen, and what it reaches.

    Attributes:
        parameters: As FAISS reads them, e.g. ``nprobe=12``; empty for an index that has none.
        recall: Share of exact search's k best documents that are found, mean over the queries, 0 to 1.
        wanted: The recall that was asked for.
        k: Depth of both.
        queries: How many it was measured on.
        ms: Median time of a query by itself, one thread, without encoding.
        advice: What to do where the wanted recall is out of reach; empty where it is reached.
    """

    parameters: str
    recall: float
    wanted: float
    k: int
    queries: int
    ms: float
    advice: str = ""

    @property
    def reached(self) -> bool:
        """Whether recall is what was wanted."""
        return self.recall >= self.wanted

    def __str__(self) -> str:
        found = f"recall@{self.k} {self.recall:.3f} on {self.queries} queries, {self.ms:.2f} ms a query"
        settings = self.parameters or "no parameters to set"
        if self.reached:
            return f"{settings}: {found} (wanted {self.wanted:g})"
        return f"{settings}: {found}; {self.wanted:g} is out of reach: {self.advice}"


def tune(index: Any, queries: np.ndarray, exact: np.ndarray, *, recall: float = 0.95, k: int = 10) -> TuningResult:
    """Set an index to the smallest parameters that find a wanted share of exact search's k best.

    nprobe (IVF) or efSearch (HNSW) is doubled until the recall is reached, then bisected; an index that refines does so
    for each k_factor_rf of 1, 2, 4... and keeps the fastest pair. Where nothing reaches it, the best is kept.

    Args:
        index: A filled FAISS index; it is left with the parameters that were chosen.
        queries: (q, d) float32, held out: training queries or sentences of documents, never test queries.
        exact: (q, k or more) int64, labels of exact search's best documents, best first.
        recall: The share that is wanted, above 0 and up to 1.
        k: How many documents per query.

    Raises:
        UserError: No queries, a recall outside 0 to 1, or fewer exact neighbors than k.
    """
    if not 0 < recall <= 1:
        raise UserError(f"recall={recall:g}: choose a share above 0 and up to 1, e.g. 0.95.")
    if not len(queries):
        raise UserError("no queries to tune on; give training queries or sentences of the documents.")
    if exact.shape[0] != len(queries) or not 1 <= k <= exact.shape[1]:
        raise UserError(
            f"exact neighbors of shape {exact.shape} for {len(queries)} queries and k={k}; wanted k for each query."
        )

    def measured(values: dict[str, int]) -> float:
        if values:
            set_parameters(index, written_parameters(values))
        return shared(index.search(queries, k)[1], exact[:, :k])

    trials = _trials(index, measured, recall, k)
    results = [(values, measured(values), milliseconds(index, queries, k)) for values in trials]
    reaching = [result for result in results if result[1] >= recall]
    values, best, ms = min(reaching, key=lambda one: one[2]) if reaching else max(results, key=lambda one: one[1])
    if values:
        set_parameters(index, written_parameters(values))
    return TuningResult(
        written_parameters(values), best, recall, k, len(queries), ms, "" if reaching else _advice(index)
    )


def shared(found: np.ndarray, exact: np.ndarray) -> float:
    """Recall: share of the (q, k) exact labels that are among the (q, any) found ones, mean over queries."""
    hits = [len(np.intersect1d(ours, theirs)) for ours, theirs in zip(found, exact, strict=True)]
    return float(np.mean(hits) / exact.shape[1])


def milliseconds(index: Any, queries: np.ndarray, k: int) -> float:
    """Median time of single queries on one thread, after a warm-up."""
    import faiss

    threads = faiss.omp_get_max_threads()
    faiss.omp_set_num_threads(1)
    try:
        times = []
        index.search(queries[:5], k)
        for place in range(min(_TIMED, len(queries))):
            start = time.perf_counter()
            index.search(queries[place : place + 1], k)
            times.append(time.perf_counter() - start)
    finally:
        faiss.omp_set_num_threads(threads)
    return 1000 * statistics.median(times)


def exact_labels(index: Any, queries: np.ndarray, k: int) -> np.ndarray | None:
    """Labels of the k best (q, k) by the vectors that an index itself holds as they were given; None where it does not.

    Flat does, and so do HNSW, IVF and RFlat over whole vectors; codes and transforms do not.
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
        library: Any = faiss  # its stubs know no arguments
        everywhere = library.SearchParametersIVF(nprobe=index.nlist)
        return np.asarray(index.search(queries, k, params=everywhere)[1])
    return None


def _trials(index: Any, measured: Callable[[dict[str, int]], float], wanted: float, k: int) -> list[dict[str, int]]:
    """Parameters that reach the wanted recall, or come nearest: one set, or one for each factor of refining."""
    known = known_parameters(index)
    names = [name for name in ("nprobe", "efSearch", "k_factor_rf") if name in known]
    if not names:
        return [{}]
    first, refined = names[0], len(names) > 1
    most = -(-index.ntotal // k) if first == "k_factor_rf" else min(known[first], index.ntotal)

    def least(others: dict[str, int]) -> dict[str, int]:
        return {first: _least(lambda value: measured({first: value, **others}), max(1, most), wanted), **others}

    return [least({"k_factor_rf": 2**power}) for power in range(_FACTORS)] if refined else [least({})]


def _least(recall_at: Callable[[int], float], most: int, wanted: float) -> int:
    """The smallest value that reaches the wanted recall, or the one of highest recall that was tried."""
    tried: dict[int, float] = {}

    def reaches(value: int) -> bool:
        tried[value] = recall_at(value)
        return tried[value] >= wanted

    low, high = 0, 1
    while not reaches(high):
        if high == most:
            return max(tried, key=lambda value: (tried[value], -value))
        low, high = high, min(2 * high, most)
    while high - low > 1:
        middle = (low + high) // 2
        low, high = (low, middle) if reaches(middle) else (middle, high)
    return high


def _advice(index: Any) -> str:
    import faiss

    if any(isinstance(part, faiss.IndexRefine) for part in inside(index)):
        return "refine by more exact vectors (RFlat), or take codes of more bytes."
    if exact_labels(index, np.zeros((1, index.d), dtype=np.float32), 1) is None:
        return "its codes keep no more; take codes of more bytes, or refine them (',Refine(SQ8)' or ',RFlat')."
    return "its graph reaches no further; build it with more links (HNSW64), or take IVF or Flat."
