"""What a system costs on this machine: latency by stages, bytes, memory, throughput of its encoder."""

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
from typing import Any, NamedTuple

import numpy as np

from retrodistill.core.errors import UserError
from retrodistill.core.runtime import log
from retrodistill.data.collection import Collection
from retrodistill.evaluation.results import Cost, Timing
from retrodistill.rankers.protocol import Ranker, Stage

BATCHES = (1, 32)
_DOCUMENTS, _BATCH, _WARM_UP, _MEMORY = 64, 32, 8, 20


@dataclass(frozen=True)
class CostConfig:
    """How cost is measured.

    Attributes:
        threads: Of torch and FAISS.
        queries: Queries that are timed, the first ones.
        depth: Documents per answer.
        place: What the collection was loaded from, for the process that measures memory; None leaves memory out.

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


class Rates(NamedTuple):
    """Throughput of an encoder of documents.

    Attributes:
        tokens_per_second: That it reads.
        matrix_share: Of the machine's measured float32 matrix product rate.
        encode_seconds: For all documents of the collection, at this rate.
    """

    tokens_per_second: float
    matrix_share: float
    encode_seconds: float


_RATES: dict[tuple[str, str, int], Rates | None] = {}  # by encoder, collection and threads


def measure_cost(
    ranker: Ranker, collection: Collection, texts: Sequence[str], config: CostConfig, source: str | None = None
) -> Cost | None:
    """Time a system, batch 1 and 32, after a warm-up and on fixed threads; and what else serving takes.

    Args:
        ranker: The system.
        collection: What it searches.
        texts: Queries.
        config: How.
        source: What `load_ranker` takes for it, as text, for the process that measures memory; None leaves that out.

    Returns:
        None for a ranker that answers no new queries (`can_be_timed`), or that cannot hold what it would search.

    Raises:
        UserError: No query.
    """
    asked, documents = list(texts[: config.queries]), len(collection.documents)
    if not ranker.can_be_timed:
        return None
    if not ranker.holds(collection):
        log(f"{ranker.name}: {documents:,} vectors are not held to be timed; build an index of them")
        return None
    if not asked:
        raise UserError("no query to time; choose a split that has some.")
    with fixed_threads(config.threads):
        stages = ranker.timed_stages(collection, min(config.depth, documents))
        timings = [_timing(stages, asked, batch) for batch in BATCHES]
        throughput = _throughput(ranker, collection, config.threads)
    each = ranker.bytes_per_document(collection)
    peak = None
    if source is not None and config.place is not None:
        peak = peak_memory(source, config.place, asked[:_MEMORY], config.threads)
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


def _throughput(ranker: Ranker, collection: Collection, threads: int) -> dict[str, Any]:
    """Of the encoder of documents, else of queries, on a sample of the documents."""
    encoder = ranker.documents or ranker.queries
    if getattr(encoder, "is_recorded", True):  # recorded vectors; an index' token weights, which have no such mark
        return {}
    key = (encoder.fingerprint("document"), collection.fingerprint, threads)
    if key not in _RATES:  # several systems of a table may have their documents by one model
        _RATES[key] = _rates(encoder, collection, threads)
    rates = _RATES[key]
    if rates is None:
        return {}
    return {
        "encoder": encoder.name,
        "tokens_per_second": rates.tokens_per_second,
        "matrix_share": rates.matrix_share,
        "encode_seconds": rates.encode_seconds if encoder is ranker.documents else None,
    }


def _rates(encoder: Any, collection: Collection, threads: int) -> Rates | None:
    """None where the encoder's tokens cannot be counted."""
    tokens_of = _tokenizer(encoder)
    if tokens_of is None:
        return None
    total = len(collection.documents)
    rows = np.linspace(0, total - 1, min(_DOCUMENTS, total), dtype=int)
    texts = [collection.documents.slice(int(row), int(row) + 1)[0] for row in rows]
    encoder.encode(texts[:_WARM_UP], "document", batch_size=_BATCH)
    start = time.perf_counter()
    encoder.encode(texts, "document", batch_size=_BATCH)
    seconds = time.perf_counter() - start
    work = operations(lambda: encoder.encode(texts, "document", batch_size=_BATCH))
    return Rates(
        round(tokens_of(texts) / seconds, 1),
        round(work / seconds / _machine_rate(threads), 4),
        float(f"{seconds / len(texts) * total:.3g}"),  # a small corpus must not round to no time at all
    )


