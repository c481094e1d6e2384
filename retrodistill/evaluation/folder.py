"""The folder of an evaluation: what was measured of a system on a collection is kept, and not measured again."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq

from retrodistill.core.errors import UserError
from retrodistill.core.files import atomic_file, atomic_folder, file_digest, make_folder, read_json
from retrodistill.core.manifest import FILE_NAME, Manifest
from retrodistill.core.stores import slug
from retrodistill.evaluation.results import Cost, Results
from retrodistill.evaluation.systems import Measured
from retrodistill.runs.formats import save_run

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
