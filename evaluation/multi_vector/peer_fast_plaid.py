"""Measure fast-plaid on the token vectors of measure.py: quality, bytes, latency. Run it in a separate environment.

python evaluation/multi_vector/peer_fast_plaid.py out/multi-vector data/scifact/qrels/test.tsv
"""

from __future__ import annotations

import argparse
import csv
import functools
import itertools
import json
import math
import shutil
import time
from collections.abc import Callable
from pathlib import Path

import numpy as np
import torch
from fast_plaid import search

BITS = (4, 2)
SEARCHES = (
    (8, 4096),
    (32, 4096),
    (8, 200),
)  # lists to probe, documents to score in full; the first is fast-plaid's default


def main() -> None:
    """Build, search, and measure the indexes."""
    arguments = argparse.ArgumentParser()
    arguments.add_argument("vectors", type=Path)
    arguments.add_argument("qrels", type=Path)
    arguments.add_argument("--width", type=int, default=128)
    given = arguments.parse_args()
    torch.set_num_threads(1)
    documents, queries = (ragged(given.vectors, part, given.width) for part in ("documents", "test"))
    names = json.loads((given.vectors / "ids.json").read_text())
    relevance = grades(given.qrels)
    exact = json.loads((given.vectors / "exact-top10.json").read_text())
    results = {}
    for bits in BITS:
        folder = given.vectors / f"fast-plaid-{bits}"
        shutil.rmtree(folder, ignore_errors=True)
        start = time.perf_counter()
        index = search.FastPlaid(index=str(folder), device="cpu")
        index.create(documents_embeddings=documents, seed=42, nbits=bits)
        seconds = time.perf_counter() - start
        size = sum(file.stat().st_size for file in folder.rglob("*") if file.is_file())
        for lists, full in SEARCHES:
            ask = functools.partial(index.search, show_progress=False, n_ivf_probe=lists, n_full_scores=full)
            ranked = {}
            for name, query in zip(names["test"], queries, strict=True):
                ranked[name] = [names["documents"][row] for row, _ in ask([query], top_k=100)[0]]
            rows = np.linspace(0, len(queries) - 1, 50).astype(int)
            times = [min(timed(ask, [queries[row]]) for _ in range(3)) for row in rows]
            shared = [len(set(ranked[query][:10]) & set(exact[query])) / 10 for query in exact]
            results[f"{bits} bits, {lists} lists, {full} full scores"] = measured = {
                "build_s": round(seconds, 1),
                "ndcg@10": round(float(np.mean([ndcg(ranked[query], relevance[query]) for query in relevance])), 4),
                "exact_top10": round(float(np.mean(shared)), 4),
                "bytes_per_document": round(size / len(documents)),
                "ms": round(1000 * float(np.median(times)), 1),
            }
            print(bits, lists, full, measured, flush=True)
    (given.vectors / "fast-plaid.json").write_text(json.dumps(results, indent=2) + "\n")


def ragged(folder: Path, part: str, width: int) -> list[torch.Tensor]:
    """One (tokens, width) tensor per text."""
    vectors, bounds = (np.load(folder / f"{part}-{width}.{kind}.npy") for kind in ("vectors", "bounds"))
    whole = torch.from_numpy(vectors.astype(np.float32))
    return [whole[start:stop] for start, stop in itertools.pairwise(bounds)]


def grades(path: Path) -> dict[str, dict[str, int]]:
    """Judgments of a BEIR qrels file, by query and document."""
    found: dict[str, dict[str, int]] = {}
    with path.open() as file:
        for row in csv.DictReader(file, delimiter="\t"):
            found.setdefault(row["query-id"], {})[row["corpus-id"]] = int(row["score"])
    return found


def ndcg(ranked: list[str], judged: dict[str, int]) -> float:
    """nDCG@10 with linear gains, as in trec_eval."""
    gains = [judged.get(one, 0) for one in ranked[:10]]
    ideal = sorted(judged.values(), reverse=True)[:10]
    score, best = (sum(gain / math.log2(place + 2) for place, gain in enumerate(each)) for each in (gains, ideal))
    return score / best if best else 0.0


def timed(ask: Callable, queries: list[torch.Tensor]) -> float:
    """Seconds that a search takes."""
    start = time.perf_counter()
    ask(queries, top_k=10)
    return time.perf_counter() - start


if __name__ == "__main__":
    main()
