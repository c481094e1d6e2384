"""Compare systems on the same queries: is a difference real, and where does it come from?"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from itertools import combinations
from statistics import NormalDist
from typing import Any

import numpy as np
import pyarrow as pa

from retrodistill.core.errors import UserError, sample_of, unknown
from retrodistill.evaluation.results import Agreement

LEAST = 1e-9  # a difference of at most this is a tie
_RESAMPLES = 10_000
_BLOCK_VALUES = 4_000_000  # per resampling block: bounds memory at about 100 MB for any number of queries


@dataclass(frozen=True)
class Comparison:
    """Result of `compare`.

    Attributes:
        measure: What was compared.
        queries: Number of queries.
        means: Of each system, in the order given.
        comparisons: As in results.json, ``a``, ``b``, ``measure``, ``difference`` (mean of a - b), ``interval``, ``p``;
            and ``p_holm``, ``smallest`` (detectable difference), ``wins``, ``ties``, ``losses`` of a, and ``changed``:
            the queries with the largest differences, both ways, each ``query_id``, ``text``, ``a``, ``b``,
            ``difference``.
        agreement: Agreement with a teacher, by system; empty if not requested.
        notes: What a reader must know of the systems.
    """

    measure: str
    queries: int
    means: dict[str, float]
    comparisons: list[dict[str, Any]]
    agreement: dict[str, Agreement] = field(default_factory=dict)
    notes: list[str] = field(default_factory=list)

    def to_json(self) -> dict[str, Any]:
        """The dictionary for programs."""
        return {
            "measure": self.measure,
            "queries": self.queries,
            "systems": [{"name": name, self.measure: value} for name, value in self.means.items()],
            "comparisons": self.comparisons,
            "agreement": {name: one.model_dump(mode="json", by_alias=True) for name, one in self.agreement.items()},
            "notes": self.notes,
        }


def compare(
    systems: Mapping[str, pa.Table],
    measure: str = "ndcg@10",
    *,
    every_pair: bool = False,
    shown: int = 5,
    texts: Mapping[str, str] | None = None,
    seed: int = 0,
) -> Comparison:
    """Compare per-query values: each system with the first, corrected for their number.

    Args:
        systems: By name, a table query_id and measures, as `evaluate` gives it.
        measure: A column of them.
        every_pair: Compare each with each.
        shown: Maximum number of won queries and of lost queries to list per comparison.
        texts: Of the queries, by id.
        seed: Of the resampling.

    Raises:
        UserError: Fewer than two systems, a measure that one lacks, values that are not numbers, a query twice, or
            different sets of queries: some are named.
    """
    if len(systems) < 2:
        raise UserError(f"{len(systems)} system to compare ({sample_of(systems)}); give at least two.")
    queries, values = _aligned(systems, measure)
    names = list(systems)
    pairs = combinations(names, 2) if every_pair else ((names[0], other) for other in names[1:])
    # The later minus the earlier: what the change brought.
    tests = paired_tests([(later, earlier) for earlier, later in pairs], values, measure, seed)
    for test in tests:
        test["changed"] = _changed(queries, values[test["a"]], values[test["b"]], shown, texts or {})
    return Comparison(measure, len(queries), {name: float(values[name].mean()) for name in names}, tests)


def paired_tests(
    pairs: Sequence[tuple[str, str]], values: Mapping[str, np.ndarray], measure: str, seed: int = 0
) -> list[dict[str, Any]]:
    """The comparisons of results.json, each a against b, corrected for all of them together.

    Args:
        pairs: Names (a, b).
        values: By name, (queries,) values of one measure, the queries in one order.
        measure: Its name.
        seed: Of the resampling.

    Returns:
        As `Comparison.comparisons`, without ``changed``.
    """
    tests = [
        {
            "a": a,
            "b": b,
            "measure": measure,
            **compare_paired(values[a], values[b], seed=seed),
            "smallest": smallest_difference(values[a] - values[b]),
            **outcomes(values[a], values[b]),
        }
        for a, b in pairs
    ]
    for test, corrected in zip(tests, holm([test["p"] for test in tests]), strict=True):
        test["p_holm"] = corrected
    return tests


def compare_paired(a: np.ndarray, b: np.ndarray, *, seed: int = 0) -> dict[str, Any]:
    """Compare per-query values of two systems.

    Args:
        a: (queries,) values of one measure.
        b: (queries,) values of the other system, on the same queries in the same order.
        seed: Of the resampling.

    Returns:
        ``difference`` (mean of a - b), ``interval`` (95% bootstrap, percentile) and ``p`` (two-sided paired
        randomization test with 10,000 sign flips; Smucker et al. 2007).

    Raises:
        UserError: The queries differ in number, there are none, or a value is not finite.
    """
    if len(a) != len(b) or not len(a):
        raise UserError(f"{len(a)} and {len(b)} queries cannot be paired; compare systems on the same queries.")
    if not (np.isfinite(a).all() and np.isfinite(b).all()):
        raise UserError("a value to compare is not finite; a query without results counts 0.")
    generator = np.random.default_rng(seed)
    differences = np.asarray(a, dtype=np.float64) - np.asarray(b, dtype=np.float64)
    observed = float(differences.mean())
    extreme, resampled = 0, []
    block = max(1, min(_RESAMPLES, _BLOCK_VALUES // len(differences)))
    for done in range(0, _RESAMPLES, block):
        size = (min(block, _RESAMPLES - done), len(differences))
        flips = generator.choice((-1.0, 1.0), size=size)
        extreme += int((np.abs(flips @ differences) / len(differences) >= abs(observed) - 1e-12).sum())
        drawn = generator.integers(0, len(differences), size=size)
        resampled.append(differences[drawn].mean(axis=1))
    low, high = np.percentile(np.concatenate(resampled), [2.5, 97.5])
    return {
        "difference": observed,
        "interval": [float(low), float(high)],
        "p": (extreme + 1) / (_RESAMPLES + 1),
    }


def holm(p: Sequence[float]) -> list[float]:
    """Holm's correction (1979) of p-values for being several: the least level at which each is still rejected.

    Args:
        p: Of every comparison that is made, in any order.

    Returns:
        Corrected values in the same order, at most 1: in ascending order, the i-th of m (from 0) is multiplied by
        m - i, and none is below the one before.

    Raises:
        UserError: A value outside 0..1.
    """
    values = np.asarray(p, dtype=np.float64)
    if not ((values >= 0) & (values <= 1)).all():  # NaN fails too
        raise UserError(f"p-values {[float(value) for value in values]}: each lies between 0 and 1.")
    order = np.argsort(values, kind="stable")
    corrected = np.empty_like(values)
    corrected[order] = np.minimum(np.maximum.accumulate(values[order] * np.arange(len(values), 0, -1)), 1.0)
    return [float(value) for value in corrected]


def smallest_difference(differences: np.ndarray, *, alpha: float = 0.05, power: float = 0.8) -> float | None:
    """The mean difference that a paired two-sided test on a number of queries detects with the given power.

    (z(1 - alpha / 2) + z(power)) s / sqrt(n), with s the standard deviation of the differences and z the quantiles of
    the normal distribution: 2.80 s / sqrt(n) by default (Sakai, Laboratory Experiments in Information Retrieval, 2018).

    Args:
        differences: (queries,) values of one system minus those of the other.
        alpha: Level of the test.
        power: Chance to find a difference of that size.

    Returns:
        A difference of the measure, above 0; None for fewer than two queries; 0 where all differences are the same.
    """
    if len(differences) < 2:
        return None
    z = NormalDist().inv_cdf(1 - alpha / 2) + NormalDist().inv_cdf(power)
    return float(z * np.std(differences, ddof=1) / np.sqrt(len(differences)))


def outcomes(a: np.ndarray, b: np.ndarray, *, least: float = LEAST) -> dict[str, int]:
    """On how many queries the first system wins, ties and loses; differences of at most `least` are ties."""
    differences = np.asarray(a, dtype=np.float64) - np.asarray(b, dtype=np.float64)
    wins, losses = int((differences > least).sum()), int((differences < -least).sum())
    return {"wins": wins, "ties": len(differences) - wins - losses, "losses": losses}


def _aligned(systems: Mapping[str, pa.Table], measure: str) -> tuple[list[str], dict[str, np.ndarray]]:
    """The queries, in the first system's order, and each system's values in that order."""
    tables: dict[str, dict[str, float]] = {}
    for name, table in systems.items():
        measures = [one for one in table.column_names if one != "query_id"]
        if measure not in measures:
            raise unknown(f"measure of {name}", measure, measures)
        queries, column = table["query_id"].to_pylist(), table[measure].to_pylist()
        if len(set(queries)) < len(queries):
            twice = [query for query in dict.fromkeys(queries) if queries.count(query) > 1]
            raise UserError(f"{name}: query {sample_of(twice)} appears more than once; keep one value per query.")
        bad = [query for query, value in zip(queries, column, strict=True) if value is None or not np.isfinite(value)]
        if bad:
            raise UserError(
                f"{name}: {measure} of query {sample_of(bad)} is not a number; a query without results counts 0."
            )
        tables[name] = dict(zip(queries, column, strict=True))
    first, *others = tables
    for other in others:
        only = [tables[first].keys() - tables[other].keys(), tables[other].keys() - tables[first].keys()]
        if any(only):
            said = [
                f"{len(ids)} only in {name} ({sample_of(sorted(ids))})"
                for name, ids in zip((first, other), only, strict=True)
                if ids
            ]
            raise UserError(
                f"{first} and {other} were measured on different queries: {', '.join(said)}; measure both on the same "
                "split."
            )
    ids = list(tables[first])
    if not ids:
        raise UserError(f"{first} has no query to compare on.")
    return ids, {name: np.array([table[query] for query in ids]) for name, table in tables.items()}


def _changed(
    queries: Sequence[str], a: np.ndarray, b: np.ndarray, shown: int, texts: Mapping[str, str]
) -> list[dict[str, Any]]:
    """The largest gains, then the largest losses, each from the largest on."""
    differences = a - b
    order = np.argsort(-differences, kind="stable")
    gained = [at for at in order[:shown] if differences[at] > LEAST]
    lost = [at for at in order[::-1][:shown] if differences[at] < -LEAST]
    return [
        {
            "query_id": queries[at],
            "text": texts.get(queries[at]),
            "a": float(a[at]),
            "b": float(b[at]),
            "difference": float(differences[at]),
        }
        for at in [*gained, *lost]
    ]
