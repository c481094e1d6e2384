"""Monitors: is the student coming to agree with its teacher, and has it collapsed?"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass

import numpy as np

from retrodistill.core.runtime import log
from retrodistill.encoders.encoder import Encoder
from retrodistill.runs.agreement import rank_agreement
from retrodistill.runs.run import top_k

_COLLAPSED = 0.98
Monitored = Callable[[], dict[str, float]]


def mean_cosine(vectors: np.ndarray) -> float:
    """Mean cosine of different rows, in -1..1; near 1 the space has collapsed to a point.

    Args:
        vectors: (n, d), n at least 2.
    """
    lengths = np.linalg.norm(vectors, axis=1, keepdims=True)
    unit = vectors / np.where(lengths > 0, lengths, 1.0)
    total = unit.sum(axis=0)
    n = len(vectors)
    return float((total @ total - (unit**2).sum()) / (n * (n - 1)))


@dataclass
class HeldOutMonitor:
    """Agreement with the teacher on held-out queries, and collapse.

    Attributes:
        student: The encoder in training.
        texts: Held-out query texts.
        teacher_rows: (queries, k) corpus positions that the teacher ranks highest, best first, -1 where fewer.
        documents: Gives (corpus, d) document vectors; None where the student encodes documents itself and only
            collapse can be watched cheaply.
    """

    student: Encoder
    texts: Sequence[str]
    teacher_rows: np.ndarray
    documents: Callable[[], np.ndarray] | None

    def __call__(self) -> dict[str, float]:
        """``agreement`` (nDCG@k of the student's ranking, the teacher's top k as graded truth) and ``mean_cosine``."""
        training = self.student.model.training
        self.student.model.eval()
        queries = self.student.encode(self.texts, "query", batch_size=256 if self.student.is_static else 32)
        self.student.model.train(training)
        measures = {"mean_cosine": mean_cosine(queries)} if len(queries) > 1 else {}
        if measures and measures["mean_cosine"] > _COLLAPSED:
            log(
                f"warning: the student has collapsed: held-out queries have a mean cosine of "
                f"{measures['mean_cosine']:.3f}; lower the learning rate."
            )
        if self.documents is not None:
            documents = self.documents()
            k = min(self.teacher_rows.shape[1], len(documents))
            scores = queries @ documents.T
            best = top_k(scores, k)
            measures["agreement"] = float(np.mean(rank_agreement(best, self.teacher_rows[:, :k])))
        return measures


@dataclass
class RankMonitor:
    """Agreement with the teacher on held-out queries, whatever gives the scores; and what else is to be watched.

    Attributes:
        scores: Gives (queries, n) student scores, -inf where there is no document.
        teacher_rows: (queries, k) places that the teacher ranks highest, best first, -1 where fewer.
        also: Gives more measures.
    """

    scores: Callable[[], np.ndarray]
    teacher_rows: np.ndarray
    also: Callable[[], dict[str, float]] | None = None

    def __call__(self) -> dict[str, float]:
        """``agreement`` (nDCG@k of the student's ranking, the teacher's top k as graded truth), and the others."""
        k = self.teacher_rows.shape[1]
        best = top_k(self.scores(), k)
        measures = {"agreement": float(np.mean(rank_agreement(best, self.teacher_rows[:, : best.shape[1]])))}
        return measures | (self.also() if self.also is not None else {})
