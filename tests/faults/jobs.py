"""Jobs that write: every command, on a tiny collection with tiny models, for tests that break them on purpose.

A job runs in a folder of its own, with relative paths, so that two runs of it can be compared byte for byte.
"""

from __future__ import annotations

import itertools
import json
import os
import re
import shlex
import shutil
import textwrap
import time
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.ipc
import pyarrow.parquet as pq
import yaml
from children import MAIN, Child
from disk import CHANGES, EVERY, Operation, arming, operations

from retrodistill.core.json_files import read_json
from retrodistill.evaluation.results import Results
from retrodistill.report.page import page_text

# What may differ between two runs: the values of these keys of JSON files, and the seconds that a model card says. A
# report shows more of the times; it must be the page of the results next to it. LanceDB's files have random names.
TIMES = ("created", "seconds", "build_seconds", "checksum", "data_files")  # a checksum is of a JSON file with its times
_SECONDS = re.compile(rb"\b\d+(\.\d+)? (s|min)\b")
STORES = ("part-*.parquet", "part-*.arrow")

STEPS = {"max_steps": 4, "batch_size": 8, "learning_rate": 1e-3, "warmup": 0}
TEXTS = {"titles": False, "sentences": 0}
STAGE = {
    "objectives": "kl",
    "texts": TEXTS,
    "candidates": {"depth": 6},
    "groups": {"documents": 3},
    "training": STEPS,
}
BOTH = {**STAGE, "train": "both_encoders"}
HEAD = {**STAGE, "train": "head"}
RERANKED = {**STAGE, "train": "both_encoders", "candidates": {"depth": 6, "sources": ["bm25"]}}
LEAF = {"objectives": "leaf", "texts": {"sentences": 1}, "training": STEPS}
# By name of the job: the student's model, and its settings.
STUDENTS = {
    "static": ("static", {"control": "untrained", "stages": [LEAF, {**STAGE, "candidates": {"depth": "all"}}]}),
    "dense": ("dense:bi-encoder", {"layers": 1, "stages": [STAGE]}),
    "exits": ("dense:bi-encoder", {"exits": [1], "stages": [{**LEAF, "matryoshka": [8]}]}),
    "lora": ("dense:bi-encoder", {"documents": "student", "stages": [{**BOTH, "lora": {}}]}),
    "hybrid": (
        "dense:bi-encoder",
        {"lexical_dim": 16, "documents": "student", "stages": [{**STAGE, "train": "lexical"}]},
    ),
    "sparse": ("sparse:bi-encoder", {"queries": "inference-free", "lexical_terms": True, "stages": [HEAD]}),
    "splade": ("sparse:masked", {"stages": [BOTH]}),
    "vdr": ("sparse:masked", {"head": "vdr", "stages": [{**BOTH, "own_tokens": 1.0}]}),
    "multi-vector": ("multi-vector:bi-encoder", {"dimension": 16, "stages": [BOTH]}),
    "clustered": (
        "multi-vector:bi-encoder",
        {
            "dimension": 16,
            "clusters": "C2x4",
            "clustered_from": 2,
            "stages": [HEAD, {**HEAD, "objectives": ["kl", "lwf"]}],
        },
    ),
    "cross-encoder": ("cross-encoder:cross-encoder", {"stages": [RERANKED]}),
    "prett": ("prett:bi-encoder", {"join": 1, "stages": [{**RERANKED, "train": "head"}]}),
    "tk": ("tk:bi-encoder", {"dimension": 16, "stages": [{**RERANKED, "train": "head"}, RERANKED]}),
}
OF_INDEX = {
    "learned": {"factory": "OPQ4,PQ4x4", "learn": {"steps": 6}},
    "learned-encoder": {
        "factory": "OPQ4,PQ4x4",
        "learn": {"steps": 6},
        "encoder": {**STAGE, "candidates": {"depth": "all"}},
    },
}
# Index adds and removes are calls in Python: each change is saved, in place of the index before.
CHANGE_INDEX = """
from retrodistill.data import load_collection
from retrodistill.data.texts import Texts
from retrodistill.indexes import load_index
index = load_index("index-dense")
for number in range(3):
    if f"new{number}" not in index.document_ids:
        index.add(Texts.from_pairs([(f"new{number}", f"the star and planet {number}")]))
        index.save("index-dense")
if "d5" in index.document_ids:
    index.remove(["d5", "d7"])
    index.save("index-dense")
"""
# Judgments through the server's own routes; each is sent once more if it was not confirmed, as a client would do.
JUDGE = """
from pathlib import Path
from serving.answers import client_of
client = client_of("index-dense", collection="collection", judgments="judged")
Path("confirmed").mkdir(exist_ok=True)
for number in range(12):
    confirmed = Path(f"confirmed/{number}")
    query = {"query_id": f"t{number // 2}"} if number % 2 else {"query": f"a star of {number}"}
    if not confirmed.exists():
        answer = client.post("/judge", json={**query, "document_id": f"d{number}", "relevance": number % 3})
        if answer.status_code == 507:
            raise UserError(answer.json()["error"]["message"])
        assert answer.status_code == 200, answer.text
        confirmed.touch()
client.server.served.close()
"""


