"""What checksums cost: a store of embeddings and an index file of 1 GB, read with and without verification.

    python evaluation/benchmarks/verification.py [--gigabytes 1]

Prints seconds and ratios, the fastest of three each, with the files in the page cache, where reading is fastest and
verification weighs most. Without verification is what the package did before: Arrow's own reader, memory-mapped.
"""

from __future__ import annotations

import argparse
import hashlib
import tempfile
import time
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa

from retrodistill.core.checksums import check_rows, file_checksum, open_arrow, write_arrow

_DIMENSION, _PART, _SOME = 384, 256, 1000


def main() -> None:
    """Write the file, and time what opens and reads it."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--gigabytes", type=float, default=1.0)
    rows = int(parser.parse_args().gigabytes * 1e9 / (4 * _DIMENSION))
    some = np.sort(np.random.default_rng(1).integers(0, rows, _SOME))
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "part.arrow"
        write_arrow(path, _part(0, 1).schema, (_part(start, _PART) for start in range(0, rows, _PART)), lazy=["vector"])

        def plain() -> pa.Table:
            with pa.memory_map(str(path)) as source:
                return pa.ipc.open_file(source).read_all()

        def verified() -> pa.Table:
            return open_arrow(path, advice="")

        _report("open", plain, verified)
        for what, wanted in ((f"{_SOME} rows", some), ("all rows", np.arange(rows))):
            calls = [partial(_read, opened, wanted) for opened in (plain, verified)]
            _report(f"open and read {what}", *calls)
        _report("blake2b, of version 0.1.0, and xxh3 of the file", lambda: _blake2b(path), lambda: file_checksum(path))


def _part(start: int, rows: int) -> pa.RecordBatch:
    values = np.random.default_rng(start).random(rows * _DIMENSION, dtype=np.float32)
    vectors = pa.FixedSizeListArray.from_arrays(pa.array(values), _DIMENSION)
    return pa.record_batch({"key": pa.array(np.arange(start, start + rows)), "vector": vectors})


def _read(opened: Callable[[], pa.Table], rows: np.ndarray) -> np.ndarray:
    """The vectors of ascending rows, as a store gathers them."""
    table = opened()
    found, start = np.empty((len(rows), _DIMENSION), dtype=np.float32), 0
    for chunk in table["vector"].chunks:
        block = chunk.flatten().to_numpy().reshape(-1, _DIMENSION)
        own = slice(*np.searchsorted(rows, (start, start + len(block))))
        check_rows(block, rows[own] - start)  # does nothing for a file that was opened without checksums
        found[own] = block[rows[own] - start]
        start += len(block)
    return found


def _blake2b(path: Path) -> str:
    with path.open("rb") as file:
        return hashlib.file_digest(file, "blake2b").hexdigest()


def _report(what: str, before: Callable[[], Any], after: Callable[[], Any]) -> None:
    seconds = [min(_seconds(call) for _ in range(3)) for call in (before, after)]
    print(f"{what}: {seconds[0]:.4f} s before, {seconds[1]:.4f} s now, ratio {seconds[1] / seconds[0]:.2f}")


def _seconds(call: Callable[[], Any]) -> float:
    started = time.perf_counter()
    call()
    return time.perf_counter() - started


if __name__ == "__main__":
    main()
