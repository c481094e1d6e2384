"""Compare systems on the same queries: is a difference real, and where does it come from?"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from itertools import combinations
from typing import Any

import numpy as np
import pyarrow as pa

from retrodistill.core.errors import UserError, sample_of, unknown
from retrodistill.evaluation.results import Agreement
from retrodistill.evaluation.significance import LEAST, compare_paired, holm, outcomes, smallest_difference


@dataclass(frozen=True)
class Comparison:
    """What `compare` found.

    Attributes:
        measure: What was compared.
        queries: Number of queries.
        means: Of each system, in the order given.
        comparisons: As in results.json, ``a``, ``b``, ``measure``, ``difference`` (mean of a - b), ``interval``, ``p``;
            and ``p_holm``, ``smallest`` (detectable difference), ``wins``, ``ties``, ``losses`` of a, and ``changed``:
            the queries with the largest differences, both ways, each ``query_id``, ``text``, ``a``, ``b``,
            ``difference``.
        agreement: With a teacher, by system; empty where none was asked.
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
        shown: Queries to list of each comparison, at most so many won and so many lost.
        texts: Of the queries, by id.
        seed: Of the resampling.

    Raises:
        UserError: Fewer than two systems, a measure that one lacks, values that are no numbers, a query twice, or
            different sets of queries: some are named.
    """
    if len(systems) < 2:
        raise UserError(f"{len(systems)} system to compare ({sample_of(systems)}); give at least two.")
    queries, values = _aligned(systems, measure)
    names = list(systems)
    pairs = combinations(names, 2) if every_pair else ((names[0], other) for other in names[1:])
    # The later minus the earlier: what the change brought.
    found = paired_tests([(later, earlier) for earlier, later in pairs], values, measure, seed)
    for one in found:
        one["changed"] = _changed(queries, values[one["a"]], values[one["b"]], shown, texts or {})
    return Comparison(measure, len(queries), {name: float(values[name].mean()) for name in names}, found)


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
    found = [
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
    for one, corrected in zip(found, holm([one["p"] for one in found]), strict=True):
        one["p_holm"] = corrected
    return found


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
            raise UserError(f"{name}: query {sample_of(twice)} stands more than once; keep one value per query.")
        bad = [query for query, value in zip(queries, column, strict=True) if value is None or not np.isfinite(value)]
        if bad:
            raise UserError(
                f"{name}: {measure} of query {sample_of(bad)} is no number; a query without results counts 0."
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
