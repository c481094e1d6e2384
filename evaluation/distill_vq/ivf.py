"""Measure recall against nprobe on over 200,000 vectors: OPQ + IVF, and learned quantizers with two kinds of lists.

    python evaluation/distill_vq/ivf.py ../shared/data/scifact ../shared/data/nfcorpus ../shared/data/cranfield

The learned quantizers keep documents in their lists or re-assign them. The corpus is the documents of the collections
and noisy copies of them: Gaussian noise of half the vector's length is added, and the vectors are normalized again. It
has many near neighbors, unlike a corpus of as many different texts. Recall@k is the share of exact search's top 10
among the first k results. Writes ivf.json, which stores every finished system, and ivf.md.
"""

from __future__ import annotations

import argparse
import time
from pathlib import Path
from typing import Any

import numpy as np
from curve import HERE, keep, read

from retrodistill.data import load_collection
from retrodistill.data.leaks import ExcludedQueries
from retrodistill.encoders.any_encoder import load_encoder
from retrodistill.encoders.embeddings import embed
from retrodistill.encoders.vectors import exact_search
from retrodistill.indexes.factory import set_parameters
from retrodistill.quantizers import QuantizerSettings, learn_quantizer, start_index
from retrodistill.training.texts import training_queries, training_texts

PROBES = (1, 2, 4, 8, 16, 32, 64, 128)
SYSTEMS: dict[str, dict[str, Any]] = {
    "learned, lists fixed": {"lists": "fixed"},
    "learned, lists re-assigned": {"lists": "reassigned"},
}


def main() -> None:
    """Build the corpus, measure the missing systems, and write the table."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    default = [f"../shared/data/{name}" for name in ("scifact", "nfcorpus", "cranfield")]
    parser.add_argument("collections", nargs="*", default=default)
    parser.add_argument("--model", default="dense:all-MiniLM-L6-v2")
    parser.add_argument("--vectors", type=int, default=200_000)
    parser.add_argument("--factory", default="OPQ16,IVF512,PQ16")
    parser.add_argument("--steps", type=int, default=600)
    parser.add_argument("--noise", type=float, default=0.5)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--leaks", choices=["near", "exact"], default="near", help="training queries to leave out")
    parser.add_argument("--out", type=Path, default=HERE)
    options = parser.parse_args()
    file = options.out / "ivf.json"
    documents, asked, sources, test = corpus(options)
    print(f"{len(documents)} vectors, {len(asked)} training queries, {len(test)} test queries", flush=True)
    exact = exact_search(test, documents, 10)[0]
    begin = time.perf_counter()
    start = start_index(options.factory, documents, seed=options.seed, iterations=10)
    if "start" not in read(file):
        keep(file, "start", {"seconds": round(time.perf_counter() - begin), "recall": recall(start, test, exact)})
    for name, chosen in SYSTEMS.items():
        if name in read(file):
            continue
        settings = QuantizerSettings(seed=options.seed, steps=options.steps, **chosen)
        begin = time.perf_counter()
        learned = learn_quantizer(documents, asked, start, settings, sources=sources)
        point = {"seconds": round(time.perf_counter() - begin), "agreement": learned.agreement}
        keep(file, name, point | {"recall": recall(learned.index, test, exact)})
    (options.out / "ivf.md").write_text(table(read(file)), encoding="utf-8")


def corpus(options: argparse.Namespace) -> tuple[np.ndarray, ...]:
    """(n, d) documents and copies, (q, d) training queries, their source documents (-1: none), (t, d) test queries."""
    encoder, generator = load_encoder(options.model), np.random.default_rng(options.seed)
    documents, asked, sources, tests, before = [], [], [], [], 0
    for folder in options.collections:
        collection = load_collection(folder)
        test = collection.split("test")
        excluded = ExcludedQueries(test, options.leaks)
        real, _ = training_queries(collection, "auto", excluded)
        texts = training_texts(collection, real, sentences=0, excluded=excluded)
        documents.append(embed(encoder, collection.documents.texts, "document"))
        asked.append(embed(encoder, texts.texts.texts, "query"))
        sources.append(np.where(texts.sources < 0, -1, texts.sources + before))
        tests.append(embed(encoder, test.texts, "query"))
        before += len(collection.documents)
    own = np.concatenate(documents)
    copies = [own]
    while sum(map(len, copies)) < options.vectors:
        noise = generator.normal(size=own.shape).astype(np.float32) / np.sqrt(own.shape[1])
        moved = own + options.noise * noise
        copies.append(moved / np.linalg.norm(moved, axis=1, keepdims=True))
    return np.concatenate(copies), np.concatenate(asked), np.concatenate(sources), np.concatenate(tests)


def recall(index: Any, queries: np.ndarray, exact: np.ndarray) -> dict[str, list[float]]:
    """Share of the exact top 10 among the first 10 and 100 results, for each nprobe."""
    found: dict[str, list[float]] = {"10": [], "100": []}
    for probes in PROBES:
        set_parameters(index, f"nprobe={probes}")
        rows = index.search(queries, 100)[1]
        for depth, values in found.items():
            inside = (exact[:, :, None] == rows[:, None, : int(depth)]).any(axis=2)
            values.append(round(float(inside.mean()), 4))
    return found


def table(points: dict[str, dict[str, Any]]) -> str:
    """Markdown table with a row per system and depth, and a column per nprobe."""
    lines = ["| system | recall | " + " | ".join(f"nprobe {probes}" for probes in PROBES) + " |"]
    lines.append("|---|---|" + "---:|" * len(PROBES))
    for name, point in points.items():
        for depth in ("10", "100"):
            values = " | ".join(f"{value:.3f}" for value in point["recall"][depth])
            lines.append(f"| {'OPQ + IVF' if name == 'start' else name} | @{depth} | {values} |")
    return "\n".join(lines) + "\n"


if __name__ == "__main__":
    main()
