"""What a system costs on this machine: latency by stages, bytes, memory, throughput of its encoder."""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence
from functools import cache
from typing import Any, Protocol, runtime_checkable

import numpy as np

from retrodistill.collections.collection import Collection
from retrodistill.errors import UserError
from retrodistill.evaluation.memory import peak_memory
from retrodistill.evaluation.reranking import Reranker
from retrodistill.evaluation.student_reranking import StudentReranker
from retrodistill.evaluation.systems import Candidate
from retrodistill.indexes.asymmetric import AsymmetricIndex
from retrodistill.manifest import Manifest
from retrodistill.measures.cost import fixed_threads, matrix_rate, operations
from retrodistill.measures.latency import staged_latency
from retrodistill.models.contract import TextModel
from retrodistill.models.embeddings import embed
from retrodistill.models.encoder import Encoder
from retrodistill.models.lexical import BM25
from retrodistill.models.retrievers import DenseRetriever, LexicalRetriever, RecordedRetriever
from retrodistill.models.vectors import flat_index, leading
from retrodistill.reports.measured import Cost, Timing

DEPTH, BATCHES = 100, (1, 32)
_QUERIES, _DOCUMENTS, _BATCH, _MEMORY = 100, 128, 32, 20

Stages = tuple[Callable[[list[str]], Any], Callable[[Any], Any]]


@runtime_checkable
class Staged(Protocol):
    """A retriever that tells encoding and search apart; any may offer this."""

    def stages(self, collection: Collection, k: int) -> Stages:
        """Two functions: query texts to what is searched with, and that to results; nothing cached."""
        ...


def measure_cost(
    candidate: Candidate, collection: Collection, texts: Sequence[str], threads: int = 1, place: str | None = None
) -> Cost | None:
    """Time a system, batch 1 and 32, after a warm-up and on fixed threads; and what else serving takes.

    Args:
        candidate: The system.
        collection: What it searches; k is 100.
        texts: Queries; the first 100 are asked.
        threads: Of torch and FAISS.
        place: What the collection was loaded from, for the process that measures memory; None leaves that out.

    Returns:
        None for what answers no new query: a recorded run, a teacher that re-ranks, a student that re-ranks another
        system than bm25.

    Raises:
        UserError: No query, or fewer than one thread.
    """
    retriever, asked = candidate.retriever, list(texts[:_QUERIES])
    if isinstance(retriever, (RecordedRetriever, Reranker)):
        return None
    if isinstance(retriever, StudentReranker) and not retriever.can_be_timed:
        return None
    if not asked:
        raise UserError("no query to time; choose a split that has some.")
    documents = len(collection.documents)
    with fixed_threads(threads):
        stages = _stages(candidate, collection, min(DEPTH, documents))
        if stages is None:
            answer = retriever.responder(collection, min(DEPTH, documents))
            timings = [_timing([lambda batch: [answer(text) for text in batch]], asked, 1)]
        else:
            timings = [_timing(stages, asked, batch) for batch in BATCHES]
        throughput = _throughput(retriever, collection, threads)
    each = retriever.bytes_per_document(collection)
    peak = None
    if candidate.source is not None and place is not None:
        peak = peak_memory(candidate.source, place, asked[:_MEMORY], threads)
    built = None if candidate.folder is None else Manifest.read(candidate.folder).about.get("build_seconds")
    return Cost(
        threads=threads,
        timings=timings,
        total_bytes=None if each is None else each * documents,
        build_seconds=built,
        peak_bytes=peak,
        **throughput,
    )


def _timing(stages: Sequence[Callable[[Any], Any]], texts: Sequence[str], batch: int) -> Timing:
    parts, total, rate = staged_latency(stages, texts, batch=batch, warm_up=max(1, 10 // batch))
    encode, search = parts if len(parts) == 2 else (None, None)
    return Timing(batch=batch, encode=encode, search=search, total=total, queries_per_second=round(rate, 2))


def _stages(candidate: Candidate, collection: Collection, k: int) -> Stages | None:
    """Encoding and search apart, where they can be; None where there is only the whole."""
    retriever = candidate.retriever
    if isinstance(retriever, Staged):
        return retriever.stages(collection, k)
    if isinstance(retriever, LexicalRetriever):
        ranker = BM25(collection.documents)
        return list, lambda texts: ranker.search(texts, k)  # it has nothing to encode
    if type(retriever) is DenseRetriever:
        flat, asking = flat_index(embed(retriever.documents, collection.documents.texts, "document")), retriever.queries
        return lambda texts: asking.encode(texts, "query"), lambda vectors: flat.search(vectors, k)
    if isinstance(retriever, AsymmetricIndex) and retriever.queries is not None:
        index, encoder, space = retriever.index, retriever.queries, retriever.space
        return (
            lambda texts: leading(encoder.encode(texts, "query"), space.truncation, unit=space.norm == "unit"),
            lambda vectors: index.search(np.ascontiguousarray(vectors), min(k, len(retriever))),
        )
    return None


def _throughput(retriever: Any, collection: Collection, threads: int) -> dict[str, Any]:
    """Tokens a second of the encoder of documents, else of queries, on a sample of the documents."""
    documents = getattr(retriever, "documents", None)
    encoder = documents if isinstance(documents, TextModel) else getattr(retriever, "queries", None)
    tokens_of = _tokenizer(encoder)
    if tokens_of is None or not isinstance(encoder, Encoder):
        return {}
    total = len(collection.documents)
    rows = np.linspace(0, total - 1, min(_DOCUMENTS, total), dtype=int)
    texts = [collection.documents.slice(int(row), int(row) + 1)[0] for row in rows]
    encoder.encode(texts[:_BATCH], "document", batch_size=_BATCH)
    start = time.perf_counter()
    encoder.encode(texts, "document", batch_size=_BATCH)
    seconds = time.perf_counter() - start
    work = operations(lambda: encoder.encode(texts, "document", batch_size=_BATCH))
    return {
        "encoder": encoder.name,
        "tokens_per_second": round(tokens_of(texts) / seconds, 1),
        "matrix_share": round(work / seconds / _machine_rate(threads), 4),
        "encode_seconds": round(seconds / len(texts) * total, 2) if encoder is documents else None,
    }


def _tokenizer(encoder: Any) -> Callable[[Sequence[str]], int] | None:
    """Counts the tokens that an encoder reads of documents, its prompt and its maximum length included."""
    if not isinstance(encoder, Encoder):
        return None
    tokenizer: Any = getattr(encoder.model[0], "tokenizer", None)
    prompt = encoder.prompt("document")
    if hasattr(tokenizer, "encode_batch"):  # a table's: tokenizers, without special tokens
        return lambda texts: sum(
            len(one.ids) for one in tokenizer.encode_batch([prompt + text for text in texts], add_special_tokens=False)
        )
    if not callable(tokenizer):
        return None
    limit = encoder.model.max_seq_length

    def count(texts: Sequence[str]) -> int:
        read = tokenizer([prompt + text for text in texts], truncation=limit is not None, max_length=limit)
        return sum(map(len, read["input_ids"]))

    return count


@cache
def _machine_rate(threads: int) -> float:
    """Of the threads that torch has now; measured once a process."""
    return matrix_rate()
