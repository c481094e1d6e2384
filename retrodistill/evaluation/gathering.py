"""What the command line compares: systems of evaluated folders, and systems that are measured now."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from pathlib import Path

import pyarrow as pa

from retrodistill.core.errors import UserError, unknown
from retrodistill.core.files import read_json
from retrodistill.core.manifest import FILE_NAME
from retrodistill.core.stores import slug
from retrodistill.data import load_collection
from retrodistill.evaluation.agreement import agreements
from retrodistill.evaluation.comparing import Comparison, compare
from retrodistill.evaluation.evaluating import Evaluation, EvaluationConfig, evaluate_on
from retrodistill.evaluation.folder import PER_QUERY, read_per_query
from retrodistill.evaluation.measures import parse_measure
from retrodistill.evaluation.rules import split_of
from retrodistill.rankers.loading import load_ranker
from retrodistill.runs.formats import read_run
from retrodistill.runs.run import Run


@dataclass(frozen=True)
class Measured:
    """A system with its values, and where its run is.

    Attributes:
        name: Of the system.
        per_query: query_id and measures.
        home: The evaluated folder that it comes from; None for one measured now.
        run: What was measured now.
        shown: What to call it where another has the same name; else empty.
    """

    name: str
    per_query: pa.Table
    home: Path | None = None
    run: Run | None = None
    shown: str = ""

    @property
    def title(self) -> str:
        """What the comparison calls it."""
        return self.shown or self.name

    def results(self) -> Run:
        """The run.

        Raises:
            UserError: Its folder holds none.
        """
        if self.run is not None:
            return self.run
        home = self.home or Path()
        names = [f"{stem}{ending}" for stem in (slug(self.name), self.name) for ending in (".run", ".parquet")]
        found = next((path for name in names if (path := home / "runs" / name).is_file()), None)
        if found is None:
            raise UserError(f"no run of {self.name} in {home / 'runs'}; agreement needs it: evaluate it again.")
        return read_run(found, may_be_empty=True)


@dataclass(frozen=True)
class ComparisonConfig:
    """How to compare.

    Attributes:
        collection: Where systems are measured now, and where the texts of queries come from; None for neither.
        split: As for `evaluate`.
        measure: What is compared.
        teacher: Agreement with it is measured too.
        every_pair: Compare each with each, not with the first.
        shown: Queries to list.
        seed: Of the resampling.
    """

    collection: str | None = None
    split: str | None = None
    measure: str = "ndcg@10"
    teacher: str | None = None
    every_pair: bool = False
    shown: int = 5
    seed: int = 0


def compare_named(names: Sequence[str], asked: ComparisonConfig) -> Comparison:
    """Compare what is named.

    Args:
        names: ``FOLDER`` of an evaluation (all its systems), ``FOLDER:SYSTEM``, or what `evaluate` takes.
        asked: How.

    Raises:
        UserError: As `compare` and `evaluate`; or a collection is needed and not given.
    """
    measure = parse_measure(asked.measure).name
    wanted = EvaluationConfig(asked.split, [measure])
    collection = None if asked.collection is None else load_collection(asked.collection)
    teacher = None if asked.teacher is None else load_ranker(asked.teacher)
    if teacher is not None and collection is None:
        raise UserError("agreement with a teacher needs the documents; give --collection.")
    homes = {name: home for name in names if (home := _home(name)) is not None}
    new = [name for name in names if name not in homes]
    if new and collection is None:
        raise UserError(f"{new[0]} is not an evaluated folder and would be measured now; give --collection.")
    made = evaluate_on({name: name for name in new}, collection, wanted, {}, None) if new and collection else None
    found = _unique([one for name in names for one in _systems(name, homes.get(name), made)])
    tables = {one.title: one.per_query for one in found}
    compared = compare(
        tables,
        measure,
        every_pair=asked.every_pair,
        shown=asked.shown,
        texts=None if collection is None else collection.queries,
        seed=asked.seed,
    )
    if made is not None:
        compared = replace(compared, notes=made.notes)
    if teacher is None or collection is None:
        return compared
    split = split_of(collection, asked.split)
    qrels = collection.relevance(split).to_dict() if split in collection.qrels else None
    runs = {one.title: one.results() for one in found}
    queries = collection.queries.select(found[0].per_query["query_id"].to_pylist())
    return replace(compared, agreement=agreements(teacher, runs, collection, queries, qrels))


def _home(name: str) -> tuple[Path, str | None] | None:
    """The evaluated folder that a name begins with, and the system behind the colon; None for something else."""
    path = Path(name)
    if path.is_dir():
        is_index = (path / FILE_NAME).is_file() and read_json(path / FILE_NAME).get("artifact") == "index"
        return None if is_index else (path, None)
    parts = name.split(":")
    for at in range(1, len(parts)):  # names of systems hold colons too
        folder = Path(":".join(parts[:at]))
        if (folder / PER_QUERY).is_file():
            return folder, ":".join(parts[at:])
    return None


def _systems(name: str, home: tuple[Path, str | None] | None, made: Evaluation | None) -> Iterator[Measured]:
    if home is None:
        if made is not None:
            yield Measured(name, made.per_query[name], run=made.runs[name])
        return
    folder, system = home
    tables = read_per_query(folder)
    if system is not None and system not in tables:
        raise unknown(f"system in {folder}", system, tables)
    for one in tables if system is None else [system]:
        yield Measured(one, tables[one], folder)


def _unique(found: list[Measured]) -> list[Measured]:
    """Systems of one name from different folders get the folder in front; the same one named twice stays one."""
    kept = list({(one.home, one.name): one for one in found}.values())
    names = [one.name for one in kept]
    twice = {name for name in names if names.count(name) > 1}
    return [replace(one, shown=f"{one.home}:{one.name}") if one.name in twice and one.home else one for one in kept]
