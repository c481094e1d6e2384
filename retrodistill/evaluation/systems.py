"""What is measured, and what was measured of it."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import pyarrow as pa

from retrodistill.core.errors import UserError
from retrodistill.data.collection import Collection
from retrodistill.data.texts import Texts
from retrodistill.evaluation import results
from retrodistill.evaluation.measures import Grades, means
from retrodistill.rankers.loading import load_ranker
from retrodistill.rankers.protocol import Ranker
from retrodistill.runs.formats import read_run
from retrodistill.runs.run import Run

PLACE = "{collection}"  # in the name of a run or an index: replaced by the name of the collection that is measured


@dataclass(frozen=True)
class System:
    """A system to measure.

    Attributes:
        name: Its name in tables and files.
        ranker: What searches.
        role: baseline, teacher, control or student.
        documents_by, queries_by: What encodes each side; empty for what the ranker says.
        source: What `load_ranker` takes for it, as text, so that another process can measure its memory; None for an
            object, whose memory is not measured.
        is_served: False for a system that is not meant to be served: it gets neither latency nor bytes per document.
        queries: Its queries in place of the collection's, under the same ids: rewrites. None for the collection's.
    """

    name: str
    ranker: Ranker
    role: results.Role = "baseline"
    documents_by: str = ""
    queries_by: str = ""
    source: str | None = None
    is_served: bool = True
    queries: Texts | None = None


@dataclass(frozen=True)
class Task:
    """What systems are measured on.

    Attributes:
        collection: Where they search.
        split: Name of the split.
        queries: Its queries.
        grades: Its judgments; None where there are none.
    """

    collection: Collection
    split: str
    queries: Texts
    grades: Grades | None


@dataclass(frozen=True)
class Measured:
    """What was measured of a system.

    Attributes:
        row: As in results.json.
        run: Its results, or the file that holds them; None where they were dropped.
        per_query: query_id and a column per measure; None without judgments.
        note: What a reader must know of it; empty for nothing.
    """

    row: results.System
    run: Run | Path | None
    per_query: pa.Table | None
    note: str = ""

    @classmethod
    def of(
        cls, run: Run | Path, per_query: pa.Table | None, cost: results.Cost | None, note: str = "", **row: Any
    ) -> Measured:
        """From what was measured, and from the other values of the row in results.json."""
        values = {} if per_query is None else means(per_query)
        timed = None if cost is None else cost.timings[0].total
        content = {**row, **results.of_measures(values), "query_ms": timed, "cost": cost}
        return cls(results.System.model_validate(content), run, per_query, note)

    @property
    def name(self) -> str:
        """The system's."""
        return self.row.name

    def load_run(self) -> Run:
        """The run, read where it is on disk.

        Raises:
            UserError: There is none.
        """
        if self.run is None:
            raise UserError(f"the run of {self.name} was not kept; evaluate it again with a folder.")
        return read_run(self.run, may_be_empty=True) if isinstance(self.run, Path) else self.run

    def values(self, measure: str) -> dict[str, float]:
        """One measure by query; empty where it was not measured."""
        if self.per_query is None or measure not in self.per_query.column_names:
            return {}
        return dict(zip(self.per_query["query_id"].to_pylist(), self.per_query[measure].to_pylist(), strict=True))

    def with_row(self, **changes: Any) -> Measured:
        """The same with other values in its row."""
        return replace(self, row=self.row.model_copy(update=changes))


def named_systems(systems: Mapping[str, Any] | Sequence[Any] | Any) -> dict[str, Any]:
    """Systems by name, from a mapping, a list of names or objects, or one alone.

    Raises:
        UserError: There is none, or two have one name.
    """
    if isinstance(systems, Mapping):
        named = dict(systems)
    else:
        listed = list(systems) if isinstance(systems, (list, tuple)) else [systems]
        names = [str(getattr(system, "name", system)) for system in listed]
        twice = next((name for name in names if names.count(name) > 1), None)
        if twice is not None:
            raise UserError(f"system {twice!r} is given twice; give each once, or a name to each.")
        named = dict(zip(names, listed, strict=True))
    if not named:
        raise UserError("no system to evaluate; give at least one.")
    return named


def load_systems(sources: Mapping[str, Any], collection: str, loaded: dict[str, System]) -> list[System]:
    """The systems for one collection; those without ``{collection}`` in their source are loaded once, into `loaded`.

    Args:
        sources: By name, what `load_ranker` takes.
        collection: The collection's name.
        loaded: Systems that serve for other collections too.

    Raises:
        UserError: One cannot be loaded, or cannot search.
    """
    systems = []
    for name, source in sources.items():
        if isinstance(source, str) and PLACE in source:
            systems.append(_load(name, source.replace(PLACE, collection)))
        else:
            if name not in loaded:
                loaded[name] = _load(name, source)
            systems.append(loaded[name])
    return systems


def _load(name: str, source: Any) -> System:
    text = str(source) if isinstance(source, (str, Path)) else None
    return System(name, load_ranker(source, needs="search"), source=text)
