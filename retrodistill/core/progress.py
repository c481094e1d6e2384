"""One progress bar for long work, on standard error, with rate and time left."""

from __future__ import annotations

import sys
from typing import Any

from tqdm import tqdm

_quiet = False


class _Lines:
    """Standard error for logs: a line where a terminal would redraw one."""

    def write(self, text: str) -> None:
        line = text.strip("\r\n ")
        if line:
            sys.stderr.write(f"{line}\n")

    def flush(self) -> None:
        sys.stderr.flush()


def set_quiet(quiet: bool) -> None:
    """Show no bars (for ``--json`` and ``--quiet``)."""
    global _quiet  # noqa: PLW0603 - one switch for the process, set by the command line
    _quiet = quiet


def bar(total: int, what: str, unit: str) -> Any:
    """Show a bar over `total` units, for a ``with`` statement; off a terminal it is a line every ten seconds."""
    terminal = sys.stderr.isatty()
    return tqdm(
        file=sys.stderr if terminal else _Lines(),
        total=total,
        desc=what,
        unit=f" {unit}",
        disable=_quiet,
        leave=False,
        dynamic_ncols=terminal,
        mininterval=0.1 if terminal else 10,
        delay=1,
        smoothing=0.1,
    )


def log(line: str) -> None:
    """One line about what is going on, on standard error."""
    if not _quiet:
        tqdm.write(line, file=sys.stderr)
