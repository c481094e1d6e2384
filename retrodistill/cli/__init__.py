"""The command line: the same verbs as in Python."""

from __future__ import annotations

import errno
import io
import os
import signal
import sys
import warnings

# isort: off
# The modules register their commands, in the order in which --help lists them.
from retrodistill.cli import recipes, generation, teaching, indexes, measuring, serving, doctor  # noqa: F401

# isort: on
from retrodistill.cli.app import app
from retrodistill.core.errors import UserError

__all__ = ["app", "main"]

_WRITE_ERRORS = (errno.ENOSPC, errno.EDQUOT, errno.EFBIG, errno.EROFS, errno.EACCES, errno.EPERM)


class _Stopped(BaseException):
    """Ctrl-C; click would handle a KeyboardInterrupt itself."""


def main(arguments: list[str] | None = None) -> None:
    """Run the command line, by default this process's; a user's mistake is one line on stderr and exit status 2."""
    os.environ.setdefault("TOKENIZERS_PARALLELISM", "false")
    for stream in (sys.stdout, sys.stderr):  # a pipe on Windows, or a container, may lack most of Unicode
        if isinstance(stream, io.TextIOWrapper):
            stream.reconfigure(errors="backslashreplace")
    before = signal.signal(signal.SIGINT, _stop)
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # those of libraries are for programmers
            app(arguments)
    except UserError as error:
        _fail(str(error))
    except OSError as error:  # a full disk or a read-only folder that no other check has caught
        if error.errno not in _WRITE_ERRORS:
            raise
        _fail(f"cannot write {error.filename or 'a file'}: {(error.strerror or str(error)).lower()}.")
    except _Stopped:
        sys.stderr.write("stopped; run the same command again to resume\n")
        sys.exit(130)
    finally:
        signal.signal(signal.SIGINT, before)


def _stop(*_: object) -> None:
    raise _Stopped


def _fail(mistake: str) -> None:
    sys.stderr.write(f"error: {' '.join(mistake.split())}\n")
    sys.exit(2)
