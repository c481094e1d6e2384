"""Exact MaxSim of a multi-vector index against plain NumPy and sentence-transformers, on the same vectors and threads.

python evaluation/benchmarks/maxsim.py [--codec float32] [--documents 5183] [--queries 300] [--repeats 5] [--threads 1]

Documents have up to 180 token vectors of 128 dimensions, most of them 180, as SciFact's abstracts do when truncated;
queries have 24. Vectors are random about a few directions of their text, so that some documents stand out. The index
is read from its memory-mapped folder. NumPy is one product and one `maximum.reduceat` per 16,384 tokens of float32
vectors in memory; sentence-transformers' `maxsim` takes padded float32 tensors in memory. The three are measured in
turn. Times are the lowest of the repeats, as other processes only add to them; with one thread they are CPU times of
the process. Each ratio is of two medians, with the lowest and the highest ratio of a repeat. The floor is the time that
the float32 products alone would take at the highest speed that NumPy reaches in a large product of square matrices. The
last line is the time of the 8-bit products alone that the index makes for one query, in blocks of 16,384 tokens, read
from the cache or from memory.
"""

from __future__ import annotations

import argparse
import os
import tempfile
import time
from collections.abc import Callable
from pathlib import Path

import numpy as np
import torch
from racing import ratio
from sentence_transformers.util import maxsim as padded_maxsim
from threadpoolctl import threadpool_limits

from retrodistill.core.manifest import hardware
from retrodistill.encoders.multi_vector import Tokens, blocks_of
from retrodistill.indexes.codecs import CODECS, CodecSettings, fit_codec
from retrodistill.indexes.maxsim import best_of_store
from retrodistill.indexes.tokens import TokenStore
from retrodistill.runs.run import top_k

WIDTH, DOCUMENT_TOKENS, QUERY_TOKENS, TOPICS, K = 128, 180, 24, 2000, 10
CANDIDATES, BLOCK = 1000, 16384


