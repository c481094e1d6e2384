"""Time, memory and disk of every part of a job as the corpus grows to a million documents.

    python evaluation/benchmarks/million.py [--documents 10000 100000 1000000] [--work FOLDER]
    python evaluation/benchmarks/million.py --documents 10000 100000 --model all-MiniLM-L6-v2

For each size it makes a collection (made_corpus.py) and runs each step in a process of its own: load, BM25, encoding,
mining, recipes and evaluation. A step's peak memory is that of the process itself, and in brackets with the pages of
files and libraries that it maps, which the system drops before it runs out of memory. Growth is the exponent of the
least-squares fit of log(processor seconds) on log(documents); the start of a process makes it smaller. At most 1.1 is
wanted.

Without --model, a small stand-in encodes the documents, since MiniLM would take hours for a million of them on two
cores: one transformer layer of 64 dimensions over the principal components of MiniLM's word embeddings. Its vectors
have MiniLM's 384 dimensions, so memory and search cost the same; its quality means nothing. All sizes have as many
training texts and steps (300 for sparse students and quantizers), so what is left grows with the corpus.

Results go to ``million.json`` and ``million.md`` in --out, with --model to ``million-MODEL.json`` and ``.md``. A step
that is in the JSON file is not run again.
"""

from __future__ import annotations

import argparse
import os
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
from made_corpus import write_collection
from racing import run_process

from retrodistill.core.files import atomic_folder
from retrodistill.core.json_files import read_json, write_json

HERE = Path(__file__).parent
SIZES = (10_000, 100_000, 1_000_000)
_DEPTH = 100
_EVALUATION = "evaluation={memory: false, latency_queries: 4, depth: 100, examples: 0}"
_WIDTH, _STAND_IN_WIDTH = 384, 64


def stand_in(folder: Path) -> None:
    """Save the stand-in for the document encoder, unless it exists."""
    if folder.exists():
        return
    import torch
    from sentence_transformers import SentenceTransformer
    from sentence_transformers.sentence_transformer.modules import Dense, Normalize, Pooling, Transformer
    from transformers import BertConfig, BertModel

    from retrodistill.encoders.loading import PACKAGED_NAME, load_bi_encoder

    whole: Any = load_bi_encoder(PACKAGED_NAME)
    words = whole[0].auto_model.get_input_embeddings().weight.detach()
    directions = torch.linalg.eigh(words.T @ words).eigenvectors[:, -_STAND_IN_WIDTH:]
    torch.manual_seed(0)
    shape = {"hidden_size": _STAND_IN_WIDTH, "intermediate_size": 4 * _STAND_IN_WIDTH, "num_attention_heads": 2}
    small = BertModel(BertConfig(vocab_size=len(words), num_hidden_layers=1, **shape))
    small.embeddings.word_embeddings.weight.data = words @ directions
    with atomic_folder(folder) as new:
        small.save_pretrained(new / "transformer")
        whole.tokenizer.save_pretrained(new / "transformer")
        transformer = Transformer(str(new / "transformer"), max_seq_length=256)
        back = Dense(_STAND_IN_WIDTH, _WIDTH, bias=False, activation_function=torch.nn.Identity())
        back.linear.weight.data = directions.contiguous()
        modules = [transformer, Pooling(_STAND_IN_WIDTH), back, Normalize()]
        SentenceTransformer(modules=modules).save_pretrained(str(new), create_model_card=False)


def load(options: argparse.Namespace) -> dict[str, Any]:
    """Load the folder into an empty cache."""
    from retrodistill import load_collection

    return {"documents": len(load_collection(options.corpus).documents)}


def bm25(options: argparse.Namespace) -> dict[str, Any]:
    """Build the index and search with the test queries."""
    from retrodistill import load_collection
    from retrodistill.rankers.bm25 import BM25Ranker

    collection, ranker = load_collection(options.corpus), BM25Ranker()
    begin = time.perf_counter()
    size = ranker.bytes_per_document(collection)
    built = time.perf_counter()
    queries = collection.split("test")
    ranker.search(queries, collection, _DEPTH)
    per_query = (time.perf_counter() - built) / len(queries)
    return {"index seconds": built - begin, "ms per query": 1e3 * per_query, "bytes per document": size}


def encode(options: argparse.Namespace) -> dict[str, Any]:
    """Encode the documents into the cache."""
    from retrodistill import load_collection
    from retrodistill.encoders.any_encoder import load_encoder
    from retrodistill.encoders.embeddings import embed

    embed(load_encoder(options.encoder), load_collection(options.corpus).documents.texts, "document")
    return {}


