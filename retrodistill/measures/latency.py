"""Latency of single queries, encoding included."""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence
from typing import Any

import numpy as np


def query_latency(
    respond: Callable[[str], Any], texts: Sequence[str], *, warm_up: int = 10, repeats: int = 3, seconds: float = 10.0
) -> dict[str, float]:
    """Time a responder one query at a time.

    Args:
        respond: Answers one query text, all of encoding and search included.
        texts: Different queries, so that no cache answers.
        warm_up: Queries answered before the clock starts.
        repeats: Rounds over the queries.
        seconds: Stop early after so long, but not before one whole round of 20 queries.

    Returns:
        ``{"p50": .., "p95": ..}`` milliseconds over all answers.
    """
    for text in texts[:warm_up]:
        respond(text)
    times: list[float] = []
    begin = time.perf_counter()
    for _ in range(repeats):
        for text in texts:
            start = time.perf_counter()
            respond(text)
            times.append(time.perf_counter() - start)
            if len(times) >= 20 and time.perf_counter() - begin > seconds:
                break
    p50, p95 = np.percentile(times, [50, 95]) * 1000
    return {"p50": round(float(p50), 4), "p95": round(float(p95), 4)}
