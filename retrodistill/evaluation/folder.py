"""The folder of an evaluation: what a system measured on a collection is kept, and not measured again."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq

from retrodistill.core.errors import UserError
from retrodistill.core.files import atomic_file, atomic_folder, file_digest, make_folder
from retrodistill.core.manifest import FILE_NAME, Manifest
from retrodistill.core.stores import slug
from retrodistill.runs.formats import keep_run, read_run
from retrodistill.runs.run import Run

PER_QUERY = "per-query.parquet"


@dataclass(frozen=True)
class CachedResult:
    """What was measured of a system.

    Attributes:
        per_query: query_id and a column per measure; None where there are no judgments.
        run: Its results, or the file that holds them.
        bytes_per_document: What serving keeps; None where nothing is known.
        cost: As `Cost` in JSON; None where it was not measured.
        documents_by, queries_by: What encodes each side; empty where nothing is known.
        note: What a reader must know of it; empty for nothing.
    """

    per_query: pa.Table | None
    run: Run | Path
    bytes_per_document: float | None = None
    cost: dict[str, Any] | None = None
    documents_by: str = ""
    queries_by: str = ""
    note: str = ""

    def results(self) -> Run:
        """The run, read where it is on disk."""
        return read_run(self.run, may_be_empty=True) if isinstance(self.run, Path) else self.run


class Folder:
    """``runs/NAME.run``, ``systems/NAME/``; at the end ``per-query.parquet``, ``results.json``, ``report.html``.

    Args:
        path: Of one collection.
        wanted: What decides a measurement beside the system: collection, split, measures, depth.
    """

    def __init__(self, path: Path, wanted: Manifest) -> None:
        self.path, self.wanted = make_folder(path), wanted

    def find(self, name: str, fingerprint: str | None) -> CachedResult | None:
        """What was measured of a system; None where it was something else, or is not whole."""
        place = self._place(name)
        known = fingerprint is not None and self._manifest(name, fingerprint).matches(place)
        return self._read(place) if known else None

    def _read(self, place: Path) -> CachedResult | None:
        """What lies in a system's folder; None where its run is gone or another."""
        about = Manifest.read(place).about
        run = self.path / "runs" / about["run"]
        if not run.is_file() or file_digest(run) != about["checksum"]:
            return None
        per_query = pq.read_table(place / PER_QUERY) if (place / PER_QUERY).is_file() else None
        said = (about.get(key, "") for key in ("documents_by", "queries_by", "note"))
        return CachedResult(per_query, run, about["bytes_per_document"], about["cost"], *said)

    def keep(self, name: str, fingerprint: str | None, measured: CachedResult) -> CachedResult:
        """Write what was measured, the run first, the manifest last; gives it back with the run on disk."""
        run = measured.results()
        file = keep_run(run, self.path / "runs" / slug(name))
        about = {
            "run": file.name,
            "checksum": file_digest(file),
            "bytes_per_document": measured.bytes_per_document,
            "cost": measured.cost,
            "documents_by": measured.documents_by,
            "queries_by": measured.queries_by,
            "note": measured.note,
        }
        with atomic_folder(self._place(name)) as temporary:
            if measured.per_query is not None:
                pq.write_table(measured.per_query, temporary / PER_QUERY)
            self._manifest(name, fingerprint or "unknown", about).write(temporary, FILE_NAME)
        return replace(measured, run=file)

    def before(self, names: Iterable[str]) -> dict[str, CachedResult]:
        """Other systems than `names`, measured before on the same queries by the same measures; the oldest first."""
        found, taken = [], {self._place(name) for name in names}
        here = {"collection": self.wanted.inputs.get("collection"), **self.wanted.settings, "cost": None}
        for place in (self.path / "systems").glob(f"*/{FILE_NAME}"):
            manifest = Manifest.read(place.parent)
            there = {"collection": manifest.inputs.get("collection"), **manifest.settings, "cost": None}
            name = there.pop("name", None)
            if there == here and isinstance(name, str) and place.parent not in taken:
                found.append((place.stat().st_mtime_ns, name, place.parent))
        read = {name: self._read(place) for _, name, place in sorted(found)}
        return {name: kept for name, kept in read.items() if kept is not None}

    def _place(self, name: str) -> Path:
        return self.path / "systems" / slug(name)

    def _manifest(self, name: str, fingerprint: str, about: dict[str, Any] | None = None) -> Manifest:
        inputs = {**self.wanted.inputs, "system": fingerprint}
        return Manifest("evaluation", inputs, {**self.wanted.settings, "name": name}, about or {})


def write_per_query(tables: Mapping[str, pa.Table], folder: Path) -> None:
    """All systems' values in one table: system, query_id, measures; none where nothing was judged."""
    path = folder / PER_QUERY
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


def read_per_query(folder: str | Path) -> dict[str, pa.Table]:
    """The systems of an evaluated folder: by name, a table query_id and measures, as `run` and `evaluate` leave it.

    Raises:
        UserError: There is none, or it is no such table; where folders below hold one, they are named.
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
