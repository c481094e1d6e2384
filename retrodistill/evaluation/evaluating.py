"""Measure systems on one collection."""

from __future__ import annotations

from collections.abc import Container, Mapping, Sequence
from dataclasses import dataclass, field, replace
from functools import cached_property
from pathlib import Path
from typing import Any

import pyarrow as pa

from retrodistill.core.errors import UserError, sample_of
from retrodistill.core.files import exclusive, write_json
from retrodistill.core.manifest import Manifest, hardware, library_versions
from retrodistill.data import Collection, Texts, load_collection
from retrodistill.evaluation.agreement import agreements
from retrodistill.evaluation.cost import measure_cost
from retrodistill.evaluation.folder import CachedResult, Folder, check_file_names, write_per_query
from retrodistill.evaluation.measures import Grades, evaluate_run, means, measures_within, parse_measure
from retrodistill.evaluation.report import with_differences
from retrodistill.evaluation.results import Agreement, Cost, Results, System, of_measures
from retrodistill.evaluation.rules import split_of, version_note
from retrodistill.evaluation.systems import Candidate, candidates_for, named_systems
from retrodistill.rankers.loading import load_ranker
from retrodistill.rankers.protocol import Ranker
from retrodistill.runs.run import Run


@dataclass(frozen=True)
class EvaluationConfig:
    """What to measure.

    Attributes:
        split: Whose judgments count; None for BEIR's rule: test, and dev for msmarco.
        measures: As `evaluate_run` takes them; None for BEIR's, less those deeper than `depth`.
        depth: Documents retrieved per query; cut to the corpus.
        teacher: Agreement with this one is measured too; None for none.
        cost_threads: Cost is measured too, on so many threads; None for not.
        place: What the collection was loaded from, for the process that measures memory; None leaves that out.
        command: What to print as the command that gives these numbers again.

    Raises:
        UserError: An unknown measure, a depth or a number of threads below 1.
    """

    split: str | None = None
    measures: Sequence[str] | None = None
    depth: int = 1000
    teacher: Any = None
    cost_threads: int | None = None
    place: str | None = None
    command: str = ""

    def __post_init__(self) -> None:
        for what, number in (("depth", self.depth), ("threads", self.cost_threads)):
            if number is not None and number < 1:
                raise UserError(f"{what} {number}: give at least 1.")
        for measure in self.measures or ():
            parse_measure(measure)

    def with_teacher(self) -> EvaluationConfig:
        """The same, the teacher loaded: a wrong name fails before any work, and several collections load it once."""
        return self if self.teacher is None else replace(self, teacher=load_ranker(self.teacher))

    @property
    def columns(self) -> list[str]:
        """The measures by name."""
        if self.measures is None:
            return measures_within(self.depth)
        return list(dict.fromkeys(parse_measure(measure).name for measure in self.measures))


@dataclass(frozen=True)
class Evaluation:
    """What `evaluate` measured on one collection.

    Attributes:
        collection: Its name.
        split: Whose judgments counted.
        queries: How many there are.
        rows: The systems, as in results.json.
        per_query: ``{system: table query_id, measures}``; empty where there are no judgments.
        notes: What a reader must know.
        provenance: Fingerprints, by name.
    """

    collection: str
    split: str
    queries: int
    rows: list[System]
    per_query: dict[str, pa.Table]
    notes: list[str] = field(default_factory=list)
    provenance: dict[str, Any] = field(default_factory=dict)
    kept: dict[str, CachedResult] = field(default_factory=dict, repr=False)

    @property
    def means(self) -> dict[str, dict[str, float]]:
        """``{system: {measure: mean over all judged queries}}``."""
        return {name: means(table) for name, table in self.per_query.items()}

    @cached_property
    def runs(self) -> dict[str, Run]:
        """``{system: run}``; read from the folder where there is one."""
        return {name: kept.results() for name, kept in self.kept.items()}

    def only(self, names: Container[str]) -> Evaluation:
        """The same of some of its systems."""
        return replace(
            self,
            rows=[row for row in self.rows if row.name in names],
            per_query={name: table for name, table in self.per_query.items() if name in names},
            kept={name: one for name, one in self.kept.items() if name in names},
        )

    def without_runs(self) -> Evaluation:
        """The same, runs that are in memory dropped: of many collections they would fill it."""
        return replace(self, kept={name: one for name, one in self.kept.items() if isinstance(one.run, Path)})

    def results(self, command: str = "") -> Results:
        """The evaluation as results.json holds it."""
        return Results(
            collection=self.collection,
            split=self.split,
            queries=self.queries,
            systems=self.rows,
            command=command,
            hardware=hardware(),
            versions=library_versions(),
            notes=self.notes,
            provenance=self.provenance,
        )


