"""What the command line compares: systems of evaluated folders, and systems that are measured now."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from pathlib import Path

from retrodistill.core.errors import UserError, unknown
from retrodistill.core.files import read_json
from retrodistill.core.manifest import FILE_NAME
from retrodistill.data import load_collection
from retrodistill.evaluation.agreement import agreements
from retrodistill.evaluation.comparing import Comparison, compare
from retrodistill.evaluation.evaluating import Evaluation, EvaluationConfig, evaluate
from retrodistill.evaluation.folder import PER_QUERY, read_folder
from retrodistill.evaluation.measures import parse_measure
from retrodistill.evaluation.rules import split_of
from retrodistill.evaluation.systems import Measured
from retrodistill.rankers.loading import load_ranker


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


def compare_named(names: Sequence[str], config: ComparisonConfig) -> Comparison:
    """Compare what is named.

    Args:
        names: ``FOLDER`` of an evaluation (all its systems), ``FOLDER:SYSTEM``, or what `evaluate` takes.
        config: How.

    Raises:
        UserError: As `compare` and `evaluate`; or a collection is needed and not given.
    """
    measure = parse_measure(config.measure).name
    collection = None if config.collection is None else load_collection(config.collection)
    teacher = None if config.teacher is None else load_ranker(config.teacher)
    if teacher is not None and collection is None:
        raise UserError("agreement with a teacher needs the documents; give --collection.")
    homes = {name: home for name in names if (home := _home(name)) is not None}
    new = [name for name in names if name not in homes]
    if new and collection is None:
        raise UserError(f"{new[0]} is not an evaluated folder and would be measured now; give --collection.")
    now = evaluate(new, collection, EvaluationConfig(config.split, [measure])) if new and collection else None
    measured = _by_title([one for name in names for one in _systems(name, homes.get(name), now)])
    compared = compare(
        {title: one.per_query for title, one in measured.items() if one.per_query is not None},
        measure,
        every_pair=config.every_pair,
        shown=config.shown,
        texts=None if collection is None else collection.queries,
        seed=config.seed,
    )
    if now is not None:
        compared = replace(compared, notes=now.results.notes)
    if teacher is None or collection is None:
        return compared
    split = split_of(collection, config.split)
    grades = collection.relevance(split).to_dict() if split in collection.qrels else None
    runs = {title: one.load_run() for title, one in measured.items()}
    queries = collection.queries.select(list(next(iter(measured.values())).values(measure)))
    return replace(compared, agreement=agreements(teacher, runs, collection, queries, grades))


def _home(name: str) -> tuple[Path, str | None] | None:
    """The evaluated folder that a name begins with, and the system after the colon; None for something else."""
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


def _systems(
    name: str, home: tuple[Path, str | None] | None, now: Evaluation | None
) -> Iterator[tuple[Path | None, Measured]]:
    """The systems of one name, each with the folder that it comes from; None for one that was measured now."""
    if home is None:
        if now is not None:
            yield None, now.measured[name]
        return
    folder, system = home
    measured = read_folder(folder)
    if system is not None and system not in measured:
        raise unknown(f"system in {folder}", system, measured)
    yield from ((folder, measured[one]) for one in (measured if system is None else [system]))


def _by_title(found: list[tuple[Path | None, Measured]]) -> dict[str, Measured]:
    """Systems of one name from different folders get the folder in front; the same one named twice stays one."""
    distinct = {(home, one.name): one for home, one in found}
    names = [name for _, name in distinct]
    return {
        f"{home}:{name}" if home is not None and names.count(name) > 1 else name: one
        for (home, name), one in distinct.items()
    }
