"""What answers requests: an index, BM25, an ensemble or a re-ranker of these, a recorded run, or a model alone.

A system is used by one thread at a time. Nothing that is asked is stored: queries of users do not fill the cache.
"""

from __future__ import annotations

import itertools
import time
from collections.abc import Callable, Mapping, Sequence
from typing import Any, NamedTuple

import numpy as np
import pyarrow as pa

from retrodistill.core.errors import UserError
from retrodistill.data.collection import Collection
from retrodistill.data.filters import Filter, Filtering, parse_filter, read_filters
from retrodistill.data.texts import GENERATED, Texts
from retrodistill.encoders.any_encoder import DENSE
from retrodistill.encoders.contract import Role as Side
from retrodistill.encoders.modules import fast_tokenizer_of
from retrodistill.encoders.reading import readable_queries
from retrodistill.evaluation.results import Role
from retrodistill.indexes.base import Index
from retrodistill.indexes.columns import ID, columns_of, passing_rows, schema_with_ids
from retrodistill.rankers.bm25 import BM25, BM25Ranker
from retrodistill.rankers.protocol import Ranker
from retrodistill.runs.documents import PASSAGE
from retrodistill.runs.run import Run, look_up


class Hit(NamedTuple):
    """A document that was found."""

    document_id: str
    score: float  # raw, higher is better
    passage_id: str | None = None  # the best passage of the document, where passages are searched


class Answer(NamedTuple):
    """A result with the time that its batch took."""

    value: Any
    seconds: float
    batch: int  # requests that were computed together


class System:
    """A named system, and what it can do.

    Attributes:
        name: In requests and answers.
        role: Its role in a job.
        documents_by: What encodes the documents, without folders.
        queries_by: The same of queries.
        size: Number of documents; 0 if it does not search.
        is_recorded: It only answers queries whose results were recorded.
        schema: Fields that filters compare.
        index: Its index or exported store; None for other systems.
        encoder: Its encoder of queries; None if there is none.
        judge: What scores pairs of texts, by ``score(pairs)``; None if nothing does.
        models: Objects that two systems must not use at the same time.
        rewrites: By query id, what it searches for instead of the query.
    """

    size = 0
    is_recorded = False
    schema = schema_with_ids(None)
    index: Any = None
    encoder: Any = None
    judge: Any = None
    models: Sequence[Any] = ()
    rewrites: Mapping[str, str] = {}

    def __init__(self, name: str, role: Role = "student", documents_by: str = "", queries_by: str = "") -> None:
        self.name, self.role, self.documents_by, self.queries_by = name, role, documents_by, queries_by

    @property
    def can_search(self) -> bool:
        """Whether it finds documents."""
        return self.size > 0

    @property
    def is_dense(self) -> bool:
        """Whether its encoder gives one dense vector per text."""
        return self.encoder is not None and self.encoder.has_model and self.encoder.kind in DENSE

    def close(self) -> None:
        """Release what it holds open, such as the folder of a store."""
        if hasattr(self.index, "close"):
            self.index.close()

    def find(self, queries: Texts, k: int, filter: Filter | None = None) -> Run:
        """The best k documents of each query, or fewer if fewer pass the filter."""
        raise UserError(f"{self.name} is a model without documents, so it cannot search; serve an index.")

    def score(self, queries: Texts, pairs: Run) -> Run:
        """The pairs with its scores, without those that it cannot score."""
        raise NotImplementedError

    def filter_of(self, given: Any) -> Filter | None:
        """The filter in a request: an object, a condition as on the command line, or a list of them; else UserError."""
        if given in (None, "", [], {}):
            return None
        if isinstance(given, str | list):
            written = [given] if isinstance(given, str) else given
            if not all(isinstance(each, str) for each in written):
                raise UserError("a filter is an object, a condition such as 'year>=2020', or a list of conditions.")
            return read_filters(written, self.schema)
        return parse_filter(given, self.schema)

    def answer(self, requests: Sequence[Request]) -> list[Any]:
        """An `Answer`, or an exception, for each request; those of one group are computed together."""
        answers: list[Any] = [None] * len(requests)
        groups: dict[Any, list[int]] = {}
        for place, request in enumerate(requests):
            groups.setdefault(request.group, []).append(place)
        for places in groups.values():
            started = time.perf_counter()
            try:
                values = requests[places[0]].compute(self, [requests[place] for place in places])
            except Exception as error:
                values = [error] * len(places)
            seconds = time.perf_counter() - started
            for place, value in zip(places, values, strict=True):
                is_failure = isinstance(value, Exception)
                answers[place] = value if is_failure else Answer(value, seconds, len(places))
        return answers


