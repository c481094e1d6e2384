"""Filters against false negatives: candidates that the teacher holds too relevant to serve as negatives."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np

from retrodistill.core.errors import UserError
from retrodistill.runs.run import Run


def keep_below_margin(run: Run, positives: dict[str, str], margin: float) -> Run:
    """Keep the positive and what scores at least `margin` below it: right on any scale, logits included.

    Args:
        run: Teacher scores.
        positives: ``{query_id: document_id}`` of the positive; a query without one keeps all its rows.
        margin: In the unit of the scores, 0 or more.

    Raises:
        UserError: A positive has no score in the run.
    """
    if not margin >= 0:  # NaN too
        raise UserError(f"margin={margin}: it is 0 or more, in the unit of the teacher's scores.")
    ceiling, is_positive = _ceilings(run, positives, lambda score: score - margin)
    return run.filter(is_positive | (run.scores <= ceiling))


def keep_below_share(run: Run, positives: dict[str, str], share: float = 0.95) -> Run:
    """Keep the positive and what scores at most `share` of its score (NV-Retriever's TopK-PercPos, arXiv 2407.15831).

    A share means something only where 0 means "not relevant": cosines, probabilities, min-max scaled lists.

    Raises:
        UserError: A score is negative (raw logits, z-scores): use `keep_below_margin`.
    """
    if not 0 < share <= 1:
        raise UserError(f"share={share}: it lies above 0 and is at most 1.")
    lowest = float(run.scores.min()) if len(run) else 0.0
    if lowest < 0:
        raise UserError(
            f"run {run.name} has negative scores (lowest {lowest:.3g}), of which a share means nothing; calibrate it "
            "with 'minmax' first or filter by a margin."
        )
    ceiling, is_positive = _ceilings(run, positives, lambda score: share * score)
    return run.filter(is_positive | (run.scores <= ceiling))


def _ceilings(
    run: Run, positives: dict[str, str], limit: Callable[[np.ndarray], np.ndarray]
) -> tuple[np.ndarray, np.ndarray]:
    """For each row the highest score that a negative may have, and whether the row is the positive."""
    wanted = np.array([positives.get(query) for query in run.query_ids], dtype=object)
    is_positive = run.document_ids == wanted[run.query_codes]
    score = np.full(len(run.query_ids), np.nan)
    score[run.query_codes[is_positive]] = run.scores[is_positive]
    lost = [query for query, value in zip(run.query_ids, score, strict=True) if query in positives and np.isnan(value)]
    if lost:
        raise UserError(f"run {run.name}: {len(lost)} positives have no score, first of query {lost[0]!r}; score them.")
    ceiling = np.where(np.isnan(score), np.inf, limit(score))
    return ceiling[run.query_codes], is_positive
