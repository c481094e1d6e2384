"""Selection: the pairs that an expensive teacher scores, and the queries that a stage trains on."""

from __future__ import annotations

from collections import Counter
from collections.abc import Collection, Mapping
from dataclasses import dataclass

import numpy as np

from retrodistill.core.errors import UserError, unknown
from retrodistill.data.collection import Qrels
from retrodistill.runs.calibration import list_log_softmax, list_moments
from retrodistill.runs.run import Run, look_up

BUDGETS = {
    "robust": "pairs that the cheap sources leave open, the surer of them the likelier (robust active distillation)",
    "uncertain": "the same by the student in training, as it is when the stage begins",
    "random": "pairs drawn uniformly: the control",
}
RULES = {
    "prod": "queries that the teacher gets right and the student almost does (PROD)",
    "disagreement": "texts on whose candidates student and teacher disagree most",
    "topics": "texts drawn in proportion to the disagreement on their topic",
    "random": "texts drawn uniformly: the control",
}
_MOST = 500.0  # logits; exp overflows float64 above about 709


@dataclass(frozen=True)
class Budget:
    """The pairs chosen within a budget."""

    run: Run  # the chosen pairs with the scores that chose them, at least two of each query that has any
    limit: int  # the budget in pairs
    pairs: int  # in the pool
    queries: int  # in the pool
    single: int  # queries with one candidate, which teach nothing and are never chosen
    by: str  # method that chose them
    bought: int = 0  # pairs among them that were bought before

    @property
    def summary(self) -> str:
        """What was chosen and left out, in one line."""
        chosen = len(self.run)
        text = f"budget: {chosen} of {self.pairs} pairs ({chosen / self.pairs:.1%}) of {len(self.run.query_ids)} of "
        text += f"{self.queries} queries, by {self.by}"
        if self.bought:
            text += f"; {self.bought} of them were bought before"
        if self.single:
            text += f"; {self.single} queries have one candidate and are left out"
        if chosen < self.limit:
            text += f"; {self.limit - chosen} of the budget is not spent"
        return text


def choose_pairs(
    pool: Run,
    budget: int | str,
    by: str = "robust",
    *,
    mistakes: float = 0.1,
    seed: int = 0,
    temperature: float | None = None,
    bought: Run | None = None,
) -> Budget:
    """Choose the pairs that the teacher scores from a pool that a cheap ranker or the student has scored.

    The first choice from a query adds two pairs, since a list of one teaches nothing. With ``robust`` and
    ``uncertain``, the second is the rival that made the first uncertain. With ``random``, it is drawn at random. Every
    further pair is drawn alone. If lists differ in length, ``random`` therefore takes a pair from a short list slightly
    more often than one from a long list. The same pool, budget and seed choose the same pairs.

    Args:
        pool: Candidates with scores of one scale (the student's, a cheap ranker's, several fused), raw, higher is
            better; at least one query has two candidates. Reciprocal ranks qualify, but every query has the same.
        budget: Pairs, or a share of the pool such as ``"25%"``, never exceeded by new pairs. At most one pair is left
            over if every opened list is exhausted, and more if the pool is smaller than the budget.
        by: A key of `BUDGETS`.
        mistakes: For ``robust`` and ``uncertain``, the share of the pool, from 0 to below 1, on which the teacher may
            be wrong. A larger share spreads the choice further.
        seed: Of the random draws.
        temperature: By which the student's scores are divided before its softmax; ``uncertain`` needs it.
        bought: Pairs that are bought already. Those of the pool are chosen first, even beyond the budget.
    """
    if by not in BUDGETS:
        raise unknown("way to spend a budget", by, BUDGETS)
    if by == "uncertain" and temperature is None:
        raise UserError("'uncertain' is for stages of a recipe, whose student chooses; here, take robust or random.")
    limit = pairs_within(budget, len(pool))
    two = np.diff(pool.bounds) >= 2
    ranked = pool.filter(two[pool.query_codes]).ranked()
    if not len(ranked):
        raise UserError(f"run {pool.name} has no query with two candidates, and a list of one teaches nothing.")
    noise = np.random.default_rng(seed).gumbel(size=len(ranked))
    is_bought = np.zeros(len(ranked), dtype=bool) if bought is None else ~np.isnan(look_up(bought, ranked))
    before, new = int(is_bought.sum()), np.flatnonzero(~is_bought)
    left = limit - before if len(new) else 0
    if by == "random":
        order, rivals = new[np.argsort(-noise[new], kind="stable")], _rivals(ranked, noise)
    else:
        gain, rivals = gains(ranked, temperature)[new], _rivals(ranked, ranked.scores)
        order = new[_robust_order(gain, noise[new], left, mistakes)] if left > 0 else new
    chosen = _spend(order, rivals, ranked.query_codes, left, is_bought)
    return Budget(ranked.filter(chosen), limit, len(pool), len(pool.query_ids), int((~two).sum()), by, before)


