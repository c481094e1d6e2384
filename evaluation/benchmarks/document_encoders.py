"""Encoding documents with fewer tokens between layers, fewer tokens from the start, fewer layers, or other encoders.

python evaluation/benchmarks/document_encoders.py [--model dense:all-MiniLM-L6-v2] --collection FOLDER [--also MODEL...]

All variants of a model encode the same documents in turn, in one process. Speed is relative to all tokens. The cosine
is to the vectors of all tokens; overlap@10 is the share of the best 10 of these documents for a training query that the
vectors of a variant find, too, where the model itself encodes queries. A model that is not length-adaptive drops tokens
as --layers and --by say, before any training. Cut to its first layers, it has vectors in another space: only speed.
--also adds encoders of the same space, such as students or exports to ONNX.
"""

from __future__ import annotations

import argparse
import copy
import functools
from statistics import median
from typing import Any

import numpy as np
from racing import in_turn, parser, ratio, timed, use_threads

from retrodistill.data import load_collection
from retrodistill.data.texts import spread
from retrodistill.encoders import load_encoder
from retrodistill.encoders.encoder import Encoder
from retrodistill.encoders.length_adaptive import LengthAdaptiveSettings, length_adaptive_settings
from retrodistill.encoders.modules import keep_first_layers
from retrodistill.encoders.token_dropping import keep_share, make_length_adaptive
from retrodistill.encoders.vectors import exact_search

QUERIES = 200


def main() -> None:
    """Print a Markdown table."""
    options = parser(__doc__, repeats=3)
    options.add_argument("--model", default="dense:all-MiniLM-L6-v2", help="length-adaptive, or any whose layers fit")
    options.add_argument("--collection", required=True, help="a folder in BEIR's layout, or a name")
    options.add_argument("--documents", type=int, default=256, help="of the collection, evenly spaced")
    options.add_argument("--keep", type=float, nargs="*", default=[0.75, 0.5, 0.25], help="shares of the tokens")
    options.add_argument("--layers", type=int, nargs="+", default=[1, 2, 3], help="after which tokens are dropped")
    options.add_argument("--by", nargs="+", default=["norm"], help="attention, norm, or both")
    options.add_argument("--tokens", type=int, nargs="*", default=[192, 128, 96, 64], help="to cut documents to")
    options.add_argument("--first", type=int, nargs="*", default=[4, 3, 2], help="layers to keep")
    options.add_argument("--also", nargs="*", default=[], help="more encoders, by their names, such as dense:FOLDER")
    given = options.parse_args()
    use_threads(given.threads)
    collection, whole = load_collection(given.collection), load_encoder(given.model)
    texts = spread(collection.documents.texts, given.documents)
    queries = spread(collection.split("train").texts, QUERIES)
    named = {"all tokens": whole.model, **variants(whole.model, given)}
    encoders = {name: Encoder(model, f"dense:{name}") for name, model in named.items()}
    encoders |= {name: load_encoder(name) for name in given.also}
    sides = [functools.partial(timed, encoder.encode, texts, "document") for encoder in encoders.values()]
    seconds, vectors = in_turn(sides, given.repeats)
    asked = whole.encode(queries, "query")
    wanted = exact_search(asked, vectors[0], 10)[0]
    print(f"{len(texts)} documents of {collection.name}, {len(queries)} queries, {whole.encoding.precision}\n")
    print("| variant | documents/s | speed | cosine | overlap@10 |\n|---|---:|---:|---:|---:|")
    for name, taken, found in zip(encoders, seconds, vectors, strict=True):
        cells = [name, f"{len(texts) / median(taken):.1f}", ratio(seconds[0], taken), "", ""]
        if not name.endswith("layers"):
            rows = exact_search(asked, found, 10)[0]
            overlap = np.mean([len(set(a) & set(b)) / 10 for a, b in zip(rows, wanted, strict=True)])
            cells[3:] = [f"{(found * vectors[0]).sum(axis=1).mean():.3f}", f"{overlap:.3f}"]
        print(f"| {' | '.join(cells)} |", flush=True)


def variants(model: Any, given: argparse.Namespace) -> dict[str, Any]:
    """Models by what they keep."""
    found: dict[str, Any] = {}
    adaptive = {"as trained": model}
    if given.keep and length_adaptive_settings(model) is None:
        adaptive = {f"by {by}": copy.deepcopy(model) for by in given.by}
        for by, one in zip(given.by, adaptive.values(), strict=True):
            make_length_adaptive(one, LengthAdaptiveSettings(layers=given.layers, keep=min(given.keep), by=by))
    for how, one in adaptive.items():
        found |= {f"{keep:.0%} of the tokens, {how}": keep_share(one, keep) for keep in given.keep}
    for tokens in given.tokens:
        found[f"the first {tokens} tokens"] = cut = copy.deepcopy(model)
        cut.max_seq_length = tokens
    for layers in given.first:
        found[f"the first {layers} layers"] = cut = copy.deepcopy(model)
        keep_first_layers(cut, layers)
    return found


if __name__ == "__main__":
    main()
