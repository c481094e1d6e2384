"""Cost of a system on this machine: latency by stages, bytes, memory, throughput of its encoder."""

from __future__ import annotations

import contextlib
import json
import subprocess
import sys
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from functools import cache
from itertools import chain, pairwise, repeat
from typing import Any

import numpy as np

from retrodistill.core.errors import UserError
from retrodistill.core.runtime import log
from retrodistill.data.collection import Collection
from retrodistill.evaluation.results import Cost, Timing
from retrodistill.rankers.protocol import Ranker, Stage

BATCHES = (1, 32)
_AT_LEAST = 20  # answers before the time limit may stop a measurement
_DOCUMENTS, _BATCH, _WARM_UP = 64, 32, 8  # of the sample that throughput is measured on
_MEMORY = 20  # queries answered by the process that measures memory
_RATES: dict[tuple[str, str, int], dict[str, float]] = {}  # by encoder, collection, and threads


@dataclass(frozen=True)
class CostConfig:
    """How to measure cost.

    Attributes:
        threads: Of torch and FAISS.
        queries: Number of queries to time.
        depth: Documents per answer.
        place: What the collection was loaded from, for the process that measures memory; None to skip memory.

    Raises:
        UserError: Fewer than one thread or query.
    """

    threads: int = 1
    queries: int = 100
    depth: int = 100
    place: str | None = None

    def __post_init__(self) -> None:
        for what, number in (("threads", self.threads), ("queries", self.queries)):
            if number < 1:
                raise UserError(f"{what} {number}: give at least 1.")


def measure_cost(
    ranker: Ranker, collection: Collection, texts: Sequence[str], config: CostConfig, source: str | None = None
) -> Cost | None:
    """Time a system with batches of 1 and 32, after a warm-up and on a fixed number of threads, and measure its size.

    Args:
        ranker: The system.
        collection: The collection that it searches.
        texts: Queries.
        config: How to measure.
        source: What `load_ranker` takes for it, as text, for the process that measures memory; None to skip memory.

    Returns:
        None for a ranker that cannot answer new queries (`can_be_timed`), or whose vectors do not fit into memory.

    Raises:
        UserError: No query.
    """
    queries, documents = list(texts[: config.queries]), len(collection.documents)
    if not ranker.can_be_timed:
        return None
    if not ranker.holds(collection):
        log(f"{ranker.name}: not timed, because {documents:,} vectors do not fit into memory; build an index of them")
        return None
    if not queries:
        raise UserError("no query to time; choose a split that has some.")
    with fixed_threads(config.threads):
        stages = ranker.timed_stages(collection, min(config.depth, documents))
        timings = [_timing(stages, queries, batch) for batch in BATCHES]
        throughput = _throughput(ranker, collection, config.threads)
    each = ranker.bytes_per_document(collection)
    peak = None
    if source is not None and config.place is not None:
        peak = peak_memory(source, config.place, queries[:_MEMORY], config.threads)
    return Cost(
        threads=config.threads,
        timings=timings,
        total_bytes=None if each is None else each * documents,
        build_seconds=getattr(ranker, "build_seconds", None),
        peak_bytes=peak,
        **throughput,
    )


