"""Damage to files of artifacts and caches, and what must come of it: a line that names the file, or the same result."""

from __future__ import annotations

import random
import re
import shutil
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path

import faiss
import numpy as np
from children import Child
from jobs import JOBS, Job, Workshop, differences, start

# Commands that read what a job wrote, by the beginning of its name; the job itself is run again, too.
READERS = {
    "run-": ("compare out bm25:characters --collection collection",),
    "index-": ("search {out} 'star planet' --k 5",),
    "export-parquet": ("search parquet:exported 'star planet' --k 5",),
    "evaluate": ("compare evaluated/collection bm25:characters --collection collection",),
}
# What people edit, what is made anew by every run, and locks.
NOT_ARTIFACTS = ("README.md", "recipe.yaml", "report.html", "*.lock", "rates.json", "CACHEDIR.TAG")
_VARIABLE = re.compile(r"[0-9a-f]{8,}|(?<=part-)\d+|(?<=checkpoint-)\d+")
_TIMES = re.compile(r"\d+(\.\d+)? ?(ms|s|min|h)\b|[0-9.]+ +(?=ms)")


def flip(file: Path, other: Path | None, draw: random.Random) -> None:
    """One bit."""
    data = bytearray(file.read_bytes())
    if data:
        data[draw.randrange(len(data))] ^= 1 << draw.randrange(8)
    file.write_bytes(data)


def cut(file: Path, other: Path | None, draw: random.Random) -> None:
    """The end is missing."""
    data = file.read_bytes()
    file.write_bytes(data[: draw.randrange(max(len(data), 1))])


def double(file: Path, other: Path | None, draw: random.Random) -> None:
    """The file is there twice."""
    number = "part-000999-" if file.name.startswith("part-") else "copy-"
    shutil.copy(file, file.with_name(f"{number}{draw.randrange(16**8):08x}{file.suffix}"))


def swap(file: Path, other: Path | None, draw: random.Random) -> None:
    """The file of the same name, or kind, of the same job with other documents."""
    if other is not None:
        shutil.copy(other, file)


def remove(file: Path, other: Path | None, draw: random.Random) -> None:
    """The file is gone."""
    file.unlink()


FAULTS: dict[str, Callable[[Path, Path | None, random.Random], None]] = {
    each.__name__: each for each in (flip, cut, double, swap, remove)
}


@dataclass(frozen=True)
class Case:
    """A file of a finished job, by its path in the job's folder, and what happens to it."""

    job: str
    file: str
    fault: str


def files_of_job(folder: Path, job: Job) -> list[str]:
    """Paths of all files that a finished job wrote, and those of its cache."""
    places = [folder / name for name in (*job.writes, "cache")]
    files = [file for place in places for file in ([place] if place.is_file() else place.rglob("*"))]
    kept = [file for file in files if file.is_file() and not any(map(file.match, NOT_ARTIFACTS))]
    return sorted(file.relative_to(folder).as_posix() for file in kept)


def commands_for(case: Case) -> Iterator[str]:
    """Commands that read the file: those of the job's readers, for what it wrote."""
    if not case.file.startswith("cache/"):
        for beginning, commands in READERS.items():
            if case.job.startswith(beginning):
                yield from (command.format(out=JOBS[case.job].writes[0]) for command in commands)


