"""Union and fusion: several runs become one."""

from __future__ import annotations

from collections.abc import Sequence
from itertools import product

import numpy as np

from retrodistill.errors import UserError, unknown
from retrodistill.runs.align import align
from retrodistill.runs.calibration import Calibration, fit_calibration
from retrodistill.runs.run import Run

METHODS = ("zscore", "zscore-per-query", "minmax", "reciprocal-rank")
_RECIPROCAL_RANK_OFFSET = 60  # k of Cormack, Clarke and Buettcher (SIGIR 2009)


def union(runs: Sequence[Run], name: str = "candidates") -> Run:
    """All pairs of all runs, with who proposed each kept in the `sources` column.

    The score is the sum of reciprocal ranks, so that the union has an order that favours no ranker's scale.
    """
    pairs, scores = align(runs, name)
    present = ~np.isnan(scores)
    labels = (
        {
            bits: "+".join(run.name for run, bit in zip(runs, bits, strict=True) if bit)
            for bits in product((False, True), repeat=len(runs))
        }
        if len(runs) <= 8
        else None
    )
    if labels is None:
        raise UserError(f"a union of {len(runs)} runs keeps sources for at most 8; unite them in steps.")
    sources = [labels[tuple(row)] for row in present.tolist()]
    queries, documents = pairs.table["query_id"], pairs.table["document_id"]
    return Run.from_arrays(
        queries, documents, reciprocal_ranks(runs, [1.0] * len(runs), pairs, scores), sources=sources, name=name
    ).ranked()


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
        weights: One per run, at least one above 0; equal by default. Those of ``zscore*`` are scaled to sum to 1.
        method: ``zscore`` or ``zscore-per-query`` (weighted mean of z-scores, over the whole run or per list),
            ``minmax`` (weighted sum of min-max scaled lists; Fox and Shaw 1994, CombSUM) or ``reciprocal-rank``
            (weighted sum of 1 / (60 + rank); Cormack et al. 2009).
        calibrations: Already fitted ones for the z-score and min-max methods; fitted on `runs` by default.
        missing: What a pair that some run did not score means for the z-score and min-max methods: ``error``, or
            ``mean`` to average over the runs that did. Reciprocal rank counts what is there, by definition.
        name: The name of the result.

    Raises:
        UserError: Unknown method, weights that do not fit, a flat run, or pairs that a run did not score.
    """
    weights = _weights(runs, weights)
    if method not in METHODS:
        raise unknown("fusion method", method, METHODS)
    if method == "reciprocal-rank":
        pairs, scores = align(runs, name)
        return pairs.with_scores(reciprocal_ranks(runs, weights, pairs, scores))
    fitted = calibrations or [fit_calibration(method, run) for run in runs]
    pairs, scores = align([calibration.apply(run) for calibration, run in zip(fitted, runs, strict=True)], name)
    absent = np.isnan(scores)
    if absent.any() and missing != "mean":
        column = int(np.flatnonzero(absent.any(axis=0))[0])
        raise UserError(
            f"fusion: {runs[column].name} has no score for {int(absent[:, column].sum())} of {len(pairs)} pairs; "
            "score the same candidates by every teacher, or set missing to 'mean'."
        )
    shares = np.where(absent, 0.0, np.asarray(weights))
    total = np.nansum(scores * shares, axis=1)
    return pairs.with_scores(total if method == "minmax" else total / shares.sum(axis=1))


def reciprocal_ranks(runs: Sequence[Run], weights: Sequence[float], pairs: Run, scores: np.ndarray) -> np.ndarray:
    """(rows,) weighted sum over runs of 1 / (60 + rank) for aligned scores (rows, runs); absent counts nothing."""
    total = np.zeros(len(pairs))
    for column, weight in enumerate(weights):
        present = np.flatnonzero(~np.isnan(scores[:, column]))
        own = pairs.filter(~np.isnan(scores[:, column])).with_scores(scores[present, column])
        order = np.lexsort((own.document_ids.astype(str), -own.scores, own.query_codes))
        rank = np.arange(1, len(order) + 1) - own.bounds[own.query_codes[order]]
        total[present[order]] += weight / (_RECIPROCAL_RANK_OFFSET + rank)
    return total


def _weights(runs: Sequence[Run], weights: Sequence[float] | None) -> list[float]:
    given = [1.0] * len(runs) if weights is None else [float(weight) for weight in weights]
    if len(given) != len(runs) or min(given, default=0) < 0 or sum(given) <= 0:
        raise UserError(
            f"fusion: {len(given)} weights {given} for {len(runs)} runs; give one per run, none below 0, not all 0."
        )
    return given
