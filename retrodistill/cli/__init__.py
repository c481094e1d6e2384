"""The command line: the same verbs as in Python."""

from __future__ import annotations

import contextlib
import errno
import os
import signal
import sys
from collections.abc import Iterator

# isort: off
# The modules register their commands, in the order in which --help lists them.
from retrodistill.cli import recipes, teaching, indexes, measuring  # noqa: F401

# isort: on
from retrodistill.cli.app import app
from retrodistill.core.errors import UserError

__all__ = ["app", "main"]


class _Stopped(BaseException):
    """Ctrl-C: click would take a KeyboardInterrupt for a wish to abort."""


def main(arguments: list[str] | None = None) -> None:
    """Run the command line: a user's mistake is one line and exit status 2.

    Args:
        arguments: What stands behind the program's name; those of this process by default.
    """
    os.environ.setdefault("TOKENIZERS_PARALLELISM", "false")
    before = signal.signal(signal.SIGINT, _stop)
    try:
        with _quiet_libraries():
            app(arguments)
    except UserError as error:
        _fail(str(error))
    except OSError as error:  # a full disk or a closed folder that no stage has foreseen
        if error.errno not in (errno.ENOSPC, errno.EDQUOT, errno.EFBIG, errno.EROFS, errno.EACCES, errno.EPERM):
            raise
        _fail(f"cannot write {error.filename or 'a file'}: {(error.strerror or str(error)).lower()}.")
    except _Stopped:
        sys.stderr.write("stopped; the same command goes on from here\n")
        sys.exit(130)
    finally:
        signal.signal(signal.SIGINT, before)


def _stop(*_: object) -> None:
    raise _Stopped


def _fail(mistake: str) -> None:
    sys.stderr.write(f"error: {' '.join(mistake.split())}\n")
    sys.exit(2)


@contextlib.contextmanager
def _quiet_libraries() -> Iterator[None]:
    """Warnings of libraries are for programmers; errors still come through."""
    import warnings

    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        yield
