"""The recipes on a real collection of about 63,000 documents: quality, time, and memory.

    python evaluation/benchmarks/debian.py [--recipes static-leaf ...] [--work FOLDER]

The collection is made of Debian's package descriptions (on Debian, with apt-get). A document is the long description of
a package, with the package's name as its title. A query is a one-line synopsis, which is not part of the documents, and
the packages that have it are relevant. It has 3,000 queries for testing, 3,000 for development, and up to 20,000 for
training. Packages with the same synopsis are in one split, and training queries whose words nearly equal those of a
query of another split (Jaccard of at least .6) are left out. These are known-item searches, in which lexical systems
are strong: differences mean more than absolute figures.

Each recipe runs as it is, with the changes of `CHANGES`, in a process of its own. Its peak memory includes the pages of
the files and libraries that it maps. All recipes share a cache, so the first one embeds the documents for all. Results
go to ``debian.json`` and ``debian.md`` in --out. A recipe that is in the JSON file is not run again.
"""

from __future__ import annotations

import argparse
import json
import os
import random
import re
import subprocess
import sys
import tempfile
from collections import defaultdict
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
from racing import run_process

from retrodistill.core.files import atomic_folder
from retrodistill.core.json_files import read_json, write_json
from retrodistill.core.manifest import hardware
from retrodistill.data.leaks import ExcludedQueries, without_leaks
from retrodistill.data.texts import Texts

HERE = Path(__file__).parent
SPLITS = {"test": 3000, "dev": 3000, "train": 20000}
_MOST_PACKAGES, _FEWEST_WORDS, _SHORTEST = 5, 3, 80  # of a synopsis; characters of a description
_EVALUATION = "evaluation={memory: false, latency_queries: 0, examples: 0, exhaustive: true}"
_NO_CONTROL = "students.student.control=null"
_TEXTS = "students.student.stages.0.texts.limit"
CHANGES = {  # fewer training texts where a step encodes documents, which takes longest on a CPU
    "static-leaf": [_NO_CONTROL],
    "static-ensemble": [],
    "distill-vq": [],
    "dense-ensemble": [
        _NO_CONTROL,
        f"{_TEXTS}=20000",
        "students.student.lexical_dim=384",
        "students.student.stages.0.training.learning_rate=2.0e-3",
    ],
    "sparse-inference-free": [_NO_CONTROL, f"{_TEXTS}=20000"],
    # exact search of an index skips most products that an exhaustive measurement computes
    "colbert": [_NO_CONTROL, f"{_TEXTS}=10000", "evaluation.exhaustive=false", "index.codec=float32"],
}
_KEPT = ("name", "role", "ndcg@10", "recall@100", "bytes_per_document")
_OTHERS = ("baseline", "teacher")  # roles of systems that recipes are compared with
_HEAD = (
    "recipe",
    "system",
    "nDCG@10",
    "recall@100",
    "bytes/document",
    "training",
    "whole run",
    "processor time",
    "peak memory",
)


