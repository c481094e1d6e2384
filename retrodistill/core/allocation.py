"""How the C library hands out memory while tensors come and go by the thousand."""

from __future__ import annotations

import ctypes
import functools
import sys

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
