"""Which precision of matrix products a device is fastest in, by measurement."""

from __future__ import annotations

import functools
import time
from typing import Any, Literal

Precision = Literal["float32", "bfloat16"]

_CLEARLY_FASTER = 1.3  # devices with bfloat16 units are 2 to 16 times as fast, so that noise does not change the choice
_REPEATS = 3


def fastest_precision(device: Any) -> Precision:
    """``bfloat16`` if a torch device multiplies bfloat16 matrices natively and clearly faster than float32 ones."""
    return "bfloat16" if bfloat16_speedup(str(device)) >= _CLEARLY_FASTER else "float32"


@functools.cache
def bfloat16_speedup(device: str) -> float:
    """How many times as fast as in float32 a device multiplies matrices in bfloat16; 0 without native support.

    Measured once per process and device, in a fraction of a second, as the ratio of the best of alternate runs.
    """
    import torch

    on_gpu = torch.device(device).type == "cuda"
    if not has_bfloat16(device):
        return 0.0
    size = 4096 if on_gpu else 1024
    single = torch.ones(size, size, device=device)
    half = single.bfloat16()

    def seconds(matrix: torch.Tensor) -> float:
        start = time.perf_counter()
        torch.mm(matrix, matrix)
        if on_gpu:
            torch.cuda.synchronize(device)
        return time.perf_counter() - start

    with torch.inference_mode(), torch.autocast(torch.device(device).type, enabled=False):
        pairs = [(seconds(single), seconds(half)) for _ in range(1 + _REPEATS)][1:]  # the first warms up
    return min(pair[0] for pair in pairs) / min(pair[1] for pair in pairs)


def has_bfloat16(device: str) -> bool:
    """Whether a device has instructions for bfloat16 products: on a CPU, AVX512-BF16 or AMX, as torch reports them."""
    import torch

    kind = torch.device(device).type
    if kind == "cuda":
        return torch.cuda.is_bf16_supported(including_emulation=False)
    # absent from older versions of torch
    has: dict[str, Any] = getattr(torch.cpu, "get_capabilities", dict)() if kind == "cpu" else {}
    return bool(has.get("avx512_bf16") or has.get("amx_bf16"))
