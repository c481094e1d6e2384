"""Union and fusion of several runs."""

from __future__ import annotations

import math
from collections.abc import Sequence

import numpy as np
import pyarrow as pa

from retrodistill.core.errors import UserError, unknown
from retrodistill.runs.calibration import Calibration, fit_calibration
from retrodistill.runs.run import Run, align

METHODS = {
    "zscore": "weighted mean of z-scores over all pairs of a run",
    "zscore-per-query": "weighted mean of z-scores of each query's own list",
    "minmax": "weighted sum of scores scaled to 0..1 in each list (CombSUM)",
    "reciprocal-rank": "weighted sum of 1 / (60 + rank)",
    "entropy": "weighted mean of scores at temperatures of equal entropy (MTARD, arXiv 2306.16170)",
    "agreement": "z-scores per query, weighted by how much a run agrees with the others on the query",
}
MISSING = ("error", "mean")
_RECIPROCAL_RANK_OFFSET = 60  # k of Cormack, Clarke and Buettcher (SIGIR 2009)


def union(runs: Sequence[Run], name: str = "candidates", *, weights: Sequence[float] | None = None) -> Run:
    """All pairs of up to 8 runs; the column `sources` names the runs that proposed each pair.

    The score is the weighted sum of reciprocal ranks, which does not depend on the rankers' scales. A run of weight 0
    adds pairs without affecting the order.
    """
    weights = check_weights(len(runs), weights)
    if len(runs) > 8:  # 8 runs already have 256 combinations of sources
        raise UserError(f"a union of {len(runs)} runs keeps sources for at most 8; unite them in steps.")
    pairs, is_present = _by_reciprocal_rank(runs, weights, name)
    proposed = np.packbits(is_present, axis=1, bitorder="little")[:, 0]
    labels = ["+".join(run.name for bit, run in enumerate(runs) if code >> bit & 1) for code in range(2 ** len(runs))]
    names = list(dict.fromkeys(labels))  # runs may share a name
    places = np.array([names.index(label) for label in labels], dtype=np.int32)[proposed]
    sources = pa.DictionaryArray.from_arrays(pa.array(places), pa.array(names))
    return Run(pairs.table.append_column("sources", sources), name).ranked()


def fuse(
    runs: Sequence[Run],
    weights: Sequence[float] | None = None,
    method: str = "zscore",
    *,
    calibrations: Sequence[Calibration] | None = None,
    missing: str = "error",
    name: str = "ensemble",
) -> Run:
    """Fuse runs into one.

    Args:
        runs: Runs over the same queries.
        weights: One per run, at least one above 0; equal by default. The ``zscore*`` methods scale them to sum to 1.
        method: ``zscore`` or ``zscore-per-query`` (weighted mean of z-scores, over the whole run or per list),
            ``entropy`` (weighted mean of scores at temperatures of equal entropy, see `Entropy`), ``agreement``
            (z-scores per list, in which a run's weight is multiplied by how much it agrees with the others on the
            query: the mean correlation of their scores, 0 or more; the given weights count where none agree),
            ``minmax`` (weighted sum of min-max scaled lists; Fox and Shaw 1994, CombSUM) or ``reciprocal-rank``
            (weighted sum of 1 / (60 + rank); Cormack et al. 2009).
        calibrations: Fitted calibrations for the z-score and min-max methods; by default, they are fitted on `runs`.
        missing: How the z-score and min-max methods treat a pair that some run did not score: ``error``, or ``mean``
            to average over the runs that did. Reciprocal rank ignores missing scores by definition.
        name: Name of the result.

    Raises:
        UserError: The method is unknown, weights or calibrations do not fit, all scores of a run are equal, or a run
            did not score some pairs.
    """
    weights = check_weights(len(runs), weights)
    check_method(method, len(runs))
    if missing not in MISSING:
        raise unknown("treatment of missing scores", missing, MISSING)
    if not any(len(run) for run in runs):
        return Run.from_dict({}, name)
    if method == "reciprocal-rank":
        return _by_reciprocal_rank(runs, weights, name)[0]
    fitted = [fit_calibration(scale_of(method), run) for run in runs] if calibrations is None else calibrations
    check_calibrations(len(runs), fitted)
    pairs, scores = align([calibration.apply(run) for calibration, run in zip(fitted, runs, strict=True)], name)
    absent = np.isnan(scores)
    if absent.any() and missing != "mean":
        column = int(np.flatnonzero(absent.any(axis=0))[0])
        raise UserError(
            f"fusion: {runs[column].name} has no score for {int(absent[:, column].sum())} of {len(pairs)} pairs; "
            "score the same candidates with every teacher, or set missing to 'mean'."
        )
    shares = np.where(absent, 0.0, weights)
    if method == "agreement":
        votes = np.flatnonzero(weights)
        by_agreement = np.zeros_like(shares)
        by_agreement[:, votes] = shares[:, votes] * _agreement(pairs, scores[:, votes])
        agrees = by_agreement.sum(axis=1) > 0  # otherwise no run that scored the pair agrees with another
        shares[agrees] = by_agreement[agrees]
    total = shares.sum(axis=1)
    if (total == 0).any():
        raise UserError(
            f"fusion: {int((total == 0).sum())} pairs have scores only from runs of weight 0; leave those runs out."
        )
    mean = np.nansum(scores * shares, axis=1) / total
    return pairs.with_scores(mean * sum(weights) if method == "minmax" else mean)