class Request:
    """Work for a system's thread."""

    @property
    def group(self) -> Any:
        """Requests of one group are computed together."""
        raise NotImplementedError

    def compute(self, system: System, requests: Sequence[Any]) -> Sequence[Any]:
        """One value for each request of a group."""
        raise NotImplementedError


class Search(Request):
    """The best documents of a query, as a list of `Hit`."""

    def __init__(self, text: str, k: int, filter: Filter | None = None) -> None:
        self.text, self.k, self.filter = text, k, filter

    @property
    def group(self) -> Any:
        """Those with the same filter."""
        return "search", self.filter

    def compute(self, system: System, requests: Sequence[Search]) -> list[list[Hit]]:
        """One search, as deep as the deepest."""
        ids = [f"{GENERATED}{place}" for place in range(len(requests))]  # which are no ids of a collection
        queries = Texts.from_pairs(zip(ids, (request.text for request in requests), strict=True))
        run = system.find(queries, max(request.k for request in requests), self.filter)
        found = hits_of(run)
        return [found.get(id_, [])[: request.k] for id_, request in zip(ids, requests, strict=True)]


class Embed(Request):
    """Vectors of texts (an array, CSR rows, or `Tokens`), and the number of their tokens if it is counted."""

    def __init__(self, texts: Sequence[str], side: Side, *, count: bool = False) -> None:
        self.texts, self.side, self.count = list(texts), side, count

    @property
    def group(self) -> Any:
        """Those of one side."""
        return "embed", self.side

    def compute(self, system: System, requests: Sequence[Embed]) -> list[Any]:
        """All texts at once."""
        bounds = np.cumsum([0, *(len(request.texts) for request in requests)]).tolist()
        vectors = system.encoder.encode([text for request in requests for text in request.texts], self.side)
        parts = [_rows(vectors, *ends) for ends in itertools.pairwise(bounds)]
        tokens = [_tokens(system.encoder, request) if request.count else 0 for request in requests]
        return list(zip(parts, tokens, strict=True))


class Judge(Request):
    """Scores of documents for a query, (n,) float32 logits."""

    def __init__(self, query: str, documents: Sequence[str]) -> None:
        self.pairs = [(query, document) for document in documents]

    @property
    def group(self) -> Any:
        """All of them."""
        return "judge"

    def compute(self, system: System, requests: Sequence[Judge]) -> list[np.ndarray]:
        """All pairs at once."""
        scores = system.judge.score([pair for request in requests for pair in request.pairs])
        return np.split(scores, np.cumsum([len(request.pairs) for request in requests])[:-1])