def _tokenizer(encoder: Any) -> Callable[[Sequence[str]], int] | None:
    """Counts the tokens that an encoder reads of documents, its prompt and its maximum length included."""
    first = encoder.modules("document")[0]
    tokenizer: Any = getattr(first, "tokenizer", None)
    prompt = encoder.prompt("document")
    if hasattr(tokenizer, "encode_batch"):  # a table's: tokenizers, without special tokens
        return lambda texts: sum(
            len(one.ids) for one in tokenizer.encode_batch([prompt + text for text in texts], add_special_tokens=False)
        )
    if not callable(tokenizer):
        return None
    limit = encoder.contract("document")["max_length"]

    def count(texts: Sequence[str]) -> int:
        read = tokenizer([prompt + text for text in texts], truncation=limit is not None, max_length=limit)
        return sum(map(len, read["input_ids"]))

    return count


@cache
def _machine_rate(threads: int) -> float:
    """Of the threads that torch has now; measured once a process."""
    return matrix_rate()


@contextlib.contextmanager
def fixed_threads(threads: int) -> Iterator[None]:
    """Hold torch and FAISS to a number of threads, at least one, for a while."""
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


def matrix_rate(size: int = 1024, repeats: int = 5) -> float:
    """Floating point operations a second of this machine's float32 matrix product, at the best of some repeats.

    Products of two (size, size) matrices by torch, 2 size^3 operations each, on the device that models run on, with as
    many threads as torch has now.
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
    """Floating point operations of the matrix products that a piece of torch work does, padding included."""
    import torch
    from torch.nn.attention import SDPBackend, sdpa_kernel
    from torch.utils.flop_counter import FlopCounterMode

    # Attention by plain matrix products: the counter does not know the CPU's fused kernel.
    with torch.inference_mode(), sdpa_kernel(SDPBackend.MATH), FlopCounterMode(display=False) as counter:
        work()
    return int(counter.get_total_flops())


def peak_memory(system: str, collection: str, queries: list[str], threads: int) -> int | None:
    """Highest resident memory of a process that loads this system alone and answers the queries, in bytes.

    In this process, other systems have left theirs.

    Resident memory is what the system counts: Python, libraries and native allocations of FAISS and torch included,
    which `tracemalloc` does not see.

    Args:
        system: What `load_ranker` takes, as text.
        collection: What `load_collection` takes, as text.
        queries: Answered one after the other, 100 documents each.
        threads: Of torch and FAISS.

    Returns:
        None where that process failed, or the platform does not count.
    """
    asked = {"system": system, "collection": collection, "queries": queries, "threads": threads}
    command = [sys.executable, "-c", "from retrodistill.evaluation.cost import write_peak; write_peak()"]
    done = subprocess.run(command, input=json.dumps(asked), capture_output=True, text=True, check=False)
    if done.returncode != 0 or not done.stdout.strip().isdigit():
        reason = (done.stderr.strip().splitlines() or ["it said nothing"])[-1]
        log(f"{system}: its memory was not measured ({reason[:120]})")
        return None
    return int(done.stdout)


def write_peak() -> None:
    """In a process of its own: answer what stdin says, and write the highest resident memory in bytes to stdout."""
    import resource

    from retrodistill.core.runtime import set_quiet
    from retrodistill.data import load_collection
    from retrodistill.rankers.loading import load_ranker

    asked = json.load(sys.stdin)
    set_quiet(True)
    collection = load_collection(asked["collection"])
    ranker = load_ranker(asked["system"], needs="search")
    with fixed_threads(asked["threads"]):
        answer = ranker.query_fn(collection, min(100, len(collection.documents)))
        for query in asked["queries"]:
            answer(query)
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    sys.stdout.write(f"{peak if sys.platform == 'darwin' else peak * 1024}\n")  # macOS counts bytes, others kibibytes


_AT_LEAST = 20  # answers, before time may stop the measurement


def query_latency(
    respond: Callable[[str], Any], texts: Sequence[str], *, warm_up: int = 10, repeats: int = 3, seconds: float = 10.0
) -> dict[str, float]:
    """Time a query_fn one query at a time.

    Args:
        respond: Answers one query text, all of encoding and search included.
        texts: Different queries, so that no cache answers.
        warm_up: Queries answered before the clock starts.
        repeats: Rounds over the queries.
        seconds: Stop early after so long, but not before 20 answers.

    Returns:
        ``{"p50": .., "p95": .., "p99": ..}`` milliseconds over all answers.

    Raises:
        UserError: No text or no repeat.
    """
    return percentiles(_times([respond], texts, warm_up, repeats, seconds)[0])


def staged_latency(
    stages: Sequence[Callable[[Any], Any]],
    texts: Sequence[str],
    *,
    batch: int = 1,
    warm_up: int = 10,
    repeats: int = 3,
    seconds: float = 10.0,
) -> tuple[list[dict[str, float]], dict[str, float], float]:
    """Time stages that hand on to each other, such as encoding and search.

    Args:
        stages: The first takes a list of `batch` query texts, each other what the one before gave.
        texts: Different queries; filled up from the first where they do not make whole batches.
        batch: Queries at once.
        warm_up: Batches answered before the clock starts.
        repeats: Rounds over the queries.
        seconds: Stop early after so long, but not before 20 answers.

    Returns:
        Milliseconds a batch (p50, p95, p99) of each stage; of all stages together; and queries a second.

    Raises:
        UserError: No text, no repeat or no batch.
    """
    if batch < 1:
        raise UserError(f"batches of {batch} queries; give at least 1.")
    batches = [[texts[(at + more) % len(texts)] for more in range(batch)] for at in range(0, len(texts), batch)]
    times = _times(stages, batches, warm_up, repeats, seconds)
    whole = times.sum(axis=0)
    return [percentiles(one) for one in times], percentiles(whole), batch * len(whole) / float(whole.sum())


def percentiles(times: np.ndarray) -> dict[str, float]:
    """Median, 95th and 99th percentile of (answers,) seconds, in milliseconds."""
    p50, p95, p99 = np.percentile(times, [50, 95, 99]) * 1000
    return {"p50": round(float(p50), 4), "p95": round(float(p95), 4), "p99": round(float(p99), 4)}


def _times(
    stages: Sequence[Callable[[Any], Any]], items: Sequence[Any], warm_up: int, repeats: int, seconds: float
) -> np.ndarray:
    """(stages, answers) seconds."""
    if not items or repeats < 1:
        raise UserError(f"latency of {len(items)} queries, {repeats} repeats; give at least one of each.")
    for item in items[:warm_up]:
        _answer(stages, item)
    times: list[list[float]] = []
    begin = time.perf_counter()
    for item in chain.from_iterable(repeat(items, repeats)):
        marks = _answer(stages, item)
        times.append([end - start for start, end in pairwise(marks)])
        if len(times) >= _AT_LEAST and marks[-1] - begin > seconds:
            break
    return np.array(times).T


def _answer(stages: Sequence[Callable[[Any], Any]], item: Any) -> list[float]:
    """The times at which the stages began, and at which the last ended."""
    marks, value = [time.perf_counter()], item
    for stage in stages:
        value = stage(value)
        marks.append(time.perf_counter())
    return marks
