"""Agreement between the rankings of a student and its teacher, without relevance judgments."""

from __future__ import annotations

from collections.abc import Hashable, Mapping, Sequence

import numpy as np

from retrodistill.core.errors import UserError
from retrodistill.runs.run import Run


def rank_agreement(student: np.ndarray, teacher: np.ndarray) -> np.ndarray:
    """NDCG of the student's ranking where the teacher's document at rank r has gain k + 1 - r (linear gains).

    Both are (queries, k) document numbers, best first; the teacher's are padded with -1. Returns (queries,) float64 in
    0..1; 1 for identical lists, 0 if the teacher's list is empty.
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


def labeled_ndcg(ranked: np.ndarray, grades: Mapping[int, Mapping[int, int]]) -> float:
    """Mean nDCG of the rows of ``ranked`` that have labels; as trec_eval's ndcg_cut_k where lists are a whole corpus.

    The rankings are (queries, k) document numbers, best first; ``grades`` are by row and document number, above 0, of
    at least one row. The ideal is the best order of the documents that have grades. Returns a value in 0..1.
    """
    discounts = 1 / np.log2(np.arange(2, ranked.shape[1] + 2))
    values = []
    for row, judged in grades.items():
        gains = np.array([judged.get(document, 0) for document in ranked[row].tolist()])
        ideal = np.sort(list(judged.values()))[::-1][: len(discounts)]
        values.append(gains @ discounts / (ideal @ discounts[: len(ideal)]))
    return float(np.mean(values))


def overlap(student: Run, teacher: Run, k: int = 10, *, tie: float | None = None) -> dict[str, float]:
    """Share of the teacher's top k that is in the student's top k, in 0..1, for each of the teacher's queries.

    For runs on the same scale of scores, `tie` counts any of the student's documents whose score is at least the
    teacher's k-th score minus this share of the teacher's best.
    """
    top = {query: (documents, scores) for query, documents, scores in student.top(k)}
    no_results = (np.empty(0, dtype=object), np.empty(0))
    shares = {}
    for query, documents, scores in teacher.top(k):
        own, own_scores = top.get(query, no_results)
        shared = len(set(own) & set(documents))
        if tie is not None:
            shared = min(len(documents), int((own_scores >= scores[-1] - tie * abs(scores[0])).sum()))
        shares[query] = shared / len(documents)
    return shares


def rank_biased_overlap(student: Sequence[Hashable], teacher: Sequence[Hashable], p: float = 0.9) -> float:
    """Extrapolated rank-biased overlap of two rankings without ties (Webber, Moffat and Zobel 2010, equation 32).

    The agreement at depth d has weight (1 - p) p^(d - 1): with p = .9, the first ten ranks have 86% of the weight.
    Beyond the end of the lists, the agreement is assumed to stay constant. The lists have documents, best first, each
    once, and may differ in length; p is above 0 and below 1. Returns 0..1; 1 for identical lists, 0 if they share
    nothing or one is empty.
    """
    if not 0 < p < 1:
        raise UserError(f"rank-biased overlap with p={p}; p must be between 0 and 1, both excluded.")
    short, long = sorted((list(student), list(teacher)), key=len)
    if len(set(short)) < len(short) or len(set(long)) < len(long):
        raise UserError("a document appears twice in a ranking; rank-biased overlap needs each once.")
    size, longest = len(short), len(long)
    if not size:
        return 0.0
    depths = np.arange(1, longest + 1)
    place = {document: rank for rank, document in enumerate(short)}
    # A shared document counts in the overlap from the deeper of its two ranks on.
    deeper = [max(rank, place[document]) for rank, document in enumerate(long) if document in place]
    shared = np.cumsum(np.bincount(np.array(deeper, dtype=np.int64), minlength=longest))
    weights = p ** depths.astype(np.float64)
    known = float((shared / depths * weights).sum())
    at_size = shared[size - 1]
    assumed = float((at_size * (depths - size) / (size * depths) * weights)[depths > size].sum())
    rest = (shared[-1] - at_size) / longest + at_size / size
    return float((1 - p) / p * (known + assumed) + rest * p**longest)


def ranking_overlap(student: Run, teacher: Run, p: float = 0.9, depth: int = 100) -> dict[str, float]:
    """`rank_biased_overlap` of the top `depth` for each of the teacher's queries; 0 if the student has no results."""
    own = {query: documents.tolist() for query, documents, _ in student.top(depth)}
    return {
        query: rank_biased_overlap(own.get(query, []), documents.tolist(), p)
        for query, documents, _ in teacher.top(depth)
    }


def kendall(student: Run, teacher: Run, depth: int = 100) -> dict[str, float]:
    """Kendall's tau-b between both systems' scores of the teacher's top `depth`, for each of the teacher's queries.

    Documents that the student did not retrieve are tied, below all that it retrieved. Returns -1..1 by query, without
    queries for which either side has no order (one document, or all tied).
    """
    from scipy.stats import kendalltau

    known = student.to_dict()
    taus = {}
    for query, documents, scores in teacher.top(depth):
        if len(documents) < 2:
            continue
        own = known.get(query, {})
        below = min(own.values(), default=0.0) - 1.0
        tau = kendalltau([own.get(document, below) for document in documents], scores, variant="b").statistic
        if np.isfinite(tau):
            taus[query] = float(tau)
    return taus


def score_bins(student: np.ndarray, teacher: np.ndarray, bins: int = 20) -> list[dict[str, float]]:
    """The teacher's scores of pairs that the student scores alike: the points of a calibration plot.

    Takes (pairs,) scores of both and groups the pairs by the student's score, into at most `bins` of equal size. For
    each group, lowest first, returns the number of ``pairs``, the mean ``student`` and ``teacher`` scores, and the
    teacher's quartiles ``low`` and ``high``. For a good student the teacher's means rise and the quartiles are close
    together.
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
