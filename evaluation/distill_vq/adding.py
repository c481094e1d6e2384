"""Measure the quality of documents added after training. FAISS encodes them with the nearest codewords.

    python evaluation/distill_vq/adding.py FOLDER... [--bits]

The quantizer is learned on nine tenths of the documents, and the last tenth is added with ``index.add``. OPQ is treated
the same way. adding.json gets the agreement of the test queries' rankings with exact search (nDCG with the exact top 10
as gains) over the learned documents, the added documents, and all documents. With ``--bits``, codes are ITQ's and bits
that are fitted and learned, to which documents are added by this package's ``add``.
"""

from __future__ import annotations

import argparse
from pathlib import Path
from typing import Any

import numpy as np
from curve import HERE, Bench, keep, read

from retrodistill.encoders.vectors import exact_search
from retrodistill.quantizers import QuantizerSettings, factory_for, learn_quantizer, read_index, start_index, to_faiss
from retrodistill.quantizers.bits import add_bits, fit_bits
from retrodistill.runs.agreement import rank_agreement


def main() -> None:
    """Measure the missing points."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("collections", nargs="*", default=["../shared/data/nfcorpus"])
    parser.add_argument("--model", default="dense:all-MiniLM-L6-v2")
    parser.add_argument("--bytes", type=int, default=16)
    parser.add_argument("--steps", type=int, default=300)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--out", type=Path, default=HERE)
    parser.add_argument("--bits", action="store_true", help="one bit per dimension in place of product codes")
    options = parser.parse_args()
    for folder in options.collections:
        measure(Bench(folder, options.model, "near"), options)


def measure(bench: Bench, options: argparse.Namespace) -> None:
    """Measure OPQ, and the quantizers learned from it with a free map and with a rotation."""
    file = options.out / "adding.json"
    order = np.random.default_rng(options.seed).permutation(len(bench.documents))
    first, later = np.sort(order[len(order) // 10 :]), np.sort(order[: len(order) // 10])
    place = np.full(len(order), -1)
    place[first] = np.arange(len(first))
    sources = np.where(bench.sources >= 0, place[bench.sources], -1)
    asked = (bench.sources < 0) | (sources >= 0)  # without pseudo-queries of documents that are added later
    documents = np.ascontiguousarray(bench.documents[first])
    width = documents.shape[1]
    factory = f"ITQ{width},PQ{width}x1" if options.bits else factory_for(options.bytes, width)
    start = start_index(factory, documents, seed=options.seed)

    def look(index: Any) -> dict[str, float]:
        new = np.ascontiguousarray(bench.documents[later])
        if not add_bits(index, new):
            index.add(new)
        rebuilt = read_index(index).reconstruct()
        parts = {
            "learned": (rebuilt[: len(first)], documents),
            "added": (rebuilt[len(first) :], bench.documents[later]),
            "together": (rebuilt, np.concatenate([documents, bench.documents[later]])),
        }
        found = {}
        for name, (quantized, exact) in parts.items():
            rows, wanted = (exact_search(bench.test, vectors, 10)[0] for vectors in (quantized, exact))
            found[name] = float(rank_agreement(rows, wanted).mean())
        return found

    if options.bits and f"{bench.name}/fitted-bits" not in read(file):
        keep(file, f"{bench.name}/fitted-bits", look(to_faiss(fit_bits(read_index(start), documents))))
    for transform in ("free",) if options.bits else ("free", "rotation"):
        key = f"{bench.name}/{'bits' if options.bits else transform}"
        if key not in read(file):
            settings = QuantizerSettings(seed=options.seed, steps=options.steps, transform=transform)
            learned = learn_quantizer(documents, bench.asked[asked], start, settings, sources=sources[asked])
            keep(file, key, look(learned.index))
    key = f"{bench.name}/{'itq' if options.bits else 'opq'}"
    if key not in read(file):
        keep(file, key, look(start))


if __name__ == "__main__":
    main()
