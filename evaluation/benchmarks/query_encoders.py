"""What a query costs by each of several query encoders of one index: quality, latency, size, and memory.

    python evaluation/benchmarks/query_encoders.py COLLECTION INDEX MODEL... [--out FILE]

INDEX is a dense index; each MODEL is a query encoder of its space, e.g. dense:FOLDER of an export to ONNX,
static:FOLDER, or torch@dense:NAME for one that runs in torch though it was exported; LABEL=MODEL names it in the table.
query_encoders_figure.py draws the files that --out writes. Each is timed in a process of its
own, with one thread, in turn over the repeats: times are processor time of encoding a test query, and of encoding and
searching it, which other processes of the machine disturb less. Speed is that of encoding, relative to the first model.
Memory is the resident memory of a process that loads the index and the model and answers queries. Size is that of the
files that it reads of the model. nDCG@10 has a 95% interval by bootstrap over queries.
"""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path
from statistics import median
from typing import Any

import numpy as np
import racing

from retrodistill.core.paths import path_of
from retrodistill.encoders.loading import PACKAGED_NAME, packaged_minilm

_TIMED, _WARM_UP = 100, 10
_COLUMNS = (
    "query encoder",
    "nDCG@10",
    "95% interval",
    "encode p50, ms",
    "p95",
    "and search, p50",
    "speed",
    "MB on disk",
    "MB resident",
)


def child(index: str, model: str) -> None:
    """Answer the queries of stdin, and print times, memory, and results."""
    import psutil

    from retrodistill.core.runtime import set_quiet
    from retrodistill.indexes import load_index

    set_quiet(True)
    searched = load_index(index, _loaded(model))
    queries = json.load(sys.stdin)
    for query in queries[:_WARM_UP]:
        searched.search([query], k=10)
    seconds = {
        name: [racing.timed(call, query)[0] for query in queries[:_TIMED]]
        for name, call in (
            ("encode", lambda query: searched.queries.encode([query], "query")),
            ("search", lambda query: searched.search([query], k=10)),
        )
    }
    resident = psutil.Process().memory_info().rss
    print(json.dumps({"seconds": seconds, "resident": resident, "torch": "torch" in sys.modules}))


def _loaded(model: str) -> Any:
    from retrodistill.encoders import encode_with, load_encoder

    runtime, _, name = model.partition("@") if model.startswith("torch@") else ("auto", "", model)
    precision = "float32" if runtime == "torch" else "auto"
    with encode_with(runtime=runtime, precision=precision):
        return load_encoder(name)


def megabytes(encoder: Any) -> float:
    """Of the files that a process reads of a model: the graph, or the weights, and the tokenizer."""
    export = getattr(encoder, "export", None)
    if export is not None:
        return (export.file.stat().st_size + (export.file.parent / "tokenizer.json").stat().st_size) / 1e6
    folder = packaged_minilm() if encoder.name.endswith(PACKAGED_NAME) else path_of(encoder.name.partition(":")[2])
    files = [file for file in folder.rglob("*") if file.suffix == ".safetensors" or file.name == "tokenizer.json"]
    return sum(file.stat().st_size for file in files if file.parent.name != "onnx") / 1e6


def measure(index: str, model: str, collection: Any) -> dict[str, Any]:
    """Quality and size of a query encoder."""
    from retrodistill.evaluation.measures import evaluate_run
    from retrodistill.indexes import load_index

    encoder = _loaded(model)
    run = load_index(index, encoder).search(collection.split("test"), k=100)
    values = evaluate_run(run, collection.relevance("test").to_dict(), ["ndcg@10"])["ndcg@10"].to_numpy()
    draws = np.random.default_rng(0).choice(values, (2000, len(values))).mean(axis=1)
    low, high = np.percentile(draws, [2.5, 97.5])
    return {"ndcg@10": values.mean(), "low": low, "high": high, "megabytes": megabytes(encoder)}


def main() -> None:
    """Measure, print a table, and write JSON."""
    parser = racing.parser(__doc__, repeats=5)
    parser.add_argument("collection")
    parser.add_argument("index")
    parser.add_argument("models", nargs="+", metavar="MODEL")
    given = parser.parse_args()
    racing.use_threads(given.threads)
    from retrodistill.data import load_collection

    collection = load_collection(given.collection)
    models = dict(one.rpartition("=")[::2] if "=" in one else (one, one) for one in given.models)
    rows = {label: measure(given.index, model, collection) for label, model in models.items()}
    queries = json.dumps(collection.split("test").texts)
    runs: dict[str, list[dict[str, Any]]] = {label: [] for label in models}
    for _ in range(given.repeats):
        for label, model in models.items():
            command = [sys.executable, __file__, "--child", given.index, model]
            done = subprocess.run(command, input=queries, capture_output=True, text=True, check=True)
            runs[label].append(json.loads(done.stdout))
    first = None
    for label, row in rows.items():
        for name in ("encode", "search"):
            times = np.array([one["seconds"][name] for one in runs[label]]) * 1000
            row |= {f"{name} p{place}": median(np.percentile(times, place, axis=1)) for place in (50, 95)}
        first = first or row["encode p50"]
        row |= {"speed": first / row["encode p50"], "resident": median(one["resident"] for one in runs[label]) / 1e6}
        row["torch"] = runs[label][-1]["torch"]
    print(f"| {' | '.join(_COLUMNS)} |\n|---|" + "---:|" * (len(_COLUMNS) - 1))
    for label, row in rows.items():
        quality = f"{row['ndcg@10']:.4f} | {row['low']:.3f} to {row['high']:.3f}"
        times = f"{row['encode p50']:.2f} | {row['encode p95']:.2f} | {row['search p50']:.2f} | {row['speed']:.1f}"
        print(f"| {label} | {quality} | {times} | {row['megabytes']:.1f} | {row['resident']:.0f} |")
    if given.out:
        Path(given.out).write_text(
            json.dumps({"collection": collection.name, "encoders": rows}, indent=1) + "\n", encoding="utf-8"
        )


if __name__ == "__main__":
    child(*sys.argv[2:]) if sys.argv[1] == "--child" else main()
