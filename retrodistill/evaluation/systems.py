"""Systems, the task that they are measured on, and the folder that keeps what was measured."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq

from retrodistill.core.checksums import DamagedError, check_files, file_checksum, seal, sealed_file
from retrodistill.core.errors import UserError, first_line
from retrodistill.core.files import atomic_file, atomic_folder
from retrodistill.core.json_files import CHECKSUMS, read_json, write_json
from retrodistill.core.manifest import FILE_NAME, Manifest
from retrodistill.core.names import is_file_name
from retrodistill.core.paths import make_folder, path_of
from retrodistill.core.runtime import log
from retrodistill.core.stores import slug
from retrodistill.data.collection import Collection
from retrodistill.data.texts import Texts
from retrodistill.evaluation.measures import Grades, means
from retrodistill.evaluation.results import Cost, Results, Role, SystemResult
from retrodistill.rankers.loading import load_ranker
from retrodistill.rankers.protocol import Ranker
from retrodistill.runs.formats import read_run, save_run
from retrodistill.runs.run import Run

PER_QUERY, RESULTS = "per-query.parquet", "results.json"
PLACE = "{collection}"  # in the name of a run or an index: replaced by the name of each collection
_ADVICE = "evaluate again"
_KEPT = {"bytes_per_document", "cost", "documents_by", "queries_by"}  # columns of a system's row, in its folder
_SPLITS = {"msmarco": "dev"}  # its test split is TREC's Deep Learning track of 2019; BEIR's table uses dev
_SEARCHED = {"documents": "whole documents", "passages": "passages"}
_TOUCHE, _TOUCHE_V2 = "webis-touche2020", 2214  # number of judgments in version 2


@dataclass(frozen=True)
class System:
    """A system to measure."""

    name: str  # in tables and files
    ranker: Ranker  # what searches
    role: Role = "baseline"
    documents_by: str = ""  # what encodes each side; empty for what the ranker says
    queries_by: str = ""
    source: str | None = None  # what `load_ranker` takes, for the process that measures memory; None to skip memory
    is_served: bool = True  # False for one that is not meant for serving: no latency, no bytes per document
    queries: Texts | None = None  # they replace those of the collection, under the same ids (rewrites)


@dataclass(frozen=True)
class Task:
    """The queries of a split, with their judgments (None if there are none), and the collection to search."""

    collection: Collection
    split: str
    queries: Texts
    grades: Grades | None


@dataclass(frozen=True)
class Measured:
    """The measurements of a system."""

    row: SystemResult  # as in results.json
    run: Run | Path | None  # its results, or the file that holds them; None if they were dropped
    per_query: pa.Table | None  # query_id and a column per measure; None without judgments
    note: str = ""  # what a reader must know about it

    @classmethod
    def of(cls, run: Run | Path, per_query: pa.Table | None, cost: Cost | None, note: str = "", **row: Any) -> Measured:
        """Fill the row from the measurements and from its other values, as in results.json."""
        own = {field.serialization_alias for field in SystemResult.model_fields.values()}
        content: dict[str, Any] = {"ndcg@10": None, "measures": {}, **row, "cost": cost}
        for name, value in ({} if per_query is None else means(per_query)).items():
            (content if name in own else content["measures"])[name] = value
        if cost is not None:
            content["query_ms"] = cost.timings[0].total
        return cls(SystemResult.model_validate(content), run, per_query, note)

    @property
    def name(self) -> str:
        """The system's name."""
        return self.row.name

    def load_run(self) -> Run:
        """The run, read from disk if it is there; a UserError if it was dropped."""
        if self.run is None:
            raise UserError(f"the run of {self.name} was not kept; evaluate it again with a folder.")
        return read_run(self.run, may_be_empty=True) if isinstance(self.run, Path) else self.run

    def values(self, measure: str) -> dict[str, float]:
        """One measure by query; empty if it was not measured."""
        if self.per_query is None or measure not in self.per_query.column_names:
            return {}
        return dict(zip(self.per_query["query_id"].to_pylist(), self.per_query[measure].to_pylist(), strict=True))

    def with_row(self, **changes: Any) -> Measured:
        """A copy with other values in its row."""
        return replace(self, row=self.row.model_copy(update=changes))


def named_systems(systems: Mapping[str, Any] | Sequence[Any] | Any) -> dict[str, Any]:
    """Systems by name, from a mapping, a list, or a single one; a UserError if there is none, or a name twice."""
    if isinstance(systems, Mapping):
        named = dict(systems)
    else:
        named = {}
        for system in systems if isinstance(systems, (list, tuple)) else [systems]:
            name = str(getattr(system, "name", system))
            if name in named:
                raise UserError(f"system {name!r} is given twice; give each once, or a name to each.")
            named[name] = system
    if not named:
        raise UserError("no system to evaluate; give at least one.")
    return named


