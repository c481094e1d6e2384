"""Time and memory of building an index from stored vectors, in a process of its own.

python evaluation/benchmarks/large_index.py [--documents 1000000] [--dimension 384] [--factory auto]

The vectors are random clusters in a file, which stands for the store; reading them is part of the time. Anonymous
memory leaves out the pages of that file, which the kernel drops when it needs them.
"""

from __future__ import annotations

import argparse
import resource
import tempfile
import threading
import time
from pathlib import Path

import numpy as np

from retrodistill.core.faiss import faiss
from retrodistill.encoders.vectors import exact_search, normalized
from retrodistill.indexes.factory import build_faiss, file_bytes, set_parameters
from retrodistill.indexes.tuning import choose_factory, tune

CLUSTERS, SPREAD, QUERIES, BLOCK = 2_000, 0.8, 200, 50_000


def main() -> None:
    """Print the seconds of each step, the peak of memory, and the recall."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--documents", type=int, default=1_000_000)
    parser.add_argument("--dimension", type=int, default=384)
    parser.add_argument("--factory", default="auto")
    given = parser.parse_args()
    size = 4 * given.documents * given.dimension
    sizes = f"{given.documents:,} vectors of {given.dimension} dimensions, {size / 1e9:.2f} GB"
    print(f"{sizes}, {faiss.omp_get_max_threads()} threads, faiss {faiss.__version__}")
    with tempfile.TemporaryDirectory() as folder:
        vectors, queries = written(Path(folder) / "vectors.npy", given.documents, given.dimension)
        memory = Memory()
        choice = choose_factory(given.documents, given.dimension)
        factory = choice.factory if given.factory == "auto" else given.factory
        clock = Clock()
        index = build_faiss(factory, vectors)
        print(f"{factory}: built in {clock}, {file_bytes(index) / 1e9:.2f} GB", flush=True)
        if given.factory == "auto" and choice.parameters:
            clock = Clock()
            set_parameters(index, choice.parameters)
            print(f"{tune(index, queries, exact_search(queries, vectors, 10)[0])}")
            print(f"tuned in {clock}")
        print(memory)


def written(file: Path, count: int, dimension: int) -> tuple[np.ndarray, np.ndarray]:
    """Memory-mapped unit vectors in random clusters, and queries of the same clusters."""
    generator = np.random.default_rng(0)
    centers = normalized(generator.standard_normal((CLUSTERS, dimension), dtype=np.float32))

    def drawn(number: int) -> np.ndarray:
        noise = generator.standard_normal((number, dimension), dtype=np.float32) * np.float32(SPREAD / dimension**0.5)
        return normalized(centers[generator.integers(CLUSTERS, size=number)] + noise)

    vectors = np.lib.format.open_memmap(file, "w+", np.float32, (count, dimension))
    for start in range(0, count, BLOCK):
        vectors[start : start + BLOCK] = drawn(min(BLOCK, count - start))
    vectors.flush()
    del vectors  # what follows maps the file anew
    return np.load(file, mmap_mode="r"), drawn(QUERIES)


class Clock:
    """Seconds since it was made; those of the processors do not depend on what else runs on the machine."""

    def __init__(self) -> None:
        self.start, self.processor = time.perf_counter(), time.process_time()

    def __str__(self) -> str:
        wall, processor = time.perf_counter() - self.start, time.process_time() - self.processor
        return f"{wall:.0f} s ({processor:.0f} s of the processors)"


class Memory:
    """Peak of anonymous memory since it was made, looked at every 50 ms."""

    def __init__(self) -> None:
        self.before = self.peak = _anonymous()
        threading.Thread(target=self._watch, daemon=True).start()

    def __str__(self) -> str:
        whole = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024
        return (
            f"anonymous memory: {self.before / 1e9:.2f} GB before, {self.peak / 1e9:.2f} GB at the peak; "
            f"with mapped files {whole / 1e9:.2f} GB"
        )

    def _watch(self) -> None:
        while True:
            self.peak = max(self.peak, _anonymous())
            time.sleep(0.05)


def _anonymous() -> int:
    lines = Path("/proc/self/status").read_text(encoding="utf-8").splitlines()
    return next(1024 * int(line.split()[1]) for line in lines if line.startswith("RssAnon:"))


if __name__ == "__main__":
    main()
