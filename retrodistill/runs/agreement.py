"""Agreement of a student's rankings with its teacher's; no relevance judgment is needed."""

from __future__ import annotations

from collections.abc import Hashable, Sequence

import numpy as np

from retrodistill.core.errors import UserError
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


def overlap(student: Run, teacher: Run, k: int = 10, *, tie: float | None = None) -> dict[str, float]:
    """For each of the teacher's queries, the share of its top k that is in the student's top k, in 0..1.

    A query that the student answers with nothing has 0.

    Args:
        student: Measured run.
        teacher: Run that it is compared with.
        k: Depth.
        tie: Where both runs have the same kind of scores: a student's document also counts if its score is at least
            the teacher's k-th, less this share of the teacher's best.
    """
    top = {query: (documents, scores) for query, documents, scores in student.top(k)}
    nothing = (np.empty(0, dtype=object), np.empty(0))
    shares = {}
    for query, documents, scores in teacher.top(k):
        found, found_scores = top.get(query, nothing)
        shared = len(set(found) & set(documents))
        if tie is not None:
            shared = min(len(documents), int((found_scores >= scores[-1] - tie * abs(scores[0])).sum()))
        shares[query] = shared / len(documents)
    return shares


def rank_biased_overlap(student: Sequence[Hashable], teacher: Sequence[Hashable], p: float = 0.9) -> float:
    """Extrapolated rank-biased overlap of two rankings without ties (Webber, Moffat and Zobel 2010, equation 32).

    The agreement at every depth counts, the depth d with weight (1 - p) p^(d - 1): with p = .9 the first ten ranks have
    86% of it. Beyond the end of the lists the agreement stays what it was there.

    Args:
        student: Documents, best first, each once.
        teacher: As many or not.
        p: Persistence, above 0 and below 1.

    Returns:
        0..1; 1 for the same lists, 0 where they share nothing or one is empty.

    Raises:
        UserError: p outside 0..1, or a document appears twice.
    """
    if not 0 < p < 1:
        raise UserError(f"rank-biased overlap with p={p}; p lies between 0 and 1, both excluded.")
    short, long = sorted((list(student), list(teacher)), key=len)
    if len(set(short)) < len(short) or len(set(long)) < len(long):
        raise UserError("a document appears twice in a ranking; rank-biased overlap needs each once.")
    s, l = len(short), len(long)  # noqa: E741 - the letters of the paper
    if not s:
        return 0.0
    depths = np.arange(1, l + 1)
    place = {document: rank for rank, document in enumerate(short)}
    # A shared document is part of the overlap from the deeper of its two ranks on.
    deeper = [max(rank, place[document]) for rank, document in enumerate(long) if document in place]
    shared = np.cumsum(np.bincount(np.array(deeper, dtype=np.int64), minlength=l))
    weights = p ** depths.astype(np.float64)
    known = float((shared / depths * weights).sum())
    beyond = depths > s
    assumed = float((shared[s - 1] * (depths - s) / (s * depths) * weights)[beyond].sum())
    rest = (shared[-1] - shared[s - 1]) / l + shared[s - 1] / s
    return float((1 - p) / p * (known + assumed) + rest * p**l)


def ranking_overlap(student: Run, teacher: Run, p: float = 0.9, depth: int = 100) -> dict[str, float]:
    """`rank_biased_overlap` of the top `depth` for each of the teacher's queries; 0 where the student has nothing."""
    found = {query: documents.tolist() for query, documents, _ in student.top(depth)}
    return {
        query: rank_biased_overlap(found.get(query, []), documents.tolist(), p)
        for query, documents, _ in teacher.top(depth)
    }


def kendall(student: Run, teacher: Run, depth: int = 100) -> dict[str, float]:
    """Kendall's tau-b between both systems' scores of the teacher's top `depth`, for each of the teacher's queries.

    A document of the teacher's list that the student did not find counts as below all that it found, and such
    documents as tied among each other.

    Returns:
        -1..1 by query; a query where either side has no order at all (one document, or all tied) is left out.
    """
    from scipy.stats import kendalltau

    known = {query: (documents, scores) for query, documents, scores in student}
    taus = {}
    for query, documents, scores in teacher.top(depth):
        if len(documents) < 2:
            continue
        ids, values = known.get(query, (np.empty(0, dtype=object), np.empty(0)))
        own = dict(zip(ids, values.tolist(), strict=True))
        below = min(own.values(), default=0.0) - 1.0
        tau = kendalltau([own.get(document, below) for document in documents], scores, variant="b").statistic
        if np.isfinite(tau):
            taus[query] = float(tau)
    return taus


def score_bins(student: np.ndarray, teacher: np.ndarray, bins: int = 20) -> list[dict[str, float]]:
    """What the teacher says of pairs that the student scores alike: the points of a calibration plot.

    Args:
        student: (pairs,) scores.
        teacher: (pairs,) scores of the same pairs.
        bins: Groups of equal size, by the student's score; fewer where there are fewer pairs.

    Returns:
        For each group, lowest first: ``pairs``, the mean ``student`` and ``teacher`` scores, and the teacher's
        quartiles ``low`` and ``high``. A student's means should rise, and its quartiles lie close together.

    Raises:
        UserError: Scores of different length.
    """
    if student.shape != teacher.shape or student.ndim != 1:
        raise UserError(f"scores of shape {student.shape} and {teacher.shape}; both are (pairs,).")
    groups = np.array_split(np.argsort(student, kind="stable"), min(bins, len(student))) if len(student) else []
    return [
        {
            "pairs": len(rows),
            "student": float(student[rows].mean()),
            "teacher": float(teacher[rows].mean()),
            "low": float(np.percentile(teacher[rows], 25)),
            "high": float(np.percentile(teacher[rows], 75)),
        }
        for rows in groups
    ]