# Calls report errors as the command line does.
AS_COMMAND = """
from unittest import mock
import retrodistill.cli
from retrodistill.core.errors import UserError
with mock.patch("retrodistill.cli.app", main):
    retrodistill.cli.main()
"""


@dataclass(frozen=True)
class Job:
    """A command, or Python code that calls the package, which is repeated until it succeeds."""

    name: str
    command: str = ""  # arguments of `retrodistill`
    writes: tuple[str, ...] = ()  # files and folders, below the folder that it runs in
    needs: tuple[str, ...] = ()  # names of jobs whose output it reads
    code: str = MAIN

    @property
    def argv(self) -> list[str]:
        """The arguments; models compute in float32, since `auto` measures which precision is faster."""
        return ["--precision", "float32", *shlex.split(self.command)] if self.command else []


_COLLECTION = "--collection collection"
_TAUGHT = f"{_COLLECTION} --target run:teacher.parquet --document-encoder dense:bi-encoder"
# Name -> documents and options.
_INDEXES = {
    "dense": "dense:bi-encoder --store-texts",
    "quantized": "dense:bi-encoder --factory IVF2,PQ4x4",
    "auto": "dense:bi-encoder --factory auto --bytes 32",
    "passages": "dense:bi-encoder --passages 12,3",
    "sparse": "sparse:splade --bits 8",
    "multi-vector": "multi-vector:tokens",
    "residual": "multi-vector:tokens --codec residual --bits 2 centroids=8",
    "muvera": "multi-vector:tokens --muvera",
}
# Name -> index and options.
_EXPORTS = {
    "parquet": "index-dense --to parquet --texts",
    "parquet-sparse": "index-sparse --to parquet",
    "qdrant": "index-dense --to qdrant --texts --batch 7",
    "qdrant-sparse": "index-sparse --to qdrant --batch 7",
    "lancedb": "index-dense --to lancedb --texts --batch 7",
}
_RERANKED = "rerank@5:cross-encoder:cross-encoder@bm25"
_JOBS = [
    Job(
        "mine",
        f"mine {_COLLECTION} --source bm25 --source dense:bi-encoder --depth 8 --random 2 --out candidates.run",
        ("candidates.run",),
    ),
    Job(
        "score",
        f"--batch-size 16 score {_COLLECTION} --candidates candidates.run --teacher bm25 "
        "--teacher cross-encoder:cross-encoder --out teacher.parquet",
        ("teacher.parquet",),
        ("mine",),
    ),
    Job(
        "score-budget",
        f"score {_COLLECTION} --candidates candidates.run --teacher dense:bi-encoder --budget 40% --out bought.jsonl",
        ("bought.jsonl",),
        ("mine",),
    ),
    Job("distill-static", f"distill {_TAUGHT} --out student", ("student",), ("score",)),
    Job("distill-dense", f"distill {_TAUGHT} --student dense:bi-encoder --out student", ("student",), ("score",)),
    *(Job(f"run-{name}", f"run recipes/{name}.yaml --out out", ("out",)) for name in (*STUDENTS, *OF_INDEX)),
    *(
        Job(f"index-{name}", f"index {_COLLECTION} --documents {given} --out index-{name}", (f"index-{name}",))
        for name, given in _INDEXES.items()
    ),
    Job(
        "index-learned",
        f"index {_COLLECTION} --documents dense:bi-encoder --factory OPQ4,PQ4x4 --learn-queries --out index-learned",
        ("index-learned", "index-learned.queries"),
    ),
    Job("change-index", "", ("index-dense",), ("index-dense",), CHANGE_INDEX),
    *(
        Job(f"export-{name}", f"export {given} {_COLLECTION} --out exported", ("exported",), (given.split()[0],))
        for name, given in _EXPORTS.items()
    ),
    Job(
        "evaluate",
        f"evaluate bm25 dense:bi-encoder {_RERANKED} {_COLLECTION} --teacher dense:bi-encoder --out evaluated",
        ("evaluated",),
    ),
    Job("compare", f"compare evaluated/collection bm25:characters {_COLLECTION}", (), ("evaluate",)),
    Job(
        "generate",
        f"generate {_COLLECTION} --model seq2seq:seq2seq --documents 12 --query-tokens 6 --max-length 32 "
        "--out generated.jsonl",
        ("generated.jsonl",),
    ),
    Job(
        "filter-queries",
        f"generate {_COLLECTION} --from generated.jsonl --round-trip bm25 --depth 40 --out kept.jsonl",
        ("kept.jsonl",),
        ("generate",),
    ),
    Job("judge", "", ("judged", "confirmed"), ("index-dense",), JUDGE),
]
JOBS = {job.name: job for job in _JOBS}
# Jobs whose output has several versions, or grows.
CHANGING = ("change-index", "judge", *(f"export-{name}" for name in _EXPORTS))


