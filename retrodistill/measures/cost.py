"""What a system costs besides time: threads, arithmetic; and which systems no other beats."""

from __future__ import annotations

import contextlib
import time
from collections.abc import Callable, Iterator, Sequence
from typing import Any

import numpy as np

from retrodistill.errors import UserError


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


def pareto_front(qualities: Sequence[float], costs: Sequence[Sequence[float]]) -> list[int]:
    """Numbers of the systems that no other beats, best quality first.

    A system is beaten where another has at least its quality at no higher cost of any kind, and is better in one of
    them. Of systems that are the same in all, each stays.

    Args:
        qualities: (systems,), higher is better.
        costs: (systems, kinds), lower is better: say milliseconds and bytes per document.

    Raises:
        UserError: Not one row of costs per system, or a value that is not finite.
    """
    table = np.array([[-quality, *row] for quality, row in zip(qualities, costs, strict=False)], dtype=np.float64)
    if len(qualities) != len(costs) or not np.isfinite(table).all():
        raise UserError(
            f"{len(qualities)} qualities and {len(costs)} rows of costs; give finite values, one row per system."
        )
    kept = []
    for at, row in enumerate(table):
        beaten = (table <= row).all(axis=1) & (table < row).any(axis=1)
        if not beaten.any():
            kept.append(at)
    return sorted(kept, key=lambda at: (-qualities[at], at))
