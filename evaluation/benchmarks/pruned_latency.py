"""One-query latency of encoders with fewer layers, attention heads, and feed-forward units, as shares of the whole one.

python evaluation/benchmarks/pruned_latency.py [--model all-MiniLM-L6-v2] [--collection demo] [--queries 20] [--onnx]

A variant is LAYERSxHEADSxUNITS. Weights are the largest ones of the model, since time does not depend on their values.
All variants encode the same queries in turn, one at a time, with tokenization. A share is that of medians, with the
lowest and the highest of a repeat. With --onnx, the encoders are exported and run in ONNX Runtime, in float32.
"""

from __future__ import annotations

import functools
import json
import tempfile
from pathlib import Path

from racing import Timed, in_turn, parser, ratio, timed, use_threads

from retrodistill.core.manifest import hardware
from retrodistill.data import load_collection
from retrodistill.data.texts import spread
from retrodistill.encoders.any_encoder import DENSE, load_encoder
from retrodistill.encoders.encoder import Encoder
from retrodistill.encoders.layers import stack_of
from retrodistill.encoders.loading import load_bi_encoder
from retrodistill.encoders.modules import save_pretrained
from retrodistill.encoders.pruned_layers import heads_of, units_of
from retrodistill.exports.onnx import export_onnx
from retrodistill.students.pruning import prune

VARIANTS = ["3x12x1536", "6x12x768", "6x12x384", "6x6x1536", "6x6x768", "6x6x384", "4x12x768", "4x6x768", "5x6x768"]


def main() -> None:
    """Print a Markdown table."""
    options = parser(__doc__, repeats=15)
    options.add_argument("--model", default="all-MiniLM-L6-v2", help="bi-encoder")
    options.add_argument("--collection", default="demo", help="a folder in BEIR's layout, or a name")
    options.add_argument("--queries", type=int, default=20, help="of the collection, evenly spaced")
    options.add_argument("--variants", nargs="*", default=VARIANTS, help="LAYERSxHEADSxUNITS")
    options.add_argument("--onnx", action="store_true", help="export them, and run them in ONNX Runtime")
    given = options.parse_args()
    use_threads(given.threads)
    queries = spread(load_collection(given.collection).queries.texts, given.queries)
    whole = load_bi_encoder(given.model)
    transformer = whole[0].auto_model
    parts = len(stack_of(transformer)[0]), len(heads_of(transformer)[0]), len(units_of(transformer)[0])
    names = ["x".join(map(str, parts)), *given.variants]
    encoders = [Encoder(variant(given.model, name), name) for name in names]
    timed_encoders = [in_onnx(encoder) for encoder in encoders] if given.onnx else encoders
    seconds, _ = in_turn([functools.partial(one_by_one, encoder, queries) for encoder in timed_encoders], given.repeats)
    lengths = whole.tokenizer(queries)["input_ids"]
    tokens, facts = sum(map(len, lengths)) / len(queries), hardware()
    print(
        f"{facts.get('processor')}, {given.threads} threads, {given.repeats} repeats, {tokens:.0f} tokens per query\n"
    )
    print("| layers x heads x units | parameters in layers | share of the time | ms per query |\n|---|---:|---:|---:|")
    rows = []
    for name, encoder, taken in zip(names, encoders, seconds, strict=True):
        layers = stack_of(encoder.model[0].auto_model)[0]
        count = sum(weights.numel() for weights in layers.parameters())
        shortest = 1000 * min(taken) / len(queries)
        rows.append({"variant": name, "parameters": count, "seconds": taken})
        print(f"| {name} | {count / 1e6:.2f} M | {ratio(taken, seconds[0])} | {shortest:.2f} |")
    if given.out:
        given.out.write_text(json.dumps({"about": facts, "tokens": tokens, "rows": rows}, indent=1) + "\n")


def variant(model: str, name: str) -> object:
    """The model with the numbers that the name says."""
    layers, heads, units = map(int, name.split("x"))
    made = load_bi_encoder(model, layers=layers)
    prune(made, [], heads=heads, units=units)
    return made


def in_onnx(encoder: Encoder) -> Encoder:
    """The encoder, exported."""
    with tempfile.TemporaryDirectory() as place:
        source, out = Path(place, "model"), Path(place, "onnx")
        save_pretrained(encoder.model, source)
        export_onnx(f"dense:{source}", out)
        exported: Encoder = load_encoder(f"dense:{out}", DENSE)
        exported.encode(["loads the graph before the folder is gone"], "query")
    return exported


def one_by_one(encoder: Encoder, queries: list[str]) -> Timed:
    """Time of encoding each query in a call of its own."""
    return timed(lambda: [encoder.encode([query], "query") for query in queries])


if __name__ == "__main__":
    main()
