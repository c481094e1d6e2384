"""Exact search of dense vectors against FAISS's flat index with FAISS's own settings, on the same random unit vectors.

python evaluation/benchmarks/exact_search.py [--documents 200000] [--dimension 384] [--repeats 5] [--threads 2]

Each line is a ratio of two medians that are measured in turn, with the lowest and the highest ratio of a repeat. BLAS
takes most of the time: OPENBLAS_CORETYPE, if it is set, decides which one FAISS uses.
"""

from __future__ import annotations

import argparse
import os
import time
from collections.abc import Callable
from statistics import median
from typing import Any

import faiss as plain
import numpy as np
from racing import ratio

from retrodistill.core.faiss import faiss
from retrodistill.encoders.vectors import exact_search, normalized

BATCHES = ((1, 10), (4, 10), (16, 10), (300, 10), (300, 1000), (2000, 10))  # queries, k
SETTINGS = ("distance_compute_blas_threshold", "distance_compute_blas_database_bs")


def main() -> None:
    """Print a Markdown table."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--documents", type=int, default=200_000)
    parser.add_argument("--dimension", type=int, default=384)
    parser.add_argument("--repeats", type=int, default=5)
    parser.add_argument("--threads", type=int, default=os.cpu_count())
    given = parser.parse_args()
    of_faiss = [getattr(plain.cvar, name) for name in SETTINGS]
    of_package = [getattr(faiss.cvar, name) for name in SETTINGS]  # set when the package first uses FAISS
    faiss.omp_set_num_threads(given.threads)
    generator = np.random.default_rng(0)
    documents = normalized(generator.standard_normal((given.documents, given.dimension), dtype=np.float32))
    index = faiss.IndexFlatIP(given.dimension)
    index.add(documents)
    sizes = f"{given.documents:,} documents, {given.dimension} dimensions, {given.threads} threads"
    print(f"{sizes}, faiss {faiss.__version__}, OPENBLAS_CORETYPE={os.environ.get('OPENBLAS_CORETYPE', '')}\n")
    print("| queries | k | FAISS | retrodistill | times faster | same documents |")
    print("|---:|---:|---:|---:|---:|---:|")
    for count, k in BATCHES:
        queries = normalized(generator.standard_normal((count, given.dimension), dtype=np.float32))
        theirs, ours = [], []
        for _ in range(given.repeats):
            seconds, (_, expected) = timed(of_faiss, index.search, queries, k)
            theirs.append(seconds)
            seconds, (rows, _) = timed(of_package, exact_search, queries, documents, k)
            ours.append(seconds)
        same = np.mean([len(set(a) & set(b)) / k for a, b in zip(rows.tolist(), expected.tolist(), strict=True)])
        print(
            f"| {count} | {k} | {1e3 * median(theirs):.0f} ms | {1e3 * median(ours):.0f} ms | "
            f"{ratio(theirs, ours)} | {same:.2%} |",
            flush=True,
        )


def timed(settings: list[int], call: Callable[..., Any], *arguments: Any) -> tuple[float, Any]:
    """Seconds and result of a call with these settings of FAISS."""
    for name, value in zip(SETTINGS, settings, strict=True):
        setattr(plain.cvar, name, value)
    start = time.perf_counter()
    result = call(*arguments)
    return time.perf_counter() - start, result


if __name__ == "__main__":
    main()
