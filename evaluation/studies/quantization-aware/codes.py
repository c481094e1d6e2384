"""Quality of codes of MiniLM's documents, learned and not, with and without rescoring; search times as ratios.

    python evaluation/studies/quantization-aware/codes.py FOLDER... [--seeds 0 1 2] [--steps 600]
    python evaluation/studies/quantization-aware/codes.py FOLDER --times

nDCG@10 on the test queries and its share of exact search's, a mean over the seeds with its standard deviation. Learning
leaves out training queries near test queries. Times are medians of single queries in 50,000 vectors, the collection's
repeated, on one thread, divided by that of `PQ48`.
"""

from __future__ import annotations

import argparse
import statistics
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import faiss
import numpy as np

from retrodistill.indexes.factory import build_faiss, set_parameters
from retrodistill.quantizers import Codes, QuantizerSettings, learn_quantizer, read_index, start_index, to_faiss
from retrodistill.quantizers.bits import fit_bits
from retrodistill.quantizers.codes import refined

sys.path.insert(0, str(Path(__file__).parents[2] / "distill_vq"))

from curve import Bench

TIMED = 50_000


class Codings:
    """Indexes of one collection's documents, by name and seed."""

    def __init__(self, bench: Bench, steps: int) -> None:
        self.bench, self.steps, self.documents = bench, steps, bench.documents
        self._starts: dict[tuple[str, int], Any] = {}
        width = self.documents.shape[1]
        self.itq, self.opq = f"ITQ{width},PQ{width}x1", f"OPQ{width // 8},PQ{width // 8}"
        self.all: dict[str, Callable[[int], tuple[Any, np.ndarray | None]]] = {
            "exact": lambda _: (build_faiss("Flat", self.documents), None),
            "SQ8": lambda _: (build_faiss("SQ8", self.documents), None),
            "RaBitQ": lambda seed: (self._rabitq(seed), None),
            "signs": lambda _: (self._signs(), None),
            "two values per dimension": lambda _: (build_faiss(f"PQ{width}x1", self.documents), None),
            "ITQ": lambda seed: (to_faiss(self._started(seed)), None),
            "fitted bits": lambda seed: (to_faiss(self._fitted(seed)), None),
            "fitted bits, SQ8 ranks 40": lambda seed: (self._rescored(self._fitted(seed), "SQ8"), None),
            "ITQ, SQ8 ranks 40": lambda seed: (self._rescored(self._started(seed), "SQ8"), None),
            "learned bits": lambda seed: self._learned(self.itq, seed, {}),
            "learned bits, query map": lambda seed: self._learned(
                self.itq, seed, {"query_map": True, "transform": "rotation"}
            ),
            "OPQ": lambda seed: (self._product(seed), None),
            "Distill-VQ": lambda seed: self._learned(self.opq, seed, {}),
        }

    def _start(self, factory: str, seed: int) -> Any:
        if (factory, seed) not in self._starts:
            self._starts[factory, seed] = start_index(factory, self.documents, seed=seed)
        return self._starts[factory, seed]

    def _started(self, seed: int) -> Codes:
        return read_index(self._start(self.itq, seed))

    def _fitted(self, seed: int) -> Codes:
        return fit_bits(self._started(seed), self.documents)

    def _product(self, seed: int) -> Any:
        return self._start(self.opq, seed)

    def _rescored(self, codes: Codes, by: str) -> Any:
        index = refined(to_faiss(codes), by, self.documents)
        set_parameters(index, "k_factor_rf=4")
        return index

    def _learned(self, factory: str, seed: int, changed: dict[str, Any]) -> tuple[Any, np.ndarray | None]:
        settings = QuantizerSettings(seed=seed, steps=self.steps, **changed)
        start = self._start(factory, seed)
        learned = learn_quantizer(self.documents, self.bench.asked, start, settings, sources=self.bench.sources)
        print(
            f"  {factory}, seed {seed}: agreement {[round(point.agreement, 4) for point in learned.history]}",
            flush=True,
        )
        return learned.index, learned.query_map

    def _signs(self) -> Any:
        """The sign of each dimension, as vector stores take it, searched by float queries."""
        width = self.documents.shape[1]
        values = np.tile(np.float32([-1, 1]), (width, 1))[:, :, None]
        return to_faiss(Codes(np.eye(width, dtype=np.float32), values, (self.documents > 0).astype(np.uint8)))

    def _rabitq(self, seed: int) -> Any:
        """RaBitQ after a random rotation, with float queries."""
        width = self.documents.shape[1]
        rotation = faiss.RandomRotationMatrix(width, width)
        rotation.init(seed)
        codes = faiss.IndexRaBitQ(width, faiss.METRIC_INNER_PRODUCT)
        index = faiss.IndexPreTransform(rotation, codes)
        index.referenced_objects = [rotation, codes]
        codes.train(rotation.apply(self.documents))
        index.is_trained = True
        index.add(self.documents)
        return index


def main() -> None:
    """Print a table per collection, or ratios of times."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("collections", nargs="+", help="BEIR folders")
    parser.add_argument("--model", default="dense:all-MiniLM-L6-v2")
    parser.add_argument("--seeds", type=int, nargs="+", default=[0, 1, 2])
    parser.add_argument("--steps", type=int, default=600)
    parser.add_argument("--only", nargs="+", help="rows (default: all)")
    parser.add_argument("--times", action="store_true", help="measure times only")
    given = parser.parse_args()
    faiss.omp_set_num_threads(1)
    for folder in given.collections:
        bench = Bench(folder, given.model, "near")
        print(f"\n{bench.name}", flush=True)
        if given.times:
            times(bench.documents, bench.test)
            continue
        codings, exact = Codings(bench, given.steps), 0.0
        for name, make in codings.all.items():
            if given.only and name not in given.only:
                continue
            seeds = given.seeds if name not in ("exact", "SQ8", "signs", "two values per dimension") else [0]
            found = [bench.measure(*make(seed)) for seed in seeds]
            mean = statistics.mean(found)
            exact = exact or mean
            spread = f" ± {statistics.stdev(found):.4f}" if len(found) > 1 else ""
            print(f"| {name} | {mean:.4f}{spread} | {mean / exact:.1%} |", flush=True)


def times(documents: np.ndarray, queries: np.ndarray) -> None:
    """Print the time of a search of each kind, divided by that of PQ48; all kinds take turns in one run."""
    large = np.resize(documents, (TIMED, documents.shape[1]))
    width = documents.shape[1]

    def grown(factory: str) -> Any:
        index = build_faiss(factory, documents)
        index.add(np.ascontiguousarray(large[len(documents) :]))
        return index

    kinds = {
        f"PQ{width // 8} (bytes of bits)": grown(f"PQ{width // 8}"),
        f"PQ{width}x1 (bit by bit)": grown(f"PQ{width}x1"),
        f"PQ{width // 4}x4fs (fast scan of bits)": grown(f"PQ{width // 4}x4fs"),
        "RaBitQ": grown(f"RR{width},RaBitQ"),
        "SQ8": grown("SQ8"),
        "Flat": grown("Flat"),
    }
    seconds: dict[str, list[float]] = {name: [] for name in kinds}
    for place in range(60):
        query = np.ascontiguousarray(queries[place % len(queries)][None])
        for name, index in kinds.items():
            begin = time.thread_time()
            index.search(query, 10)
            seconds[name].append(time.thread_time() - begin)
    medians = {name: statistics.median(values[10:]) for name, values in seconds.items()}
    first = next(iter(medians.values()))
    for name, median in medians.items():
        print(f"| {name} | {median / first:.2f} |", flush=True)


if __name__ == "__main__":
    main()