def pairs_within(budget: int | str, pairs: int) -> int:
    """A budget in pairs: a number, at least 2, or a share of a pool of `pairs`, ``"25%"``, rounded, at least 2."""
    text = str(budget).strip()
    try:
        if text.endswith("%"):
            share = float(text[:-1])
            if 0 < share <= 100:
                return max(2, round(pairs * share / 100))
        elif int(text) >= 2:
            return int(text)
    except ValueError:
        pass
    raise UserError(
        f"budget {text!r}: give a number of pairs, at least 2, or a share of the pool up to 100, e.g. '25%'."
    )


def gains(run: Run, temperature: float | None = None) -> np.ndarray:
    """The uncertainty of whoever scored each pair, (rows,) float64 in (0, 1], for at least two rows per query.

    Robust active distillation uses the student's uncertainty, 1 - (probability of its first class - that of its
    second). This package adapts it to lists: a pair's two outcomes are that its document beats its rival or does not.
    The rival is the query's best other document, so the best document's rival is the second best. Under a softmax over
    the list, the odds of two documents are Bradley and Terry's, P(d beats r) = sigmoid((s_d - s_r) / T). The gain is
    twice the probability that the two are in the wrong order, 2 min(P, 1 - P) = 2 / (1 + exp(gap / T)), where the gap
    is that of the two scores.

    T is the `temperature` of the student's softmax. A cheap ranker has none: by default, T is the mean standard
    deviation of the lists that have one, which makes the gain independent of the scale of the scores.
    """
    if temperature is None:
        deviation = list_moments(run)[1]
        temperature = deviation[deviation > 0].mean() if (deviation > 0).any() else 1.0
    gap = np.abs(run.scores - run.scores[_rivals(run, run.scores)]) / temperature
    return 2 / (1 + np.exp(np.minimum(gap, _MOST)))


def robust_weights(gain: np.ndarray, mistakes: float = 0.1, least: int = 1) -> np.ndarray:
    """Robust active distillation's distribution over points (Baykal et al., ICLR 2023, arXiv 2210.01213).

    The distribution q maximizes the gain sum_i q_i g_i when an adversary removes the m points on which the teacher is
    wrong. With g sorted downwards and H_k = sum_{i <= k} 1 / g_i: k* = argmax (k - m) / H_k, then q_i is
    (1 / g_i) / H_k* for i <= k* and 0 below. Confident points get no weight. Among uncertain points, those that the
    teacher is likely to get right get the most. The solution is from memory of the paper, and the tests check it
    against the linear program. `mistakes`, which is m / n, and `least`, the minimum number of points with a weight for
    a budget larger than k*, are this package's choice and may differ from how the paper sets m.

    Takes (n,) gains above 0 and returns (n,) float64 weights that sum to 1.
    """
    if not 0 <= mistakes < 1:
        raise UserError(f"mistakes={mistakes}: the share of pairs that the teacher may get wrong lies in [0, 1).")
    order = np.argsort(-gain, kind="stable")
    inverse = 1 / gain[order]
    value = (np.arange(1, len(gain) + 1) - mistakes * len(gain)) / np.cumsum(inverse)
    kept = max(int(np.argmax(value)) + 1, min(least, len(gain)))
    weights = np.zeros(len(gain))
    weights[order[:kept]] = inverse[:kept] / inverse[:kept].sum()
    return weights


def _robust_order(gain: np.ndarray, noise: np.ndarray, limit: int, mistakes: float) -> np.ndarray:
    """Rows in the order of purchase: weighted draws without replacement, then the rest by gain.

    Adding Gumbel noise to log weights and sorting is such a draw (Efraimidis and Spirakis 2006; Kool et al. 2019).
    """
    weights = robust_weights(gain, mistakes, limit)
    with np.errstate(divide="ignore"):
        keys = np.where(weights > 0, np.log(weights) + noise, -np.inf)
    return np.lexsort((-gain, -keys))


def _rivals(run: Run, values: np.ndarray) -> np.ndarray:
    """(rows,) int64 row of the best other document of each row's query by (rows,) `values`; two rows or more each."""
    order = np.lexsort((-values, run.query_codes))
    first, second = order[run.bounds[:-1]], order[run.bounds[:-1] + 1]
    rivals = first[run.query_codes]
    rivals[first] = second
    return rivals


def _spend(order: np.ndarray, rivals: np.ndarray, queries: np.ndarray, budget: int, bought: np.ndarray) -> np.ndarray:
    """(rows,) bool: what is `bought`, and pairs by walking down `order`. The first pair of a query brings its rival."""
    chosen = bought.copy()
    opened = np.zeros(int(queries.max()) + 1, dtype=bool)
    opened[queries[bought]] = True
    left = budget
    for row in order:
        if left <= 0:
            break
        if chosen[row]:
            continue
        if opened[queries[row]]:
            chosen[row], left = True, left - 1
        elif left >= 2:  # the last single pair of a budget can only go to a query that already has pairs
            chosen[[row, rivals[row]]], left = True, left - 2
            opened[queries[row]] = True
    return chosen


