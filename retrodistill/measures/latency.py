"""Latency of single queries, encoding included."""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence
from itertools import chain, repeat
from typing import Any

import numpy as np

from retrodistill.errors import UserError

_AT_LEAST = 20  # answers, before time may stop the measurement


def query_latency(
    respond: Callable[[str], Any], texts: Sequence[str], *, warm_up: int = 10, repeats: int = 3, seconds: float = 10.0
) -> dict[str, float]:
    """Time a responder one query at a time.

    Args:
        respond: Answers one query text, all of encoding and search included.
        texts: Different queries, so that no cache answers.
        warm_up: Queries answered before the clock starts.
        repeats: Rounds over the queries.
        seconds: Stop early after so long, but not before 20 answers.

    Returns:
        ``{"p50": .., "p95": ..}`` milliseconds over all answers.

    Raises:
        UserError: No text or no repeat.
    """
    if not texts or repeats < 1:
        raise UserError(f"latency of {len(texts)} queries, {repeats} repeats; give at least one of each.")
    for text in texts[:warm_up]:
        respond(text)
    times: list[float] = []
    begin = time.perf_counter()
    for text in chain.from_iterable(repeat(texts, repeats)):
        start = time.perf_counter()
        respond(text)
        end = time.perf_counter()
        times.append(end - start)
        if len(times) >= _AT_LEAST and end - begin > seconds:
            break
    p50, p95 = np.percentile(times, [50, 95]) * 1000
    return {"p50": round(float(p50), 4), "p95": round(float(p95), 4)}
