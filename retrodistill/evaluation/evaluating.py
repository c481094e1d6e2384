"""Evaluate systems on the queries of one collection."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from functools import cached_property
from pathlib import Path
from typing import Any

import pyarrow as pa

from retrodistill.core.errors import UserError, sample_of
from retrodistill.core.json_files import write_json
from retrodistill.core.locks import exclusive
from retrodistill.core.manifest import Manifest, hardware, library_versions
from retrodistill.core.paths import path_of
from retrodistill.core.runtime import log
from retrodistill.data import Collection, Texts
from retrodistill.data.collection import check_same_id
from retrodistill.evaluation.agreement import agreements
from retrodistill.evaluation.cost import CostConfig, bytes_per_document, measure_cost
from retrodistill.evaluation.examples import MEASURE, shown_queries
from retrodistill.evaluation.measures import evaluate_run, means, measures_within, parse_measure
from retrodistill.evaluation.results import Results
from retrodistill.evaluation.significance import paired_tests
from retrodistill.evaluation.systems import (
    RESULTS,
    Folder,
    Measured,
    System,
    Task,
    check_file_names,
    load_systems,
    named_systems,
    own_documents_note,
    passages_note,
    split_of,
    version_note,
    write_per_query,
)
from retrodistill.rankers.documents import search_documents, searched
from retrodistill.rankers.loading import load_ranker
from retrodistill.rankers.protocol import Ranker
from retrodistill.rankers.recorded import rows_of
from retrodistill.runs.run import Run

_EXAMPLES = 5
_RULES = 2  # raise it where systems would be measured differently, so that earlier measurements are not reused


@dataclass(frozen=True)
class EvaluationConfig:
    """What to measure: a UserError for an unknown measure, or a depth below 1."""

    split: str | None = None  # None for BEIR's rule: test, and dev for msmarco
    measures: Sequence[str] | None = None  # as `evaluate_run` takes them; None for BEIR's, but not deeper than `depth`
    depth: int = 1000  # documents retrieved per query; at most the size of the corpus
    teacher: Any = None  # a ranker: also measure agreement with it
    cost: CostConfig | None = None  # how cost is measured; None to skip it
    same_id: str | None = None  # see `Collection`, which it replaces; None for the collection's
    command: str = ""  # that reproduces the results, for results.json

    def __post_init__(self) -> None:
        if self.depth < 1:
            raise UserError(f"depth {self.depth}: give at least 1.")
        for measure in self.measures or ():
            parse_measure(measure)
        if self.same_id is not None:
            check_same_id(self.same_id)

    def with_teacher(self) -> EvaluationConfig:
        """A copy with the teacher loaded: a wrong name fails before any work, and collections share the teacher."""
        return self if self.teacher is None else replace(self, teacher=load_ranker(self.teacher))

    @property
    def columns(self) -> list[str]:
        """Names of the measures."""
        if self.measures is None:
            return measures_within(self.depth)
        return list(dict.fromkeys(parse_measure(measure).name for measure in self.measures))


@dataclass(frozen=True)
class Evaluation:
    """Result of `evaluate` on one collection."""

    results: Results  # as in results.json; its `systems` are the rows
    measured: dict[str, Measured]  # the systems with their runs and per-query values

    @property
    def means(self) -> dict[str, dict[str, float]]:
        """``{system: {measure: mean over all judged queries}}``; empty without judgments."""
        return {name: means(table) for name, table in self.per_query.items()}

    @property
    def per_query(self) -> dict[str, pa.Table]:
        """``{system: table query_id, measures}``; empty without judgments."""
        return {name: system.per_query for name, system in self.measured.items() if system.per_query is not None}

    @cached_property
    def runs(self) -> dict[str, Run]:
        """``{system: run}``; read from the folder if there is one."""
        return {name: system.load_run() for name, system in self.measured.items() if system.run is not None}

    def without_runs(self) -> Evaluation:
        """A copy without the runs in memory, which would fill up over many collections."""
        measured = {
            name: replace(system, run=system.run if isinstance(system.run, Path) else None)
            for name, system in self.measured.items()
        }
        return replace(self, measured=measured)


def evaluate(
    systems: Mapping[str, Any] | Sequence[Any] | Any,
    collection: Collection,
    config: EvaluationConfig | None = None,
    out: str | Path | None = None,
    loaded: dict[str, System] | None = None,
) -> Evaluation:
    """Measure systems on one collection by BEIR's rules; queries without results count 0.

    Args:
        systems: ``{name: system}``, a list, or a single one: what `load_ranker` takes.
        collection: The collection to search.
        config: What to measure.
        out: Folder for ``runs/NAME.run``, ``per-query.parquet``, and ``results.json``. What was measured there with the
            same settings is not measured again; other systems that were measured on the same queries stay in front.
        loaded: Systems that are shared with other collections; new ones are added.

    Raises:
        UserError: A system cannot search, or there is nothing to measure: no judgments, no teacher, no cost.
    """
    named, config = named_systems(systems), (config or EvaluationConfig()).with_teacher()
    collection = collection if config.same_id is None else replace(collection, same_id=config.same_id)
    task, notes = task_of(collection, config)
    candidates = load_systems(named, collection.name, {} if loaded is None else loaded)
    if out is None:
        return _evaluation(evaluate_systems(candidates, task, config), candidates, task, config, notes)
    check_file_names(named)
    threads = None if config.cost is None else config.cost.threads
    settings = {"split": task.split, "measures": config.columns, "depth": config.depth, "cost": threads}
    settings |= {"same_id": collection.same_id, "rules": _RULES}
    folder = Folder(path_of(out), Manifest("evaluation", {"collection": collection.fingerprint}, settings))
    with exclusive(folder.path / ".lock"):
        measured = {**folder.before(named), **evaluate_systems(candidates, task, config, folder)}
        whole = _evaluation(measured, candidates, task, config, notes)
        write_per_query(list(whole.measured.values()), folder.path)
        write_json(folder.path / RESULTS, _with_differences(whole, task).to_json())
        folder.seal()
    # Of the given systems, without those that were measured before.
    results = whole.results.model_copy(update={"systems": [whole.measured[name].row for name in named]})
    return Evaluation(results, {name: whole.measured[name] for name in named})


def evaluate_systems(
    systems: Sequence[System], task: Task, config: EvaluationConfig, folder: Folder | None = None
) -> dict[str, Measured]:
    """Search, measure, and time systems: what `run`, `evaluate`, `compare`, and `check` have in common.

    Split and teacher of the configuration have no effect here. Systems that were measured in the folder before are
    read from it, the others are written to it. Returns the measurements by name, in order.
    """
    measured = {}
    for system in systems:
        fingerprint = None if folder is None else system.ranker.fingerprint(task.collection)
        result = None if folder is None else folder.find(system.name, fingerprint)
        if result is None:
            log(f"measuring {system.name}")
            result = _measure(system, task, config)
            if folder is not None:
                result = folder.keep(fingerprint, result)
        measured[system.name] = result
    return measured


def _measure(system: System, task: Task, config: EvaluationConfig) -> Measured:
    ranker, queries, notes = system.ranker, system.queries or task.queries, []
    documents = searched(ranker, task.collection).documents
    strange = None if ranker.run is None else ranker.run.known([task.collection.queries], documents)[1]
    if strange is not None:
        notes.append(f"{strange}; as in trec_eval, such queries do not count, and such documents are not relevant.")
    run = search(ranker, task.collection, queries, config.depth).renamed(system.name)
    cost = None
    if config.cost is not None and system.is_served:
        cost = measure_cost(ranker, task.collection, queries.texts, config.cost, system.source)
    answered = set(run.query_ids)
    lacking = [query for query in queries.ids if query not in answered]
    if lacking:
        named = sample_of(lacking)
        notes.append(f"{system.name}: {len(lacking)} of {len(queries)} queries have no results and count 0 ({named}).")
    return Measured.of(
        run,
        None if task.grades is None else evaluate_run(run, task.grades, config.columns),
        cost,
        " ".join(notes),
        name=system.name,
        role=system.role,
        bytes_per_document=bytes_per_document(ranker, task.collection) if system.is_served else None,
        documents_by=system.documents_by or ranker.documents_by,
        queries_by=system.queries_by or ranker.queries_by,
    )


def search(ranker: Ranker, collection: Collection, queries: Texts, depth: int) -> Run:
    """The best `depth` documents of each query, without those that are the query itself.

    In a collection of passages, these are the documents that they were cut from. In a recorded run, documents that are
    not in the collection keep their ranks, as in trec_eval.
    """
    own = collection.own_documents(queries.ids)
    if ranker.run is not None and ranker.ranks_documents(collection):
        run = rows_of(ranker.run, queries)
    else:
        run = search_documents(ranker, queries, collection, min(depth + bool(own), len(collection.whole.documents)))
    return run.without(own).top(depth)


def task_of(collection: Collection, config: EvaluationConfig) -> tuple[Task, list[str]]:
    """The queries with their judgments, and notes for the reader; a UserError if there is nothing to measure."""
    split, notes = split_of(collection, config.split), list(collection.warnings)
    notes += filter(None, [passages_note(collection)])
    queries = collection.split(split)
    grades = collection.relevance(split).to_dict() if collection.qrels else None
    if grades is None:
        if config.teacher is None and config.cost is None:
            raise UserError(
                f"collection {collection.name} has no relevance judgments, so there is no quality to measure; "
                "give a teacher for agreement with it, or ask for cost."
            )
        notes.append(f"{collection.name} has no relevance judgments: quality is not measured.")
    elif version := version_note(collection, split):
        notes.append(version)
    if own := own_documents_note(collection, queries):
        notes.append(own)
    # Measures that are deeper than the retrieved lists are lower than their names say.
    deep = [measure for measure in config.columns if (parse_measure(measure).cutoff or 0) > max(config.depth, 10)]
    if deep and grades is not None:
        lower = f"only {config.depth} documents a query were retrieved (depth), so it counts no deeper."
        notes.append(f"{', '.join(deep)}: {lower}")
    return Task(collection, split, queries, grades), notes


def _evaluation(
    measured: dict[str, Measured], systems: Sequence[System], task: Task, config: EvaluationConfig, notes: list[str]
) -> Evaluation:
    """The measurements, with agreement if there is a teacher, and with fingerprints of all that they depend on."""
    collection, teacher = task.collection, config.teacher
    prints = {system.name: system.ranker.fingerprint(collection) for system in systems}
    changed = {system.name: system.ranker.changes(collection) for system in systems}
    notes = [*notes, *(f"{name}: {change}." for name, change in changed.items() if change)]
    provenance = {
        "collection": collection.fingerprint,
        "documents": str(len(collection.whole.documents)),
        "depth": str(min(config.depth, len(collection.whole.documents))),
        **{f"system {name}": fingerprint for name, fingerprint in prints.items() if fingerprint},
    }
    if teacher is not None:
        runs = {name: system.load_run() for name, system in measured.items()}
        agreement = agreements(teacher, runs, collection, task.queries, task.grades)
        measured = {name: system.with_row(agreement=agreement[name]) for name, system in measured.items()}
        provenance["teacher"] = f"{teacher.name} {teacher.fingerprint(collection)}"
    content = Results(
        collection=collection.name,
        split=task.split,
        queries=len(task.queries),
        systems=[system.row for system in measured.values()],
        command=config.command,
        hardware=hardware(),
        versions=library_versions(),
        notes=[*notes, *(system.note for system in measured.values() if system.note)],
        provenance=provenance,
    )
    return Evaluation(content, measured)


def _with_differences(evaluation: Evaluation, task: Task) -> Results:
    """The results with tests of each system against the first, and queries of the first and the best of the others."""
    first, *others = evaluation.measured.values()
    if not others:
        return evaluation.results
    best = max(others, key=lambda system: system.row.ndcg10 or 0.0)
    update = {"comparisons": [], **shown_queries(task, first, best, _EXAMPLES)}
    if first.per_query is not None:
        measures = [name for name in first.per_query.column_names if name != "query_id"]
        measure = MEASURE if MEASURE in measures else measures[0]
        values = {name: table[measure].to_numpy() for name, table in evaluation.per_query.items()}
        update["comparisons"] = paired_tests([(other.name, first.name) for other in others], values, measure)
    return evaluation.results.model_copy(update=update)
