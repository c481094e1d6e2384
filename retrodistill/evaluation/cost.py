"""What a system costs on this machine: latency by stages, bytes, memory, throughput of its encoder."""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence
from functools import cache
from typing import Any, NamedTuple

import numpy as np

from retrodistill.core.errors import UserError
from retrodistill.core.progress import log
from retrodistill.data.collection import Collection
from retrodistill.encoders.contract import TextModel
from retrodistill.encoders.vector_files import VectorFile
from retrodistill.evaluation.latency import staged_latency
from retrodistill.evaluation.memory import peak_memory
from retrodistill.evaluation.rates import fixed_threads, matrix_rate, operations
from retrodistill.evaluation.results import Cost, Timing
from retrodistill.rankers.protocol import Ranker

DEPTH, BATCHES = 100, (1, 32)
_QUERIES, _DOCUMENTS, _BATCH, _WARM_UP, _MEMORY = 100, 64, 32, 8, 20


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
    retriever: Ranker,
    collection: Collection,
    texts: Sequence[str],
    threads: int = 1,
    *,
    source: str | None = None,
    place: str | None = None,
) -> Cost | None:
    """Time a system, batch 1 and 32, after a warm-up and on fixed threads; and what else serving takes.

    Args:
        retriever: The system.
        collection: What it searches; k is 100.
        texts: Queries; the first 100 are asked.
        threads: Of torch and FAISS.
        source: What `load_candidate` takes for it, as text, for the process that measures memory; None leaves that out.
        place: What the collection was loaded from, for the same; None leaves that out.

    Returns:
        None for what answers no new query: a recorded run, an encoder of recorded vectors, a teacher that re-ranks, a
        student that re-ranks another system than bm25, an ensemble with a member that scores pairs only; and for exact
        dense search of a corpus that is not held in memory.

    Raises:
        UserError: No query, or fewer than one thread.
    """
    asked = list(texts[:_QUERIES])
    if not retriever.can_be_timed:
        return None
    if not retriever.holds(collection):
        log(f"{retriever.name}: {len(collection.documents):,} vectors are not held to be timed; build an index of them")
        return None
    if not asked:
        raise UserError("no query to time; choose a split that has some.")
    documents = len(collection.documents)
    with fixed_threads(threads):
        stages = retriever.timed_stages(collection, min(DEPTH, documents))
        timings = [_timing(stages, asked, batch) for batch in BATCHES]
        throughput = _throughput(retriever, collection, threads)
    each = retriever.bytes_per_document(collection)
    peak = None
    if source is not None and place is not None:
        peak = peak_memory(source, place, asked[:_MEMORY], threads)
    return Cost(
        threads=threads,
        timings=timings,
        total_bytes=None if each is None else each * documents,
        build_seconds=getattr(retriever, "build_seconds", None),
        peak_bytes=peak,
        **throughput,
    )


def _timing(stages: Sequence[Callable[[Any], Any]], texts: Sequence[str], batch: int) -> Timing:
    parts, total, rate = staged_latency(stages, texts, batch=batch, warm_up=max(1, 10 // batch))
    encode, search = parts if len(parts) == 2 else (None, None)
    return Timing(batch=batch, encode=encode, search=search, total=total, queries_per_second=round(rate, 2))


def _throughput(retriever: Any, collection: Collection, threads: int) -> dict[str, Any]:
    """Of the encoder of documents, else of queries, on a sample of the documents; none of recorded vectors."""
    documents = getattr(retriever, "documents", None)
    encoder = documents if isinstance(documents, TextModel) else getattr(retriever, "queries", None)
    if not isinstance(encoder, TextModel) or isinstance(encoder, VectorFile):
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
        "encode_seconds": rates.encode_seconds if encoder is documents else None,
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
        round(seconds / len(texts) * total, 2),
    )


def _tokenizer(encoder: TextModel) -> Callable[[Sequence[str]], int] | None:
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
