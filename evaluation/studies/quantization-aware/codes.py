"""Quality, bytes, and search time of codes that are not learned from queries, and of rescoring them.

    python evaluation/studies/quantization-aware/codes.py FOLDER... [--model dense:all-MiniLM-L6-v2]

nDCG@10 on the test queries, and its share of exact search. Codes that start from random numbers have three seeds, whose
mean is printed with the standard deviation. Times are medians of single queries on one thread, as multiples of that of
`PQ48`, in one run; the corpus is repeated to 50,000 vectors for them.
"""

from __future__ import annotations

import argparse
from collections.abc import Callable
from typing import Any

import faiss
import numpy as np
from faiss.contrib.evaluation import RepeatTimer

from retrodistill.data import load_collection
from retrodistill.encoders import load_encoder
from retrodistill.encoders.embeddings import embed
from retrodistill.evaluation.measures import evaluate_run, means
from retrodistill.indexes.factory import build_faiss, set_parameters
from retrodistill.quantizers import factory_for, read_index, start_index, to_faiss
from retrodistill.quantizers.bits import fit_bits
from retrodistill.quantizers.codes import refined
from retrodistill.runs.run import Run

SEEDS = (0, 1, 2)
TIMED, DEPTH = 50_000, 10
Make = Callable[[np.ndarray, int], Any]  # from documents and a seed to a filled index


def signs(documents: np.ndarray, _: int) -> Any:
    """The sign of each dimension, as vector stores take it, searched by float queries."""
    index: Any = faiss.index_factory(documents.shape[1], f"PQ{documents.shape[1]}x1np", faiss.METRIC_INNER_PRODUCT)
    faiss.copy_array_to_vector(np.tile(np.float32([-1, 1]), documents.shape[1]), index.pq.centroids)
    index.is_trained = True
    index.add(documents)
    return to_faiss(read_index(index))


def itq(documents: np.ndarray, seed: int) -> Any:
    """A bit per dimension after ITQ."""
    return to_faiss(read_index(bits(documents, seed)))


def bits(documents: np.ndarray, seed: int) -> Any:
    """The same as FAISS's index of bits."""
    return start_index(factory_for(None, documents.shape[1], bits=1), documents, seed=seed)


def fitted(documents: np.ndarray, seed: int) -> Any:
    """Bits that are fitted together with the map that decodes them."""
    return to_faiss(fit_bits(read_index(bits(documents, seed)), documents))


def fast_scan(documents: np.ndarray, seed: int) -> Any:
    """ITQ's bits as codes of four bits, of four dimensions each, for FAISS's fast scan."""
    parts = read_index(bits(documents, seed))
    width, quarter = len(parts.rotation), np.arange(16)[:, None] >> np.arange(4) & 1
    index: Any = faiss.index_factory(width, f"PQ{width // 4}x4np", faiss.METRIC_INNER_PRODUCT)
    words = parts.codebooks[:, :, 0].reshape(-1, 4, 2)[:, np.arange(4), quarter]
    faiss.copy_array_to_vector(np.ascontiguousarray(words).ravel(), index.pq.centroids)
    index.is_trained = True
    index.add(np.ascontiguousarray(documents @ parts.rotation.T))
    fast = faiss.IndexPQFastScan(index)
    rotation = faiss.LinearTransform(documents.shape[1], width, False)
    faiss.copy_array_to_vector(parts.rotation.ravel(), rotation.A)
    rotation.is_trained = True
    both = faiss.IndexPreTransform(rotation, fast)
    both.referenced_objects = [fast, rotation]
    return both


def rescored(make: Make, by: str) -> Make:
    """Codes whose forty best documents are ranked by more exact vectors."""

    def made(documents: np.ndarray, seed: int) -> Any:
        index = refined(make(documents, seed), by, documents)
        set_parameters(index, "k_factor_rf=4")
        return index

    return made


def factory(written: str) -> Make:
    """An index of FAISS that has no random numbers, or always the same."""
    return lambda documents, _: build_faiss(written, documents)