def load_systems(sources: Mapping[str, Any], collection: str, loaded: dict[str, System]) -> list[System]:
    """Load systems of one collection, by name from what `load_ranker` takes; errors as there.

    ``{collection}`` in a source is replaced by the collection's name. The other systems are loaded once for all
    collections: they are read from `loaded`, and added to it.
    """
    systems = []
    for name, source in sources.items():
        is_own = isinstance(source, str) and PLACE in source
        system = None if is_own else loaded.get(name)
        if system is None:
            place = source.replace(PLACE, collection) if is_own else source
            text = str(place) if isinstance(place, (str, Path)) else None
            system = System(name, load_ranker(place, needs="search"), source=text)
        if not is_own:
            loaded[name] = system
        systems.append(system)
    return systems


def split_of(collection: Collection, split: str | None) -> str:
    """The split to measure on: the given one, or BEIR's (test, and dev for msmarco), or ``all`` without judgments."""
    if split is not None:
        return split
    if not collection.qrels:
        return "all"
    default = _SPLITS.get(_beir_name(collection), "test")
    return default if default in collection.qrels else "test"


def version_note(collection: Collection, split: str) -> str | None:
    """What a reader must know about a data set that exists in several versions."""
    if _beir_name(collection) not in (_TOUCHE, f"{_TOUCHE}-v2") or split not in collection.qrels:
        return None
    count = len(collection.qrels[split])
    if count == _TOUCHE_V2:
        return f"{_TOUCHE} is version 2 ({count:,} judgments), the one in BEIR's zip: not comparable with v1 or v3."
    return f"{_TOUCHE} has {count:,} judgments; BEIR's version 2 has {_TOUCHE_V2:,}: not comparable with its table."


def own_documents_note(collection: Collection, queries: Texts) -> str | None:
    """How many of the queries have results without the document of their id; None for none."""
    own = collection.own_documents(queries.ids)
    if not own:
        return None
    why = "as asked" if collection.same_id == "drop" else "which has the query's text: it is the query itself"
    return (
        f"the document with the query's ID is left out of the results of {len(own)} of {len(queries)} queries, {why}."
    )


def passages_note(collection: Collection) -> str | None:
    """What a reader must know about a collection of passages."""
    if collection.parents is None:
        return None
    rule, whole = collection.parents.settings, collection.whole
    return (
        f"documents: {len(whole.documents)} in {len(collection.documents)} passages of at most {rule.words} words; "
        f"measures are of documents, by {rule.aggregate} of their passages. bm25 searches {_SEARCHED[rule.bm25]}."
    )


def _beir_name(collection: Collection) -> str:
    return collection.name.removeprefix("beir-")  # the prefix of ir_datasets


class Folder:
    """Of one collection: ``runs/NAME.run``, ``systems/NAME/``; the tables and reports are written next to them.

    `wanted` is what decides a measurement besides the system: collection, split, measures, depth, cost.
    """

    def __init__(self, path: Path, wanted: Manifest) -> None:
        self.path, self.wanted = make_folder(path), wanted

    def find(self, name: str, fingerprint: str | None) -> Measured | None:
        """The measurements of a system; None if they are of another system, or incomplete."""
        if not fingerprint or not self._manifest(name, fingerprint).matches(self._place(name)):
            return None
        return self._read(name, self._place(name))

    def keep(self, fingerprint: str | None, measured: Measured) -> Measured:
        """Write the measurements, with the run first and the manifest last; returns them with the run on disk."""
        row = measured.row
        file = save_run(measured.load_run(), self.path / "runs" / slug(row.name))
        kept = row.model_dump(mode="json", by_alias=True, include=_KEPT)
        about = {"run": file.name, "checksum": file_checksum(file), **kept, "note": measured.note}
        with atomic_folder(self._place(row.name)) as temporary:
            if measured.per_query is not None:
                _write_values(measured.per_query, temporary / PER_QUERY)
            self._manifest(row.name, fingerprint or "unknown", about).with_files(temporary).write(temporary, FILE_NAME)
        return replace(measured, run=file)

    def before(self, names: Iterable[str]) -> dict[str, Measured]:
        """Systems other than `names` that were measured on the same queries by the same measures, oldest first."""
        places, taken = [], {self._place(name) for name in names}
        for place in (self.path / "systems").glob(f"*/{FILE_NAME}"):
            manifest = Manifest.read(place.parent)
            name = manifest.settings.get("name")
            same = _conditions(manifest) == _conditions(self.wanted)
            if same and isinstance(name, str) and place.parent not in taken:
                places.append((place.stat().st_mtime_ns, name, place.parent))
        measured = {name: self._read(name, place) for _, name, place in sorted(places)}
        return {name: system for name, system in measured.items() if system is not None}

    def _read(self, name: str, place: Path) -> Measured | None:
        """The content of a system's folder; None if its run is missing or was changed."""
        manifest = Manifest.read(place)
        about = manifest.about
        run = self.path / "runs" / about["run"]
        if not is_file_name(about["run"]):
            return None
        try:
            check_files(run.parent, {run.name: about["checksum"]}, _ADVICE)
            manifest.check_files(place, _ADVICE)
            table = _read_values(place / PER_QUERY) if (place / PER_QUERY).is_file() else None
        except DamagedError as error:
            log(f"{error} It is measured again.", always=True)
            return None
        kept = {key: about[key] for key in _KEPT - {"cost"} if key in about}
        cost = None if about["cost"] is None else Cost.model_validate(about["cost"])
        return Measured.of(run, table, cost, about.get("note", ""), name=name, role="baseline", **kept)

    def seal(self) -> None:
        """Write which table and results belong together; see `read_folder`."""
        names = [name for name in (PER_QUERY, RESULTS) if (self.path / name).is_file()]
        write_json(self.path / CHECKSUMS, {name: file_checksum(self.path / name) for name in names})

    def _place(self, name: str) -> Path:
        return self.path / "systems" / slug(name)

    def _manifest(self, name: str, fingerprint: str, about: dict[str, Any] | None = None) -> Manifest:
        inputs = {**self.wanted.inputs, "system": fingerprint}
        return Manifest("evaluation", inputs, {**self.wanted.settings, "name": name}, about or {})