class Damage:
    """Runs cases on copies of finished jobs; `other` makes the same jobs with other documents."""

    def __init__(self, workshop: Workshop, other: Workshop, folder: Path) -> None:
        self._workshop, self._other, self._folder = workshop, other, folder
        self._said: dict[tuple[str, str], str] = {}

    def cases(self, name: str) -> list[Case]:
        """Every fault on every file of a finished job."""
        files = files_of_job(self._workshop.finished(JOBS[name]), JOBS[name])
        return [Case(name, file, fault) for file in files for fault in FAULTS]

    def outcome(self, case: Case, seed: int) -> str:
        """``same`` or ``named``; a sentence on what is wrong otherwise."""
        job, whole = JOBS[case.job], self._workshop.finished(JOBS[case.job])
        draw = random.Random(f"{case} {seed}")
        outcomes = []
        for command in ("", *commands_for(case)):
            folder = Path(shutil.copytree(whole, self._folder / f"{draw.randrange(16**8):08x}"))
            if not command and case.file.startswith("cache/"):
                _remove_outputs(folder, job)
            FAULTS[case.fault](folder / case.file, self._other_file(case), random.Random(f"{case} {seed}"))
            status, out, said = (reader(command, folder) if command else start(job, folder)).wait(300)
            outcomes.append(self._judged(case, command, folder, status, out, said))
            shutil.rmtree(folder)
        wrong = [each for each in outcomes if each not in ("same", "named")]
        return wrong[0] if wrong else ("named" if "named" in outcomes else "same")

    def _judged(self, case: Case, command: str, folder: Path, status: int, out: str, said: str) -> str:
        job = JOBS[case.job]
        what = f"{case} {command or '(again)'}"
        lines = [line for line in said.splitlines() if line.startswith("error: ")]
        if status == 2 and len(lines) == 1:
            # Of two files that do not belong together, either may be the older one.
            file = Path(case.file)
            older = str(file.parent) if file.parts[0] == "cache" else file.parts[0]
            names = {"double": "copy-", "swap": older}.get(case.fault, file.name)
            own = ("export-qdrant", "export-lancedb")  # files of these libraries
            if case.job.startswith(own) and case.file.startswith(job.writes):
                names = job.writes[0]
            return "named" if names in lines[0] else f"{what}: does not name it: {lines[0]}"
        if status != 0:
            return f"{what}: exit status {status}: {said[-600:]}"
        if command:
            wanted = self._wanted(case.job, command)
            return "same" if _plain(out, folder) == wanted else f"{what}: says\n{_plain(out, folder)}\nnot\n{wanted}"
        whole = self._workshop.finished(job)
        found = differences(whole, folder, job)
        # A file that nothing needs any more stays as it is.
        passed = ("rows of cache/", f"{case.file}:")
        found = [line for line in found if not line.startswith(passed) and "/copy-" not in line]
        if case.file.startswith("cache/embeddings/") and found and is_nearly_same(whole, folder, job):
            return "same"
        return f"{what}: {found[:3]}" if found else "same"

    def _wanted(self, name: str, command: str) -> str:
        if (name, command) not in self._said:
            folder = self._workshop.finished(JOBS[name])
            status, out, said = reader(command, folder).wait(300)
            assert status == 0, said
            self._said[name, command] = _plain(out, folder)
        return self._said[name, command]

    def _other_file(self, case: Case) -> Path | None:
        if case.fault != "swap":
            return None
        folder = self._other.finished(JOBS[case.job])
        if (folder / case.file).is_file():
            return folder / case.file
        same = [
            file
            for file in files_of_job(folder, JOBS[case.job])
            if _VARIABLE.sub("*", file) == _VARIABLE.sub("*", case.file)
        ]
        return folder / same[0] if same else None


def is_nearly_same(one: Path, other: Path, job: Job) -> bool:
    """Whether two indexes hold nearly the same vectors: in a batch with other texts, a text's last bits may differ."""
    files = [folder / job.writes[0] / "index.faiss" for folder in (one, other)]
    if not all(file.is_file() for file in files):
        return False
    indexes = [faiss.read_index(str(file)) for file in files]
    vectors = [index.reconstruct_n(0, index.ntotal) for index in indexes]
    return vectors[0].shape == vectors[1].shape and np.allclose(*vectors, rtol=0, atol=1e-6)


def reader(command: str, folder: Path) -> Child:
    """A command in a job's folder."""
    return start(Job("reader", command), folder)


def _remove_outputs(folder: Path, job: Job) -> None:
    for name in job.writes:
        place = folder / name
        if name in job.needs:
            continue
        if place.is_dir():
            shutil.rmtree(place)
        elif place.exists():
            place.unlink()


def _plain(out: str, folder: Path) -> str:
    return _TIMES.sub("TIME", out.replace(str(folder), "FOLDER"))
