"""Soft labels: a teacher's scores mapped to 0..1, and the mean over several teachers."""

from __future__ import annotations

from collections.abc import Callable, Sequence

import numpy as np
from scipy.special import expit

from retrodistill.core.errors import UserError, unknown
from retrodistill.core.files import digest
from retrodistill.data.collection import Collection
from retrodistill.data.texts import Texts
from retrodistill.rankers.ensemble import Combined
from retrodistill.rankers.protocol import Ranker
from retrodistill.rankers.recorded import RecordedRanker
from retrodistill.runs.run import Run

LABELS = {
    "scores": "the raw scores; those of several teachers are fused as the recipe says",
    "mean": "the mean of raw scores of one scale (arXiv 2010.02666), or of labels that were recorded",
    "sigmoid": "1 / (1 + exp(-score)) of a cross-encoder's logits, the mean over several (Trans-Encoder, mutual)",
    "cosine": "(1 + score) / 2 of cosines, which may be negative, the mean over several",
}
_ROUNDING = 1e-3  # tolerance by which a float32 cosine may exceed 1


def _cosine(scores: np.ndarray) -> np.ndarray:
    if np.abs(scores).max(initial=0.0) > 1 + _ROUNDING:
        raise UserError(
            f"labels: cosine of scores up to {np.abs(scores).max():.3g}; a cosine lies in -1..1. Take labels: sigmoid "
            "for a cross-encoder's logits."
        )
    return np.clip((1 + scores) / 2, 0.0, 1.0)


_MAPS: dict[str, Callable[[np.ndarray], np.ndarray]] = {
    "mean": lambda scores: scores,
    "sigmoid": expit,
    "cosine": _cosine,
}


def soft_labels(members: Sequence[Ranker], kind: str, weights: Sequence[float] | None = None) -> Ranker:
    """Labels by these teachers; of one recorded run a recorded run, which brings its own candidates.

    Args:
        members: The teachers.
        kind: A key of `LABELS` other than ``scores``.
        weights: One per member; equal by default.

    Raises:
        UserError: As `SoftLabels`, or a recorded score is not a cosine where cosines are required.
    """
    labels = SoftLabels(members, kind, weights)
    run = members[0].run if len(members) == 1 else None
    return labels if run is None else RecordedRanker(run.with_scores(_MAPS[kind](run.scores)), labels.name)


class SoftLabels(Combined):
    """The weighted mean of teachers' scores, each mapped alone (Trans-Encoder, ICLR 2022, arXiv 2109.13059).

    Args:
        members: The teachers.
        kind: A key of `LABELS` other than ``scores``.
        weights: One per member; equal by default.

    Raises:
        UserError: No member, another kind, or weights that do not fit.
    """

    def __init__(self, members: Sequence[Ranker], kind: str, weights: Sequence[float] | None = None) -> None:
        if kind not in _MAPS:
            raise unknown("kind of labels", kind, _MAPS)
        if not members:
            raise UserError("labels without a teacher; give at least one.")
        super().__init__(members, weights)
        self.labels, self.name = kind, " + ".join(member.name for member in members)

    def fingerprint(self, collection: Collection) -> str:
        """Members, weights and kind."""
        return digest("labels", [one.fingerprint(collection) for one in self.members], self.weights, self.labels)

    def score(self, queries: Texts, collection: Collection, pairs: Run) -> Run:
        """The pairs with labels, from 0 to 1 but for ``mean``.

        Raises:
            UserError: A pair cannot be scored, or a score is not a cosine where cosines are required.
        """
        total = np.zeros(len(pairs))
        for member, weight in zip(self.members, self.weights, strict=True):
            total += weight * _MAPS[self.labels](member.score(queries, collection, pairs).scores)
        return pairs.with_scores(total / sum(self.weights), self.name)