class IndexSystem(System):
    """An index or an exported store, with its query encoder."""

    def __init__(self, index: Index, name: str, role: Role = "student", **about: str) -> None:
        super().__init__(name, role, **about)
        if index.queries is None:
            raise UserError(f"index {name} has no query encoder, so it cannot answer texts; give one with --queries.")
        self.index, self.encoder, self.size, self.schema = index, index.queries, index.size, index.schema
        self.models = (index, getattr(index.queries, "model", index.queries))
        self._last: tuple[list[str], Any] = ([], None)

    def find(self, queries: Texts, k: int, filter: Filter | None = None) -> Run:
        """As the base says."""
        texts = readable_queries(self.encoder, queries)
        return self.index.search_vectors(self._vectors(texts), min(k, self.size), texts.ids, filter)

    def score(self, queries: Texts, pairs: Run) -> Run:
        """By a search among the documents of each query."""
        texts = readable_queries(self.encoder, queries.select(pairs.query_ids))
        vectors, ranked = self._vectors(texts), pairs.to_dict()
        runs = []
        for place, query in enumerate(texts.ids):
            among: Filtering = {ID: list(ranked[query])}
            of_query = _rows(vectors, place, place + 1)
            runs.append(self.index.search_vectors(of_query, len(ranked[query]), [query], among).table)
        scores = look_up(Run(pa.concat_tables(runs), self.name), pairs) if runs else np.full(len(pairs), np.nan)
        is_known = np.isfinite(scores)
        return pairs.filter(is_known).with_scores(scores[is_known], self.name)

    def _vectors(self, texts: Texts) -> Any:
        """Vectors of queries; those of the last call are kept, since an ensemble searches and scores the same ones."""
        if self._last[1] is None or self._last[0] != texts.texts:
            self._last = (texts.texts, self.encoder.encode(texts.texts, "query"))
        return self._last[1]


class OfCollection(System):
    """A system whose documents and fields are those of a collection."""

    def __init__(self, collection: Collection, name: str, role: Role = "student", **about: str) -> None:
        super().__init__(name, role, **about)
        self.collection, self.size = collection, len(collection.whole.documents)
        self._columns = columns_of(collection.whole)
        self.schema = schema_with_ids(self._columns)

    def passing(self, filter: Filter | None) -> np.ndarray | None:
        """Ascending rows of the documents that pass; None if all do."""
        documents = self.collection.whole.documents
        return None if filter is None else passing_rows(filter, self._columns, lambda: documents.ids)


class LexicalSystem(OfCollection):
    """BM25 over whole documents."""

    def __init__(self, ranker: BM25Ranker, collection: Collection, name: str, role: Role = "baseline") -> None:
        super().__init__(collection, name, role, documents_by=ranker.name, queries_by=ranker.name)
        self._bm25 = BM25(collection.whole.documents, ranker.of(collection).setting)
        self.models = (BM25,)  # the stemmer is shared by all of one language

    def find(self, queries: Texts, k: int, filter: Filter | None = None) -> Run:
        """As the base says; only documents that share a term with the query are found."""
        rows, scores = self._bm25.search(queries.texts, k, self.passing(filter))
        return Run.from_matrix(queries.ids, self._bm25.documents.ids, rows, scores, name=self.name)

    def score(self, queries: Texts, pairs: Run) -> Run:
        """0 for a pair that shares no term."""
        rows = pairs.positions(queries, self._bm25.documents)[1]
        products = self._bm25.products(queries.select(pairs.query_ids).texts)
        return pairs.with_scores(products.pairs(pairs.query_codes, rows), self.name)


class CompositeSystem(OfCollection):
    """A ranker of other systems, an ensemble or a re-ranker, that is made anew around their answers."""

    def __init__(
        self,
        members: Sequence[System],
        make: Callable[[Sequence[Ranker]], Ranker],
        collection: Collection,
        name: str,
        role: Role = "student",
        **about: str,
    ) -> None:
        super().__init__(collection, name, role, **about)
        self._members, self._make = members, make
        self.models = [model for member in members for model in member.models]

    def find(self, queries: Texts, k: int, filter: Filter | None = None) -> Run:
        """As the base says. A re-ranker finds no more than it re-ranks."""
        ranker = self._make([_Live(member, filter) for member in self._members])
        return ranker.search(queries, self.collection, min(k, self.size))


class _Live(Ranker):
    """A system as a member of an ensemble or the source of a re-ranker; what it finds passes a filter."""

    can_search = can_score_pairs = True

    def __init__(self, system: System, filter: Filter | None) -> None:
        self.system, self.name, self._filter = system, system.name, filter

    def search(self, queries: Texts, collection: Collection, k: int) -> Run:
        return self.system.find(queries, min(k, self.system.size), self._filter)

    def score(self, queries: Texts, collection: Collection, pairs: Run) -> Run:
        return self.system.score(queries, pairs)


