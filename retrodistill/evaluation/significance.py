"""Is a difference real? Paired tests, intervals, and the smallest difference that a test detects."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from statistics import NormalDist
from typing import Any

import numpy as np

from retrodistill.core.errors import UserError

LEAST = 1e-9  # a difference of at most this is a tie
_RESAMPLES = 10_000
_BLOCK_VALUES = 4_000_000  # per resampling block: bounds memory at about 100 MB for any number of queries


def paired_tests(
    pairs: Sequence[tuple[str, str]], values: Mapping[str, np.ndarray], measure: str, seed: int = 0
) -> list[dict[str, Any]]:
    """The comparisons of results.json, corrected for their number; each difference is a minus b of a pair of names.

    `values` are, by name, (queries,) values of the measure, with the queries in the same order.
    """
    tests = [
        {"a": a, "b": b, "measure": measure}
        | compare_paired(values[a], values[b], seed=seed)
        | {"smallest": smallest_difference(values[a] - values[b])}
        | outcomes(values[a], values[b])
        for a, b in pairs
    ]
    for test, corrected in zip(tests, holm([test["p"] for test in tests]), strict=True):
        test["p_holm"] = corrected
    return tests


def compare_paired(a: np.ndarray, b: np.ndarray, *, seed: int = 0) -> dict[str, Any]:
    """Compare (queries,) values of one measure of two systems, with the queries in the same order.

    Returns:
        ``difference`` (mean of a - b), ``interval`` (95% bootstrap, percentile), and ``p`` (two-sided paired
        randomization test with 10,000 sign flips; Smucker et al. 2007).

    Raises:
        UserError: The number of queries differs or is 0, or a value is not finite.
    """
    if len(a) != len(b) or not len(a):
        raise UserError(f"{len(a)} and {len(b)} queries cannot be paired; compare systems on the same queries.")
    if not (np.isfinite(a).all() and np.isfinite(b).all()):
        raise UserError("a value to compare is not finite; a query without results counts 0.")
    generator = np.random.default_rng(seed)
    differences = np.asarray(a, dtype=np.float64) - np.asarray(b, dtype=np.float64)
    observed = float(differences.mean())
    extreme, resampled = 0, []
    block = max(1, min(_RESAMPLES, _BLOCK_VALUES // len(differences)))
    for done in range(0, _RESAMPLES, block):
        size = (min(block, _RESAMPLES - done), len(differences))
        flips = generator.choice((-1.0, 1.0), size=size)
        # The margin counts sums that differ from the observed one by rounding alone.
        extreme += int((np.abs(flips @ differences) / len(differences) >= abs(observed) - 1e-12).sum())
        drawn = generator.integers(0, len(differences), size=size)
        resampled.append(differences[drawn].mean(axis=1))
    low, high = np.percentile(np.concatenate(resampled), [2.5, 97.5])
    # The observed assignment counts as one of the samples, so that p is never 0.
    return {"difference": observed, "interval": [float(low), float(high)], "p": (extreme + 1) / (_RESAMPLES + 1)}


def holm(p: Sequence[float]) -> list[float]:
    """Correct p-values, each from 0 to 1, in any order, for the number of comparisons (Holm 1979); others are refused.

    In the same order, at most 1: ascending, the i-th of m (from 0) is multiplied by m - i, and is at least as large as
    the one before.
    """
    values = np.asarray(p, dtype=np.float64)
    if not ((values >= 0) & (values <= 1)).all():  # NaN fails too
        raise UserError(f"p-values {[float(value) for value in values]}: each lies between 0 and 1.")
    order = np.argsort(values, kind="stable")
    corrected = np.empty_like(values)
    corrected[order] = np.minimum(np.maximum.accumulate(values[order] * np.arange(len(values), 0, -1)), 1.0)
    return [float(value) for value in corrected]


def smallest_difference(differences: np.ndarray, *, alpha: float = 0.05, power: float = 0.8) -> float | None:
    """The mean difference that a paired two-sided test at level `alpha` detects with probability `power`.

    (z(1 - alpha / 2) + z(power)) s / sqrt(n), with s the standard deviation of the (queries,) differences and z the
    quantiles of the normal distribution: 2.80 s / sqrt(n) by default (Sakai, Laboratory Experiments in Information
    Retrieval, 2018). At least 0, in units of the measure; None for fewer than two queries.
    """
    if len(differences) < 2:
        return None
    z = NormalDist().inv_cdf(1 - alpha / 2) + NormalDist().inv_cdf(power)
    return float(z * np.std(differences, ddof=1) / np.sqrt(len(differences)))


def outcomes(a: np.ndarray, b: np.ndarray, *, least: float = LEAST) -> dict[str, int]:
    """Number of queries that the first system wins, ties, and loses; differences of at most `least` are ties."""
    differences = np.asarray(a, dtype=np.float64) - np.asarray(b, dtype=np.float64)
    wins, losses = int((differences > least).sum()), int((differences < -least).sum())
    return {"wins": wins, "ties": len(differences) - wins - losses, "losses": losses}
