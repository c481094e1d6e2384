"""What is measured, and what was measured of it."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq

from retrodistill.core.errors import UserError
from retrodistill.core.files import atomic_file, atomic_folder, file_digest, make_folder, read_json
from retrodistill.core.manifest import FILE_NAME, Manifest
from retrodistill.core.stores import slug
from retrodistill.data.collection import Collection
from retrodistill.data.texts import Texts
from retrodistill.evaluation import results
from retrodistill.evaluation.measures import Grades, means
from retrodistill.evaluation.results import Cost, Results
from retrodistill.rankers.loading import load_ranker
from retrodistill.rankers.protocol import Ranker
from retrodistill.runs.formats import read_run, save_run
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

    row: results.SystemResult
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
        return cls(results.SystemResult.model_validate(content), run, per_query, note)

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


_SPLITS = {"msmarco": "dev"}  # its test split is TREC's Deep Learning track of 2019; BEIR's table has dev


_TOUCHE, _TOUCHE_V2 = "webis-touche2020", 2214


def split_of(collection: Collection, split: str | None) -> str:
    """The split that counts: the one asked for, else BEIR's, which is test, and dev for msmarco.

    Without any judgments it is ``all``: there is no quality to measure, and the rest can be.
    """
    if split is not None:
        return split
    if not collection.qrels:
        return "all"
    ruled = _SPLITS.get(_beir_name(collection), "test")
    return ruled if ruled in collection.qrels else "test"


def version_note(collection: Collection, split: str) -> str | None:
    """What a reader must know of a data set that exists in several versions."""
    if _beir_name(collection) not in (_TOUCHE, f"{_TOUCHE}-v2") or split not in collection.qrels:
        return None
    count = len(collection.qrels[split])
    if count == _TOUCHE_V2:
        return f"{_TOUCHE} is version 2 ({count:,} judgments), the one in BEIR's zip: not comparable with v1 or v3."
    return f"{_TOUCHE} has {count:,} judgments; BEIR's version 2 has {_TOUCHE_V2:,}: not comparable with its table."


def _beir_name(collection: Collection) -> str:
    """What BEIR calls a data set, wherever it was loaded from: ir_datasets puts ``beir-`` before it."""
    return collection.name.removeprefix("beir-")


PER_QUERY = "per-query.parquet"


class Folder:
    """``runs/NAME.run``, ``systems/NAME/``; at the end ``per-query.parquet``, ``results.json``, ``report.html``.

    Args:
        path: Of one collection.
        wanted: What decides a measurement besides the system: collection, split, measures, depth.
    """

    def __init__(self, path: Path, wanted: Manifest) -> None:
        self.path, self.wanted = make_folder(path), wanted

    def find(self, name: str, fingerprint: str | None) -> Measured | None:
        """What was measured of a system; None where it was another, or its files are not whole."""
        place = self._place(name)
        known = bool(fingerprint) and self._manifest(name, fingerprint or "").matches(place)
        return self._read(name, place) if known else None

    def _read(self, name: str, place: Path) -> Measured | None:
        """What a system's folder holds; None where its run is gone or another."""
        about = Manifest.read(place).about
        run = self.path / "runs" / about["run"]
        if not run.is_file() or file_digest(run) != about["checksum"]:
            return None
        return Measured.of(
            run,
            pq.read_table(place / PER_QUERY) if (place / PER_QUERY).is_file() else None,
            None if about["cost"] is None else Cost.model_validate(about["cost"]),
            about.get("note", ""),
            name=name,
            role="baseline",
            bytes_per_document=about["bytes_per_document"],
            documents_by=about.get("documents_by", ""),
            queries_by=about.get("queries_by", ""),
        )

    def keep(self, fingerprint: str | None, measured: Measured) -> Measured:
        """Write what was measured, the run first, the manifest last; returns it with the run on disk."""
        row = measured.row
        file = save_run(measured.load_run(), self.path / "runs" / slug(row.name))
        about = {
            "run": file.name,
            "checksum": file_digest(file),
            "bytes_per_document": row.bytes_per_document,
            "cost": None if row.cost is None else row.cost.model_dump(mode="json", by_alias=True),
            "documents_by": row.documents_by,
            "queries_by": row.queries_by,
            "note": measured.note,
        }
        with atomic_folder(self._place(row.name)) as temporary:
            if measured.per_query is not None:
                pq.write_table(measured.per_query, temporary / PER_QUERY)
            self._manifest(row.name, fingerprint or "unknown", about).write(temporary, FILE_NAME)
        return replace(measured, run=file)

    def before(self, names: Iterable[str]) -> dict[str, Measured]:
        """Other systems than `names`, measured before on the same queries by the same measures; the oldest first."""
        found, taken = [], {self._place(name) for name in names}
        here = {"collection": self.wanted.inputs.get("collection"), **self.wanted.settings, "cost": None}
        for place in (self.path / "systems").glob(f"*/{FILE_NAME}"):
            manifest = Manifest.read(place.parent)
            there = {"collection": manifest.inputs.get("collection"), **manifest.settings, "cost": None}
            name = there.pop("name", None)
            if there == here and isinstance(name, str) and place.parent not in taken:
                found.append((place.stat().st_mtime_ns, name, place.parent))
        read = {name: self._read(name, place) for _, name, place in sorted(found)}
        return {name: measured for name, measured in read.items() if measured is not None}

    def _place(self, name: str) -> Path:
        return self.path / "systems" / slug(name)

    def _manifest(self, name: str, fingerprint: str, about: dict[str, Any] | None = None) -> Manifest:
        inputs = {**self.wanted.inputs, "system": fingerprint}
        return Manifest("evaluation", inputs, {**self.wanted.settings, "name": name}, about or {})


