"""Good artifacts, one of each kind, which hostile cases copy and change."""

from __future__ import annotations

import json
import shutil
from collections.abc import Sequence
from pathlib import Path

import numpy as np
import yaml

from retrodistill.core.checksums import file_checksum
from retrodistill.core.json_files import read_json
from retrodistill.data import load_collection
from retrodistill.exports import export_index
from retrodistill.indexes import build_index
from retrodistill.rankers import score
from retrodistill.recipes import run_recipe
from retrodistill.runs import Run, write_run

FACTORIES = {"flat": "Flat", "ivf": "IVF4,Flat", "product": "PQ4x4", "hnsw": "HNSW8", "scalar": "IVF4,SQ8"}
FIELDS = {"year": 2001, "lang": "de", "tags": ["x", "y"], "share": 0.5, "day": "2020-01-31", "open": True}


def make_artifacts(folder: Path, tiny: Path, model: str, cross: str, static: str, sparse: str, tokens: str) -> None:
    """Write a collection with fields, models, indexes of each kind, runs, a store, vectors, an export, and a job."""
    shutil.copytree(tiny, folder / "tiny")
    corpus = folder / "tiny" / "corpus.jsonl"
    rows = [json.loads(line) | FIELDS for line in corpus.read_text().splitlines()]
    corpus.write_text("".join(json.dumps(row) + "\n" for row in rows))
    for name, source in (
        ("model", model),
        ("cross", cross),
        ("static", static),
        ("sparse", sparse),
        ("tokens", tokens),
    ):
        shutil.copytree(source, folder / name)
    collection = load_collection("tiny")
    for name, factory in FACTORIES.items():
        build_index(collection, "dense:model", factory=factory, store_texts=name == "flat").save(f"index-{name}")
    build_index(collection, "sparse:sparse").save("index-sparse")
    build_index(collection, "multi-vector:tokens", codec="residual", bits=2).save("index-tokens")
    build_index(collection, "multi-vector:tokens", muvera=True).save("index-muvera")
    build_index(load_collection("tiny", passages="8,2"), "dense:model").save("index-passages")
    run = write_runs(folder, collection.queries.ids)
    score(collection, run.top(3), ["cross-encoder:cross"], store=Path("store"))
    vectors = np.random.default_rng(0).standard_normal((60, 8)).astype(np.float32)
    Path("vectors").mkdir()
    np.save("vectors/documents.npy", vectors)
    Path("vectors/documents.ids.txt").write_text("\n".join(collection.documents.ids) + "\n")
    of_queries = zip(collection.queries.ids, collection.queries.texts, vectors, strict=True)
    lines = [{"_id": id_, "text": text, "vector": vector.tolist()} for id_, text, vector in of_queries]
    Path("vectors/queries.jsonl").write_text("".join(json.dumps(line) + "\n" for line in lines))
    Path("vectors/about.json").write_text(json.dumps({"model": "of/elsewhere", "similarity": "cosine"}))
    export_index("index-flat", f"parquet:{folder / 'export'}")
    stage = {"objectives": "leaf", "training": {"epochs": 1, "learning_rate": 0.01}}
    recipe = {
        "name": "small",
        "collection": "tiny",
        "document_encoder": "dense:model",
        "students": {"student": {"model": "static", "control": None, "stages": [stage]}},
        "evaluation": {"latency_queries": 0, "examples": 1},
    }
    Path("small.yaml").write_text(yaml.safe_dump(recipe))
    run_recipe("small.yaml", "job")
    shutil.rmtree("cache")


def write_runs(folder: Path, queries: Sequence[str]) -> Run:
    """Write one run in each format, and return it."""
    run = Run.from_dict({query: {f"d{number}": float(number % 7) for number in range(12)} for query in queries})
    for ending in (".run", ".jsonl", ".parquet"):
        write_run(run, folder / f"good{ending}")
    return run


def renew_checksums(folder: Path) -> None:
    """Write the checksums of an index's files as they are now into its manifest, as an attacker would."""
    path = folder / "manifest.json"
    manifest = read_json(path)
    sums = manifest["about"].get("checksums", {})
    renewed = {name: file_checksum(folder / name) for name in sums if (folder / name).is_file()}
    renewed.pop("documents.arrow", None)  # whose checksum is that of its seal
    manifest["about"]["checksums"] = renewed
    path.write_text(json.dumps(manifest))