def main() -> None:
    """Print a Markdown table."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--codec", choices=CODECS, default="float32")
    parser.add_argument("--documents", type=int, default=5183)
    parser.add_argument("--queries", type=int, default=300)
    parser.add_argument("--repeats", type=int, default=5)
    parser.add_argument("--threads", type=int, default=os.cpu_count())
    given = parser.parse_args()
    torch.set_num_threads(given.threads)
    clock = time.process_time if given.threads == 1 else time.perf_counter
    generator = np.random.default_rng(0)
    full = generator.random(given.documents) < 0.93
    lengths = np.where(full, DOCUMENT_TOKENS, generator.integers(20, DOCUMENT_TOKENS, given.documents))
    directions = generator.standard_normal((TOPICS, WIDTH), dtype=np.float32)
    documents = texts(generator, directions, lengths)
    queries = texts(generator, directions, np.full(given.queries, QUERY_TOKENS))
    candidates = np.sort(generator.random((given.queries, given.documents)).argsort(axis=1)[:, :CANDIDATES])
    padded = torch.nn.utils.rnn.pad_sequence([torch.from_numpy(documents[row]) for row in range(len(documents))], True)
    mask = torch.arange(padded.shape[1]) < torch.from_numpy(lengths)[:, None]

    def plain(chosen: Tokens, rows: np.ndarray | None) -> np.ndarray:
        if rows is None:
            return numpy_best(documents, chosen)
        places = np.concatenate([np.arange(documents.bounds[row], documents.bounds[row + 1]) for row in rows])
        bounds = np.concatenate([[0], np.cumsum(lengths[rows])])
        return rows[numpy_best(Tokens(documents.vectors[places], bounds), chosen)]

    def peer(chosen: Tokens, rows: np.ndarray | None) -> np.ndarray:
        vectors = torch.from_numpy(chosen.vectors).view(len(chosen), QUERY_TOKENS, WIDTH)
        if rows is None:
            return padded_maxsim(vectors, padded, b_mask=mask).topk(K).indices.numpy()
        return rows[padded_maxsim(vectors, padded[rows], b_mask=mask[rows]).topk(K).indices.numpy()]

    with tempfile.TemporaryDirectory() as folder, threadpool_limits(given.threads):
        store = saved(documents, given.codec, Path(folder))

        def ours(chosen: Tokens, rows: np.ndarray | None) -> np.ndarray:
            return best_of_store(store, chosen, K, rows)[0]

        speed = flops(clock)
        print(f"{hardware()['processor']}, {given.threads} threads, {1e-9 * speed:.0f} GFLOP/s; codec {given.codec}")
        print(f"{len(documents)} documents, {len(documents.vectors):,} token vectors of {WIDTH} dimensions, k={K}\n")
        print(
            "| queries | documents | floor | NumPy | sentence-transformers | retrodistill | NumPy / retrodistill |",
            end="",
        )
        print(" sentence-transformers / retrodistill | same documents as NumPy |\n|---:|" + "---:|" * 8)
        for count in (1, given.queries):
            for of in ("all", CANDIDATES):
                if of == "all":
                    work = [(queries.slice(0, count), None)]
                else:
                    work = [(queries.slice(row, row + 1), candidates[row]) for row in range(count)]
                repeats = given.repeats if count == 1 else 2
                seconds, results = in_turn([plain, peer, ours], work, repeats, clock)
                tokens = len(documents.vectors) * (1 if of == "all" else of / len(documents))
                floor = 2 * WIDTH * tokens * QUERY_TOKENS * count / speed
                pairs = zip(results[0].tolist(), results[2].tolist(), strict=True)
                same = np.mean([len(set(a) & set(b)) / K for a, b in pairs])
                times = " | ".join(f"{1e3 * min(side):.1f} ms" for side in seconds)
                ratios = " | ".join(ratio(side, seconds[2]) for side in seconds[:2])
                print(f"| {count} | {of} | {1e3 * floor:.1f} ms | {times} | {ratios} | {same:.2%} |", flush=True)
        cached, read = (1e3 * seconds for seconds in products_alone(len(documents.vectors), clock))
        print(f"\n8-bit products of one query alone: {cached:.1f} ms from the cache, {read:.1f} ms from memory")


def products_alone(tokens: int, clock: Callable[[], float]) -> tuple[float, float]:
    """Seconds of the 8-bit products of one query with as many tokens as all documents, of one block and of all."""
    codes = torch.ones((tokens, WIDTH), dtype=torch.int8)

    def products(blocks: list[torch.Tensor]) -> np.ndarray:
        return np.array([int(torch._int_mm(codes[:QUERY_TOKENS], block.T)[0, 0]) for block in blocks])

    blocks = list(codes.split(BLOCK))
    cached, _ = in_turn([products], [([blocks[0]] * len(blocks),)], 5, clock)
    read, _ = in_turn([products], [(blocks,)], 5, clock)
    return min(cached[0]), min(read[0])


def texts(generator: np.random.Generator, directions: np.ndarray, lengths: np.ndarray) -> Tokens:
    """Unit token vectors: each text has 8 directions of its own, and each token is one of them with noise."""
    own = generator.integers(0, len(directions), (len(lengths), 8))
    owner = np.repeat(np.arange(len(lengths)), lengths)
    vectors = directions[own[owner, generator.integers(0, 8, len(owner))]]
    vectors += generator.standard_normal(vectors.shape, dtype=np.float32)
    vectors /= np.linalg.norm(vectors, axis=1, keepdims=True)
    return Tokens(vectors, np.concatenate([[0], np.cumsum(lengths)]))


def saved(documents: Tokens, codec: str, folder: Path) -> TokenStore:
    """A memory-mapped store."""
    settings = CodecSettings(codec=codec, bits=4)
    store = TokenStore.empty(fit_codec(settings, documents.slice(0, 500), len(documents.vectors)))
    store.append(documents)
    store.save(folder)
    return TokenStore.load(folder)


def numpy_best(documents: Tokens, queries: Tokens) -> np.ndarray:
    """(q, K) best rows: a product and a maximum by segments for each block of documents."""
    scores = np.empty((len(queries), len(documents)), dtype=np.float32)
    for first, last in blocks_of(documents.bounds, BLOCK):
        block = documents.slice(first, last)
        for start, stop in blocks_of(queries.bounds, 1024):
            part = queries.slice(start, stop)
            nearest = np.maximum.reduceat(part.vectors @ block.vectors.T, block.bounds[:-1], axis=1)
            scores[start:stop, first:last] = np.add.reduceat(nearest, part.bounds[:-1], axis=0)
    return top_k(scores, K)


def in_turn(
    calls: list[Callable[..., np.ndarray]], work: list[tuple], repeats: int, clock: Callable[[], float]
) -> tuple[list[list[float]], list[np.ndarray]]:
    """Seconds that each call takes for all work in each repeat, and its results; each is warmed up."""
    seconds: list[list[float]] = [[] for _ in calls]
    for call in calls:
        call(*work[0])
    for _ in range(repeats):
        results = []
        for side, call in zip(seconds, calls, strict=True):
            start = clock()
            results.append(np.concatenate([call(*each) for each in work]))
            side.append(clock() - start)
    return seconds, results


def flops(clock: Callable[[], float]) -> float:
    """Float32 operations per second of a large product."""
    matrix = np.ones((2048, 2048), dtype=np.float32)
    seconds, _ = in_turn([np.matmul], [(matrix, matrix)], 5, clock)
    return 2 * 2048**3 / min(seconds[0])


if __name__ == "__main__":
    main()