def _conditions(manifest: Manifest) -> dict[str, Any]:
    """What must be equal for two systems to be in one table; whether cost was measured may differ."""
    settings = {name: value for name, value in manifest.settings.items() if name != "name"}
    return {"collection": manifest.inputs.get("collection"), **settings, "cost": None}


def write_per_query(measured: Sequence[Measured], folder: Path) -> None:
    """Write the values of all systems into one table: system, query_id, measures; no table without judgments."""
    path = folder / PER_QUERY
    tables = {system.name: system.per_query for system in measured if system.per_query is not None}
    if not tables:
        path.unlink(missing_ok=True)  # from earlier judgments
        return
    rows = [table.add_column(0, "system", pa.array([name] * len(table))) for name, table in tables.items()]
    with atomic_file(path) as temporary:
        _write_values(pa.concat_tables(rows), temporary)


def _write_values(table: pa.Table, file: Path) -> None:
    pq.write_table(table, file)
    seal(file)


def _read_values(file: Path) -> pa.Table:
    """A table of values by query; a damaged file is a DamagedError."""
    try:
        table = pq.read_table(sealed_file(file, advice=_ADVICE))
        table.validate(full=True)  # Parquet's reader takes any bytes for a text
        return table
    except (OSError, pa.ArrowException) as error:
        problem = f"it is not a complete Parquet file ({first_line(error)})"
        raise DamagedError(file, problem, _ADVICE) from error


def check_file_names(names: Iterable[str]) -> None:
    """Refuse two systems whose files would have the same name."""
    taken: dict[str, str] = {}
    for name in names:
        other = taken.setdefault(slug(name), name)
        if other != name:
            raise UserError(f"{other!r} and {name!r} would both be written to {slug(name)}.run; rename one.")


def read_folder(folder: str | Path) -> dict[str, Measured]:
    """The judged systems of an evaluated folder, by name; a UserError if a file is missing or invalid."""
    place, tables = path_of(folder), read_per_query(folder)
    _check_listed(place, RESULTS)
    content = Results.from_json(read_json(place / RESULTS))
    measured = {}
    for name, table in tables.items():
        measured[name] = Measured(content.system(name), run_file(place, name), table)
    return measured


def run_file(folder: Path, name: str) -> Path:
    """The run of a system in an evaluated folder; the file that should exist, if none does."""
    names = [f"{stem}{ending}" for stem in (slug(name), name) for ending in (".run", ".parquet")]
    runs = [folder / "runs" / file for file in names]
    found = next((file for file in runs if file.is_file()), runs[0])
    _check_listed(folder, f"runs/{found.name}")
    if (folder / "systems" / slug(name) / FILE_NAME).is_file():
        about = Manifest.read(folder / "systems" / slug(name)).about
        check_files(found.parent, {about["run"]: about["checksum"]}, _ADVICE)
    return found


def _check_listed(folder: Path, name: str) -> None:
    """Check a file against the job's manifest, or the checksums of an evaluation, if these know its checksum."""
    files, advice = {}, "run the job again"
    if (folder / FILE_NAME).is_file():
        files = Manifest.read(folder).files
    elif (folder / CHECKSUMS).is_file():
        files, advice = read_json(folder / CHECKSUMS), "evaluate again"
    check_files(folder, {name: files[name]} if name in files else {}, advice)


def read_per_query(folder: str | Path) -> dict[str, pa.Table]:
    """By system, the table query_id and measures of an evaluated folder.

    A missing or invalid file is a UserError, which lists the evaluated folders below, if there are any.
    """
    path = path_of(folder) / PER_QUERY
    _check_listed(path.parent, PER_QUERY)
    if not path.is_file():
        below = sorted(str(file.parent) for file in Path(folder).glob(f"*/{PER_QUERY}"))
        hint = f"; choose one of its collections: {', '.join(below)}" if below else ""
        raise UserError(f"no {PER_QUERY} in {folder}{hint}.")
    table = _read_values(path)
    if not {"system", "query_id"} <= set(table.column_names):
        raise UserError(f"{path} has the columns {', '.join(table.column_names)}; wanted system, query_id, measures.")
    names = list(dict.fromkeys(table["system"].to_pylist()))
    return {name: table.filter(pc.equal(table["system"], name)).drop_columns(["system"]) for name in names}