def _agreement(pairs: Run, scores: np.ndarray) -> np.ndarray:
    """(rows, runs): how much each run agrees with the others on the pair's query, from 0 to 1.

    `scores` are (rows, runs) with a mean of 0 within each query; NaN counts as 0.
    """
    known, codes = np.nan_to_num(scores), pairs.query_codes
    starts = pairs.bounds[:-1]
    lengths = np.sqrt(np.add.reduceat(known**2, starts))
    unit = known / np.where(lengths > 0, lengths, 1.0)[codes]
    # The sum over the others of <u_i, u_j> is <u_i, all of them> - 1.
    correlation = np.add.reduceat(unit * unit.sum(axis=1, keepdims=True), starts) - (lengths > 0)
    return np.asarray(np.maximum(correlation / max(1, scores.shape[1] - 1), 0.0)[codes])


def _by_reciprocal_rank(runs: Sequence[Run], weights: Sequence[float], name: str) -> tuple[Run, np.ndarray]:
    """The pairs with the weighted sum over runs of 1 / (60 + rank), and (rows, runs) bool: the runs that have each."""
    pairs, ranks = align([run.with_scores(run.ranks) for run in runs], name)
    is_present, total = ~np.isnan(ranks), np.zeros(len(pairs))
    for weight, present, rank in zip(weights, is_present.T, ranks.T, strict=True):
        total[present] += weight / (_RECIPROCAL_RANK_OFFSET + rank[present])
    return pairs.with_scores(total), is_present


def check_weights(runs: int, weights: Sequence[float] | None) -> list[float]:
    """One weight per run: those given, or 1 for each."""
    if not runs:
        raise UserError("no run was given; give at least one.")
    given = [1.0] * runs if weights is None else [float(weight) for weight in weights]
    if len(given) != runs or not all(0 <= weight < math.inf for weight in given) or sum(given) <= 0:
        raise UserError(
            f"fusion: {len(given)} weights {given} for {runs} runs; give one per run, none below 0, not all 0."
        )
    return given


def scale_of(method: str) -> str:
    """The name of the calibration that a method of fusion scales scores by; reciprocal ranks have none."""
    return "zscore-per-query" if method == "agreement" else method


def check_method(method: str, members: int) -> None:
    """Raise a UserError for an unknown fusion method, or one that needs more members."""
    if method not in METHODS:
        raise unknown("fusion method", method, METHODS)
    if method == "agreement" and members < 3:
        raise UserError(f"fusion: agreement of {members} members; with fewer than three, take zscore-per-query.")


def check_calibrations(runs: int, calibrations: Sequence[Calibration]) -> None:
    """Raise a UserError unless there is one calibration per run."""
    if len(calibrations) != runs:
        raise UserError(f"fusion: {len(calibrations)} calibrations for {runs} runs; give one per run, in their order.")
