"""Measure recall and size of FAISS index kinds against exact search: a Markdown table per collection.

    python evaluation/faiss_kinds.py COLLECTION... [--model dense:all-MiniLM-L6-v2] [--split train] [--copies 1]

Recall@10 is the share of exact search's top 10 documents that the index finds, over the queries of the split (nothing
is trained on queries). Times are medians over single queries on one thread, without encoding. ``--copies N`` makes a
larger corpus: each document's vector plus N - 1 copies of it with Gaussian noise of half its length, normalized again.
"""

from __future__ import annotations

import argparse
import statistics
import time

import faiss
import numpy as np

from retrodistill.core.errors import UserError
from retrodistill.data import load_collection
from retrodistill.encoders import load_encoder
from retrodistill.encoders.embeddings import embed
from retrodistill.encoders.vectors import exact_search
from retrodistill.indexes.factory import build_faiss, file_bytes, set_parameters

KINDS = [
    ("Flat", ""),
    ("SQfp16", ""),
    ("SQ8", ""),
    ("SQ6", ""),
    ("SQ4", ""),
    ("RaBitQ4", ""),
    ("RaBitQ2", ""),
    ("RaBitQ", ""),
    ("HNSW32", "efSearch=16"),
    ("HNSW32", "efSearch=64"),
    ("HNSW32,SQ8", "efSearch=64"),
    ("IVF64,Flat", "nprobe=1"),
    ("IVF64,Flat", "nprobe=8"),
    ("IVF64,SQ8", "nprobe=8"),
    ("IVF64,RaBitQ", "nprobe=8"),
    ("RaBitQ,Refine(SQ8)", "k_factor_rf=4"),
    ("RaBitQ,RFlat", "k_factor_rf=4"),
    ("PQ48", ""),
    ("OPQ96,PQ96", ""),
    ("OPQ48,PQ48", ""),
    ("OPQ32,PQ32", ""),
    ("OPQ16,PQ16", ""),
    ("OPQ16,PQ16,Refine(SQ8)", "k_factor_rf=8"),
    ("OPQ96,PQ96x4fs", ""),
]


def main() -> None:
    """Print a table per collection."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("collections", nargs="+", help="BEIR folders")
    parser.add_argument("--model", default="dense:all-MiniLM-L6-v2", help="encoder for both sides")
    parser.add_argument("--split", default="train", help="split whose queries are searched")
    parser.add_argument("--copies", type=int, default=1, help="vectors per document; all but the first are perturbed")
    parser.add_argument("--only", nargs="*", help="factories to measure (default: all)")
    arguments = parser.parse_args()
    faiss.omp_set_num_threads(1)
    encoder = load_encoder(arguments.model)
    for folder in arguments.collections:
        collection = load_collection(folder)
        documents = _perturbed(embed(encoder, collection.documents.texts, "document"), arguments.copies)
        queries = embed(encoder, collection.split(arguments.split).texts, "query")
        print(f"\n{collection.name}: {len(documents)} vectors, {len(queries)} queries ({arguments.split})\n")
        _table(documents, queries, arguments.only)


def _table(documents: np.ndarray, queries: np.ndarray, only: list[str] | None) -> None:
    print("| factory | parameters | bytes/document | recall@10 | ms/query | building, s |\n|---|---|---|---|---|---|")
    exact, _ = exact_search(queries, documents, 10)
    built: dict[str, tuple[object, float]] = {}
    for factory, parameters in KINDS if not only else [pair for pair in KINDS if pair[0] in only]:
        start = time.perf_counter()
        try:
            if factory not in built:
                built = {factory: (build_faiss(factory, documents), time.perf_counter() - start)}
        except UserError as error:
            print(f"| {factory} | {parameters} | {error} | | | |", flush=True)
            continue
        index, seconds = built[factory]
        if parameters:
            set_parameters(index, parameters)
        found = index.search(queries, 10)[1]
        recall = np.mean([len(np.intersect1d(a, b)) / 10 for a, b in zip(exact, found, strict=True)])
        size = file_bytes(index) / len(documents)
        print(
            f"| `{factory}` | {parameters} | {size:,.0f} | {recall:.3f} | {_ms(index, queries):.2f} | {seconds:.0f} |",
            flush=True,
        )


def _ms(index: object, queries: np.ndarray, repeats: int = 200) -> float:
    """Median latency of single queries in milliseconds, after a warm-up."""
    index.search(queries[:20], 10)
    times = []
    for place in range(repeats):
        query = queries[place % len(queries)][None]
        start = time.perf_counter()
        index.search(query, 10)
        times.append(time.perf_counter() - start)
    return 1000 * statistics.median(times)


def _perturbed(documents: np.ndarray, copies: int) -> np.ndarray:
    random = np.random.default_rng(0)
    spread = 0.5 / np.sqrt(documents.shape[1])
    parts = [documents]
    for _ in range(copies - 1):
        noisy = documents + spread * random.standard_normal(documents.shape, dtype=np.float32)
        parts.append(noisy / np.linalg.norm(noisy, axis=1, keepdims=True))
    return np.concatenate(parts).astype(np.float32)


if __name__ == "__main__":
    main()