@dataclass(frozen=True)
class Selection:
    """The queries that a stage trains on."""

    query_ids: list[str]  # the selected queries, in the order of the teacher's run
    counts: Counter[str]
    """Number of queries by outcome: ``unlabeled`` (no positive), ``teacher_wrong`` (ranks no positive first),
    ``not_ranked`` (the student's run lacks the query), ``student_right`` (ranks a positive above the range),
    ``too_far`` (ranks the positives below the range, or not at all), and ``selected``."""


def prod_selection(
    teacher: Run, student: Run, positives: Mapping[str, Collection[str]], ranks: tuple[int, int] = (2, 15)
) -> Selection:
    """Queries for which the teacher is right and the student is wrong but close (PROD, WWW 2023, last stage).

    A query is selected if the teacher ranks a positive first and the student ranks its best positive within `ranks`.
    PROD has one positive per query. If there are several, the best counts.

    Args:
        teacher: The teacher's scores.
        student: The student's scores of the same candidates, or of a search at least as deep as the range.
        positives: Relevant documents by query, from `labeled` or `pseudo_labeled`. State in the results which.
        ranks: First and last rank of the student that is selected, inclusive. The first is at least 2: at rank 1 the
            student is right.
    """
    first, last = ranks
    if not 2 <= first <= last:
        raise UserError(
            f"ranks={first}, {last}: the first is at least 2, where the student is wrong, and at most the last."
        )
    ranked = {query: documents for query, documents, _ in student.top(last)}

    def outcome(query: str, best: str) -> str:
        relevant = positives.get(query, ())
        if not relevant:
            return "unlabeled"
        if best not in relevant:
            return "teacher_wrong"
        if query not in ranked:
            return "not_ranked"
        rank = next((rank for rank, document in enumerate(ranked[query], start=1) if document in relevant), last + 1)
        return "student_right" if rank < first else "too_far" if rank > last else "selected"

    outcomes = {query: outcome(query, documents[0]) for query, documents, _ in teacher.top(1)}
    return Selection([query for query in outcomes if outcomes[query] == "selected"], Counter(outcomes.values()))


def disagreements(teacher: Run, student: Run, temperatures: tuple[float, float]) -> np.ndarray:
    """How far the student is from the teacher on each query's candidates, (queries,) float64 in nats, 0 or more.

    KL divergence from the softmax of the teacher's scores to that of the student's, over their temperatures. Both runs
    have the same pairs in the same order.
    """
    of, to = map(list_log_softmax, (teacher, student), temperatures)
    return np.asarray(np.maximum(np.add.reduceat(np.exp(of) * (of - to), teacher.bounds[:-1]), 0.0))


def chosen_texts(
    by: str, gaps: np.ndarray, share: float, *, topics: np.ndarray | None = None, seed: int = 0
) -> np.ndarray:
    """(n,) bool, the share of texts that a rule of `RULES` other than ``prod`` chooses; at least one.

    Args:
        by: ``disagreement`` takes the largest gaps, ties in order. ``topics`` draws without replacement, a text in
            proportion to the mean gap of its topic. ``random`` draws uniformly.
        gaps: (n,) how far the student is from the teacher, 0 or more.
        share: Of the texts, above 0 and below 1.
        topics: (n,) int64 topic of each text, for ``topics``.
        seed: Of the draws.
    """
    count = max(1, round(share * len(gaps)))
    if by == "disagreement":
        order = np.argsort(-gaps, kind="stable")
    else:
        weights = np.ones(len(gaps))
        if by == "topics" and topics is not None:
            sizes = np.bincount(topics)
            weights = (np.bincount(topics, gaps) / np.maximum(sizes, 1))[topics]
        with np.errstate(divide="ignore"):
            order = np.argsort(-(np.log(weights) + np.random.default_rng(seed).gumbel(size=len(gaps))), kind="stable")
    chosen = np.zeros(len(gaps), dtype=bool)
    chosen[order[:count]] = True
    return chosen


def labeled(qrels: Qrels) -> dict[str, set[str]]:
    """Positives from labels: judged documents with a grade above 0."""
    positives: dict[str, set[str]] = {}
    for row in qrels.table.to_pylist():
        if row["relevance"] > 0:
            positives.setdefault(row["query_id"], set()).add(row["document_id"])
    return positives


def pseudo_labeled(run: Run) -> dict[str, set[str]]:
    """Positives without judgments: the documents that an ensemble ranks first.

    They are not labels. Use an ensemble that contains more than the teacher of the stage: a teacher whose own first
    document counts as the positive is right by definition.
    """
    return {query: {documents[0]} for query, documents, _ in run.top(1)}