def main() -> None:
    """Run the missing recipes and write the table."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--recipes", nargs="+", choices=CHANGES, default=list(CHANGES))
    parser.add_argument("--threads", type=int, default=1, help="of every library")
    parser.add_argument("--work", type=Path, default=Path("out/debian"), help="collection, cache, and jobs")
    parser.add_argument("--out", type=Path, default=HERE)
    options = parser.parse_args()
    corpus = options.work.resolve() / "collection"
    if not corpus.exists():
        write_collection(corpus)
    file = options.out / "debian.json"
    for recipe in options.recipes:
        if recipe in stored(file)["recipes"]:
            continue
        print(recipe, flush=True)
        job = options.work.resolve() / recipe
        changes = [f"collection={corpus}", _EVALUATION, *CHANGES[recipe]]
        command = [sys.executable, "-m", "retrodistill", "run", recipe, *changes, "--out", str(job)]
        environment = os.environ | {"RETRODISTILL_CACHE": str(options.work.resolve() / "cache")}
        taken = run_process(command, environment, options.work / f"{recipe}.log", threads=options.threads)
        told = read_json(job / "results.json")
        systems = [{name: system.get(name) for name in _KEPT} for system in told["systems"]]
        results = stored(file)  # again: several recipes may run side by side
        results["hardware"] = hardware() | {"threads": options.threads}
        results["recipes"][recipe] = {**taken, "steps": told["seconds"], "systems": systems}
        write_json(file, results)
        (options.out / "debian.md").write_text(table(results))
    print((options.out / "debian.md").read_text())


def stored(file: Path) -> dict[str, Any]:
    """The results so far."""
    found: dict[str, Any] = read_json(file) if file.exists() else {"recipes": {}}
    return found


def table(results: dict[str, Any]) -> str:
    """A Markdown table: what recipes are compared with, once, then the students and controls of each recipe."""
    about, runs = results["hardware"], results["recipes"]
    lines = [
        f"{about['processor']}, {about['cores']} cores, {about['memory_gib']} GiB; {about['threads']} threads.",
        "",
        f"| {' | '.join(_HEAD)} |",
        "|---|---|---:|---:|---:|---:|---:|---:|---:|",
    ]
    others = {one["name"]: one for run in runs.values() for one in run["systems"] if one["role"] in _OTHERS}
    others.pop("exact", None)  # distill-vq's name for the teacher
    lines += [_row("", system, "", ["", "", ""]) for system in others.values()]
    for recipe, run in runs.items():
        costs = [f"{run[time]:,.0f} s" for time in ("seconds", "processor_seconds")]
        costs.append(f"{run['resident_bytes'] / 1e9:.1f} GB")
        own = [system for system in run["systems"] if system["role"] not in _OTHERS]
        for number, system in enumerate(own):
            name, steps = system["name"], run["steps"]
            seconds = steps.get(f"train {name}", steps.get(f"learn {name}"))
            trained = "" if seconds is None else f"{seconds:,.0f} s"
            lines.append(_row("" if number else recipe, system, trained, ["", "", ""] if number else costs))
    return "\n".join(lines) + "\n"


def _row(recipe: str, system: dict[str, Any], trained: str, costs: list[str]) -> str:
    quality = [f"{system[measure]:.4f}" for measure in ("ndcg@10", "recall@100")]
    size = "" if system["bytes_per_document"] is None else f"{system['bytes_per_document']:,.0f}"
    return f"| {' | '.join([recipe, system['name'], *quality, size, trained, *costs])} |"


def write_collection(folder: Path) -> None:
    """Download the descriptions and write the collection in BEIR's layout."""
    descriptions = dict(packages())
    named = defaultdict(list)
    for name, (synopsis, _) in descriptions.items():
        named[synopsis.lower()].append(name)
    fits = [key for key in sorted(named) if len(named[key]) <= _MOST_PACKAGES and len(key.split()) >= _FEWEST_WORDS]
    random.Random(13).shuffle(fits)
    ends = np.cumsum(list(SPLITS.values()))
    test, dev, train = (fits[end - size : end] for end, size in zip(ends, SPLITS.values(), strict=True))
    excluded, offered = (Texts.from_pairs((text, text) for text in texts) for texts in (test + dev, train))
    chosen = {"test": test, "dev": dev, "train": without_leaks(offered, ExcludedQueries(excluded))[0].texts}
    with atomic_folder(folder) as new:
        with (new / "corpus.jsonl").open("w") as file:
            for name in sorted(descriptions):
                file.write(json.dumps({"_id": name, "title": name, "text": descriptions[name][1]}) + "\n")
        (new / "qrels").mkdir()
        with (new / "queries.jsonl").open("w") as file:
            for split, synopses in chosen.items():
                queries = [(f"{split}-{number}", named[key]) for number, key in enumerate(synopses)]
                for query, found in queries:
                    file.write(json.dumps({"_id": query, "text": descriptions[found[0]][0]}) + "\n")
                rows = [f"{query}\t{name}\t1\n" for query, found in queries for name in found]
                (new / "qrels" / f"{split}.tsv").write_text("query-id\tcorpus-id\tscore\n" + "".join(rows))


def packages() -> Iterator[tuple[str, tuple[str, str]]]:
    """Name, synopsis, and long description of the packages of the sources that apt knows, in English."""
    with tempfile.TemporaryDirectory() as folder:
        lists = ["-o", f"Dir::State::Lists={folder}", "-o", "Acquire::Languages=en"]
        subprocess.run(["apt-get", "update", "-qq", *lists], check=True)
        for file in sorted(Path(folder).glob("*_main_i18n_Translation-en*")):
            reader = ["/usr/lib/apt/apt-helper", "cat-file", str(file)]
            text = subprocess.run(reader, check=True, capture_output=True, text=True).stdout
            for paragraph in text.split("\n\n"):
                fields = dict(re.findall(r"^(Package|Description-en): (.*(?:\n .*)*)", paragraph, re.MULTILINE))
                synopsis, _, long = fields.get("Description-en", "").partition("\n")
                lines = [line.strip() for line in long.split("\n")]
                body = " ".join(" ".join("" if line == "." else line for line in lines).split())
                if "Package" in fields and synopsis and len(body) >= _SHORTEST:
                    yield fields["Package"], (synopsis.strip(), body)


if __name__ == "__main__":
    main()