def _timing(stages: Sequence[Stage], texts: Sequence[str], batch: int) -> Timing:
    parts, total, rate = staged_latency(stages, texts, batch=batch, warm_up=max(1, 10 // batch))
    encode, search = parts if len(parts) == 2 else (None, None)
    return Timing(batch=batch, encode=encode, search=search, total=total, queries_per_second=round(rate, 2))


def query_latency(
    respond: Callable[[str], Any], texts: Sequence[str], *, warm_up: int = 10, repeats: int = 3, seconds: float = 10.0
) -> dict[str, float]:
    """Time a query_fn one query at a time.

    Args:
        respond: Answers one query text, including encoding and search.
        texts: Different queries, so that no cache answers.
        warm_up: Queries answered before the clock starts.
        repeats: Rounds over the queries.
        seconds: Time limit, which applies after 20 answers.

    Returns:
        ``{"p50": .., "p95": .., "p99": ..}`` milliseconds over all answers.

    Raises:
        UserError: No text or no repeat.
    """
    return _percentiles(_times([respond], texts, warm_up, repeats, seconds)[0])


def staged_latency(
    stages: Sequence[Callable[[Any], Any]],
    texts: Sequence[str],
    *,
    batch: int = 1,
    warm_up: int = 10,
    repeats: int = 3,
    seconds: float = 10.0,
) -> tuple[list[dict[str, float]], dict[str, float], float]:
    """Time consecutive stages, such as encoding and search.

    Args:
        stages: The first takes a list of `batch` query texts, each other one the output of the previous stage.
        texts: Different queries; the last batch is filled up from the first ones.
        batch: Queries per batch.
        warm_up: Batches answered before the clock starts.
        repeats: Rounds over the queries.
        seconds: Time limit, which applies after 20 answers.

    Returns:
        Milliseconds per batch (p50, p95, p99) of each stage, and of all stages together; queries per second.

    Raises:
        UserError: No text, no repeat, or no batch.
    """
    if batch < 1:
        raise UserError(f"batches of {batch} queries; give at least 1.")
    batches = [[texts[(at + more) % len(texts)] for more in range(batch)] for at in range(0, len(texts), batch)]
    times = _times(stages, batches, warm_up, repeats, seconds)
    whole = times.sum(axis=0)
    return [_percentiles(stage) for stage in times], _percentiles(whole), batch * len(whole) / float(whole.sum())


def _percentiles(times: np.ndarray) -> dict[str, float]:
    """Of (answers,) seconds, in milliseconds."""
    p50, p95, p99 = np.percentile(times, [50, 95, 99]) * 1000
    return {"p50": round(float(p50), 4), "p95": round(float(p95), 4), "p99": round(float(p99), 4)}


def _times(
    stages: Sequence[Callable[[Any], Any]], items: Sequence[Any], warm_up: int, repeats: int, seconds: float
) -> np.ndarray:
    """(stages, answers) seconds."""
    if not items or repeats < 1:
        raise UserError(f"latency of {len(items)} queries, {repeats} repeats; give at least one of each.")
    for item in items[:warm_up]:
        _marks(stages, item)
    times: list[list[float]] = []
    begin = time.perf_counter()
    for item in chain.from_iterable(repeat(items, repeats)):
        marks = _marks(stages, item)
        times.append([end - start for start, end in pairwise(marks)])
        if len(times) >= _AT_LEAST and marks[-1] - begin > seconds:
            break
    return np.array(times).T


def _marks(stages: Sequence[Callable[[Any], Any]], item: Any) -> list[float]:
    """The times at which each stage began, and at which the last one ended."""
    marks, value = [time.perf_counter()], item
    for stage in stages:
        value = stage(value)
        marks.append(time.perf_counter())
    return marks


def _throughput(ranker: Ranker, collection: Collection, threads: int) -> dict[str, Any]:
    """Of the encoder of documents, or else of queries, on a sample of the documents."""
    encoder = ranker.documents or ranker.queries
    if getattr(encoder, "is_recorded", True):  # recorded vectors, or token weights of an index
        return {}
    key = (encoder.fingerprint("document"), collection.fingerprint, threads)
    if key not in _RATES:  # several systems of a table may share the encoder of documents
        _RATES[key] = _rates(encoder, collection, threads)
    rates = _RATES[key]
    if not rates:
        return {}
    seconds = rates["encode_seconds"] if encoder is ranker.documents else None
    return {"encoder": encoder.name, **rates, "encode_seconds": seconds}


def _rates(encoder: Any, collection: Collection, threads: int) -> dict[str, float]:
    """Fields of `Cost`, with the time to encode all documents; empty if the tokens cannot be counted."""
    count_tokens = _tokenizer(encoder)
    if count_tokens is None:
        return {}
    total = len(collection.documents)
    rows = np.linspace(0, total - 1, min(_DOCUMENTS, total), dtype=int)
    texts = [collection.documents.slice(int(row), int(row) + 1)[0] for row in rows]
    encoder.encode(texts[:_WARM_UP], "document", batch_size=_BATCH)
    start = time.perf_counter()
    encoder.encode(texts, "document", batch_size=_BATCH)
    seconds = time.perf_counter() - start
    work = operations(lambda: encoder.encode(texts, "document", batch_size=_BATCH))
    return {
        "tokens_per_second": round(count_tokens(texts) / seconds, 1),
        "matrix_share": round(work / seconds / _machine_rate(threads), 4),
        # Significant digits, because the time of a small corpus must not be rounded to 0.
        "encode_seconds": float(f"{seconds / len(texts) * total:.3g}"),
    }


def _tokenizer(encoder: Any) -> Callable[[Sequence[str]], int] | None:
    """Counts the tokens of documents that an encoder reads, including its prompt, up to its maximum length."""
    first = encoder.modules("document")[0]
    tokenizer: Any = getattr(first, "tokenizer", None)
    prompt = encoder.prompt("document")
    if hasattr(tokenizer, "encode_batch"):  # static models: a tokenizer of `tokenizers`, without special tokens
        return lambda texts: sum(
            len(encoding.ids)
            for encoding in tokenizer.encode_batch([prompt + text for text in texts], add_special_tokens=False)
        )
    if not callable(tokenizer):
        return None
    limit = encoder.contract("document")["max_length"]

    def count(texts: Sequence[str]) -> int:
        encoded = tokenizer([prompt + text for text in texts], truncation=limit is not None, max_length=limit)
        return sum(map(len, encoded["input_ids"]))

    return count


@contextlib.contextmanager
def fixed_threads(threads: int) -> Iterator[None]:
    """Limit torch and FAISS to a number of threads."""
    import faiss
    import torch

    before, faiss_before = torch.get_num_threads(), faiss.omp_get_max_threads()
    torch.set_num_threads(threads)
    faiss.omp_set_num_threads(threads)
    try:
        yield
    finally:
        torch.set_num_threads(before)
        faiss.omp_set_num_threads(faiss_before)


@cache
def _machine_rate(threads: int) -> float:
    """`matrix_rate` of torch's present number of threads, measured once per process."""
    return matrix_rate()


def matrix_rate(size: int = 1024, repeats: int = 5) -> float:
    """Floating-point operations per second of this machine's float32 matrix product, the best of some repeats.

    Products of two (size, size) matrices by torch, 2 size^3 operations each, on the device of the models, with
    torch's present number of threads.
    """
    import torch

    device = "cuda" if torch.cuda.is_available() else "cpu"
    a, b = (torch.rand(size, size, device=device) for _ in range(2))
    times = []
    for _ in range(repeats + 1):  # the first is the warm-up
        start = time.perf_counter()
        a @ b
        if device == "cuda":
            torch.cuda.synchronize()
        times.append(time.perf_counter() - start)
    return 2 * size**3 / min(times[1:])


def operations(work: Callable[[], Any]) -> int:
    """Floating-point operations of the matrix products in a piece of torch work, including padding."""
    import torch
    from torch.nn.attention import SDPBackend, sdpa_kernel
    from torch.utils.flop_counter import FlopCounterMode

    # Attention as plain matrix products: the counter does not know the CPU's fused kernel.
    with torch.inference_mode(), sdpa_kernel(SDPBackend.MATH), FlopCounterMode(display=False) as counter:
        work()
    return int(counter.get_total_flops())


def peak_memory(system: str, collection: str, queries: list[str], threads: int) -> int | None:
    """Highest resident memory, in bytes, of a new process that loads one system and answers queries.

    Resident memory includes Python, libraries, and native allocations of FAISS and torch, which `tracemalloc` misses.

    Args:
        system: What `load_ranker` takes, as text.
        collection: What `load_collection` takes, as text.
        queries: Answered one by one, 100 documents each.
        threads: Of torch and FAISS.

    Returns:
        None if the process failed.
    """
    task = {"system": system, "collection": collection, "queries": queries, "threads": threads}
    command = [sys.executable, "-c", "from retrodistill.evaluation.cost import write_peak; write_peak()"]
    done = subprocess.run(command, input=json.dumps(task), capture_output=True, text=True, check=False)
    if done.returncode != 0 or not done.stdout.strip().isdigit():
        reason = (done.stderr.strip().splitlines() or ["no message"])[-1]
        log(f"{system}: its memory was not measured ({reason[:120]})")
        return None
    return int(done.stdout)


def write_peak() -> None:
    """In the process of `peak_memory`: do the task from stdin, and write the highest resident memory to stdout."""
    import resource

    from retrodistill.core.runtime import set_quiet
    from retrodistill.data import load_collection
    from retrodistill.rankers.loading import load_ranker

    task = json.load(sys.stdin)
    set_quiet(True)
    collection = load_collection(task["collection"])
    ranker = load_ranker(task["system"], needs="search")
    with fixed_threads(task["threads"]):
        answer = ranker.query_fn(collection, min(100, len(collection.documents)))
        for query in task["queries"]:
            answer(query)
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    sys.stdout.write(f"{peak if sys.platform == 'darwin' else peak * 1024}\n")  # macOS counts bytes, others kibibytes
