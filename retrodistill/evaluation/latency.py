"""Latency of queries: alone or in batches, encoding and search apart."""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence
from itertools import chain, pairwise, repeat
from typing import Any

import numpy as np

from retrodistill.core.errors import UserError

_AT_LEAST = 20  # answers, before time may stop the measurement


def query_latency(
    respond: Callable[[str], Any], texts: Sequence[str], *, warm_up: int = 10, repeats: int = 3, seconds: float = 10.0
) -> dict[str, float]:
    """Time a query_fn one query at a time.

    Args:
        respond: Answers one query text, all of encoding and search included.
        texts: Different queries, so that no cache answers.
        warm_up: Queries answered before the clock starts.
        repeats: Rounds over the queries.
        seconds: Stop early after so long, but not before 20 answers.

    Returns:
        ``{"p50": .., "p95": .., "p99": ..}`` milliseconds over all answers.

    Raises:
        UserError: No text or no repeat.
    """
    return percentiles(_times([respond], texts, warm_up, repeats, seconds)[0])


def staged_latency(
    stages: Sequence[Callable[[Any], Any]],
    texts: Sequence[str],
    *,
    batch: int = 1,
    warm_up: int = 10,
    repeats: int = 3,
    seconds: float = 10.0,
) -> tuple[list[dict[str, float]], dict[str, float], float]:
    """Time stages that hand on to each other, such as encoding and search.

    Args:
        stages: The first takes a list of `batch` query texts, each other what the one before gave.
        texts: Different queries; filled up from the first where they do not make whole batches.
        batch: Queries at once.
        warm_up: Batches answered before the clock starts.
        repeats: Rounds over the queries.
        seconds: Stop early after so long, but not before 20 answers.

    Returns:
        Milliseconds a batch (p50, p95, p99) of each stage; of all stages together; and queries a second.

    Raises:
        UserError: No text, no repeat or no batch.
    """
    if batch < 1:
        raise UserError(f"batches of {batch} queries; give at least 1.")
    batches = [[texts[(at + more) % len(texts)] for more in range(batch)] for at in range(0, len(texts), batch)]
    times = _times(stages, batches, warm_up, repeats, seconds)
    whole = times.sum(axis=0)
    return [percentiles(one) for one in times], percentiles(whole), batch * len(whole) / float(whole.sum())


def percentiles(times: np.ndarray) -> dict[str, float]:
    """Median, 95th and 99th percentile of (answers,) seconds, in milliseconds."""
    p50, p95, p99 = np.percentile(times, [50, 95, 99]) * 1000
    return {"p50": round(float(p50), 4), "p95": round(float(p95), 4), "p99": round(float(p99), 4)}


def _times(
    stages: Sequence[Callable[[Any], Any]], items: Sequence[Any], warm_up: int, repeats: int, seconds: float
) -> np.ndarray:
    """(stages, answers) seconds."""
    if not items or repeats < 1:
        raise UserError(f"latency of {len(items)} queries, {repeats} repeats; give at least one of each.")
    for item in items[:warm_up]:
        _answer(stages, item)
    times: list[list[float]] = []
    begin = time.perf_counter()
    for item in chain.from_iterable(repeat(items, repeats)):
        marks = _answer(stages, item)
        times.append([end - start for start, end in pairwise(marks)])
        if len(times) >= _AT_LEAST and marks[-1] - begin > seconds:
            break
    return np.array(times).T


def _answer(stages: Sequence[Callable[[Any], Any]], item: Any) -> list[float]:
    """The times at which the stages began, and at which the last ended."""
    marks, value = [time.perf_counter()], item
    for stage in stages:
        value = stage(value)
        marks.append(time.perf_counter())
    return marks
