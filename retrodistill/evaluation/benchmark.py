"""Evaluation on several collections: BEIR's table with its rows and mean, in a folder that can be resumed."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np

from retrodistill.core.errors import UserError
from retrodistill.core.json_files import write_json
from retrodistill.core.names import check_file_name
from retrodistill.core.paths import path_of
from retrodistill.core.runtime import log
from retrodistill.data import Collection, load_collection
from retrodistill.data.beir import FORUMS, is_collection, load_folder
from retrodistill.data.parents import PassageSettings
from retrodistill.evaluation.evaluating import Evaluation, EvaluationConfig, evaluate, task_of
from retrodistill.evaluation.systems import System, named_systems

CQADUPSTACK = "cqadupstack"
Means = dict[str, dict[str, float]]


@dataclass(frozen=True)
class Benchmark:
    """Evaluations on several collections."""

    evaluations: list[Evaluation]  # one per collection, in the order given, without runs
    rows: list[str]  # the row of each in the table: the collection's name, or ``cqadupstack`` for its forums

    @property
    def table(self) -> dict[str, Means]:
        """``{row: {system: {measure: mean}}}`` of judged collections; CQADupStack's row is the mean over its forums."""
        table: dict[str, Means] = {}
        for row in dict.fromkeys(self.rows):
            parts = [part.means for part, own in zip(self.evaluations, self.rows, strict=True) if own == row]
            if all(parts):
                table[row] = _mean_of(parts)
        return table

    @property
    def means(self) -> Means:
        """``{system: {measure: mean over the rows of the table}}``: every data set has the same weight."""
        return _mean_of(list(self.table.values()))

    def to_json(self) -> dict[str, Any]:
        """All results, the rows of the table, and the means."""
        collections = [evaluation.results.to_json() for evaluation in self.evaluations]
        return {"collections": collections, "table": self.table, "means": self.means}


def benchmark(
    systems: Mapping[str, Any] | Sequence[Any] | Any,
    collections: Sequence[Collection | str],
    config: EvaluationConfig | None = None,
    out: str | Path | None = None,
    *,
    passages: Any = None,
) -> Benchmark:
    """Measure systems on collections by BEIR's rules; with a folder, an interrupted benchmark resumes.

    Args:
        systems: As for `evaluate`; ``{collection}`` in a name (``run:runs/{collection}.run``) is that of each.
        collections: What `load_collection` takes; ``beir/cqadupstack`` is its twelve forums and one row.
        config: What to measure.
        out: Folder with ``benchmark.json`` (the table) and, as `evaluate` writes it, a subfolder for each collection.
        passages: Cut the documents of all collections, as `load_collection` does.

    Raises:
        UserError: As `evaluate`, or two collections have the same name.
    """
    named, config = named_systems(systems), (config or EvaluationConfig()).with_teacher()
    listed = sources(collections)
    rule = None if passages is None else PassageSettings.of(passages)
    if not listed:
        raise UserError("no collection to measure on; give at least one.")
    opened: dict[str, Collection] = {}
    for source in listed:  # all of them before the first is measured, so that mistakes are found before hours of work
        collection = load_collection(source.load(), passages=rule)
        if collection.name in opened:
            raise UserError(f"two collections are named {collection.name}; rename the folder of one.")
        if out is not None:
            check_file_name(collection.name, "a collection")
        opened[collection.name] = collection
        task_of(collection, config)
    loaded: dict[str, System] = {}
    evaluations: list[Evaluation] = []
    rows = []
    for number, (source, collection) in enumerate(zip(listed, opened.values(), strict=True), start=1):
        if len(listed) > 1:
            log(f"{collection.name} ({number} of {len(listed)})")
        folder = None if out is None else path_of(out) / collection.name
        cost = None if config.cost is None else replace(config.cost, place=source.place)
        evaluation = evaluate(named, collection, replace(config, cost=cost), folder, loaded)
        evaluations.append(evaluation if len(listed) == 1 else evaluation.without_runs())
        rows.append(source.row or collection.name)
    whole = Benchmark(evaluations, rows)
    if out is not None:
        write_json(path_of(out) / "benchmark.json", whole.to_json())
    return whole


def row_title(row: str, benchmark: Benchmark) -> str:
    """A row's name, with the number of forums for CQADupStack."""
    return f"{row} (mean of {benchmark.rows.count(row)})" if row == CQADUPSTACK else row


def _mean_of(parts: Sequence[Means]) -> Means:
    """Means over parts that have the same systems and measures."""
    if not parts:
        return {}
    return {
        system: {measure: float(np.mean([part[system][measure] for part in parts])) for measure in measures}
        for system, measures in parts[0].items()
    }


@dataclass(frozen=True)
class Source:
    """A collection to measure on."""

    load: Callable[[], Collection]  # opens it
    place: str | None = None  # what `load_collection` takes, as text; None for a collection in memory
    row: str | None = None  # the row of the table that it is a part of; None for its own row


def sources(given: Iterable[Collection | str | Path]) -> list[Source]:
    """Collections in the order given; CQADupStack becomes its twelve forums, one row; a UserError if one is lacking."""
    listed = []
    for source in given:
        if isinstance(source, Collection):
            listed.append(Source(partial(load_collection, source)))
        elif source in (f"beir/{CQADUPSTACK}", f"ir_datasets:beir/{CQADUPSTACK}"):
            places = [f"{source}/{forum}" for forum in FORUMS]
            listed += [Source(partial(load_collection, place), place, CQADUPSTACK) for place in places]
        elif (folder := path_of(source)).name == CQADUPSTACK and folder.is_dir() and not is_collection(folder):
            lacking = [forum for forum in FORUMS if not is_collection(folder / forum)]
            if lacking:
                raise UserError(
                    f"{folder} lacks {', '.join(lacking)} of CQADupStack's {len(FORUMS)} forums; its row is the "
                    "mean of all: add them, or name the folders of single forums."
                )
            folders = [(folder / forum, f"{CQADUPSTACK}-{forum}") for forum in FORUMS]
            listed += [Source(partial(load_folder, place, name), str(place), CQADUPSTACK) for place, name in folders]
        else:
            listed.append(Source(partial(load_collection, source), str(source)))
    return listed