def index(options: argparse.Namespace) -> dict[str, Any]:
    """Build a flat index of the documents' vectors, with the bytes of the vectors for comparison with the peak."""
    import retrodistill as rd

    collection = rd.load_collection(options.corpus)
    rd.build_index(collection, options.encoder).save(options.folder / "flat")
    return {"vectors": 4 * _WIDTH * len(collection.documents)}


def mine(options: argparse.Namespace) -> dict[str, Any]:
    """Mine candidates for titles with BM25 and the document encoder."""
    from retrodistill import load_collection
    from retrodistill import mine as mine_candidates
    from retrodistill.training.texts import training_texts

    collection = load_collection(options.corpus)
    texts = training_texts(collection, collection.queries.select([]), limit=options.texts).texts
    run = mine_candidates(collection, texts, ["bm25", options.encoder], _DEPTH)
    return {"texts": len(texts), "candidates": len(run)}


def recipe(name: str, changes: dict[str, str]) -> Callable[[argparse.Namespace], dict[str, Any]]:
    """A step that runs a recipe with the stand-in and these changes."""

    def run(options: argparse.Namespace) -> dict[str, Any]:
        from retrodistill.cli import main

        out = options.folder / name
        values = {"encoder": options.encoder, "texts": str(options.texts), "model": options.model}
        given = [f"collection={options.corpus}", f"document_encoder={options.encoder}", _EVALUATION]
        given += [f"{key}={value.format(**values)}" for key, value in changes.items()]
        try:
            main(["run", name, *given, "--out", str(out)])
        except SystemExit as end:
            if end.code:
                raise
        results = read_json(out / "results.json")
        quality = {row["name"]: row["ndcg@10"] for row in results["systems"]}
        return {"seconds": results["seconds"], "ndcg@10": quality}

    return run


def evaluation(options: argparse.Namespace) -> dict[str, Any]:
    """Evaluate BM25 and the document encoder on the test queries."""
    import retrodistill as rd

    systems = {"bm25": "bm25", "encoder": options.encoder}
    done = rd.evaluate(systems, rd.load_collection(options.corpus), depth=1000)
    return {"ndcg@10": {name: values["ndcg@10"] for name, values in done.means.items()}}


_STAGE = "students.student.stages"
STEPS: dict[str, Callable[[argparse.Namespace], dict[str, Any]]] = {
    "load": load,
    "bm25": bm25,
    "encode": encode,
    "index": index,
    "mine": mine,
    "static-leaf": recipe(
        "static-leaf",
        {
            "ensemble.1.model": "{encoder}",
            "students.student.control": "null",
            f"{_STAGE}.0.texts.limit": "{texts}",
        },
    ),
    "static-ensemble": recipe(
        "static-ensemble",
        {
            "teacher.1.model": "{encoder}",
            "students.student.control": "null",
            f"{_STAGE}.0.texts.limit": "{texts}",
            f"{_STAGE}.1.texts.limit": "{texts}",
            f"{_STAGE}.1.candidates": "{{depth: 100, shared: 2000}}",
        },
    ),
    "distill-vq": recipe(
        "distill-vq", {"index.bytes": "16", "index.texts.limit": "{texts}", "index.learn": "{{steps: 300}}"}
    ),
    "sparse-inference-free": recipe(
        "sparse-inference-free",
        {
            "teacher.1.model": "{encoder}",
            "students.student.model": "sparse:{model}",
            "students.student.control": "null",
            f"{_STAGE}.0.texts.limit": "{texts}",
            f"{_STAGE}.0.candidates": "{{depth: 100}}",
            f"{_STAGE}.0.training.max_steps": "300",
            "evaluation.exhaustive": "true",
        },
    ),
    "evaluation": evaluation,
}