class PairJudge(Ranker):
    """The judge of a re-ranker as a server uses it: it scores pairs anew and stores none."""

    can_score_pairs = True

    def __init__(self, judge: Ranker, collection: Collection) -> None:
        self.name, self._score = judge.name, judge.pair_fn(collection)

    def score(self, queries: Texts, collection: Collection, pairs: Run) -> Run:
        """The pairs with raw scores."""
        rows, scores = pairs.positions(queries, collection.documents)[1], np.zeros(len(pairs))
        codes = pairs.query_codes
        for place, query in enumerate(pairs.query_ids):
            own = codes == place
            scores[own] = self._score(queries[query], rows[own])
        return pairs.with_scores(scores, self.name)


class RecordedSystem(OfCollection):
    """A system without a model here, such as one behind an API: what a job measured of its test queries."""

    is_recorded = True

    def __init__(
        self, load: Callable[[], Run], queries: Texts, collection: Collection, name: str, role: Role, **about: str
    ) -> None:
        super().__init__(collection, name, role, **about)
        self._load, self._queries = load, queries
        self._run: Run | None = None
        self._ids: dict[str, str] = {}

    def find(self, queries: Texts, k: int, filter: Filter | None = None) -> Run:
        """As the base says, of test queries by their text; others are a UserError."""
        if self._run is None:
            self._run = self._load()
            self._ids = {text: id_ for id_, text in zip(self._queries.ids, self._queries.texts, strict=True)}
        asked = {id_: self._ids.get(text) for id_, text in zip(queries.ids, queries.texts, strict=True)}
        if None in asked.values():
            raise UserError(f"{self.name} has no model here: it answers only the queries of the test set.")
        run = self._run.select(dict.fromkeys(id_ for id_ in asked.values() if id_ is not None))
        if (rows := self.passing(filter)) is not None:
            ids = run.table["document_id"].cast(pa.string()).to_pylist()
            run = run.filter(np.isin(self.collection.whole.documents.positions(ids), rows))
        found = run.top(k).to_dict()
        return Run.from_dict({id_: found[own] for id_, own in asked.items() if own in found}, self.name)


class ModelSystem(System):
    """A student without an index: it encodes texts or scores pairs."""

    def __init__(self, name: str, *, encoder: Any = None, judge: Any = None) -> None:
        super().__init__(name)
        self.encoder, self.judge = encoder, judge
        self.models = [model.model for model in (encoder, judge) if model is not None]


def check_side(system: System, side: Side) -> None:
    """Refuse documents for an encoder whose queries search the documents of another model."""
    encoder = system.encoder
    if side == "document" and (not encoder.has_model or encoder.query_space != encoder.document_space):
        raise UserError(f"{system.name} encodes queries for documents of another model; encode these with that one.")


def hits_of(run: Run) -> dict[str, list[Hit]]:
    """By query id, what a run found, best first."""
    ranked = run.ranked()
    documents, scores = ranked.table["document_id"].to_pylist(), ranked.scores.tolist()
    passages = ranked.table[PASSAGE].to_pylist() if PASSAGE in ranked.table.column_names else [None] * len(scores)
    rows = list(itertools.starmap(Hit, zip(documents, scores, passages, strict=True)))
    ends = itertools.pairwise(ranked.bounds.tolist())
    return {query: rows[start:stop] for query, (start, stop) in zip(ranked.query_ids, ends, strict=True)}


def _tokens(encoder: Any, request: Embed) -> int:
    """Tokens of the texts of a request, special ones included; 0 for an encoder without a tokenizer of its own."""
    tokenizer = fast_tokenizer_of(encoder.modules(request.side)[0]) if encoder.has_model else None
    return 0 if tokenizer is None else sum(len(tokenizer.encode(text).ids) for text in request.texts)


def _rows(vectors: Any, start: int, stop: int) -> Any:
    """Rows of an array or of CSR, or texts of `Tokens`."""
    return vectors.slice(start, stop) if hasattr(vectors, "slice") else vectors[start:stop]