def rabitq(documents: np.ndarray, seed: int) -> Any:
    """RaBitQ after a random rotation, with the queries in float."""
    width = documents.shape[1]
    rotation = faiss.RandomRotationMatrix(width, width)
    rotation.init(seed)
    index = faiss.IndexPreTransform(rotation, faiss.IndexRaBitQ(width, faiss.METRIC_INNER_PRODUCT))
    index.referenced_objects = [rotation, index.index]
    index.train(documents)
    index.add(documents)
    return index


def opq(size: int) -> Make:
    """FAISS's OPQ."""
    return lambda documents, seed: start_index(factory_for(size, documents.shape[1]), documents, seed=seed)


CODES: dict[str, tuple[Make, int, tuple[int, ...]]] = {  # with bytes of a document at 384 dimensions, and seeds
    "exact": (factory("Flat"), 1536, SEEDS[:1]),
    "`SQ8`": (factory("SQ8"), 384, SEEDS[:1]),
    "`SQ4`": (factory("SQ4"), 192, SEEDS[:1]),
    "RaBitQ": (rabitq, 56, SEEDS),
    "`PQ48`": (factory("PQ48"), 48, SEEDS[:1]),
    "`OPQ48,PQ48`": (opq(48), 48, SEEDS[:1]),
    "signs": (signs, 48, SEEDS[:1]),
    "`PQ384x1`": (factory("PQ384x1"), 48, SEEDS[:1]),
    "`ITQ384,PQ384x1`": (itq, 48, SEEDS),
    "the same, bit by bit": (bits, 48, SEEDS[:1]),
    "the same, fast scan": (fast_scan, 48, SEEDS[:1]),
    "fitted bits": (fitted, 48, SEEDS),
    "`ITQ384,PQ384x1,Refine(SQ8)`": (rescored(itq, "SQ8"), 432, SEEDS[:1]),
    "fitted bits, refined by SQ8": (rescored(fitted, "SQ8"), 432, SEEDS[:1]),
    "fitted bits, refined by float": (rescored(fitted, "Flat"), 1584, SEEDS[:1]),
}


def main() -> None:
    """Print a table per collection."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("collections", nargs="+", help="BEIR folders")
    parser.add_argument("--model", default="dense:all-MiniLM-L6-v2")
    parser.add_argument("--timed", type=int, default=TIMED, help="vectors of the corpus that is timed, 0 for no times")
    given = parser.parse_args()
    faiss.omp_set_num_threads(1)
    encoder = load_encoder(given.model)
    for folder in given.collections:
        collection = load_collection(folder)
        documents = embed(encoder, collection.documents.texts, "document")
        queries = embed(encoder, collection.split("test").texts, "query")
        relevance = collection.relevance("test").to_dict()
        print(f"\n{collection.name}\n\n| codes | bytes | nDCG@10 | share | time |\n|---|---:|---:|---:|---:|")
        exact = once = 0.0
        large = np.resize(documents, (given.timed, documents.shape[1])) if given.timed else documents[:0]
        rows = []
        for name, (make, size, seeds) in CODES.items():
            found = []
            for seed in seeds:
                scores, places = make(documents, seed).search(queries, DEPTH)
                run = Run.from_matrix(collection.split("test").ids, collection.documents.ids, places, scores)
                found.append(means(evaluate_run(run, relevance, ["ndcg@10"]))["ndcg@10"])
            mean = float(np.mean(found))
            exact = exact or mean
            spread = f" ± {np.std(found, ddof=1):.4f}" if len(found) > 1 else ""
            index = make(documents, 0)
            index.add(np.ascontiguousarray(large[index.ntotal :]))
            seconds = _seconds(index, queries) if given.timed else 0.0
            once = seconds if name == "`PQ48`" else once
            rows.append((name, size, f"{mean:.4f}{spread}", mean / exact, seconds))
        for name, size, shown, share, seconds in rows:
            time = f"{seconds / once:.2f}" if once else ""
            print(f"| {name} | {size:,} | {shown} | {share:.1%} | {time} |", flush=True)


def _seconds(index: Any, queries: np.ndarray) -> float:
    """Median time of a query."""
    timer = RepeatTimer(warmup=5, nt=1, runs=100)
    places = iter(np.arange(200) % len(queries))
    for _ in timer:
        place = next(places)
        with timer:
            index.search(queries[place : place + 1], DEPTH)
    return float(np.median(timer.times))


if __name__ == "__main__":
    main()
