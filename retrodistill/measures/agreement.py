"""Agreement of a student's rankings with its teacher's; no relevance judgement is needed."""

from __future__ import annotations

import numpy as np

from retrodistill.errors import UserError
from retrodistill.runs.run import Run


def rank_agreement(student: np.ndarray, teacher: np.ndarray) -> np.ndarray:
    """NDCG of the student's ranking where the teacher's document at rank r has gain k + 1 - r (linear gains).

    Args:
        student: (queries, k) document numbers, best first.
        teacher: (queries, k) document numbers, best first; -1 where the teacher has fewer.

    Returns:
        (queries,) float64 in 0..1; 1 where both lists are the same, 0 where the teacher has none.

    Raises:
        UserError: Lists of different shapes.
    """
    if student.shape != teacher.shape or teacher.ndim != 2:
        raise UserError(
            f"rankings of shape {student.shape} by the student and {teacher.shape} by the teacher; "
            "both are (queries, k)."
        )
    k = teacher.shape[1]
    gains, discounts = np.arange(k, 0, -1), 1 / np.log2(np.arange(2, k + 2))
    same = (student[:, :, None] == teacher[:, None, :]) & (teacher >= 0)[:, None, :]
    got = (same * gains).sum(axis=2) @ discounts
    ideal = np.where(teacher >= 0, gains, 0) @ discounts
    return got / np.where(ideal > 0, ideal, 1.0)


def overlap(student: Run, teacher: Run, k: int = 10) -> dict[str, float]:
    """For each of the teacher's queries, the share of its top k that is in the student's top k, in 0..1.

    A query that the student answers with nothing has 0.
    """
    found = {query: set(documents) for query, documents, _ in student.top(k)}
    return {
        query: len(found.get(query, set()) & set(documents)) / len(documents) for query, documents, _ in teacher.top(k)
    }
