"""Regularizers of sparse students: what keeps texts at few terms, and at some; and the alarms when it fails."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from torch import Tensor

from retrodistill.core.runtime import log
from retrodistill.objectives.registry import get_regularizer
from retrodistill.training.settings import RegularizerSettings

_DENSE = 0.1  # share of the vocabulary that an inverted index does not pay for any more
_EMPTY = 0.1  # share of texts without a term


@dataclass(frozen=True)
class Regularizer:
    """One weighted regularizer of a stage.

    Attributes:
        name: One of `retrodistill.objectives.registry.REGULARIZERS`.
        weight: In the loss, once warm.
        side: The side that it sees: ``document`` or ``query``.
        terms: How many of a text's terms ``top-k`` lets live.
        warmup: Share of the steps over which the weight grows, with the square of the step (SPLADE, arXiv 2107.05720).
    """

    name: str
    weight: float
    side: str = "document"
    terms: int = 128
    warmup: float = 1 / 3

    def __post_init__(self) -> None:
        get_regularizer(self.name)  # refuses an unknown one

    @classmethod
    def of(cls, settings: RegularizerSettings) -> Regularizer:
        """As a recipe writes it."""
        return cls(settings.name, settings.weight, settings.side, settings.terms, settings.warmup)

    def __call__(self, weights: Tensor, progress: float | None) -> Tensor:
        """Its weighted value at some point of the training.

        Args:
            weights: (texts, terms) term weights of the side, of all processes (`retrodistill.objectives.whole_batch`).
            progress: Share of the steps done, from 0 to 1; None counts as warm.
        """
        warm = 1.0 if progress is None or not self.warmup else min(1.0, progress / self.warmup) ** 2
        return self.weight * warm * self.value(weights)

    def value(self, weights: Tensor) -> Tensor:
        """Its value, unweighted."""
        return get_regularizer(self.name)(weights, self.terms)


def regularized(
    regularizers: Sequence[Regularizer], queries: Tensor, documents: Tensor, progress: float | None
) -> dict[str, Tensor]:
    """Weighted values by ``name-side``; those of one name and side are added up.

    Args:
        regularizers: Of the stage.
        queries: (texts, terms) term weights.
        documents: (texts, terms) term weights.
        progress: Share of the steps done.
    """
    parts: dict[str, Tensor] = {}
    for one in regularizers:
        key = f"{one.name}-{one.side}"
        value = one(documents if one.side == "document" else queries, progress)
        parts[key] = parts[key] + value if key in parts else value
    return parts


class SparsityAlarm:
    """Says once, in a training, that texts lose all their terms, and once that they have too many.

    Attributes:
        notes: What was said, for the student's manifest.
    """

    def __init__(self) -> None:
        self.notes: list[str] = []
        self._said: set[str] = set()

    def __call__(self, alive: Sequence[int], vocabulary: int, final: bool = False) -> None:
        """Look at the numbers of live terms of some documents.

        Args:
            alive: Terms of each document.
            vocabulary: Terms there are.
            final: Whether training has ended: documents start dense in SPLADE, so density says nothing before.
        """
        empty = sum(count == 0 for count in alive) / max(len(alive), 1)
        mean = sum(alive) / max(len(alive), 1)
        if empty > _EMPTY:
            self._say(
                "empty",
                f"the student collapses: {100 * empty:.0f}% of the documents looked at have no term; lower the "
                "regularizers' weights or add anti-zero",
            )
        if final and mean > _DENSE * vocabulary:
            self._say(
                "dense",
                f"the student is dense: {mean:.0f} of {vocabulary} terms a document; raise the weight of flops, or "
                "take top-k",
            )

    def _say(self, reason: str, line: str) -> None:
        if reason not in self._said:
            self._said.add(reason)
            self.notes.append(line)
            log(f"warning: {line}")
