"""The running process: other processes under torchrun, memory allocation, progress bars and log lines."""

from __future__ import annotations

import contextlib
import ctypes
import functools
import os
import sys
from collections.abc import Iterable, Iterator
from typing import Any

from tqdm import tqdm

# Parameters of glibc's mallopt(3).
_TRIM_THRESHOLD, _MMAP_THRESHOLD = -1, -3
_KEPT_BYTES = 1 << 30

# Control sequences of terminals (ECMA-48), by the first word of a line.
_COLORS = {"error": "\033[1;31m", "warning": "\033[33m", "next": "\033[32m"}
_BOLD, _PLAIN = "\033[1m", "\033[0m"

_quiet = False


def processes() -> int:
    """Number of processes that torchrun started; 1 without torchrun."""
    return int(os.environ.get("WORLD_SIZE", "1"))


def is_main() -> bool:
    """Whether this is the main process, the only one that writes files."""
    return int(os.environ.get("RANK", "0")) == 0


def main_first() -> contextlib.AbstractContextManager[None]:
    """Run the block in the main process first, then in the others, which can reuse its results."""
    if processes() == 1:
        return contextlib.nullcontext()
    from accelerate import PartialState

    return PartialState().main_process_first()


def barrier() -> None:
    """Wait for all processes."""
    if processes() > 1:
        from accelerate import PartialState

        PartialState().wait_for_everyone()


def average_gradients(parameters: Iterable[Any]) -> None:
    """Average the gradients of tensors that require one over all processes; does nothing in a single process.

    Every process must use all of them in every step: one that skips a tensor would leave the others waiting.
    """
    if processes() == 1:
        return
    import torch

    def mean(gradient: Any) -> Any:
        torch.distributed.all_reduce(gradient)
        return gradient / processes()

    for parameter in parameters:
        parameter.register_hook(mean)


def _use_one_thread() -> None:
    """In a forked process: have torch and FAISS not wait for threads that only the parent has, which never ends."""
    for module, name in (("torch", "set_num_threads"), ("faiss", "omp_set_num_threads")):
        set_threads = getattr(sys.modules.get(module), name, None)
        if set_threads is not None:
            set_threads(1)


if hasattr(os, "register_at_fork"):
    os.register_at_fork(after_in_child=_use_one_thread)


@functools.cache
def keep_freed_memory() -> bool:
    """Have glibc keep freed blocks of up to 1 GiB for reuse; False if that took no effect, as without glibc.

    By default, glibc maps each block above 32 MiB anew and the kernel clears it page by page. The gradient of a token
    table (30,522 x 384 float32) is such a block, at every step: clearing it takes two thirds of a training step of a
    static student on a CPU and a quarter of a step of MiniLM.
    """
    mallopt = of_libc("mallopt")
    if mallopt is None:
        return False
    return bool(mallopt(_MMAP_THRESHOLD, _KEPT_BYTES)) and bool(mallopt(_TRIM_THRESHOLD, _KEPT_BYTES))


def release_freed_memory() -> bool:
    """Have glibc give the whole pages of all freed blocks back; False if it gave none, as without glibc.

    Blocks that are still in use lie between freed ones, so that batches of many shapes leave gaps which no later batch
    fits. Without this, encoding 8,000 texts leaves the process with 1.2 GB of them.
    """
    trim = of_libc("malloc_trim")
    return trim is not None and bool(trim(0))


def of_libc(name: str) -> Any:
    """A function of the C library on Linux, whose error is `ctypes.get_errno`; None if it has none, or elsewhere."""
    if not sys.platform.startswith("linux"):
        return None
    try:
        return getattr(ctypes.CDLL(None, use_errno=True), name)
    except (OSError, AttributeError):
        return None


class _LogStream:
    """Standard error for log files: prints a new line where a terminal would redraw the bar."""

    def write(self, text: str) -> None:
        if line := text.strip("\r\n "):
            say(line)

    def flush(self) -> None:
        pass


def say(line: str) -> None:
    """Print a line to standard error; where that is impossible (a full disk, a closed pipe), work goes on without."""
    with contextlib.suppress(OSError):
        sys.stderr.write(f"{_painted(line)}\n")
        sys.stderr.flush()


def _painted(line: str) -> str:
    """A line as a terminal shows it: its first word in color and, in an error, what to do about it in bold.

    Unchanged elsewhere, and where NO_COLOR is set (https://no-color.org).
    """
    first, colon, rest = line.partition(":")
    color = _COLORS.get(first)
    if color is None or not colon or not sys.stderr.isatty():
        return line
    if os.environ.get("NO_COLOR") or os.environ.get("TERM") == "dumb":
        return line
    problem, semicolon, advice = rest.rpartition("; ") if first == "error" else (rest, "", "")
    shown = f"{problem}{semicolon}{_BOLD}{advice}{_PLAIN}" if semicolon else rest
    return f"{color}{first}{colon}{_PLAIN}{shown}"


def set_quiet(quiet: bool) -> None:
    """Turn progress bars and log lines off or on (for ``--json`` and ``--quiet``)."""
    global _quiet  # noqa: PLW0603 - one switch for the process, set by the command line
    _quiet = quiet


def is_quiet() -> bool:
    """Whether progress is not shown."""
    return _quiet


@contextlib.contextmanager
def muted() -> Iterator[None]:
    """No progress bars and log lines inside the block."""
    before = _quiet
    set_quiet(True)
    try:
        yield
    finally:
        set_quiet(before)


def bar(total: int | None, what: str, unit: str) -> Any:
    """Progress bar for a ``with`` statement; outside a terminal it prints a line every ten seconds.

    Without a total it shows the count and the rate.
    """
    terminal = sys.stderr.isatty()
    return tqdm(
        file=sys.stderr if terminal else _LogStream(),
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


def log(line: str, *, always: bool = False) -> None:
    """Print a line to standard error without breaking an open progress bar; with `always`, in quiet runs as well."""
    if always or not _quiet:
        with contextlib.suppress(OSError):  # as `say`
            tqdm.write(_painted(line), file=sys.stderr)