class Workshop:
    """Makes folders that jobs run in, and keeps the output of one uninterrupted run of each job.

    `models` are folders by the name that jobs call them.
    """

    def __init__(self, folder: Path, collection: Path, models: dict[str, Path]) -> None:
        self.inputs, self._done = folder / "inputs", folder / "done"
        self._seconds: dict[str, float] = {}
        shutil.copytree(collection, self.inputs / "collection")
        for name, place in models.items():
            shutil.copytree(place, self.inputs / name)
        (self.inputs / "recipes").mkdir()
        for name in (*STUDENTS, *OF_INDEX):
            (self.inputs / "recipes" / f"{name}.yaml").write_text(yaml.safe_dump(_recipe(name), sort_keys=False))

    def finished(self, job: Job) -> Path:
        """The folder after an uninterrupted run of the job."""
        folder = self._done / job.name
        if not folder.exists():
            self.fill(job, folder)
            started = time.monotonic()
            status, out, error = start(
                job, folder, arming(folder, log=self._done / f"{job.name}.log", kinds=EVERY)
            ).wait(300)
            assert status == 0, f"{job.name}: exit status {status}\n{out}\n{error}"
            self._seconds[job.name] = time.monotonic() - started
        return folder

    def operations(self, job: Job, kinds: int = CHANGES) -> list[Operation]:
        """What an uninterrupted run of the job does on disk, in order; by default, what it changes there."""
        self.finished(job)
        return [one for one in operations(self._done / f"{job.name}.log") if one.kind & kinds]

    def seconds(self, job: Job) -> float:
        """How long an uninterrupted run of the job takes."""
        self.finished(job)
        return self._seconds[job.name]

    def fill(self, job: Job, folder: Path, *, older: bool = False) -> Path:
        """Copy what the job reads into a new folder; with `older`, also what it wrote there and in the cache before."""
        shutil.copytree(self.inputs, folder)
        (folder / "tmp").mkdir()
        for other in (*(JOBS[name] for name in job.needs), *([job] if older else [])):
            for name in (*other.writes, *(["cache"] if other is job else [])):
                place = self.finished(other) / name
                if name == "cache" and not place.exists():
                    continue
                (partial(shutil.copytree, dirs_exist_ok=True) if place.is_dir() else shutil.copy)(place, folder / name)
        return folder

    def resume(self, job: Job, folder: Path, before: str = "") -> None:
        """Run the job to its end where it was broken, and compare with an uninterrupted run."""
        status, _, error = start(job, folder, before).wait(300)
        assert status == 0, error
        assert not (found := differences(self.finished(job), folder, job)), found
        assert not (found := leftovers(folder)), found

    def broken_files(self, job: Job, folder: Path, *, older: bool) -> list[str]:
        """Files that a broken job left half-written; where its output was there before, also those that are gone.

        What it goes on from does not count, and neither does what cannot be removed from a disk that refuses that.
        """
        if job.name in CHANGING:
            return []
        whole, found = written(self.finished(job), job), written(folder, job)
        names = [name for name in {*found, *(whole if older else ())} if found.get(name) != whole.get(name)]
        # a report is of the results that were written before, and two learned indexes write what they start from
        work = (".retrodistill-", "/.training/", "report.html", "/opq/")
        return sorted(name for name in names if not any(mark in f"/{name}" for mark in work))


def start(job: Job, folder: Path, before: str = "", environment: dict[str, str] | None = None) -> Child:
    """The job in a process of its own; `before` is Python code that runs there first."""
    own = {"RETRODISTILL_CACHE": str(folder / "cache"), "TMPDIR": str(folder / "tmp"), **(environment or {})}
    here = f"import os, tempfile\nos.chdir({str(folder)!r})\ntempfile.tempdir = None\n"
    code = job.code if job.command else f"def main(_):\n{textwrap.indent(job.code, '    ')}\n{AS_COMMAND}"
    code = f"{here}{before}\n{code}"
    return Child(code, *job.argv, environment=own)


def differences(one: Path, other: Path, job: Job) -> list[str]:
    """Where what two runs of a job wrote differs, apart from times: their output, and the rows in their caches."""
    found = []
    for what, read in (("", partial(written, job=job)), ("rows of cache/", stored_rows)):
        first, second = read(one), read(other)
        for name in sorted({*first, *second}):
            if name not in first or name not in second:
                found.append(f"{what}{name}: only in the {'first' if name in first else 'second'} run")
            elif first[name] != second[name]:
                found.append(f"{what}{name}: {_difference(first[name], second[name])}")
    return found


