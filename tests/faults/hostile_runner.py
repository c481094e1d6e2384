"""Runs hostile cases, each in a process of its own with limits of memory and time, and judges how it ended."""

from __future__ import annotations

import importlib
import json
import os
import pkgutil
import resource
import signal
import sys
import tempfile
import time
import traceback
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path

from children import Child

import retrodistill

SECONDS = 60
BYTES = 2 << 30
_LONGEST_LINE = 2500  # characters of an error
_FILE_BYTES = 1 << 30
# What the commands import: a process that is forked has it already.
_LIBRARIES = (
    "bm25s",
    "faiss",
    "ir_measures",
    "pyarrow.dataset",
    "pyarrow.parquet",
    "regex",
    "requests",
    "scipy.sparse",
    "sentence_transformers",
    "tokenizers",
    "torch",
    "transformers",
    "yaml",
)
_FEW_LIBRARIES = ("bm25s", "ir_measures", "retrodistill.api", "retrodistill.evaluation.benchmark")


@dataclass(frozen=True)
class Case:
    """One mistake and the work that meets it.

    Attributes:
        name: ``family: what is wrong``.
        work: Arguments of the command line, or a function of the case's folder, which is the working directory.
        make: Writes the case's files into its folder.
        expect: ``refused`` (exit status 2), ``accepted`` (0), or ``either``.
        mentions: A part of the error, such as a line or a key.
        holds: What is true of the standard output where the case is accepted.
    """

    name: str
    work: Sequence[str] | Callable[[Path], object]
    make: Callable[[Path], object] = lambda folder: None
    expect: str = "either"
    mentions: str = ""
    holds: Callable[[str], bool] = lambda out: True


@dataclass(frozen=True)
class Ended:
    """How a case ended."""

    status: int  # of the process, negative for a signal
    seconds: float
    grown: int  # bytes of memory at its peak, more than at its start
    out: str
    error: str


def problem_of(case: Case, ended: Ended) -> str | None:
    """What is wrong with the end of a case; None if nothing is."""
    *_, last = ended.error.strip().splitlines() or [""]
    if ended.seconds > SECONDS:
        return f"took {ended.seconds:.0f} s"
    if ended.status < 0:
        return f"died of signal {-ended.status} ({signal.Signals(-ended.status).name}): {last[:200]}"
    if ended.grown > BYTES:
        return f"took {ended.grown >> 20} MiB"
    if ended.status not in (0, 2):
        return f"ended with status {ended.status}: {last[:300]}"
    if "Traceback" in ended.error:
        return f"printed a traceback: {last[:300]}"
    return _wrong_refusal(case, last) if ended.status == 2 else _wrong_result(case, ended.out)


def _wrong_refusal(case: Case, line: str) -> str | None:
    if not line.lower().startswith("error: "):
        return f"no line that says what is wrong: {line[:300]!r}"
    if len(line) > _LONGEST_LINE:
        return f"an error of {len(line)} characters: {line[:200]}..."
    if case.expect == "accepted":
        return f"was refused: {line[:300]}"
    return None if case.mentions in line else f"the error does not mention {case.mentions!r}: {line[:300]}"


def _wrong_result(case: Case, out: str) -> str | None:
    if case.expect == "refused":
        return f"was accepted: {out[-300:]!r}"
    return None if case.holds(out) else f"a wrong result: {out[-500:]!r}"


def run_cases(
    module: str, arguments: Sequence[str], folder: Path, processes: int = 2, *, preload: bool = True
) -> dict[str, str | None]:
    """The problem of each of the cases that ``MODULE.cases(*arguments)`` returns, by name.

    They run in processes that are forked from one; with `preload`, that one imports all that commands import, which
    takes seconds and is worth it for many cases.
    """
    code = "import sys; from hostile_runner import serve; serve(*sys.argv[1:])"
    given = [module, folder, processes, "all" if preload else "", *arguments]
    child = Child(code, *given, folders=[folder, Path(__file__).parent], environment={"OMP_NUM_THREADS": "1"})
    status, out, error = child.wait(3600)
    assert status == 0, (status, out[-2000:], error[-2000:])
    return json.loads((folder / "problems.json").read_text())


