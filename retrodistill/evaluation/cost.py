"""Cost of a system on this machine: latency by stages, bytes, memory, throughput of its encoder."""

from __future__ import annotations

import contextlib
import json
import subprocess
import sys
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from functools import cache, partial
from itertools import chain, pairwise, repeat
from typing import Any

import numpy as np

from retrodistill.core.errors import UserError
from retrodistill.core.faiss import faiss
from retrodistill.core.runtime import log, release_freed_memory
from retrodistill.data.collection import Collection
from retrodistill.data.texts import spread
from retrodistill.evaluation.results import Cost, Timing
from retrodistill.rankers.documents import searched
from retrodistill.rankers.protocol import Ranker

BATCHES = (1, 32)
_AT_LEAST = 20  # answers before the time limit may stop a measurement
_DOCUMENTS, _WARM_UP = 64, 8  # of the sample that throughput is measured on
_MEMORY = 20  # queries answered by the process that measures memory
_RATES: dict[tuple[str, str, int], dict[str, Any]] = {}  # by encoder, collection, and threads


@dataclass(frozen=True)
class CostConfig:
    """How to measure cost: a UserError if there is not at least one thread and one query."""

    threads: int = 1  # of torch and FAISS
    queries: int = 100  # number of queries to time
    depth: int = 100  # documents per answer
    place: str | None = None  # what `load_collection` takes in the process that measures memory; None to skip memory

    def __post_init__(self) -> None:
        for what, number in (("threads", self.threads), ("queries", self.queries)):
            if number < 1:
                raise UserError(f"{what} {number}: give at least 1.")