def evaluate(
    systems: Mapping[str, Any] | Sequence[Any] | Any,
    collection: Collection | str,
    split: str | None = None,
    *,
    measures: Sequence[str] | None = None,
    depth: int = 1000,
    teacher: Any = None,
    cost_threads: int | None = None,
    out: str | Path | None = None,
) -> Evaluation:
    """Measure systems on one collection, by BEIR's rules; queries without results count 0.

    Args:
        systems: ``{name: system}``, a list, or one: a model name, an index or its folder, a run, an encoder, an
            ensemble, or ``rerank:TEACHER@SOURCE``.
        collection: A collection or what `load_collection` takes.
        split: Whose judgments count; BEIR's by default: test, and dev for msmarco.
        measures: Any strings of ir_measures, such as ``nDCG@10`` or ``RR(rel=2)@10``; ``ndcg@k``, ``mrr@k``,
            ``recall@k``, ``map@k``, ``precision@k`` and ``hole@k`` for short; BEIR's by default.
        depth: Documents retrieved per query; cut to the corpus.
        teacher: Measure agreement with this teacher too; it needs no judgments.
        cost_threads: Measure cost too, on so many threads; it needs no judgments.
        out: Folder of the collection, for ``runs/NAME.run``, ``per-query.parquet``, ``results.json``; what
            stands there from the same systems and settings is not measured again, and other
            systems that were measured there on the same queries stay in the table, in front.

    Returns:
        Of the systems given.

    Raises:
        UserError: There are no judgments and nothing else to measure, or a system cannot search.
    """
    place = None if isinstance(collection, Collection) else str(collection)
    wanted = EvaluationConfig(split, measures, depth, teacher, cost_threads, place).with_teacher()
    folder = None if out is None else Path(out)
    return evaluate_on(named_systems(systems), load_collection(collection), wanted, {}, folder)


def evaluate_on(
    systems: Mapping[str, Any],
    collection: Collection,
    wanted: EvaluationConfig,
    loaded: dict[str, Candidate],
    out: Path | None,
) -> Evaluation:
    """As `evaluate`; systems that hold for other collections too are loaded once, into `loaded`."""
    split = split_of(collection, wanted.split)
    queries = collection.split(split)
    qrels, notes = _judgments(collection, split, wanted)
    candidates = candidates_for(systems, collection.name, loaded)
    if out is None:
        return _evaluate(candidates, collection, (split, queries, qrels), wanted, None, notes)
    settings = {
        "split": split,
        "measures": wanted.columns,
        "depth": wanted.depth,
        "cost": wanted.cost_threads,
    }
    check_file_names(systems)
    folder = Folder(out, Manifest("evaluation", {"collection": collection.fingerprint}, settings))
    with exclusive(out / ".lock"):
        whole = _evaluate(candidates, collection, (split, queries, qrels), wanted, folder, notes)
        write_per_query(whole.per_query, out)
        results = with_differences(whole, collection, qrels, wanted.command)
        write_json(out / "results.json", results.to_json())
    return whole.only(systems)


def _judgments(collection: Collection, split: str, wanted: EvaluationConfig) -> tuple[Grades | None, list[str]]:
    """The judgments, None where the collection has none at all; and what a reader must know."""
    if collection.qrels:
        notes = [*collection.warnings, version_note(collection, split), _depth_note(wanted)]
        return collection.relevance(split).to_dict(), [note for note in notes if note]
    if wanted.teacher is None and wanted.cost_threads is None:
        raise UserError(
            f"collection {collection.name} has no relevance judgments, so there is no quality to measure; "
            "give a teacher for agreement with it, or ask for cost."
        )
    return None, [*collection.warnings, f"{collection.name} has no relevance judgments: quality is not measured."]


def _depth_note(wanted: EvaluationConfig) -> str | None:
    """Measures that look deeper than what is retrieved are lower than their name says."""
    deep = [measure for measure in wanted.columns if (parse_measure(measure).cutoff or 0) > max(wanted.depth, 10)]
    if not deep:
        return None
    return f"{', '.join(deep)}: only {wanted.depth} documents a query were retrieved (depth), so it counts no deeper."


