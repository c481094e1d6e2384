"""What the benchmarks share: repeats in turn, ratios with their spread, tables, and peers in other processes.

`serve` also runs in the environment of the peers (peers.sh), which has NumPy but not retrodistill.
"""

from __future__ import annotations

import argparse
import contextlib
import json
import os
import resource
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Mapping, Sequence
from importlib import metadata
from pathlib import Path
from statistics import median
from typing import Any, Self

import numpy as np

PEERS = Path(__file__).parents[2] / ".venv-peers" / "bin" / "python"
Timed = tuple[float, Any]  # seconds and result of a call
Side = Callable[[], Timed]

_THREADS = ("OMP_NUM_THREADS", "MKL_NUM_THREADS", "OPENBLAS_NUM_THREADS", "RAYON_NUM_THREADS")
_COLUMNS = ("case", "peer", "peer's time", "retrodistill", "times faster", "agreement")


def parser(about: str | None, *, threads: int = 1, repeats: int = 7) -> argparse.ArgumentParser:
    """A parser of the options that all benchmarks have."""
    made = argparse.ArgumentParser(description=about, formatter_class=argparse.RawDescriptionHelpFormatter)
    made.add_argument("--repeats", type=int, default=repeats, help=f"of both sides, in turn (default {repeats})")
    made.add_argument("--threads", type=int, default=threads, help=f"of both sides (default {threads})")
    made.add_argument("--out", type=Path, help="JSON file for the results")
    return made


def use_threads(number: int) -> None:
    """Limit the threads of this process and of those that it starts. Call it before libraries start theirs."""
    os.environ.update(dict.fromkeys(_THREADS, str(number)))
    if "torch" in sys.modules:
        sys.modules["torch"].set_num_threads(number)
    if "faiss" in sys.modules:
        sys.modules["faiss"].omp_set_num_threads(number)


def timed(call: Callable[..., Any], *arguments: Any, **options: Any) -> Timed:
    """Seconds and result of a call: CPU time with one thread, which other processes disturb less, else clock time."""
    clock = time.process_time if os.environ.get(_THREADS[0]) == "1" else time.perf_counter
    start = clock()
    result = call(*arguments, **options)
    return clock() - start, result


def run_process(
    command: Sequence[str],
    environment: Mapping[str, str],
    log: Path,
    *,
    threads: int | None = None,
    errors: int = subprocess.STDOUT,
) -> dict[str, float | int]:
    """Run a command; return its seconds, processor seconds, and peak memory, sampled every 0.1 seconds.

    Memory is in bytes: ``peak_bytes`` is its own; ``resident_bytes`` adds the pages of files and libraries that it
    maps, which the system drops before it runs out of memory. A page that is mapped twice counts twice.

    Args:
        command: The program and its arguments.
        environment: All environment variables.
        log: File for its output.
        threads: Threads of every library; by default, as the environment says.
        errors: Where its standard error goes, as of `subprocess.Popen`.
    """
    import psutil  # not in the environment of the peers

    if threads is not None:
        environment = {**environment, **dict.fromkeys(_THREADS, str(threads))}
    start, before, peak, resident = time.perf_counter(), resource.getrusage(resource.RUSAGE_CHILDREN), 0, 0
    with log.open("w") as file:
        process = psutil.Popen(command, env=environment, stdout=file, stderr=errors)
        while process.poll() is None:
            with contextlib.suppress(psutil.Error):  # it may have ended meanwhile
                memory = process.memory_info()
                peak, resident = max(peak, memory.rss - memory.shared), max(resident, memory.rss)
            time.sleep(0.1)
    if process.wait():
        raise SystemExit(f"{' '.join(command)} failed; see {log}")
    after = resource.getrusage(resource.RUSAGE_CHILDREN)
    return {
        "seconds": round(time.perf_counter() - start, 2),
        "processor_seconds": round(after.ru_utime + after.ru_stime - before.ru_utime - before.ru_stime, 2),
        "peak_bytes": peak,
        "resident_bytes": resident,
    }


def in_turn(sides: Sequence[Side], repeats: int) -> tuple[list[list[float]], list[Any]]:
    """Seconds of each side in each repeat, and its last result; each is warmed up by one call that does not count."""
    seconds: list[list[float]] = [[] for _ in sides]
    results: list[Any] = [side()[1] for side in sides]
    for _ in range(repeats):
        for place, side in enumerate(sides):
            taken, results[place] = side()
            seconds[place].append(taken)
    return seconds, results


def ratio(theirs: Sequence[float], ours: Sequence[float]) -> str:
    """Ratio of the medians, with the lowest and the highest ratio of a repeat."""
    each = [a / b for a, b in zip(theirs, ours, strict=True)]
    return f"{median(theirs) / median(ours):.2f} ({min(each):.2f} to {max(each):.2f})"


