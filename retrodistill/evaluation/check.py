"""Check an index with a query encoder: is it admitted, does it find what the documents' model finds, how fast is it."""

from __future__ import annotations

import copy
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from typing import Any

import numpy as np

from retrodistill.core.errors import UserError, sample_of
from retrodistill.data.collection import Collection
from retrodistill.encoders.any_encoder import load_encoder
from retrodistill.encoders.contract import IN_MEMORY
from retrodistill.encoders.reading import readable
from retrodistill.evaluation.cost import CostConfig
from retrodistill.evaluation.evaluating import EvaluationConfig, evaluate_systems
from retrodistill.evaluation.measures import means
from retrodistill.evaluation.systems import Measured, System, Task
from retrodistill.indexes.base import Index
from retrodistill.rankers.loading import load_ranker
from retrodistill.rankers.protocol import Ranker, check_k
from retrodistill.runs.agreement import overlap

_DEPTH = 100  # documents of the deeper comparison, and per query of the measured runs
_OWN = "teacher on index"


@dataclass(frozen=True)
class Check:
    """Result of `check` for an admitted query encoder.

    The ``sides`` are the ways to answer: ``teacher`` (the documents' model on both sides, exact search), ``teacher on
    index`` (its queries on this index), ``symmetric`` (the student on both sides, exact search), ``asymmetric`` (the
    student's queries on this index). Each has ``documents_by``, ``queries_by``, ``quality`` (means of measures; empty
    without judgments), ``query_ms``, and ``documents_per_second`` (encoded here; both None if not measured).
    """

    queries_by: str  # name of the query encoder
    documents_by: str  # name of the encoder of the index's documents
    admitted_as: str  # why: ``it is their own model``, or ``distilled into their space``
    queries: int  # their number
    # By depth, the mean share (0 to 1) of the neighbors in the teacher's exact search that this index finds with the
    # encoder's queries; empty if the teacher cannot encode them.
    shared: Mapping[int, float]
    sides: Sequence[Mapping[str, Any]]
    notes: Sequence[str] = ()  # what could not be measured, and why

    def to_json(self) -> dict[str, Any]:
        """The dictionary for programs."""
        return asdict(self)


def check(
    index: Index,
    collection: Collection,
    *,
    queries: Any = None,
    teacher: Any = None,
    k: int = 10,
    split: str = "test",
    latency_queries: int = 50,
    symmetric: bool = True,
) -> Check:
    """Check whether a query encoder belongs to an index, and what it keeps and saves there.

    Args:
        index: Any kind that holds its query encoder as ``queries``.
        collection: What it was built on.
        queries: The query encoder, by name or object; the index's own by default.
        teacher: The encoder of the documents; by default the one that the index names.
        k: Depth of the first comparison of neighbors, of nDCG, and of timed queries.
        split: Its queries are used; all queries if the collection has no judgments.
        latency_queries: Number of queries to time; 0 to skip timing.
        symmetric: Also encode the documents with the query encoder, to measure the gain of the teacher's vectors.

    Raises:
        UserError: The encoder is refused (the error says what differs), the collection is another one, or there is no
            query.
    """
    if queries is None and index.queries is None:
        raise UserError("this index has no query encoder; give one to check.")
    if queries is None:  # of an index that only holds token weights, the model that they come from
        queries = index.queries if index.queries.has_model else index.space.documents_by
    collection = index.as_indexed(collection)
    student = load_encoder(queries).bind(collection)
    index.space.check_query_encoder(student)
    own = _teacher(index, teacher, collection)
    changed, collection = index.changes(collection), readable(own, collection)
    documents = collection.documents.ids
    # An exported store does not list its documents, which were compared when it was exported.
    strange = set(index.ids or documents).symmetric_difference(documents)
    if strange or len(index) != len(documents):
        which = f", and {len(strange)} are in only one of them ({sample_of(sorted(strange))})" if strange else ""
        raise UserError(
            f"the index holds {len(index)} documents, collection {collection.name} {len(documents)}{which}; give the "
            "collection that it was built on."
        )
    check_k(k, index.size)
    grades = collection.relevance(split).to_dict() if split in collection.qrels else None
    chosen = split if collection.qrels or split != "test" else "all"
    task = Task(collection, split, collection.split(chosen), grades)
    notes = [f"{changed}."] if changed else []
    notes += [] if task.grades else [f"No judgments for {split!r}: quality is not measured."]
    systems = []
    if own.is_recorded and len(own.missing(task.queries.texts, "query")):
        notes.append(f"{own.name} has no vectors for these queries: the teacher's own are not compared.")
    else:
        systems = [_side("teacher", load_ranker(own), own, own), _side(_OWN, _with_queries(index, own), own, own)]
    if student.fingerprint("query") != own.fingerprint("query"):
        if symmetric and not student.is_recorded:
            alone = type(student)(student.model, student.name)  # without a manifest, it encodes its own documents
            systems.append(_side("symmetric", load_ranker(alone), student, student))
        systems.append(_side("asymmetric", _with_queries(index, student), own, student))
    cost = CostConfig(queries=latency_queries, depth=k) if latency_queries else None
    settings = EvaluationConfig(measures=[f"ndcg@{k}", f"recall@{_DEPTH}"], depth=max(_DEPTH, k), cost=cost)
    measured = evaluate_systems(systems, task, settings)
    shared, last = {}, measured.get(_OWN if len(systems) == 2 else systems[-1].name)
    if last and "teacher" in measured:
        run, exact = last.load_run(), measured["teacher"].load_run()
        deepest = max(k, min(_DEPTH, int(np.diff(exact.bounds).min())))
        shared = {depth: float(np.mean(list(overlap(run, exact, depth).values()))) for depth in sorted({k, deepest})}
    is_own = index.space.holds_documents_of(student)
    admitted_as = "it is their own model" if is_own else "distilled into their space"
    sides = _sides(list(measured.values()), index.size)
    return Check(student.name, index.space.documents_by, admitted_as, len(task.queries), shared, sides, notes)


def _side(name: str, ranker: Ranker, documents: Any, queries: Any) -> System:
    return System(name, ranker, documents_by=documents.name, queries_by=queries.name)


def _sides(measured: Sequence[Measured], documents: int) -> list[dict[str, Any]]:
    """The sides as JSON values; all sides of one document encoder have the same documents per second."""
    rates = {
        side.row.documents_by: documents / side.row.cost.encode_seconds
        for side in measured
        if side.row.cost is not None and side.row.cost.encode_seconds
    }
    return [
        {
            **side.row.model_dump(include={"name", "documents_by", "queries_by", "query_ms"}),
            "quality": {} if side.per_query is None else means(side.per_query),
            "documents_per_second": rates.get(side.row.documents_by),
        }
        for side in measured
    ]


def _teacher(index: Index, given: Any, collection: Collection) -> Any:
    if given is None and index.space.documents_by.partition(":")[2] == IN_MEMORY:
        raise UserError("the model of this index's documents was never saved; give it as the teacher.")
    teacher = load_encoder(index.space.documents_by if given is None else given).bind(collection)
    differences = index.space.differences(teacher)
    if differences or not index.space.holds_documents_of(teacher):
        what = "; ".join(differences) or "it encodes queries only"
        raise UserError(
            f"{teacher.name} is not, or no longer, the model that made the documents, {index.space.documents_by} "
            f"({what}); give that one as the teacher."
        )
    return teacher


def _with_queries(index: Any, encoder: Any) -> Ranker:
    """A copy of the index with another query encoder, which it has admitted."""
    other = copy.copy(index)
    other.queries = encoder
    return other
