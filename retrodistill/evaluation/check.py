"""Check an index with a query encoder: is it admitted, does it find what the documents' own model finds, how fast."""

from __future__ import annotations

import copy
import time
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, field
from typing import Any

import numpy as np

from retrodistill.core.errors import UserError, sample_of
from retrodistill.data.collection import Collection
from retrodistill.data.texts import Texts
from retrodistill.encoders.any_encoder import load_encoder
from retrodistill.encoders.contract import IN_MEMORY
from retrodistill.encoders.encoder import Encoder
from retrodistill.encoders.token_weights import TokenWeights
from retrodistill.encoders.vector_files import VectorFile
from retrodistill.evaluation.latency import query_latency
from retrodistill.evaluation.measures import evaluate_run, means
from retrodistill.indexes.protocol import Index
from retrodistill.rankers.loading import load_ranker
from retrodistill.rankers.protocol import Ranker
from retrodistill.rankers.queries import check_k
from retrodistill.runs.agreement import overlap
from retrodistill.runs.run import Run

_DEPTH = 100  # documents of the deeper comparison, and per query of the measured runs
_PROBE = 64  # documents that embedding is timed on
_OWN = "teacher on index"


@dataclass(frozen=True)
class Side:
    """One way to answer the queries.

    Attributes:
        name: ``teacher`` (the documents' model on both sides, exact search), ``teacher on index`` (its queries on this
            index), ``symmetric`` (the student on both sides, exact search), ``asymmetric`` (the student's queries on
            this index).
        documents_by: Name of the encoder of documents.
        queries_by: Name of the encoder of queries.
        quality: Mean of each measure over the judged queries; empty without judgments.
        query_ms: ``p50`` and ``p95`` of single queries, encoding included; None where none was timed.
        documents_per_second: How fast this side's documents are embedded here; None where that cannot be told.
    """

    name: str
    documents_by: str
    queries_by: str
    quality: Mapping[str, float] = field(default_factory=dict)
    query_ms: Mapping[str, float] | None = None
    documents_per_second: float | None = None