class Race:
    """A Markdown table of ratios that is printed row by row, and stored as JSON."""

    def __init__(self, name: str, given: argparse.Namespace, versions: Mapping[str, str]) -> None:
        from retrodistill.core.manifest import hardware

        self.name, self.out, self.rows = name, given.out, list[dict[str, Any]]()
        facts = hardware()
        self.about = {
            "processor": facts.get("processor"),
            "cores": facts["cores"],
            "threads": given.threads,
            "clock": "CPU time" if given.threads == 1 else "wall-clock time",
            "repeats": given.repeats,
            "load": [round(load, 1) for load in os.getloadavg()],
            "versions": dict(versions),
        }
        named = ", ".join(f"{package} {version}" for package, version in versions.items())
        print(
            f"{name}: {self.about['processor']}, {given.threads} of {facts['cores']} cores, {self.about['clock']}, "
            f"{given.repeats} repeats, load {self.about['load'][0]}; {named}\n"
        )
        print(f"| {' | '.join(_COLUMNS)} |\n|---|---|---:|---:|---:|---|", flush=True)

    def add(self, case: str, peer: str, theirs: list[float], ours: list[float], agreement: str, work: int = 1) -> None:
        """Add a row, whose times are those of one of `work` equal parts, such as a query."""
        times = [_time(median(side) / work) for side in (theirs, ours)]
        cells = [case, peer, *times, ratio(theirs, ours), agreement]
        print(f"| {' | '.join(cells)} |", flush=True)
        self.rows.append(
            {**dict(zip(_COLUMNS, cells, strict=True)), "peer_seconds": theirs, "seconds": ours, "parts": work}
        )
        if self.out is not None:
            self.out.write_text(json.dumps({"name": self.name, **self.about, "rows": self.rows}, indent=2) + "\n")


def versions(*packages: str) -> dict[str, str]:
    """Versions of packages of this environment."""
    return {package: metadata.version(package) for package in packages}


def _time(seconds: float) -> str:
    for unit, size in (("s", 1.0), ("ms", 1e-3)):
        if seconds >= size:
            return f"{seconds / size:.3g} {unit}"
    return f"{seconds / 1e-6:.3g} µs"


class Child:
    """A script that runs in a process and an environment of its own and answers calls by `serve`."""

    def __init__(self, script: Path, python: Path | str = PEERS) -> None:
        if not Path(python).exists():
            sys.exit(f"{python} does not exist; make the environment of the peers: sh evaluation/benchmarks/peers.sh")
        self._python, self._script = str(python), str(script)

    def __enter__(self) -> Self:
        self._process = subprocess.Popen(
            [self._python, self._script, "--serve"],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            text=True,
        )
        return self

    def __exit__(self, *_: object) -> None:
        self._process.stdin.close()
        self._process.wait()

    def __call__(self, name: str, **options: Any) -> Any:
        """Call a function of the script with JSON values; arrays and paths may be among the options and results."""
        with tempfile.TemporaryDirectory() as folder:
            request = {"name": name, "options": _packed(options, Path(folder)), "folder": folder}
            print(json.dumps(request), file=self._process.stdin, flush=True)
            answer = self._process.stdout.readline()
            if not answer:
                sys.exit(f"{self._script} ended without an answer to {name}")
            return _unpacked(json.loads(answer))


def serve(functions: Mapping[str, Callable[..., Any]]) -> None:
    """Answer the calls of a `Child` until its input ends; what libraries print is dropped."""
    answers = os.fdopen(os.dup(1), "w")
    os.dup2(os.open(os.devnull, os.O_WRONLY), 1)
    for line in sys.stdin:
        request = json.loads(line)
        result = functions[request["name"]](**_unpacked(request["options"]))
        print(json.dumps(_packed(result, Path(request["folder"]))), file=answers, flush=True)


def _packed(value: Any, folder: Path) -> Any:
    """As JSON, with arrays in files."""
    if isinstance(value, np.ndarray):
        path = folder / f"{len(list(folder.iterdir()))}.npy"
        np.save(path, value)
        return {"array": str(path)}
    if isinstance(value, dict):
        return {name: _packed(each, folder) for name, each in value.items()}
    if isinstance(value, (list, tuple)):
        return [_packed(each, folder) for each in value]
    return str(value) if isinstance(value, Path) else value


def _unpacked(value: Any) -> Any:
    if isinstance(value, dict):
        if value.keys() == {"array"}:
            return np.load(value["array"])
        return {name: _unpacked(each) for name, each in value.items()}
    return [_unpacked(each) for each in value] if isinstance(value, list) else value