def main() -> None:
    """Run the missing steps and write the table."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--documents", type=int, nargs="+", default=SIZES)
    parser.add_argument("--steps", nargs="+", choices=STEPS, default=list(STEPS))
    parser.add_argument("--texts", type=int, default=20_000, help="training texts")
    parser.add_argument("--model", help="document encoder in place of the stand-in, such as all-MiniLM-L6-v2")
    parser.add_argument("--threads", type=int, default=1, help="of every library")
    parser.add_argument("--work", type=Path, default=Path("out/million"), help="collections, caches, and jobs")
    parser.add_argument("--out", type=Path, default=HERE)
    parser.add_argument("--in-process", metavar="STEP", help=argparse.SUPPRESS)
    options = parser.parse_args()
    options.work = options.work.resolve()
    options.model = options.model or str(options.work / "stand-in")
    options.encoder = f"dense:{options.model}"
    if options.in_process:
        options.folder = folder_of(options, options.documents[0])
        options.corpus = options.folder / "corpus"
        call = prepare if options.in_process == "prepare" else STEPS[options.in_process]
        write_json(options.folder / f"{options.in_process}.json", call(options))
        return
    file = options.out / ("million.json" if is_stand_in(options) else f"million-{Path(options.model).name}.json")
    for documents in sorted(options.documents):
        done = results_of(file, options)["steps"]
        todo = [step for step in options.steps if f"{step} {documents}" not in done]
        hardware = measured("prepare", documents, options)["result"] if todo else {}
        for step in todo:
            print(step, documents, flush=True)
            measurement = measured(step, documents, options)
            results = results_of(file, options)  # again: several sizes may run side by side
            results |= {"hardware": hardware, "steps": results["steps"] | {f"{step} {documents}": measurement}}
            write_json(file, results)
            file.with_suffix(".md").write_text(table(results))
    print(file.with_suffix(".md").read_text())


def is_stand_in(options: argparse.Namespace) -> bool:
    """Whether no model was given."""
    return bool(options.model == str(options.work / "stand-in"))


def folder_of(options: argparse.Namespace, documents: int) -> Path:
    """The folder of the collection, cache, and jobs of a size."""
    return Path(options.work) / (str(documents) if is_stand_in(options) else f"{documents}-{Path(options.model).name}")


def results_of(file: Path, options: argparse.Namespace) -> dict[str, Any]:
    """The stored results, which have the same settings, or none yet."""
    settings = {"texts": options.texts, "threads": options.threads}
    if not is_stand_in(options):
        settings["model"] = options.model
    results: dict[str, Any] = read_json(file) if file.exists() else {"settings": settings, "steps": {}}
    if results["settings"] != settings:
        raise SystemExit(f"{file} has results with {results['settings']}; give these, or another --out.")
    return results


def prepare(options: argparse.Namespace) -> dict[str, Any]:
    """Make the stand-in and the collection; returns the hardware."""
    from retrodistill.core.manifest import hardware

    if is_stand_in(options):
        stand_in(Path(options.model))
    write_collection(options.corpus, options.documents[0])
    return hardware()


def measured(step: str, documents: int, options: argparse.Namespace) -> dict[str, Any]:
    """Seconds, processor seconds, peak memory and new bytes on disk of a step in its own process."""
    folder = folder_of(options, documents)
    before = disk(folder)
    command = [sys.executable, __file__, "--in-process", step, "--documents", str(documents)]
    command += ["--texts", str(options.texts), "--work", str(options.work), "--model", options.model]
    environment = os.environ | {"RETRODISTILL_CACHE": str(folder / "cache")}
    folder.mkdir(parents=True, exist_ok=True)
    taken = run_process(command, environment, folder / f"{step}.log", threads=options.threads)
    return taken | {"new_bytes": disk(folder) - before, "result": read_json(folder / f"{step}.json")}


def table(results: dict[str, Any]) -> str:
    """A Markdown table with a row per step."""
    measured_steps, hardware, settings = (results[name] for name in ("steps", "hardware", "settings"))
    sizes = sorted({int(key.split()[1]) for key in measured_steps})
    lines = [
        f"Documents encoded by {settings.get('model', 'the stand-in')}. {settings['texts']:,} training texts. "
        f"{hardware['processor']}, {hardware['cores']} cores, {hardware['memory_gib']} GiB; {settings['threads']} "
        "threads. Each cell: seconds (processor seconds), peak "
        "memory (with mapped files), new bytes on disk.",
        "",
        "| step | " + " | ".join(f"{size:,} documents" for size in sizes) + " | growth |",
        "|---|" + "---:|" * (len(sizes) + 1),
    ]
    for step in STEPS:
        cells = [measured_steps.get(f"{step} {size}") for size in sizes]
        known = [(size, cell["processor_seconds"]) for size, cell in zip(sizes, cells, strict=True) if cell]
        if known:
            shown = " | ".join("–" if cell is None else _cell(cell) for cell in cells)
            lines.append(f"| {step} | {shown} | {_growth(known)} |")
    return "\n".join(lines) + "\n"


def _cell(step: dict[str, Any]) -> str:
    own = f"{step['peak_bytes'] / 1e9:.1f}" if "peak_bytes" in step else "–"
    files, new = step["resident_bytes"] / 1e9, step["new_bytes"] / 1e9
    time_taken = f"{step['seconds']:,.0f} s ({step['processor_seconds']:,.0f})"
    return f"{time_taken}, {own} ({files:.1f}) GB, {new:.1f} GB"


def _growth(points: list[tuple[int, float]]) -> str:
    if len(points) < 2:
        return "–"
    documents, seconds = np.log(np.array(points)).T
    return f"{np.polyfit(documents, seconds, 1)[0]:.2f}"


def disk(folder: Path) -> int:
    """Bytes of the files below a folder."""
    return sum(file.stat().st_size for file in folder.rglob("*") if file.is_file())


if __name__ == "__main__":
    main()