def write_per_query(measured: Sequence[Measured], folder: Path) -> None:
    """All systems' values in one table: system, query_id, measures; no table where nothing was judged."""
    path = folder / PER_QUERY
    tables = {one.name: one.per_query for one in measured if one.per_query is not None}
    if not tables:
        path.unlink(missing_ok=True)  # of judgments that there were before
        return
    rows = [table.add_column(0, "system", pa.array([name] * len(table))) for name, table in tables.items()]
    with atomic_file(path) as temporary:
        pq.write_table(pa.concat_tables(rows), temporary)


def check_file_names(names: Iterable[str]) -> None:
    """Refuse systems whose names are the same in letters and digits: their files would be one.

    Raises:
        UserError: Names the two.
    """
    taken: dict[str, str] = {}
    for name in names:
        other = taken.setdefault(slug(name), name)
        if other != name:
            raise UserError(f"{other!r} and {name!r} would both be written to {slug(name)}.run; rename one.")


def read_folder(folder: str | Path) -> dict[str, Measured]:
    """The judged systems of an evaluated folder, by name, as `run` and `evaluate` leave it.

    Raises:
        UserError: There is none, or a file is not what it should be; where folders below hold one, they are named.
    """
    tables = read_per_query(folder)
    content = Results.from_json(read_json(Path(folder) / "results.json"))
    return {
        name: Measured(content.system(name), _run_file(Path(folder), name), table) for name, table in tables.items()
    }


def read_per_query(folder: str | Path) -> dict[str, pa.Table]:
    """By system, the table query_id and measures of an evaluated folder.

    Raises:
        UserError: As `read_folder`.
    """
    path = Path(folder) / PER_QUERY
    if not path.is_file():
        below = sorted(str(file.parent) for file in Path(folder).glob(f"*/{PER_QUERY}"))
        hint = f"; choose one of its collections: {', '.join(below)}" if below else ""
        raise UserError(f"no {PER_QUERY} in {folder}{hint}.")
    try:
        table = pq.read_table(path)
    except (OSError, pa.ArrowException) as error:
        raise UserError(f"{path} is not a whole Parquet file ({str(error).splitlines()[0]}); make it again.") from error
    if not {"system", "query_id"} <= set(table.column_names):
        raise UserError(f"{path} has the columns {', '.join(table.column_names)}; wanted system, query_id, measures.")
    names = list(dict.fromkeys(table["system"].to_pylist()))
    return {name: table.filter(pc.equal(table["system"], name)).drop_columns(["system"]) for name in names}


def _run_file(folder: Path, name: str) -> Path:
    """Where a system's run is; where it should be if it is not there."""
    names = [f"{stem}{ending}" for stem in (slug(name), name) for ending in (".run", ".parquet")]
    files = [folder / "runs" / file for file in names]
    return next((file for file in files if file.is_file()), files[0])
