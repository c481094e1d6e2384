"""Calibration: bring scores of different rankers onto one scale, by maps that are fitted once."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import ClassVar, Protocol

import numpy as np

from retrodistill.core.errors import UserError, unknown
from retrodistill.runs.run import Run


class Calibration(Protocol):
    """A monotone map of a run's scores, fitted on a run and applied to any other of the same ranker."""

    name: ClassVar[str]

    @classmethod
    def fit(cls, run: Run) -> Calibration:
        """Measure what the map needs on the scores of a run."""
        ...

    def apply(self, run: Run) -> Run:
        """The same pairs with calibrated scores."""
        ...


@dataclass(frozen=True)
class ZScore:
    """(score - mean) / deviation, both measured once over every pair of the fitted run.

    Attributes:
        mean: Mean of the fitted scores.
        deviation: Their standard deviation (population), above 0.
    """

    mean: float
    deviation: float
    name: ClassVar[str] = "zscore"

    def __post_init__(self) -> None:
        if not (_is_finite(self.mean) and _is_finite(self.deviation) and self.deviation > 0):
            raise UserError(
                f"calibration zscore: mean={self.mean!r}, deviation={self.deviation!r}; both are finite numbers and "
                "the deviation lies above 0."
            )

    @classmethod
    def fit(cls, run: Run) -> ZScore:
        """Mean and deviation of all scores of the run.

        Raises:
            UserError: All scores are equal.
        """
        if not len(run) or np.ptp(run.scores) == 0:
            raise flat(run)
        return cls(float(np.mean(run.scores)), float(np.std(run.scores)))

    def apply(self, run: Run) -> Run:
        """Calibrated scores, zero mean and unit deviation on the fitted run."""
        return run.with_scores((run.scores - self.mean) / self.deviation)


@dataclass(frozen=True)
class ZScorePerQuery:
    """(score - mean) / deviation of each query's own list; a flat list becomes 0 throughout.

    The lists must be alike for this to be fair: mean and deviation of ten near-equal top documents say nothing
    about a ranker's scale. Use candidates with depth, or the whole corpus.
    """

    name: ClassVar[str] = "zscore-per-query"

    @classmethod
    def fit(cls, run: Run) -> ZScorePerQuery:
        """Nothing to measure: each list has its own statistics.

        Raises:
            UserError: Every list is flat, so that nothing would be left.
        """
        _refuse_flat_lists(run)
        return cls()

    def apply(self, run: Run) -> Run:
        """Calibrated scores, zero mean and unit deviation within each query."""
        mean, deviation = list_moments(run)
        safe = np.where(deviation > 0, deviation, 1.0)
        codes = run.query_codes
        return run.with_scores((run.scores - mean[codes]) / safe[codes])


@dataclass(frozen=True)
class MinMaxPerQuery:
    """(score - lowest) / (highest - lowest) of each query's own list, in 0..1; a flat list becomes 0 throughout."""

    name: ClassVar[str] = "minmax"

    @classmethod
    def fit(cls, run: Run) -> MinMaxPerQuery:
        """Nothing to measure: each list has its own range.

        Raises:
            UserError: Every list is flat, so that nothing would be left.
        """
        _refuse_flat_lists(run)
        return cls()

    def apply(self, run: Run) -> Run:
        """Calibrated scores in 0..1."""
        codes = run.query_codes
        lowest, highest = list_extremes(run)
        spread = np.where(highest > lowest, highest - lowest, 1.0)
        return run.with_scores((run.scores - lowest[codes]) / spread[codes])


CALIBRATIONS: dict[str, type[Calibration]] = {kind.name: kind for kind in (ZScore, ZScorePerQuery, MinMaxPerQuery)}


def fit_calibration(name: str, run: Run) -> Calibration:
    """Fit the calibration called `name` on a run.

    Raises:
        UserError: Unknown name, or a run whose scores are all equal.
    """
    if name not in CALIBRATIONS:
        raise unknown("calibration", name, CALIBRATIONS)
    return CALIBRATIONS[name].fit(run)


def list_moments(run: Run) -> tuple[np.ndarray, np.ndarray]:
    """Mean and standard deviation (population) of each query's scores, two (queries,) float64 arrays.

    A flat list has exactly its score and 0: the sum of three times 0.1, by 3, is 0.10000000000000002.
    """
    codes, count = run.query_codes, np.diff(run.bounds)
    mean = np.bincount(codes, run.scores, minlength=len(count)) / count
    variance = np.bincount(codes, (run.scores - mean[codes]) ** 2, minlength=len(count)) / count
    lowest, highest = list_extremes(run)
    return np.where(highest > lowest, mean, lowest), np.where(highest > lowest, np.sqrt(variance), 0.0)


def list_extremes(run: Run) -> tuple[np.ndarray, np.ndarray]:
    """Lowest and highest score of each query, two (queries,) float64 arrays."""
    if not len(run):
        return np.zeros(0), np.zeros(0)
    starts = run.bounds[:-1]
    return np.minimum.reduceat(run.scores, starts), np.maximum.reduceat(run.scores, starts)


def flat(run: Run) -> UserError:
    """The error for a run whose scores say nothing."""
    where = " within each query" if len(run) and np.ptp(run.scores) else ""
    return UserError(
        f"run {run.name}: all {len(run)} scores are equal{where}, so there is nothing to learn or to calibrate; "
        "check what scored it (a saturated sigmoid gives such scores: use raw logits)."
    )


def _refuse_flat_lists(run: Run) -> None:
    lowest, highest = list_extremes(run)
    if len(run) and not (highest > lowest).any():
        raise flat(run)


def _is_finite(value: object) -> bool:
    return isinstance(value, (int, float)) and math.isfinite(value)
