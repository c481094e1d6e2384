"""Calibration: bring the scores of different rankers onto one scale, with maps that are fitted once."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import ClassVar, Self

import numpy as np

from retrodistill.core.errors import UserError, unknown
from retrodistill.runs.run import Run

_ENTROPY, _HALVINGS = 0.5, 60  # share of the greatest entropy; rounds of bisection


class Calibration:
    """A monotone map of scores, fitted on one run and applicable to any other run of the same ranker."""

    name: ClassVar[str]

    @classmethod
    def fit(cls, run: Run) -> Self:
        """Fit to the scores of a run; raises UserError if the scores of every query are equal."""
        lowest, highest = list_extremes(run)
        if len(run) and not (highest > lowest).any():
            raise flat(run)
        return cls()

    def apply(self, run: Run) -> Run:
        """The same pairs with calibrated scores."""
        raise NotImplementedError


@dataclass(frozen=True)
class ZScore(Calibration):
    """(score - mean) / deviation, with both measured over all pairs of the fitted run."""

    mean: float
    deviation: float  # standard deviation (population), above 0
    name: ClassVar[str] = "zscore"

    def __post_init__(self) -> None:
        finite = all(isinstance(value, (int, float)) and math.isfinite(value) for value in (self.mean, self.deviation))
        if not (finite and self.deviation > 0):
            raise UserError(
                f"calibration zscore: mean={self.mean!r}, deviation={self.deviation!r}; both must be finite numbers "
                "and the deviation must be above 0."
            )

    @classmethod
    def fit(cls, run: Run) -> Self:
        """Measure mean and deviation of all scores of the run; raises UserError if all scores are equal."""
        if not len(run) or np.ptp(run.scores) == 0:
            raise flat(run)
        return cls(float(np.mean(run.scores)), float(np.std(run.scores)))

    def apply(self, run: Run) -> Run:
        """Calibrated scores, with zero mean and unit deviation on the fitted run."""
        return run.with_scores((run.scores - self.mean) / self.deviation)


@dataclass(frozen=True)
class ZScorePerQuery(Calibration):
    """(score - mean) / deviation of each query's own list; in a list of equal scores all become 0.

    The lists should be of the same kind: mean and deviation of ten near-equal top documents say nothing about a
    ranker's scale. Use deep candidate lists or the whole corpus.
    """

    name: ClassVar[str] = "zscore-per-query"

    def apply(self, run: Run) -> Run:
        """Calibrated scores, with zero mean and unit deviation within each query."""
        mean, deviation = list_moments(run)
        return _by_list(run, mean, deviation)


@dataclass(frozen=True)
class MinMaxPerQuery(Calibration):
    """(score - lowest) / (highest - lowest) of each query's own list, in 0..1; in a list of equal scores all are 0."""

    name: ClassVar[str] = "minmax"

    def apply(self, run: Run) -> Run:
        """Calibrated scores in 0..1."""
        lowest, highest = list_extremes(run)
        return _by_list(run, lowest, highest - lowest)