def leftovers(folder: Path) -> list[str]:
    """Temporary files and folders in a job's folder, which a finished job has not."""
    marks = (".part", ".old", ".tmp", ".work", ".training")
    found = [path for path in folder.rglob("*") if path.name.endswith(marks) or path.parent == folder / "tmp"]
    # Python tries whether it can write to the folder of temporary files by one with these bytes, or some of them
    probes = [path for path in (folder / "tmp").iterdir() if path.is_file() and b"blat".startswith(path.read_bytes())]
    found = [path for path in found if path not in probes]
    return sorted(path.relative_to(folder).as_posix() for path in found)


def stored_rows(folder: Path) -> dict[str, list[str]]:
    """By store of a job's cache, its distinct rows: parts have random names, and a merged part has the rows of many.

    Any other file is one row with its content. Rates are times, and locks are empty.
    """
    cache, rows = folder / "cache", {}
    for path in sorted(cache.rglob("*")):
        if path.is_dir() or path.name == "rates.json" or path.suffix == ".lock":
            continue
        if any(path.match(pattern) for pattern in STORES):
            try:
                read = pq.read_table(path) if path.suffix == ".parquet" else pa.ipc.open_file(str(path)).read_all()
                found = map(repr, read.to_pylist())
            except (pa.ArrowException, OSError) as error:
                found = [f"{path.name} cannot be read: {error}"]
            rows.setdefault(path.parent, set()).update(found)
        else:
            rows[path] = {repr(_content(folder, path))}
    return {path.relative_to(cache).as_posix(): sorted(of_store) for path, of_store in rows.items()}


def written(folder: Path, job: Job) -> dict[str, str | bytes]:
    """The content of each file that a job wrote, and the rows of each table of LanceDB, by name."""
    places = [folder / name for name in job.writes]
    files = [path for place in places for path in ([place] if place.is_file() else place.rglob("*")) if path.is_file()]
    tables = sorted({parent for path in files for parent in path.parents if parent.suffix == ".lance"})
    files = [path for path in files if path.suffix != ".lock" and not set(tables) & set(path.parents)]
    content = {path.relative_to(folder).as_posix(): _content(folder, path) for path in files}
    return content | {path.relative_to(folder).as_posix(): _rows(path) for path in tables}


def _rows(table: Path) -> str:
    import lancedb

    rows = lancedb.connect(str(table.parent)).open_table(table.stem).to_arrow().sort_by("document_id")
    return "\n".join(map(repr, rows.to_pylist()))


def _content(folder: Path, path: Path) -> str | bytes:
    """What must be equal of a file: its bytes, or what is left of them without times; the job's folder has one name."""
    content = path.read_bytes().replace(os.fsencode(folder), b"FOLDER")
    if path.suffix == ".json":
        try:
            return json.dumps(_timeless(json.loads(content)), indent=1)
        except ValueError:  # half-written
            return content
    if path.name == "report.html":
        page = page_text(Results.from_json(read_json(path.with_name("results.json"))))
        return "the page of the results" if path.read_text() == page else content
    if path.parent.name == "judged":  # a judgment that was not confirmed is sent again
        return b"".join(dict.fromkeys(content.splitlines(keepends=True)))
    return _SECONDS.sub(b"0 s", content) if path.name == "README.md" else content


def _timeless(value: Any) -> Any:
    if isinstance(value, dict):
        return {key: _timeless(part) for key, part in value.items() if key not in TIMES}
    return [_timeless(part) for part in value] if isinstance(value, list) else value


def _difference(one: Any, other: Any) -> str:
    """The first lines or rows that differ."""
    lines = [value.splitlines() if hasattr(value, "splitlines") else value for value in (one, other)]
    pairs = itertools.zip_longest(*lines, fillvalue="nothing")
    return next(f"{str(a)[:120].strip()} and {str(b)[:120].strip()}" for a, b in pairs if a != b)


def _recipe(name: str) -> dict[str, object]:
    recipe = {
        "name": name,
        "collection": "collection",
        "document_encoder": "dense:bi-encoder",
        "teacher": [{"model": "bm25", "weight": 0.3}, {"model": "dense:bi-encoder", "weight": 0.7}],
        "evaluation": {"latency_queries": 0, "examples": 1, "rerank": 5},
    }
    if name in OF_INDEX:
        return {**recipe, "index": OF_INDEX[name]}
    model, settings = STUDENTS[name]
    return {**recipe, "students": {"student": {"model": model, "control": None, **settings}}}
