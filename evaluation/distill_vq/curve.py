"""Measure quality against bytes: PQ, OPQ, RaBitQ, scalar, and distilled quantizers on the same vectors.

    python evaluation/distill_vq/curve.py ../shared/data/scifact ../shared/data/nfcorpus

Writes curve.json, curve.md, curve.png, and curve.svg to the folder of this file. Every finished point is saved to
curve.json at once, so a killed run resumes where it stopped. Delete the file to measure again.
"""

from __future__ import annotations

import argparse
import json
import os
import time
from pathlib import Path
from typing import Any

import numpy as np
from drawing import draw, table

from retrodistill.data import load_collection
from retrodistill.data.collection import Collection
from retrodistill.data.leaks import ExcludedQueries, LeakRule
from retrodistill.encoders.any_encoder import load_encoder
from retrodistill.encoders.embeddings import embed
from retrodistill.evaluation.measures import evaluate_run, means
from retrodistill.quantizers import QuantizerSettings, factory_for, learn_quantizer, start_index
from retrodistill.runs.run import Run
from retrodistill.training.texts import training_queries, training_texts

HERE = Path(__file__).parent
SIZES = (4, 8, 16, 32, 48, 96)
FIXED = {"rabitq": ("RaBitQ", "RaBitQ2"), "scalar": ("SQ4", "SQ8")}
LEARNED: dict[str, dict[str, Any]] = {
    "distilled": {},
    "distilled-queries": {"transform": "rotation", "query_map": True},
}


class Bench:
    """Vectors of one collection and its measure, nDCG@10 on the test queries.

    Args:
        folder: Folder of the collection.
        model: Name of the encoder.
        leaks: What is left out of training, see `ExcludedQueries`.
    """

    def __init__(self, folder: str, model: str, leaks: LeakRule) -> None:
        self.collection: Collection = load_collection(folder)
        self.name = self.collection.name
        encoder, test = load_encoder(model), self.collection.split("test")
        excluded = ExcludedQueries(test, leaks)
        asked, _ = training_queries(self.collection, "auto", excluded)
        texts = training_texts(self.collection, asked, excluded=excluded)
        self.sources = texts.sources
        self.documents = embed(encoder, self.collection.documents.texts, "document")
        self.asked = embed(encoder, texts.texts.texts, "query")
        self.test = embed(encoder, test.texts, "query")
        self.test_ids, self.ids = test.ids, self.collection.documents.ids
        self.relevance = self.collection.relevance("test").to_dict()

    def measure(self, index: Any, query_map: np.ndarray | None = None) -> float:
        """Mean nDCG@10 of a filled FAISS index."""
        queries = self.test if query_map is None else self.test @ query_map.T
        scores, rows = index.search(np.ascontiguousarray(queries), 100)
        run = Run.from_matrix(self.test_ids, self.ids, rows, scores)
        return means(evaluate_run(run, self.relevance, ["ndcg@10"]))["ndcg@10"]


def main() -> None:
    """Measure the missing points, then write the table and the plot."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("collections", nargs="*", default=["../shared/data/scifact", "../shared/data/nfcorpus"])
    parser.add_argument("--model", default="dense:all-MiniLM-L6-v2")
    parser.add_argument("--systems", nargs="*", default=list(LEARNED))
    parser.add_argument("--sizes", type=int, nargs="*", default=SIZES)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--leaks", choices=["near", "exact"], default="near", help="training queries to leave out")
    parser.add_argument("--out", type=Path, default=HERE)
    options = parser.parse_args()
    file = options.out / "curve.json"
    for folder in options.collections:
        bench = Bench(folder, options.model, options.leaks)
        for size in options.sizes:
            points = read(file)
            if f"{bench.name}/exact" not in points:
                flat = start_flat(bench.documents)
                keep(file, f"{bench.name}/exact", {"bytes": 4 * bench.documents.shape[1], "ndcg": bench.measure(flat)})
                others(bench, file)
            product(bench, size, options, file)
    (options.out / "curve.md").write_text(table(read(file)), encoding="utf-8")
    draw(read(file), options.out)


def product(bench: Bench, size: int, options: argparse.Namespace, file: Path) -> None:
    """Measure PQ, OPQ, and the quantizers learned from OPQ at `size` bytes."""
    wanted = [f"{bench.name}/{system}/{size}" for system in ("pq", "opq", *options.systems)]
    if all(key in read(file) for key in wanted):
        return
    seed = options.seed
    pq = start_index(f"PQ{size}", bench.documents, seed=seed)
    keep(file, wanted[0], {"bytes": size, "ndcg": bench.measure(pq)})
    begin = time.perf_counter()
    opq = start_index(factory_for(size, bench.documents.shape[1]), bench.documents, seed=seed)
    seconds = time.perf_counter() - begin
    keep(file, wanted[1], {"bytes": size, "ndcg": bench.measure(opq), "seconds": round(seconds, 1)})
    for system in options.systems:
        if f"{bench.name}/{system}/{size}" in read(file):
            continue
        begin = time.perf_counter()
        settings = QuantizerSettings(seed=seed, **LEARNED[system])
        learned = learn_quantizer(bench.documents, bench.asked, opq, settings, sources=bench.sources)
        seconds = time.perf_counter() - begin
        before, after = learned.agreement
        keep(
            file,
            f"{bench.name}/{system}/{size}",
            {
                "bytes": size,
                "ndcg": bench.measure(learned.index, learned.query_map),
                "seconds": round(seconds, 1),
                "agreement_of_start": before,
                "agreement": after,
            },
        )


def others(bench: Bench, file: Path) -> None:
    """Measure RaBitQ after a random rotation, and scalar quantizers, at their fixed sizes."""
    import faiss

    for system, factories in FIXED.items():
        for factory in factories:
            width = bench.documents.shape[1]
            inside = f"RR{width},{factory}" if system == "rabitq" else factory
            index = faiss.index_factory(width, inside, faiss.METRIC_INNER_PRODUCT)
            index.train(bench.documents)
            index.add(bench.documents)
            point = {"bytes": index.sa_code_size(), "ndcg": bench.measure(index), "factory": inside}
            keep(file, f"{bench.name}/{system}/{factory}", point)


def start_flat(documents: np.ndarray) -> Any:
    """Index for exact search."""
    import faiss

    index = faiss.IndexFlatIP(documents.shape[1])
    index.add(np.ascontiguousarray(documents, dtype=np.float32))
    return index


def read(file: Path) -> dict[str, dict[str, Any]]:
    """Points measured so far."""
    return json.loads(file.read_text(encoding="utf-8")) if file.exists() else {}


def keep(file: Path, key: str, point: dict[str, Any]) -> None:
    """Add one point to the file atomically."""
    points = read(file) | {key: point}
    fresh = file.with_suffix(".part")
    fresh.write_text(json.dumps(points, indent=1) + "\n", encoding="utf-8")
    os.replace(fresh, file)
    print(key, point, flush=True)


if __name__ == "__main__":
    main()