@dataclass(frozen=True)
class Entropy(Calibration):
    """(score - mean of the list) / temperature, at which lists have half of the greatest entropy (as in MTARD).

    Each teacher gets the temperature at which the softmax of its lists has, on average, half the entropy of equal
    scores, counted from that of the documents that are tied for the best. Teachers that are fused are then equally
    sure, whatever their scales and the shape of their lists (Zhao et al. 2023, arXiv 2306.16170, who adjust
    temperatures by steps until two teachers' entropies agree). Lists of equal scores do not count.
    """

    temperature: float  # above 0, in the unit of the scores
    name: ClassVar[str] = "entropy"

    def __post_init__(self) -> None:
        if not (math.isfinite(self.temperature) and self.temperature > 0):
            raise UserError(f"calibration entropy: temperature={self.temperature!r}; it must be a number above 0.")

    @classmethod
    def fit(cls, run: Run) -> Self:
        """Find the temperature of the run's lists; raises UserError if the scores of every query are equal."""
        lowest, highest = list_extremes(run)
        counted, starts = highest > lowest, run.bounds[:-1]
        if not counted.any():
            raise flat(run)
        ties = np.add.reduceat(run.scores == highest[run.query_codes], starts)[counted]
        least, most = np.log(ties), np.log(np.diff(run.bounds)[counted])
        apart = (highest - lowest)[counted]
        # From all on the best documents to equal shares.
        low, high = math.log(float(apart.min())) - 10, math.log(float(apart.max())) + 10
        for _ in range(_HALVINGS):
            middle = (low + high) / 2
            logs = list_log_softmax(run, math.exp(middle))
            entropies = -np.add.reduceat(np.exp(logs) * logs, starts)[counted]
            is_low = ((entropies - least) / (most - least)).mean() < _ENTROPY
            low, high = (middle, high) if is_low else (low, middle)
        return cls(math.exp((low + high) / 2))

    def apply(self, run: Run) -> Run:
        """Calibrated scores, which are 0 on average within each query."""
        mean, _ = list_moments(run)
        return run.with_scores((run.scores - mean[run.query_codes]) / self.temperature)


CALIBRATIONS: dict[str, type[Calibration]] = {
    kind.name: kind for kind in (ZScore, ZScorePerQuery, MinMaxPerQuery, Entropy)
}


def fit_calibration(name: str, run: Run) -> Calibration:
    """Fit a calibration of `CALIBRATIONS` on a run."""
    if name not in CALIBRATIONS:
        raise unknown("calibration", name, CALIBRATIONS)
    return CALIBRATIONS[name].fit(run)


def list_moments(run: Run) -> tuple[np.ndarray, np.ndarray]:
    """Mean and standard deviation (population) of each query's scores, two (queries,) float64 arrays."""
    codes, count = run.query_codes, np.diff(run.bounds)
    mean = np.bincount(codes, run.scores, minlength=len(count)) / count
    variance = np.bincount(codes, (run.scores - mean[codes]) ** 2, minlength=len(count)) / count
    # Equal scores must give their exact value and 0, but rounding does not: (0.1 + 0.1 + 0.1) / 3 is above 0.1.
    lowest, highest = list_extremes(run)
    return np.where(highest > lowest, mean, lowest), np.where(highest > lowest, np.sqrt(variance), 0.0)


def list_log_softmax(run: Run, temperature: float) -> np.ndarray:
    """(rows,) float64 log-probabilities of each query's documents under the softmax of its scores / temperature."""
    codes, starts = run.query_codes, run.bounds[:-1]
    scores = (run.scores - list_extremes(run)[1][codes]) / temperature
    return np.asarray(scores - np.log(np.add.reduceat(np.exp(scores), starts))[codes])


def list_extremes(run: Run) -> tuple[np.ndarray, np.ndarray]:
    """Lowest and highest score of each query, two (queries,) float64 arrays."""
    if not len(run):
        return np.zeros(0), np.zeros(0)
    starts = run.bounds[:-1]
    return np.minimum.reduceat(run.scores, starts), np.maximum.reduceat(run.scores, starts)


def flat(run: Run) -> UserError:
    """Build the error for a run whose scores are all equal, at least within each query."""
    where = " within each query" if len(run) and np.ptp(run.scores) else ""
    return UserError(
        f"run {run.name}: all {len(run)} scores are equal{where}, so there is nothing to learn or to calibrate; "
        "check the ranker (a saturated sigmoid gives such scores: use raw logits)."
    )


def _by_list(run: Run, zero: np.ndarray, unit: np.ndarray) -> Run:
    """(score - zero) / unit with (queries,) zeros and units; 1 takes the place of a unit of 0."""
    codes = run.query_codes
    return run.with_scores((run.scores - zero[codes]) / np.where(unit > 0, unit, 1.0)[codes])
