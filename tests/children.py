"""Processes that run a program and can be killed, forked from one that has loaded the libraries, which takes long.

Tests that start one belong to the group ``children`` of pytest-xdist, so that one worker loads the libraries for all.
"""

from __future__ import annotations

import atexit
import functools
import multiprocessing
import os
import shutil
import subprocess
import sys
import tempfile
import textwrap
import time
from multiprocessing import forkserver
from pathlib import Path
from unittest import mock

TESTS = Path(__file__).parent
MAIN = "import sys; from retrodistill.cli import main; main(sys.argv[1:])"  # the command line
_CONTEXT = multiprocessing.get_context("forkserver")
_CONTEXT.set_forkserver_preload(["retrodistill.recipes.run", "retrodistill.exports.parquet", "retrodistill.cli"])


@functools.cache
def faults_library():
    """Path of the library of faults/faulty.c, built anew; None where that cannot be done."""
    compiler = shutil.which("cc")
    if compiler is None or not sys.platform.startswith("linux"):
        return None
    folder = tempfile.mkdtemp(prefix="faults-")
    atexit.register(shutil.rmtree, folder, ignore_errors=True)
    command = [compiler, "-shared", "-fPIC", "-O1", "-o", f"{folder}/faulty.so", TESTS / "faults" / "faulty.c", "-ldl"]
    return f"{folder}/faulty.so" if subprocess.run(command, capture_output=True, check=False).returncode == 0 else None


def _start_server():
    """Start the process that children are forked from; in them, the library does nothing until a test asks it to."""
    with mock.patch.dict(os.environ, {"LD_PRELOAD": faults_library()} if faults_library() else {}):
        forkserver.ensure_running()


class Child:
    """A process that runs Python code as ``python -c`` does, with `arguments` as sys.argv[1:]; modules of tests/ load.

    `environment` is what differs from this process.
    """

    def __init__(self, code, *arguments, folders=(), environment=None):
        self._files = [tempfile.NamedTemporaryFile() for _ in range(2)]  # noqa: SIM115 - they live as long as this
        paths = [str(folder) for folder in (*folders, TESTS, TESTS.parent)]
        settings = {**os.environ, **(environment or {})}
        names = [file.name for file in self._files]
        given = (textwrap.dedent(code), [str(argument) for argument in arguments], paths, settings, names)
        self._process = _CONTEXT.Process(target=_run, args=given)
        _start_server()
        self._process.start()

    @property
    def pid(self):
        return self._process.pid

    def poll(self):
        """Its exit status, negative for a signal; None while it runs."""
        return self._process.exitcode

    def send_signal(self, number):
        os.kill(self._process.pid, number)

    def kill(self):
        self._process.kill()

    def said(self):
        """What it has printed so far."""
        return Path(self._files[0].name).read_text()

    def wait(self, seconds=120):
        """Its exit status, what it printed, and what it said on standard error."""
        self._process.join(seconds)
        assert self._process.exitcode is not None, f"it did not end in {seconds} seconds"
        out, error = (Path(file.name).read_text() for file in self._files)
        return self._process.exitcode, out, error


def served_at(child, patience=120):
    """Host and port that a `retrodistill serve` says when it listens."""
    deadline = time.monotonic() + patience
    while time.monotonic() < deadline:
        assert child.poll() is None, child.wait()
        first, end, _ = child.said().partition("\n")
        if end:
            return first.removeprefix("http://").rstrip("/")
        time.sleep(0.05)
    raise AssertionError("the server does not start")


def _run(code, arguments, paths, settings, files):
    for number, name in zip((1, 2), files, strict=True):
        with open(name, "wb") as file:
            os.dup2(file.fileno(), number)
    os.environ.clear()
    os.environ.update(settings)
    sys.path[:0], sys.argv = paths, ["-c", *arguments]
    exec(compile(code, "<child>", "exec"), {"__name__": "__main__"})
