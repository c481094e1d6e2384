"""The process this code runs in: other processes of torchrun, memory, progress bars and log lines."""

from __future__ import annotations

import contextlib
import ctypes
import functools
import os
import sys
from collections.abc import Iterable, Iterator
from typing import Any

from tqdm import tqdm


def processes() -> int:
    """How many processes torchrun started; 1 without it."""
    return int(os.environ.get("WORLD_SIZE", "1"))


def is_main() -> bool:
    """Whether this process is the one that writes."""
    return int(os.environ.get("RANK", "0")) == 0


@contextlib.contextmanager
def main_first() -> Iterator[None]:
    """Let the main process do the work inside first; the others follow and find it done."""
    if processes() == 1:
        yield
        return
    from accelerate import PartialState

    with PartialState().main_process_first():
        yield


def barrier() -> None:
    """Wait for all processes."""
    if processes() > 1:
        from accelerate import PartialState

        PartialState().wait_for_everyone()


def average_gradients(parameters: Iterable[Any]) -> None:
    """Give each parameter the mean of its gradients over all processes; with one process nothing changes.

    Args:
        parameters: Tensors that require a gradient and are used in every step of every process.
    """
    if processes() == 1:
        return
    import torch

    def mean(gradient: Any) -> Any:
        torch.distributed.all_reduce(gradient)
        return gradient / processes()

    for parameter in parameters:
        parameter.register_hook(mean)


_TRIM_THRESHOLD, _MMAP_THRESHOLD = -1, -3  # of mallopt(3)
_KEPT = 1 << 30  # bytes


@functools.cache
def keep_freed_memory() -> bool:
    """Have glibc keep freed blocks of up to 1 GiB for this process instead of returning them to the system.

    A block of more than 32 MiB is otherwise mapped anew each time and cleared page by page by the kernel: the gradient
    of a token table (30,522 x 384 float32) at every step. That takes two thirds of a step of a static student on a
    CPU, a quarter of a step of MiniLM. Larger blocks are mapped as before. Elsewhere than on glibc it does nothing.

    Returns:
        Whether glibc took it.
    """
    if not sys.platform.startswith("linux"):
        return False
    try:
        mallopt = ctypes.CDLL(None).mallopt
    except (OSError, AttributeError):
        return False
    return bool(mallopt(_MMAP_THRESHOLD, _KEPT)) and bool(mallopt(_TRIM_THRESHOLD, _KEPT))


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