def measure_cost(
    ranker: Ranker, collection: Collection, texts: Sequence[str], config: CostConfig, source: str | None = None
) -> Cost | None:
    """Time a system with batches of 1 and 32, after a warm-up and on a fixed number of threads, and measure its size.

    Memory is measured in a process that loads the system from `source`, what `load_ranker` takes as text, if given.
    None for a ranker that cannot answer new queries (`can_be_timed`), or whose vectors do not fit into memory. Timing
    without any query is a UserError.
    """
    queries, documents = list(texts[: config.queries]), len(collection.whole.documents)
    place = searched(ranker, collection)
    if not ranker.can_be_timed:
        return None
    if not ranker.holds(place):
        count = f"{len(place.documents):,} vectors"
        log(f"{ranker.name}: not timed, because {count} do not fit into memory; build an index of them")
        return None
    if not queries:
        raise UserError("no query to time; choose a split that has some.")
    with fixed_threads(config.threads):
        stages = ranker.timed_stages(place, min(config.depth, len(place.documents)))
        timings = []
        for batch in BATCHES:
            parts, whole, rate = staged_latency(stages, queries, batch=batch, warm_up=max(1, 10 // batch))
            split = dict(zip(("encode", "search"), parts, strict=True)) if len(parts) == 2 else {}
            timings.append(Timing(batch=batch, **split, total=whole, queries_per_second=round(rate, 2)))
        throughput = _throughput(ranker, collection, config.threads)
    size, built = bytes_per_document(ranker, collection), getattr(ranker, "build_seconds", None)
    total = None if size is None else size * documents
    if source is not None and config.place is not None:
        passages = None if place.parents is None else place.parents.settings.model_dump()
        throughput |= peak_memory(source, config.place, queries[:_MEMORY], config.threads, passages)
    return Cost(threads=config.threads, timings=timings, total_bytes=total, build_seconds=built, **throughput)


def bytes_per_document(ranker: Ranker, collection: Collection) -> float | None:
    """Bytes per document that serving keeps, those of all its passages; None if unknown."""
    place = searched(ranker, collection)
    size = ranker.bytes_per_document(place)
    return None if size is None else size * len(place.documents) / len(place.whole.documents)


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

    The first stage takes a list of `batch` query texts, each other one the output of the previous stage; the last batch
    is filled up from the first texts. The other arguments are those of `query_latency`; `warm_up` counts batches.

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
    values = np.percentile(times, [50, 95, 99]) * 1000
    return {name: round(float(value), 4) for name, value in zip(("p50", "p95", "p99"), values, strict=True)}


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
    if not getattr(encoder, "has_weights", False):  # vectors from elsewhere, or token weights of an index
        return {}
    key = (encoder.fingerprint("document"), collection.fingerprint, threads)
    if key not in _RATES:  # several systems of a table may share the encoder of documents
        _RATES[key] = _rates(encoder, collection, threads)
        release_freed_memory()  # half a gigabyte of a small model, which later steps would add to
    rates = _RATES[key]
    if rates and encoder is not ranker.documents:
        rates = {**rates, "encode_seconds": None}
    return {"encoder": encoder.name, **rates} if rates else {}


def _rates(encoder: Any, collection: Collection, threads: int) -> dict[str, Any]:
    """Fields of `Cost`, with the time to encode all documents; empty if the tokens cannot be counted."""
    count_tokens = _tokenizer(encoder)
    if count_tokens is None:
        return {}
    total, texts = len(collection.documents), spread(collection.documents.column, _DOCUMENTS)
    encoder.encode(texts[:_WARM_UP], "document")
    encode = partial(encoder.encode, texts, "document")
    start = time.perf_counter()
    encode()
    seconds = time.perf_counter() - start
    return {
        "tokens_per_second": round(count_tokens(texts) / seconds, 1),
        "matrix_share": round(operations(encode) / seconds / _machine_rate(threads), 4),
        # Significant digits, because the time of a small corpus must not be rounded to 0.
        "encode_seconds": float(f"{seconds / len(texts) * total:.3g}"),
    }


def _tokenizer(encoder: Any) -> Callable[[Sequence[str]], int] | None:
    """Counts the tokens of documents that an encoder reads, including its prompt, up to its maximum length."""
    tokenizer: Any = getattr(encoder.modules("document")[0], "tokenizer", None)
    prompt = encoder.prompt("document")

    def count(texts: Sequence[str]) -> int:
        prompted = [prompt + text for text in texts]
        if hasattr(tokenizer, "encode_batch"):  # static models: a tokenizer of `tokenizers`, without special tokens
            return sum(len(encoding.ids) for encoding in tokenizer.encode_batch(prompted, add_special_tokens=False))
        limit = encoder.contract("document")["max_length"]
        return sum(map(len, tokenizer(prompted, truncation=limit is not None, max_length=limit)["input_ids"]))

    return count if hasattr(tokenizer, "encode_batch") or callable(tokenizer) else None


@contextlib.contextmanager
def fixed_threads(threads: int) -> Iterator[None]:
    """Limit torch, if it is loaded, and FAISS to a number of threads; ONNX Runtime has one for a query."""
    torch = sys.modules.get("torch")
    faiss_before = faiss.omp_get_max_threads()
    before = None if torch is None else torch.get_num_threads()
    faiss.omp_set_num_threads(threads)
    if torch is not None:
        torch.set_num_threads(threads)
    try:
        yield
    finally:
        faiss.omp_set_num_threads(faiss_before)
        if torch is not None:
            torch.set_num_threads(before)


@cache
def _machine_rate(threads: int) -> float:
    """`matrix_rate` of torch's present number of threads, measured once per process."""
    return matrix_rate()


def matrix_rate(size: int = 1024, repeats: int = 5) -> float:
    """Floating-point operations per second of this machine's float32 matrix product, the best of some repeats.

    2 size^3 operations per product of two (size, size) matrices, on the models' device, with torch's present threads.
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


def peak_memory(
    system: str, collection: str, queries: list[str], threads: int, passages: dict[str, Any] | None = None
) -> dict[str, int]:
    """Highest memory, in bytes, of a new process that loads one system and answers queries, as fields of `Cost`.

    Resident memory includes Python, libraries, and native allocations of FAISS and torch, which `tracemalloc` misses.
    GPU memory is that of torch's tensors. `load_ranker` and `load_collection` load the two; each query is answered
    alone, with 100 documents, by `threads` threads of torch and FAISS. Empty if the process failed.
    """
    task = {"system": system, "collection": collection, "queries": queries, "threads": threads, "passages": passages}
    command = [sys.executable, "-c", "from retrodistill.evaluation.cost import write_peak; write_peak()"]
    done = subprocess.run(
        command, input=json.dumps(task), capture_output=True, encoding="utf-8", errors="replace", check=False
    )
    if done.returncode != 0:
        reason = (done.stderr.strip().splitlines() or ["no message"])[-1]
        log(f"{system}: its memory was not measured ({reason[:120]})")
        return {}
    peaks: dict[str, int] = json.loads(done.stdout)
    return peaks


def write_peak() -> None:
    """In the process of `peak_memory`: do the task from stdin, and write the result to stdout as JSON."""
    import resource

    from retrodistill.core.runtime import set_quiet
    from retrodistill.data import load_collection
    from retrodistill.rankers.loading import load_ranker

    task = json.load(sys.stdin)
    set_quiet(True)
    collection = load_collection(task["collection"], passages=task["passages"])
    ranker = load_ranker(task["system"], needs="search")
    with fixed_threads(task["threads"]):
        answer = ranker.query_fn(collection, min(100, len(collection.documents)))
        for query in task["queries"]:
            answer(query)
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    peaks = {"peak_bytes": peak if sys.platform == "darwin" else peak * 1024}  # macOS counts bytes, others kibibytes
    torch = sys.modules.get("torch")  # a model in ONNX Runtime does not need it
    if torch is not None and torch.cuda.is_available():
        peaks["gpu_peak_bytes"] = torch.cuda.max_memory_allocated()
    json.dump(peaks, sys.stdout)
