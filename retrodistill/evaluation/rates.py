"""What a system costs besides time: threads, arithmetic; and which systems no other beats."""

from __future__ import annotations

import contextlib
import time
from collections.abc import Callable, Iterator
from typing import Any

from retrodistill.core.errors import UserError


@contextlib.contextmanager
def fixed_threads(threads: int) -> Iterator[None]:
    """Hold torch and FAISS to so many threads for a while.

    Raises:
        UserError: Fewer than one.
    """
    import faiss
    import torch

    if threads < 1:
        raise UserError(f"{threads} threads; measure with at least 1.")
    before, faiss_before = torch.get_num_threads(), faiss.omp_get_max_threads()
    torch.set_num_threads(threads)
    faiss.omp_set_num_threads(threads)
    try:
        yield
    finally:
        torch.set_num_threads(before)
        faiss.omp_set_num_threads(faiss_before)


def matrix_rate(size: int = 1024, repeats: int = 5) -> float:
    """Floating point operations a second of this machine's float32 matrix product, at the best of some repeats.

    Products of two (size, size) matrices by torch, 2 size^3 operations each, on the device that models run on, with as
    many threads as torch has now.
    """
    import torch

    device = "cuda" if torch.cuda.is_available() else "cpu"
    a, b = (torch.rand(size, size, device=device) for _ in range(2))
    times = []
    for _ in range(repeats + 1):  # the first is the warm-up
        start = time.perf_counter()
        a @ b
        if device == "cuda":
            torch.cuda.synchronize()
        times.append(time.perf_counter() - start)
    return 2 * size**3 / min(times[1:])


def operations(work: Callable[[], Any]) -> int:
    """Floating point operations of the matrix products that a piece of torch work does, padding included."""
    import torch
    from torch.nn.attention import SDPBackend, sdpa_kernel
    from torch.utils.flop_counter import FlopCounterMode

    # Attention by plain matrix products: the counter does not know the CPU's fused kernel.
    with torch.inference_mode(), sdpa_kernel(SDPBackend.MATH), FlopCounterMode(display=False) as counter:
        work()
    return int(counter.get_total_flops())