@dataclass(frozen=True)
class Check:
    """What `check` found of an admitted query encoder.

    Attributes:
        queries_by: Name of the query encoder.
        documents_by: Name of the encoder of the index' documents.
        admitted_as: Why: ``it is their own model``, or ``distilled into their space``.
        queries: How many were asked.
        shared: By depth, the mean share (0 to 1) of the neighbors that the teacher finds by exact search which this
            index finds with the encoder's queries; empty where the teacher cannot be asked.
        sides: The ways to answer, measured.
        notes: What could not be measured, and why.
    """

    queries_by: str
    documents_by: str
    admitted_as: str
    queries: int
    shared: Mapping[int, float]
    sides: Sequence[Side]
    notes: Sequence[str] = ()

    def to_json(self) -> dict[str, Any]:
        """All of it as JSON values."""
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
        queries: The query encoder, by name or object; the index' own by default.
        teacher: The encoder of the documents; by default the index names it.
        k: Depth of the first comparison of neighbors and of nDCG, and what a timed query asks for.
        split: Whose queries are asked; all there are where the collection has no judgments.
        latency_queries: So many are timed; 0 for none.
        symmetric: Also embed the documents by the query encoder, once, to see what keeping the teacher's gains.

    Raises:
        UserError: The encoder is refused (it says what differs), the collection is not the index', or there is no
            query.
    """
    given = getattr(index, "queries", None) if queries is None else queries
    if isinstance(given, TokenWeights):  # an inverted index that was loaded without its model
        given = index.space.documents_by
    if given is None:
        raise UserError("this index has no query encoder; give one to check.")
    student = _loaded(given, collection)
    index.space.check_query_encoder(student)
    own = _teacher(index, teacher, collection)
    _check_documents(index, collection)
    check_k(k, len(index))
    asked, judged = _asked(collection, split)
    notes = [] if judged else [f"No judgments for {split!r}: quality is not measured."]
    ways: list[_Way] = []
    if isinstance(own, VectorFile) and len(own.missing(asked.texts, "query")):
        notes.append(f"{own.name} has no vectors for these queries: the teacher's own are not compared.")
    else:
        ways = [_Way("teacher", own, own, load_ranker(own)), _Way(_OWN, own, own, _asked_by(index, own))]
    if student.fingerprint("query") != own.fingerprint("query"):
        if symmetric and not isinstance(student, VectorFile):
            alone = type(student)(student.model, student.name)  # no manifest: it searches its own documents here
            ways.append(_Way("symmetric", student, student, load_ranker(alone)))
        ways.append(_Way("asymmetric", own, student, _asked_by(index, student)))
    runs = {way.name: way.retriever.search(asked, collection, min(max(_DEPTH, k) + 1, len(index))) for way in ways}
    rates = {way.documents.name: _documents_per_second(way.documents, collection) for way in ways}
    return Check(
        student.name,
        index.space.documents_by,
        "it is their own model" if student.document_space == index.space.fingerprint else "distilled into their space",
        len(asked),
        _shared(runs[_OWN if len(ways) == 2 else ways[-1].name], runs["teacher"], k) if "teacher" in runs else {},
        [
            Side(
                way.name,
                way.documents.name,
                way.queries.name,
                means(evaluate_run(runs[way.name], judged, (f"ndcg@{k}", f"recall@{_DEPTH}"))) if judged else {},
                _latency(way, collection, k, asked.texts[:latency_queries]),
                rates[way.documents.name],
            )
            for way in ways
        ],
        notes,
    )


@dataclass(frozen=True)
class _Way:
    """A side before it is measured."""

    name: str
    documents: Any
    queries: Any
    retriever: Ranker


def _loaded(source: Any, collection: Collection) -> Any:
    found = load_encoder(source)
    return found.bind(collection) if isinstance(found, Encoder) else found


def _teacher(index: Index, given: Any, collection: Collection) -> Any:
    if given is None and index.space.documents_by.partition(":")[2] == IN_MEMORY:
        raise UserError("the model of this index' documents was never saved; give it as the teacher.")
    found = _loaded(index.space.documents_by if given is None else given, collection)
    differences = index.space.differences(found)
    if differences or found.document_space != index.space.fingerprint:
        what = "; ".join(differences) or "it encodes queries only"
        raise UserError(
            f"{found.name} is not, or no longer, the model that made the documents, {index.space.documents_by} "
            f"({what}); give that one as the teacher."
        )
    return found


def _check_documents(index: Index, collection: Collection) -> None:
    strange = set(index.ids).symmetric_difference(collection.documents.ids)
    if strange:
        raise UserError(
            f"the index holds {len(index)} documents, collection {collection.name} {len(collection.documents)}, and "
            f"{len(strange)} stand in one of them only ({sample_of(sorted(strange))}); give the collection that it was "
            "built on."
        )


def _asked(collection: Collection, split: str) -> tuple[Texts, dict[str, dict[str, int]]]:
    """The queries, and their judgments where there are any."""
    unjudged = not collection.qrels and split == "test"  # the default: all queries where nobody has judged
    asked = collection.split("all" if unjudged else split)
    return asked, collection.relevance(split).to_dict() if split in collection.qrels else {}


def _asked_by(index: Any, encoder: Any) -> Ranker:
    """The same index with another query encoder, which it has admitted."""
    other = copy.copy(index)
    other.queries = encoder
    return other


def _shared(run: Run, own: Run, k: int) -> dict[int, float]:
    """By depth, the mean share of the teacher's neighbors that are found."""
    deepest = min(_DEPTH, int(np.diff(own.bounds).min()))
    return {depth: float(np.mean(list(overlap(run, own, depth).values()))) for depth in sorted({k, max(k, deepest)})}


def _latency(way: _Way, collection: Collection, k: int, texts: list[str]) -> dict[str, float] | None:
    if not texts or isinstance(way.queries, VectorFile):  # looking a vector up is not what its API takes
        return None
    return query_latency(way.retriever.query_fn(collection, k), texts)


def _documents_per_second(encoder: Any, collection: Collection) -> float | None:
    if isinstance(encoder, VectorFile):
        return None
    texts = collection.documents.texts
    probe = [texts[place] for place in np.linspace(0, len(texts) - 1, min(_PROBE, len(texts)), dtype=int)]
    encoder.encode(probe[:4], "document")  # the first call prepares
    start = time.perf_counter()
    encoder.encode(probe, "document")
    return round(len(probe) / (time.perf_counter() - start), 1)