def _evaluate(
    candidates: Sequence[Candidate],
    collection: Collection,
    asked: tuple[str, Texts, Grades | None],
    wanted: EvaluationConfig,
    folder: Folder | None,
    notes: list[str],
) -> Evaluation:
    """Measure what is not in the folder; the evaluation holds what else is there too, of the same kind."""
    split, queries, qrels = asked
    kept = {} if folder is None else folder.before(candidate.name for candidate in candidates)
    prints = {candidate.name: candidate.fingerprint(collection) for candidate in candidates}
    for candidate in candidates:
        fingerprint = prints[candidate.name]
        found = folder.find(candidate.name, fingerprint) if folder is not None else None
        if found is None:
            found = _measure(candidate, collection, queries, qrels, wanted)
            if folder is not None:
                found = folder.keep(candidate.name, fingerprint, found)
        kept[candidate.name] = found
    agreed: dict[str, Agreement] = {}
    if wanted.teacher is not None:
        runs = {name: one.results() for name, one in kept.items()}
        agreed = agreements(wanted.teacher, runs, collection, queries, qrels)
    tables = {name: one.per_query for name, one in kept.items() if one.per_query is not None}
    return Evaluation(
        collection=collection.name,
        split=split,
        queries=len(queries),
        rows=[_row(name, one, agreed.get(name)) for name, one in kept.items()],
        per_query=tables,
        notes=[*notes, *(one.note for one in kept.values() if one.note)],
        provenance=_provenance(prints, collection, wanted),
        kept=kept,
    )


def search(retriever: Ranker, collection: Collection, queries: Texts, depth: int) -> Run:
    """The best `depth` documents of each query; a document that is the query itself is left out, as in beir."""
    own = bool((collection.documents.positions(queries.ids) >= 0).any())
    run = retriever.stream(queries, collection, min(depth + own, len(collection.documents)))
    return run.without({query: query for query in queries.ids}).top(depth)


def _measure(
    candidate: Candidate, collection: Collection, queries: Texts, qrels: Grades | None, wanted: EvaluationConfig
) -> CachedResult:
    run = search(candidate.retriever, collection, queries, wanted.depth).renamed(candidate.name)
    cost = None
    if wanted.cost_threads is not None:
        asked = (collection, queries.texts, wanted.cost_threads)
        cost = measure_cost(candidate.retriever, *asked, source=candidate.source, place=wanted.place)
    table = None if qrels is None else evaluate_run(run, qrels, wanted.columns)
    size = candidate.retriever.bytes_per_document(collection)
    told = None if cost is None else cost.model_dump(mode="json", by_alias=True)
    note = _unanswered(candidate.name, run, queries)
    return CachedResult(table, run, size, told, candidate.documents_by, candidate.queries_by, note)


def _unanswered(name: str, run: Run, queries: Texts) -> str:
    """Says which queries have no results; empty where all have."""
    answered = set(run.query_ids)
    lacking = [query for query in queries.ids if query not in answered]
    if not lacking:
        return ""
    return f"{name}: {len(lacking)} of {len(queries)} queries have no results and count 0 ({sample_of(lacking)})."


def _provenance(prints: Mapping[str, str | None], collection: Collection, wanted: EvaluationConfig) -> dict[str, Any]:
    """What the figures were made from: data, systems and teacher by their fingerprints, and how deep was searched."""
    found = {
        "collection": collection.fingerprint,
        "documents": str(len(collection.documents)),
        "depth": str(min(wanted.depth, len(collection.documents))),
        **{f"system {name}": said for name, said in prints.items() if said is not None},
    }
    if wanted.teacher is not None:
        found["teacher"] = f"{wanted.teacher.name} {wanted.teacher.fingerprint(collection)}"
    return found


def _row(name: str, kept: CachedResult, agreement: Agreement | None) -> System:
    values = {} if kept.per_query is None else means(kept.per_query)
    cost = None if kept.cost is None else Cost.model_validate(kept.cost)
    row = {
        "name": name,
        "role": "baseline",
        **of_measures(values),
        "bytes_per_document": kept.bytes_per_document,
        "query_ms": None if cost is None else cost.timings[0].total,
        "documents_by": kept.documents_by,
        "queries_by": kept.queries_by,
        "agreement": agreement,
        "cost": cost,
    }
    return System.model_validate(row)
