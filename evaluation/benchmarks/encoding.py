"""Encoding of documents, and scoring of pairs, with a transformer, against sentence-transformers with its defaults.

python evaluation/benchmarks/encoding.py [--model dense:all-MiniLM-L6-v2] [--collection demo] [--documents 256]

Sentence-transformers takes 32 texts or pairs at once in float32. Ours runs in float32, and in what `auto` chooses here;
both choose batches by tokens. Pairs are a query and each of the documents, scored by a cross-encoder that has the
model's transformer and a random head; our time includes writing the scores to a store and reading them. The last lines
compare the floating-point operations of a second, in encoding, with the rate at which this machine multiplies large
matrices.
"""

from __future__ import annotations

import functools
import tempfile
from pathlib import Path

import numpy as np
import torch
from racing import Race, Timed, in_turn, parser, timed, use_threads, versions
from sentence_transformers import CrossEncoder, SentenceTransformer

from retrodistill.core.runtime import muted
from retrodistill.data import load_collection
from retrodistill.data.collection import Collection
from retrodistill.encoders import encode_with, load_encoder
from retrodistill.encoders.loading import quiet_libraries
from retrodistill.encoders.precision import bfloat16_speedup
from retrodistill.evaluation.cost import operations
from retrodistill.rankers.cross_encoder import CrossEncoderRanker
from retrodistill.rankers.protocol import pair_texts
from retrodistill.runs.run import Run

PRECISIONS = ("float32", "auto")
SIZE = 1024  # of the matrices that are multiplied for the machine's rate


def main() -> None:
    """Print a Markdown table and the share of the machine's rate."""
    options = parser(__doc__, repeats=5)
    options.add_argument("--model", default="dense:all-MiniLM-L6-v2", help="of sentence-transformers")
    options.add_argument("--collection", default="demo", help="a folder in BEIR's layout, or a name")
    options.add_argument("--documents", type=int, default=256, help="of the collection, evenly spaced")
    given = options.parse_args()
    use_threads(given.threads)
    collection = load_collection(given.collection)
    documents = collection.documents.texts
    places = np.unique(np.linspace(0, len(documents) - 1, min(given.documents, len(documents)), dtype=int))
    texts = [documents[place] for place in places]
    encoders = []
    for precision in PRECISIONS:
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
    score_pairs(race, collection, places, model, given.repeats)
    work, matrix = operations(lambda: encoders[0].encode(texts, "document")), torch.rand(SIZE, SIZE)
    rate = 2 * SIZE**3 / min(timed(torch.mm, matrix, matrix)[0] for _ in range(20))
    names = ("sentence-transformers", *PRECISIONS)
    shares = (f"{name} {work / min(side) / rate:.0%}" for name, side in zip(names, seconds, strict=True))
    print(f"\nof {rate / 1e9:.0f} GFLOP/s in float32: {', '.join(shares)}")
    print(f"large matrices are multiplied {bfloat16_speedup('cpu'):.1f} times as fast in bfloat16")


def score_pairs(
    race: Race, collection: Collection, places: np.ndarray, model: SentenceTransformer, repeats: int
) -> None:
    """Add the rows of pairs of the first queries, in turn, and the documents in these places."""
    queries, documents = collection.queries, collection.documents.ids
    asked = Run.from_arrays(
        [queries.ids[row % len(queries)] for row in range(len(places))],
        [documents[place] for place in places],
        np.zeros(len(places)),
    )
    pairs = list(zip(*pair_texts(queries, collection, asked), strict=True))
    with tempfile.TemporaryDirectory() as folder, quiet_libraries(), muted():
        model.save(folder)
        torch.manual_seed(0)
        scorer = CrossEncoder(folder, num_labels=1, activation_fn=torch.nn.Identity())

    def ours(precision: str) -> Timed:
        with tempfile.TemporaryDirectory() as root, encode_with(precision=precision), muted():
            ranker = CrossEncoderRanker(scorer, "made", Path(root))
            ranker.fingerprint(collection)  # reads the weights, once per model
            return timed(ranker.score, queries, collection, asked)

    sides = [functools.partial(timed, scorer.predict, pairs, show_progress_bar=False)]
    sides += [functools.partial(ours, precision) for precision in PRECISIONS]
    seconds, results = in_turn(sides, repeats)
    for place, precision in enumerate(PRECISIONS, 1):
        apart = np.abs(results[place].scores - results[0]).max()
        agreement = f"scores at most {apart:.1e} apart, of a standard deviation of {results[0].std():.1e}"
        race.add(f"{len(pairs)} pairs, {precision}", "sentence-transformers", seconds[0], seconds[place], agreement)


def cosine(first: np.ndarray, second: np.ndarray) -> np.ndarray:
    """(n,) cosines of the rows of two tables."""
    pairs = torch.from_numpy(first), torch.from_numpy(second)
    return torch.nn.functional.cosine_similarity(*pairs).numpy()


if __name__ == "__main__":
    main()
