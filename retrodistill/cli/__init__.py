"""The command line: the same verbs as in Python."""

from __future__ import annotations

import io
import os
import re
import sys
import threading
import warnings
from pathlib import Path

# isort: off
# The modules register their commands, in the order in which --help lists them.
from retrodistill.cli import recipes, generation, teaching, trimming, indexes, measuring, publishing, serving, doctor  # noqa: F401

# isort: on
from retrodistill.cli.app import app, printing
from retrodistill.cli.stopping import stoppable
from retrodistill.core.disk import is_refusal, reason_of
from retrodistill.core.errors import UserError, first_line
from retrodistill.core.runtime import is_main, say

__all__ = ["app", "main"]

_NO_MEMORY = re.compile(r"(can't|cannot|failed to) allocate|out of memory", re.IGNORECASE)  # torch's errors are many


def main(arguments: list[str] | None = None) -> None:
    """Run the command line, by default this process's; a user's mistake is one line on stderr and exit status 2."""
    os.environ.setdefault("TOKENIZERS_PARALLELISM", "false")
    for stream in (sys.stdout, sys.stderr):  # a pipe on Windows, or a container, may lack most of Unicode
        if isinstance(stream, io.TextIOWrapper):
            stream.reconfigure(errors="backslashreplace")
    with stoppable(_say_stopped) as stop:
        try:
            _run(arguments)
        except BaseException:
            if stop.number is None:
                raise
    if stop.number is not None:  # whatever a library has made of the exception
        _say_stopped()
        if any(not thread.daemon for thread in threading.enumerate() if thread is not threading.main_thread()):
            os._exit(stop.status)  # Python would wait for their requests
        sys.exit(stop.status)


def _run(arguments: list[str] | None) -> None:
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # those of libraries are for programmers
            try:
                app(arguments)
            finally:
                _flush()
    except UserError as error:
        _fail(str(error))
    except BrokenPipeError:  # the reader of the output, such as `head`, has enough
        sys.exit(1)
    except Exception as error:  # a full disk, a read-only folder, or too little memory that no other check has caught
        if isinstance(error, RuntimeError) and "home directory" in str(error):  # of `~`, where there is none
            _fail("a path begins with ~, and that user has no home folder; give a full path.")
        if isinstance(error, MemoryError) or (isinstance(error, RuntimeError) and _NO_MEMORY.search(str(error))):
            _fail(
                f"there is not enough memory ({first_line(error)[:160]}); give less data, or use a machine with more."
            )
        if not is_refusal(error):
            raise
        place = str(getattr(error, "filename", None) or "a file")
        _fail(f"cannot read or write {place}: {reason_of(error, Path(place))}.")


def _flush() -> None:
    """Print what is buffered; what cannot be printed is dropped, or Python would report it once more at its end."""
    try:
        with printing():
            sys.stdout.flush()
    except OSError:
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        raise


def _say_stopped() -> None:
    if is_main():
        say("stopped; run the same command again to resume")


def _fail(mistake: str) -> None:
    say(f"error: {' '.join(mistake.split())}")
    sys.exit(2)
