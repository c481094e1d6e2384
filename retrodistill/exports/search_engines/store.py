"""Elasticsearch and OpenSearch as stores: an index on a server that is written, read, and searched by its REST API."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping, Sequence
from functools import cached_property
from itertools import islice
from typing import Any, ClassVar, NamedTuple
from urllib.parse import quote

import numpy as np
from scipy.sparse import csr_array

from retrodistill.core.errors import UserError, sample_of
from retrodistill.core.formats import check_stamp
from retrodistill.core.json_files import json_text
from retrodistill.core.manifest import Manifest
from retrodistill.data.fields import from_json
from retrodistill.data.filters import Filter
from retrodistill.exports.protocol import VectorStore, check_same
from retrodistill.exports.records import Answers, Batch, Records, Vectors, stacked
from retrodistill.exports.search_engines.files import BulkFiles
from retrodistill.exports.search_engines.layout import (
    DEEPEST,
    OWNER,
    VECTOR,
    VERIFIED,
    WRITING,
    Dialect,
    Layout,
    SearchEngineSettings,
    check_name,
    chunks,
    default_name,
    unpacked,
)
from retrodistill.exports.search_engines.query_dsl import safe_name, to_query
from retrodistill.exports.search_engines.rest import BLOCKED, TRIES, Failure, Rest, failure_of, pause
from retrodistill.runs.documents import PASSAGE

_BATCH = 1000  # documents that are read at a time
_QUERIES = 32  # per request
_CLAUSES = 1000  # of a query: a server takes 1,024 by default, those of filters included
_REJECTED = (429, 503)  # of an item that a server was too busy for
_TRUNCATED = 4e-3  # of a weight that keeps 9 significant bits: 2 ** -8


class _Search(NamedTuple):
    row: int  # of the query
    body: dict[str, Any]
    scale: float = 1.0  # of its scores


class SearchEngineStore(VectorStore):
    """An index on a server; `rest` sends its requests.

    Scores are inner products. Of sparse vectors they are those of weights with 9 significant bits.
    """

    options: ClassVar[type[SearchEngineSettings]]
    dialect: ClassVar[Dialect]
    batch_size = _BATCH

    def __init__(self, rest: Rest, settings: SearchEngineSettings | None = None, name: str = "") -> None:
        self.rest, self.settings = rest, settings or self.options()
        self.name = self.settings.name or name
        self.sample = self.settings.sample
        self._continues = False

    @classmethod
    def open(cls, place: str, settings: Any = None, *, create: bool = False) -> VectorStore:
        """Open ``URL#INDEX``; ``#INDEX`` may be left out where there is one export. A folder gets files for a server.

        Raises:
            UserError: The server or the index is missing, the login is refused, or a folder is to be searched.
        """
        dialect = cls.dialect
        if not place.startswith(("http://", "https://")):
            return BulkFiles.open_folder(dialect, place, settings or cls.options(), create=create)
        url, _, name = place.partition("#")
        store = cls(Rest(dialect.name, url.rstrip("/"), dialect.login()), settings, name)
        status, about = store.rest.ask("GET", "/", allowed=(403,))
        if status == 200:  # a key for one index need not tell of the server
            dialect.check_server(about if isinstance(about, dict) else {}, store.rest.place)
        if store.name:
            check_name(store.name, dialect.name)
        if not create:
            store._find(url)
        return store

    @property
    def address(self) -> str:
        """``PREFIX:URL#INDEX``."""
        return f"{self.dialect.prefix}:{self.rest.url}" + (f"#{self.name}" if self.name else "")

    @property
    def min_agreement(self) -> float:  # type: ignore[override]
        """As `VectorStore.min_agreement`."""
        if self._kind == "sparse":
            return float(self.settings.agreement)
        return self.dialect.min_agreement(self._manifest.settings, self.settings.agreement)

    @property
    def tolerance(self) -> float:  # type: ignore[override]
        """As `VectorStore.tolerance`: some versions read sparse vectors back as they are indexed."""
        return _TRUNCATED if self._kind == "sparse" else 1e-4

    def create(self, spec: Records) -> None:
        """As `VectorStore.create`."""
        self.name = self.name or default_name(spec)
        check_name(self.name, self.dialect.name)
        self._layout = Layout(self.dialect, spec, self.settings)
        self._manifest = self._layout.manifest
        status, _ = self.rest.ask("HEAD", f"{self._path}", allowed=(404,))
        self._continues = status == 200
        if self._continues:
            check_same(self.manifest(), self._manifest, self.address, "choose another name, or delete that index first")
            self._mark(WRITING)
        else:
            self.rest.ask("PUT", f"{self._path}", self._layout.body)

    def upload(self, batches: Iterable[Batch]) -> int:
        """As `VectorStore.upload`. The server is asked what is there: an interrupted request may be there in part."""
        written = 0
        for lines in chunks(self._new_lines(batches), self.settings.bulk_mb):
            self._put(lines)
            written += len(lines)
        self.rest.ask("POST", f"{self._path}/_refresh")
        return written

    def finish(self) -> dict[str, Any]:
        """As `VectorStore.finish`."""
        self._mark(VERIFIED)
        return {}

    def manifest(self) -> Manifest | None:
        """As `VectorStore.manifest`."""
        held = self._meta().get(OWNER)
        if held is None:
            return None
        check_stamp(held, held["artifact"], self.address)
        about = {**held["about"], "is_complete": held.get("state") == VERIFIED}
        return Manifest(held["artifact"], held["inputs"], held["settings"], about)

    def count(self) -> int:
        """Number of documents."""
        return int(self.rest.ask("GET", f"{self._path}/_count")[1]["count"])

    def stored(self, ids: Sequence[str]) -> tuple[list[str], Vectors]:
        """As `VectorStore.stored`."""
        body = {"query": {"ids": {"values": list(ids)}}, "size": len(ids), **self.dialect.reading()}
        hits = self.rest.ask("POST", f"{self._path}/_search", body)[1]["hits"]["hits"]
        dimension = int(self._manifest.about["space"]["dimension"])
        vectors = [self._vector(self.dialect.read(hit), dimension) for hit in hits]
        return [hit["_id"] for hit in hits], stacked(self._kind, vectors, dimension)

    def payloads(self, ids: Sequence[str]) -> dict[str, dict[str, Any]]:
        """As `VectorStore.payloads`."""
        own = ("document_id", PASSAGE)
        names = {safe_name(field.name): field for field in self.schema() if field.name not in own}
        found = {}
        for start in range(0, len(ids), _BATCH):
            body = {"ids": list(ids[start : start + _BATCH])}
            answer = self.rest.ask("POST", f"{self._path}/_mget?_source_excludes={VECTOR}", body)[1]
            for one in answer["docs"]:
                if one.get("found"):
                    source = {name: one["_source"].get(name) for name in names}
                    found[one["_id"]] = {
                        names[name].name: from_json(value, names[name].type)
                        for name, value in source.items()
                        if value is not None
                    }
        return found

    def best(self, queries: Vectors, k: int, filter: Filter | None = None) -> Answers:
        """As `VectorStore.best`; queries without any entry find nothing.

        Raises:
            UserError: More documents are wanted than an answer has by default.
        """
        if k > DEEPEST:
            raise UserError(f"{self.address} gives {DEEPEST:,} documents for a query, not {k:,}; ask for fewer.")
        answers: Answers = [[] for _ in range(queries.shape[0])]  # type: ignore[union-attr]
        passing = None if filter is None else to_query(filter)
        for part in _in_parts(self._searches(queries, k, passing), _QUERIES):
            # An empty header stands for this index.
            content = b"".join(b"{}\n" + json_text(search.body).encode() + b"\n" for search in part)
            responses = self.rest.ask("POST", f"{self._path}/_msearch", content, lines=True)[1]["responses"]
            for search, response in zip(part, responses, strict=True):
                answers[search.row] = self._answer(response, search.scale)
        return answers

    def close(self) -> None:
        """There is nothing to release."""

    @property
    def _path(self) -> str:
        return "/" + quote(self.name, safe="")

    def _find(self, url: str) -> None:
        """Check that there is the index, or find the only export; refuse others with a list."""
        if self.name and self.rest.ask("HEAD", f"{self._path}", allowed=(404,))[0] == 200:
            return
        # Answers of the kind asked for only: a cluster may have thousands of mappings.
        answer = self.rest.ask("GET", f"/_mapping?filter_path=*.mappings._meta.{OWNER}.artifact")[1]
        names = sorted(answer)
        if not self.name and len(names) == 1:
            self.name = names[0]
            return
        what = f"has no index {self.name!r}" if self.name else f"has {len(names)} exports"
        listed, prefix = sample_of(names, 8) or "none", self.dialect.prefix
        raise UserError(f"{self.rest.place} {what}; exports there: {listed}. Write '{prefix}:{url}#INDEX'.")

    def _meta(self) -> dict[str, Any]:
        """The metadata of the mapping."""
        status, answer = self.rest.ask("GET", f"{self._path}/_mapping", allowed=(404,))
        if status == 404:
            return {}
        if len(answer) != 1:
            raise UserError(f"{self.address} names {len(answer)} indexes; name one of them.")
        [index] = answer.values()
        meta: dict[str, Any] = index["mappings"].get("_meta") or {}
        return meta

    def _mark(self, state: str) -> None:
        meta = {**self._meta(), OWNER: self._layout.meta(self._manifest, state)}  # it is replaced as a whole
        self.rest.ask("PUT", f"{self._path}/_mapping", {"_meta": meta})

    def _new_lines(self, batches: Iterable[Batch]) -> Iterator[bytes]:
        for batch in batches:
            known: set[str] = set()
            if self._continues:
                body = {"ids": batch.ids}
                answer = self.rest.ask("POST", f"{self._path}/_mget?_source=false", body)[1]
                known = {one["_id"] for one in answer["docs"] if one.get("found")}
            rows = [row for row, id_ in enumerate(batch.ids) if id_ not in known]
            if rows:
                yield from self._layout.lines(batch, rows)

    def _put(self, lines: list[bytes]) -> None:
        """Write documents; those that the server was too busy for are sent again."""
        path = f"{self._path}/_bulk?filter_path=errors,items.*._id,items.*.status,items.*.error"
        for attempt in range(TRIES):
            answer = self.rest.ask("POST", path, b"".join(lines), lines=True)[1]
            if not answer["errors"]:
                return
            items = [next(iter(item.values())) for item in answer["items"]]
            failed = [(item, failure_of(item)) for item in items if "error" in item]
            for item, failure in failed:
                if item["status"] not in _REJECTED or failure.kind == BLOCKED:
                    self._refuse_item(item, failure)
            if attempt == TRIES - 1:
                self._refuse_item(*failed[0])
            rejected = {place for place, item in enumerate(items) if "error" in item}
            lines = [line for place, line in enumerate(lines) if place in rejected]
            pause(attempt)

    def _refuse_item(self, item: Mapping[str, Any], failure: Failure) -> None:
        self.rest.refuse(item["status"], failure._replace(reason=f"document {item.get('_id')!r}, {failure.reason}"))

    def _searches(self, queries: Any, k: int, passing: dict[str, Any] | None) -> Iterator[_Search]:
        """A search for each query that has entries; of a long one, by its greatest weights."""
        answer = {"size": k, "_source": False}
        if self._kind == "dense":
            tuning = self._manifest.about["tuning"]
            for row, vector in enumerate(queries.tolist()):
                yield _Search(row, self.dialect.dense_search(vector, k, passing, tuning) | answer)
            return
        for row, (start, stop) in enumerate(zip(queries.indptr[:-1], queries.indptr[1:], strict=True)):
            weights = queries.data[start:stop]
            if (weights < 0).any():
                raise UserError(f"{self.dialect.name} takes no negative weights of a query; leave them out.")
            kept = np.argsort(-weights, kind="stable")[: min(np.count_nonzero(weights), _CLAUSES)]
            if not len(kept):
                continue
            # Lucene takes weights up to 64.
            scale = float(weights.max())
            names = self._entry_names(queries.indices[start:stop][kept])
            given = dict(zip(names, (weights[kept] / scale).tolist(), strict=True))
            must: dict[str, Any] = {"must": [self.dialect.sparse_query(given)]}
            must |= {} if passing is None else {"filter": [passing]}
            yield _Search(row, {"query": {"bool": must}} | answer, scale)

    def _answer(self, response: Mapping[str, Any], scale: float) -> list[tuple[str, float]]:
        if "error" in response:
            self.rest.refuse(response.get("status", 400), failure_of(response))
        if response["_shards"]["failed"]:
            failures = response["_shards"].get("failures") or [{}]
            raise UserError(
                f"{self.address} was searched in part: {response['_shards']['failed']} of its shards failed "
                f"({failure_of({'error': failures[0].get('reason', {})}).reason}); search again when it is whole."
            )
        pairs = [(hit["_id"], float(hit["_score"])) for hit in response["hits"]["hits"]]
        if self._kind == "dense":
            pairs = [(id_, inner_product(score)) for id_, score in pairs]
        return sorted(((id_, score * scale) for id_, score in pairs), key=lambda pair: (-pair[1], pair[0]))

    @cached_property
    def _vocabulary(self) -> list[str] | None:
        """Names of a sparse vector's entries; None for numbers."""
        if self._manifest.settings["features"] == "numbers":
            return None
        return unpacked(self._meta()[OWNER]["vocabulary"])

    @cached_property
    def _columns(self) -> dict[str, int]:
        """The inverse of `_vocabulary`."""
        return {name: column for column, name in enumerate(self._vocabulary or [])}

    def _entry_names(self, columns: np.ndarray) -> list[str]:
        if self._vocabulary is None:
            return list(map(str, columns.tolist()))
        return [self._vocabulary[column] for column in columns.tolist()]

    def _vector(self, held: Any, dimension: int) -> Any:
        """A row as it is stored; a dense vector that is missing becomes NaN."""
        if self._kind == "dense":
            return np.full((1, dimension), np.nan) if held is None else np.array([held], dtype=np.float32)
        entries = held or {}
        columns = [int(name) if self._vocabulary is None else self._columns[name] for name in entries]
        parts = (list(entries.values()), columns, [0, len(columns)])
        row = csr_array(parts, shape=(1, dimension), dtype=np.float32)
        row.sort_indices()
        return row


def inner_product(score: float) -> float:
    """The inner product of a score: both servers make x to x + 1, and negative x to 1 / (1 - x)."""
    return score - 1 if score >= 1 else 1 - 1 / score


def _in_parts(searches: Iterator[_Search], size: int) -> Iterator[list[_Search]]:
    while part := list(islice(searches, size)):
        yield part
