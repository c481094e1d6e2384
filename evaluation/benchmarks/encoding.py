"""Encoding of documents with a transformer, against sentence-transformers with its defaults.

python evaluation/benchmarks/encoding.py [--model dense:all-MiniLM-L6-v2] [--collection demo] [--documents 256]

Sentence-transformers encodes 32 texts at once in float32. Ours runs in float32, and in what `auto` chooses here; both
choose batches by tokens. The last lines compare the floating-point operations of a second with the rate at which this
machine multiplies large matrices.
"""

from __future__ import annotations

import functools

import numpy as np
import torch
from racing import Race, in_turn, parser, timed, use_threads, versions

from retrodistill.data import load_collection
from retrodistill.encoders import encode_with, load_encoder
from retrodistill.encoders.precision import bfloat16_speedup
from retrodistill.evaluation.cost import operations

SIZE = 1024  # of the matrices that are multiplied for the machine's rate


def main() -> None:
    """Print a Markdown table and the share of the machine's rate."""
    options = parser(__doc__, repeats=5)
    options.add_argument("--model", default="dense:all-MiniLM-L6-v2", help="of sentence-transformers")
    options.add_argument("--collection", default="demo", help="a folder in BEIR's layout, or a name")
    options.add_argument("--documents", type=int, default=256, help="of the collection, evenly spaced")
    given = options.parse_args()
    use_threads(given.threads)
    documents = load_collection(given.collection).documents.texts
    places = np.unique(np.linspace(0, len(documents) - 1, min(given.documents, len(documents)), dtype=int))
    texts = [documents[place] for place in places]
    encoders = []
    for precision in ("float32", "auto"):
        with encode_with(precision=precision):
            encoders.append(load_encoder(given.model))
    model = encoders[0].model
    is_cosine = encoders[0].similarity == "cosine"
    peer = functools.partial(model.encode, normalize_embeddings=is_cosine, show_progress_bar=False)
    race = Race("encoding", given, versions("sentence-transformers", "torch"))
    sides = [functools.partial(timed, peer, texts, prompt=encoders[0].prompt("document"))]
    sides += [functools.partial(timed, encoder.encode, texts, "document") for encoder in encoders]
    seconds, results = in_turn(sides, given.repeats)
    for place, encoder in enumerate(encoders, 1):
        cosines = cosine(results[0], results[place])
        case = f"{len(texts)} documents, {encoder.encoding.precision}"
        race.add(case, "sentence-transformers", seconds[0], seconds[place], f"lowest cosine {cosines.min():.5f}")
    work, matrix = operations(lambda: encoders[0].encode(texts, "document")), torch.rand(SIZE, SIZE)
    rate = 2 * SIZE**3 / min(timed(torch.mm, matrix, matrix)[0] for _ in range(20))
    names = ("sentence-transformers", "float32", "auto")
    shares = (f"{name} {work / min(side) / rate:.0%}" for name, side in zip(names, seconds, strict=True))
    print(f"\nof {rate / 1e9:.0f} GFLOP/s in float32: {', '.join(shares)}")
    print(f"large matrices are multiplied {bfloat16_speedup('cpu'):.1f} times as fast in bfloat16")


def cosine(first: np.ndarray, second: np.ndarray) -> np.ndarray:
    """(n,) cosines of the rows of two tables."""
    pairs = torch.from_numpy(first), torch.from_numpy(second)
    return torch.nn.functional.cosine_similarity(*pairs).numpy()


if __name__ == "__main__":
    main()
