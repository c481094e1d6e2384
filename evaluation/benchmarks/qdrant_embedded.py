"""Export to an embedded Qdrant, point by point as its client commits them, and a batch per transaction.

python evaluation/benchmarks/qdrant_embedded.py [--documents 5000] [--dimension 384] [--folder FOLDER]

Both sides are whole exports with their verification. The folder is on the disk that is measured.
"""

from __future__ import annotations

import argparse
import contextlib
import tempfile
from pathlib import Path

import numpy as np

from retrodistill.encoders.space import EmbeddingSpace
from retrodistill.encoders.vectors import normalized
from retrodistill.exports import export_index, qdrant, vector_records


def main() -> None:
    """Print a Markdown table."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--documents", type=int, default=5000)
    parser.add_argument("--dimension", type=int, default=384)
    parser.add_argument("--folder", type=Path, help="by default the one of temporary files")
    given = parser.parse_args()
    shape = given.documents, given.dimension
    vectors = normalized(np.random.default_rng(0).standard_normal(shape, dtype=np.float32))
    space = EmbeddingSpace("random", given.dimension, "cosine", "random vectors", contract={})
    records = vector_records([f"d{row}" for row in range(given.documents)], vectors, space)
    transaction, rates = qdrant.one_transaction, []
    print("| commits | seconds | documents per second |\n|---|---:|---:|")
    for name in ("a point", "a batch"):
        qdrant.one_transaction = transaction if name == "a batch" else lambda *_: contextlib.nullcontext()
        with tempfile.TemporaryDirectory(dir=given.folder) as folder:
            report = export_index(records, f"qdrant:{folder}/qdrant#c")
        rates.append(given.documents / report.seconds)
        print(f"| {name} | {report.seconds:.1f} | {rates[-1]:,.0f} |", flush=True)
    print(f"\n{rates[1] / rates[0]:.1f} times as many documents per second")


if __name__ == "__main__":
    main()
