"""Compare systems on the same queries: systems of evaluated folders, and systems that are measured now."""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from itertools import combinations
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa

from retrodistill.core.errors import UserError, sample_of, unknown
from retrodistill.core.json_files import read_json
from retrodistill.core.manifest import FILE_NAME
from retrodistill.core.paths import path_of
from retrodistill.data import Collection, load_collection
from retrodistill.evaluation.agreement import agreements
from retrodistill.evaluation.evaluating import EvaluationConfig, evaluate
from retrodistill.evaluation.measures import Grades, evaluate_run, parse_measure
from retrodistill.evaluation.results import Agreement
from retrodistill.evaluation.significance import LEAST, paired_tests
from retrodistill.evaluation.systems import PER_QUERY, Measured, read_folder, split_of
from retrodistill.rankers.loading import load_ranker


@dataclass(frozen=True)
class Comparison:
    """Result of `compare`."""

    measure: str
    queries: int  # their number
    means: dict[str, float]  # by system, in the order given
    # As in results.json, and ``changed``: the queries with the largest differences, both ways, each ``query_id``,
    # ``text``, ``a``, ``b``, ``difference``.
    comparisons: list[dict[str, Any]]
    agreement: dict[str, Agreement] = field(default_factory=dict)  # with a teacher, by system; empty if not requested
    notes: list[str] = field(default_factory=list)  # what a reader must know about the systems

    def to_json(self) -> dict[str, Any]:
        """The dictionary for programs."""
        return {
            "measure": self.measure,
            "queries": self.queries,
            "systems": [{"name": name, self.measure: value} for name, value in self.means.items()],
            "comparisons": self.comparisons,
            "agreement": {name: value.model_dump(mode="json", by_alias=True) for name, value in self.agreement.items()},
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
    """Compare per-query values of each system with the first one; p-values are corrected for the number of tests.

    Systems are given by name as tables query_id and measures, as `evaluate` returns them; with `every_pair`, every pair
    is compared. Up to `shown` won and as many lost queries are listed per comparison, with their `texts` (by id).

    Raises:
        UserError: Fewer than two systems, a missing measure, values that are not numbers, a duplicate query, or
            different sets of queries.
    """
    _check_number(list(systems))
    values = _aligned(systems, measure)
    arrays = {name: np.array(list(column.values())) for name, column in values.items()}
    names, queries = list(systems), list(values[next(iter(systems))])
    pairs = combinations(names, 2) if every_pair else ((names[0], other) for other in names[1:])
    # The later minus the earlier: what the change gained.
    tests = paired_tests([(later, earlier) for earlier, later in pairs], arrays, measure, seed)
    for test in tests:
        a, b = arrays[test["a"]], arrays[test["b"]]
        differences = a - b
        # The largest gains, then the largest losses, both in order of size.
        order = np.argsort(-differences, kind="stable")
        gained = [at for at in order[:shown] if differences[at] > LEAST]
        lost = [at for at in order[::-1][:shown] if differences[at] < -LEAST]
        test["changed"] = [
            {"query_id": queries[at], "text": (texts or {}).get(queries[at])}
            | {"a": float(a[at]), "b": float(b[at]), "difference": float(differences[at])}
            for at in [*gained, *lost]
        ]
    return Comparison(measure, len(queries), {name: float(arrays[name].mean()) for name in names}, tests)


def _check_number(systems: Sequence[str]) -> None:
    if len(systems) < 2:
        raise UserError(f"{len(systems)} system to compare ({sample_of(systems)}); give at least two.")


def _tables(measured: Mapping[str, Measured]) -> dict[str, pa.Table]:
    return {title: system.per_query for title, system in measured.items() if system.per_query is not None}


def _aligned(systems: Mapping[str, pa.Table], measure: str) -> dict[str, dict[str, float]]:
    """Values of each system by query, all in the order of the first system."""
    columns: dict[str, dict[str, float]] = {}
    for name, table in systems.items():
        measures = [column for column in table.column_names if column != "query_id"]
        if measure not in measures:
            raise unknown(f"measure of {name}", measure, measures)
        queries, column = table["query_id"].to_pylist(), table[measure].to_pylist()
        twice = [query for query, count in Counter(queries).items() if count > 1]
        if twice:
            raise UserError(f"{name}: query {sample_of(twice)} appears more than once; keep one value per query.")
        columns[name] = dict(zip(queries, column, strict=True))
        bad = [query for query, value in columns[name].items() if value is None or not np.isfinite(value)]
        if bad:
            raise UserError(
                f"{name}: {measure} of query {sample_of(bad)} is not a number; a query without results counts 0."
            )
    first = next(iter(columns))
    for other in columns:
        only = {name: columns[name].keys() - columns[than].keys() for name, than in ((first, other), (other, first))}
        counts = [f"{len(ids)} only in {name} ({sample_of(sorted(ids))})" for name, ids in only.items() if ids]
        if counts:
            raise UserError(
                f"{first} and {other} were measured on different queries: {', '.join(counts)}; measure both on the "
                "same split."
            )
    if not columns[first]:
        raise UserError(f"{first} has no query to compare on.")
    return {name: {query: column[query] for query in columns[first]} for name, column in columns.items()}


def compare_named(  # noqa: PLR0913 - one option each
    names: Sequence[str],
    collection: Collection | str | None = None,
    split: str | None = None,
    measure: str = "ndcg@10",
    teacher: str | None = None,
    *,
    every_pair: bool = False,
    shown: int = 5,
    same_id: str | None = None,
    seed: int = 0,
    rejudge: bool = False,
) -> Comparison:
    """Compare systems by name: ``FOLDER`` of an evaluation (all its systems), ``FOLDER:SYSTEM``, or as for `evaluate`.

    The last are measured now, on the split of the collection, which has the texts of queries too. With a teacher, what
    `load_ranker` takes, agreement with it is also measured. `same_id` is that of
    `EvaluationConfig`; the other arguments are those of `compare`. With `rejudge`, systems of folders are measured
    again: their runs, on their queries, by the judgments that the collection has now.

    Raises:
        UserError: As `compare` and `evaluate`; or a collection is needed and not given.
    """
    measure = parse_measure(measure).name
    source = None if collection is None else load_collection(collection)
    ranker = None if teacher is None else load_ranker(teacher)
    if ranker is not None and source is None:
        raise UserError("agreement with a teacher needs the documents; give --collection.")
    homes = {name: home for name in names if (home := _home(name)) is not None}
    new = [name for name in names if name not in homes]
    if new and source is None:
        raise UserError(f"{new[0]} is not an evaluated folder and would be measured now; give --collection.")
    if source is not None and same_id is not None:
        source = replace(source, same_id=same_id)
    # Mistakes in evaluated folders are found before the others are measured.
    before = _measured(list(homes), homes, {})
    _check_number([*before, *new])
    if tables := _tables(before):
        _aligned(tables, measure)
    now = evaluate(new, source, EvaluationConfig(split, [measure])) if new and source else None
    measured = _measured(names, homes, {} if now is None else now.measured)
    if rejudge and source is not None:
        judged = source.relevance(split_of(source, split)).to_dict()
        measured = {title: _rejudged(system, judged, measure) for title, system in measured.items()}
    tables = _tables(measured)
    texts = None if source is None else source.queries
    comparison = compare(tables, measure, every_pair=every_pair, shown=shown, texts=texts, seed=seed)
    if now is not None:
        comparison = replace(comparison, notes=now.results.notes)
    if ranker is None or source is None:
        return comparison
    split = split_of(source, split)
    grades = source.relevance(split).to_dict() if split in source.qrels else None
    runs = {title: system.load_run() for title, system in measured.items()}
    queries = source.queries.select(list(next(iter(measured.values())).values(measure)))
    return replace(comparison, agreement=agreements(ranker, runs, source, queries, grades))


def _rejudged(system: Measured, grades: Grades, measure: str) -> Measured:
    """A system by its run and these judgments, on the queries that it was measured on."""
    if system.per_query is None:
        return system
    own = {query: grades[query] for query in system.per_query["query_id"].to_pylist() if query in grades}
    return replace(system, per_query=evaluate_run(system.load_run(), own, [measure]))


def _home(name: str) -> tuple[Path, str | None] | None:
    """The evaluated folder that a name begins with, and the system after the colon; None for anything else."""
    path = path_of(name)
    if path.is_dir():
        is_index = (path / FILE_NAME).is_file() and read_json(path / FILE_NAME).get("artifact") == "index"
        return None if is_index else (path, None)
    parts = name.split(":")
    for at in range(1, len(parts)):  # names of systems contain colons too
        folder = path_of(":".join(parts[:at]))
        if (folder / PER_QUERY).is_file():
            return folder, ":".join(parts[at:])
    return None


def _measured(
    names: Sequence[str], homes: Mapping[str, tuple[Path, str | None]], now: Mapping[str, Measured]
) -> dict[str, Measured]:
    """The systems by title: systems with the same name in different folders get the folder in front."""
    systems: dict[tuple[Path | None, str], Measured] = {}
    for name in names:
        folder, system = homes.get(name, (None, name))
        measured = now if folder is None else read_folder(folder)
        if system is not None and system not in measured:
            raise unknown(f"system in {folder}", system, measured)
        systems |= {(folder, title): measured[title] for title in (measured if system is None else [system])}
    titles = Counter(title for _, title in systems)
    return {
        f"{folder}:{title}" if folder is not None and titles[title] > 1 else title: system
        for (folder, title), system in systems.items()
    }
