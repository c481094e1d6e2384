"""Temperatures from the measured spread of scores. Each teacher has its own scale, so no fixed number fits all."""

from __future__ import annotations

import numpy as np

from retrodistill.core.errors import UserError
from retrodistill.runs.calibration import flat, list_moments
from retrodistill.runs.run import Run


def spread(run: Run) -> float:
    """Mean over the lists of the standard deviation (population) of their scores, in the unit of the scores.

    Lists with one candidate have no spread and do not count.

    Raises:
        UserError: No list has two different scores.
    """
    deviation = list_moments(run)[1]
    deviation = deviation[(np.diff(run.bounds) > 1) & (deviation > 0)]
    if not len(deviation):
        raise flat(run)
    return float(deviation.mean())


def temperature_for(run: Run, target_std: float) -> float:
    """The temperature at which the mean list has a standard deviation of `target_std` logits.

    Args:
        run: Scores of the ranker that needs the temperature.
        target_std: Above 0; about 1 is gentle, 4 leaves the first few candidates most of the mass.

    Raises:
        UserError: The target_std is not above 0, or the run is flat.
    """
    if not target_std > 0:  # NaN too
        raise UserError(f"target_std={target_std}: it lies above 0.")
    return spread(run) / target_std


def check_trainable(run: Run) -> tuple[Run, dict[str, int]]:
    """Drop and count the lists from which a list objective learns nothing.

    Returns:
        The run with lists of at least two different scores, and ``{"single": .., "flat": ..}`` lists dropped.

    Raises:
        UserError: No list is left: an empty run, one candidate per query, or all scores equal.
    """
    sizes, deviation = np.diff(run.bounds), list_moments(run)[1]
    single, level = sizes < 2, (sizes >= 2) & (deviation == 0)
    if not len(run):
        raise UserError(f"run {run.name} is empty; a list objective needs queries with at least two candidates each.")
    if single.all():
        raise UserError(
            f"run {run.name}: every query has one candidate, and a list objective needs at least two; mine deeper."
        )
    if (single | level).all():
        raise flat(run)
    kept = run.filter(~(single | level)[run.query_codes])
    return kept, {"single": int(single.sum()), "flat": int(level.sum())}
