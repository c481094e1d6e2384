"""Is a difference between two systems real? Paired, over the same queries."""

from __future__ import annotations

from typing import Any

import numpy as np

from retrodistill.errors import UserError

_RESAMPLES = 10_000
_BLOCK_VALUES = 4_000_000  # resampled at once: bounds the memory at about 100 MB, whatever the number of queries


def compare_paired(a: np.ndarray, b: np.ndarray, *, seed: int = 0) -> dict[str, Any]:
    """Compare per-query values of two systems.

    Args:
        a: (queries,) values of one measure.
        b: (queries,) values of the other system, on the same queries in the same order.
        seed: Of the resampling.

    Returns:
        ``difference`` (mean of a - b), ``interval`` (95% bootstrap, percentile) and ``p`` (two-sided paired
        randomisation test with 10,000 sign flips; Smucker et al. 2007).

    Raises:
        UserError: The queries differ in number, there are none, or a value is not finite.
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
        extreme += int((np.abs(flips @ differences) / len(differences) >= abs(observed) - 1e-12).sum())
        drawn = generator.integers(0, len(differences), size=size)
        resampled.append(differences[drawn].mean(axis=1))
    low, high = np.percentile(np.concatenate(resampled), [2.5, 97.5])
    return {
        "difference": observed,
        "interval": [float(low), float(high)],
        "p": (extreme + 1) / (_RESAMPLES + 1),
    }