def serve(module: str, folder: str, processes: str, preload: str, *arguments: str) -> None:
    """Run all cases of a module, some at a time, and write their problems."""
    ours = (each.name for each in pkgutil.walk_packages(retrodistill.__path__, "retrodistill."))
    libraries = [*_LIBRARIES, *(name for name in ours if not name.endswith("__main__"))] if preload else _FEW_LIBRARIES
    for library in libraries:
        importlib.import_module(library)
    cases = importlib.import_module(module).cases(*arguments)
    names = [case.name for case in cases]
    assert len(set(names)) == len(names), sorted(name for name in set(names) if names.count(name) > 1)
    waiting, running, problems = list(enumerate(cases)), {}, {}
    while waiting or running:
        while waiting and len(running) < int(processes):
            number, case = waiting.pop(0)
            running |= _start(case, Path(folder) / f"case-{number}")
        time.sleep(0.005)
        for process in list(running):
            case, files, started = running[process]
            seconds = time.monotonic() - started
            ended, status, usage = os.wait4(process, os.WNOHANG)
            if not ended and seconds > SECONDS:
                os.killpg(process, signal.SIGKILL)
                ended, status, usage = os.wait4(process, 0)
            if ended:
                del running[process]
                out, error = (file.read_text(errors="replace") for file in files)
                grown = 1024 * usage.ru_maxrss - _resident()
                found = problem_of(case, Ended(os.waitstatus_to_exitcode(status), seconds, grown, out, error))
                problems[case.name] = found
    (Path(folder) / "problems.json").write_text(json.dumps(problems))


def _start(case: Case, folder: Path) -> dict[int, tuple[Case, list[Path], float]]:
    folder.mkdir()
    files = [folder.with_suffix(ending) for ending in (".out", ".err")]
    process = os.fork()
    if process:
        return {process: (case, files, time.monotonic())}
    status = 70
    try:
        os.setpgid(0, 0)
        for number, file in zip((1, 2), files, strict=True):
            os.dup2(os.open(file, os.O_WRONLY | os.O_CREAT), number)
        os.dup2(os.open(os.devnull, os.O_RDONLY), 0)
        status = _status_of(case, folder)
    except BaseException:
        traceback.print_exc()
    finally:
        sys.stdout.flush()
        sys.stderr.flush()
        os._exit(status)  # the rest of the process belongs to the one that it was forked from
    return {}


def _status_of(case: Case, folder: Path) -> int:
    from retrodistill import cli
    from retrodistill.core.errors import UserError
    from retrodistill.core.runtime import set_quiet

    case.make(folder)
    os.chdir(folder)
    os.environ |= {"RETRODISTILL_CACHE": str(folder / "cache"), "HF_HUB_OFFLINE": "1"}
    os.environ |= {"TMPDIR": str(folder), "HOME": str(folder)}
    tempfile.tempdir = None
    for limit, most in (
        (resource.RLIMIT_CORE, 0),
        (resource.RLIMIT_FSIZE, _FILE_BYTES),
        (resource.RLIMIT_DATA, _data() + BYTES),
    ):
        resource.setrlimit(limit, (most, most))
    set_quiet(True)
    try:
        if callable(case.work):
            sys.stdout.write(f"{case.work(folder)}\n")
        else:
            cli.main(list(case.work))
    except UserError as error:
        sys.stderr.write(f"error: {' '.join(str(error).split())}\n")
        return 2
    except SystemExit as stopped:
        return stopped.code if isinstance(stopped.code, int) else 0
    return 0


def _resident() -> int:
    return int(Path("/proc/self/statm").read_text().split()[1]) * os.sysconf("SC_PAGE_SIZE")


def _data() -> int:
    """Bytes of this process that count for the limit on data."""
    status = Path("/proc/self/status").read_text()
    return 1024 * next(int(line.split()[1]) for line in status.splitlines() if line.startswith("VmData"))
