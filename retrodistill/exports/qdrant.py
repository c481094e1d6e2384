"""Qdrant, embedded in a folder, on a server or in a cluster: ``qdrant:FOLDER_OR_URL#NAME``."""

from __future__ import annotations

import contextlib
import enum
import io
import json
import os
import pickle
import sqlite3
import types
import uuid
import warnings
import weakref
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

import numpy as np
import pyarrow as pa
from pydantic import Field
from scipy.sparse import csr_array

from retrodistill.core.disk import is_refusal, reason_of
from retrodistill.core.errors import UserError, sample_of
from retrodistill.core.files import check_replaceable
from retrodistill.core.formats import check_stamp, stamp
from retrodistill.core.http import holds_secret, require_encryption, without_key
from retrodistill.core.manifest import Manifest
from retrodistill.core.names import check_file_name
from retrodistill.core.paths import path_of
from retrodistill.core.runtime import log
from retrodistill.core.stores import slug
from retrodistill.data.fields import from_json, to_json
from retrodistill.data.filters import Condition, Filter
from retrodistill.encoders.multi_vector import Tokens
from retrodistill.exports.protocol import StoreSettings, VectorStore, check_same
from retrodistill.exports.records import Answers, Batch, Records, Vectors, stacked
from retrodistill.runs.documents import PASSAGE

if TYPE_CHECKING:
    from qdrant_client import QdrantClient

_EMBEDDED = "meta.json"  # a file of every embedded Qdrant
_API_KEY = "QDRANT_API_KEY"
_DAMAGED = (sqlite3.DatabaseError, pickle.UnpicklingError, EOFError, json.JSONDecodeError, UnicodeError)
_TIMEOUT = 60  # seconds; Qdrant's default of 5 is short for a batch of token vectors
_NUMBERS = 1_000_000  # of a request, 20 bytes each as JSON: a server takes 32 MB by default
_TOKENS = 512  # of a long document
_MOST = 256  # documents per request
_MANY = 20_000  # documents; an embedded Qdrant keeps them in memory and compares one by one
_QUERIES = 32  # per request
# Twice as many documents as wanted are found by their codes, and ranked by their vectors.
_BY_CODES = {"quantization": {"rescore": True, "oversampling": 2.0}}
_WRITING, _VERIFIED = "being written", "verified"
_OWNER = "retrodistill"  # our key in the metadata of a collection
_RANGES = {"<": "lt", "<=": "lte", ">": "gt", ">=": "gte"}
_POINTS = uuid.uuid5(uuid.NAMESPACE_URL, "retrodistill:document")
# As Qdrant takes them; codes stay in memory. x16 is a byte for four float32 numbers.
QUANTIZATIONS: dict[str, dict[str, Any]] = {
    "scalar": {"scalar": {"type": "int8", "quantile": 0.99, "always_ram": True}},
    "product": {"product": {"compression": "x16", "always_ram": True}},
    "binary": {"binary": {"always_ram": True}},
}


class QdrantSettings(StoreSettings):
    """How an index is exported to Qdrant."""

    name: str | None = None
    """Name of the Qdrant collection; by default the collection's, or the index's."""
    quantization: Literal["scalar", "product", "binary"] | None = None
    """`scalar` (1 byte per number), `product` (a quarter of that) or `binary` (1 bit per number). The vectors
    themselves are kept and rank what is found by codes. An embedded Qdrant records it and searches exactly."""
    shards: int | None = Field(default=None, ge=1)
    """Shards of the collection in a cluster; Qdrant's choice by default."""
    replicas: int | None = Field(default=None, ge=1)
    """Copies of each shard in a cluster; Qdrant's choice by default."""
    batch: int | None = Field(default=None, ge=1)
    """Documents per request; by default as many as a server with default limits takes, at most 256."""
    sample: int = Field(default=50, ge=1)
    """Number of documents that are compared with the source and whose vectors are used as queries at the end."""
    agreement: float = Field(default=0.9, ge=0, le=1)
    """Least mean share of the exact top 10 that Qdrant must find for them where it searches approximately (HNSW). An
    embedded Qdrant must find all; for a quantized collection the share is reported only."""


class QdrantStore(VectorStore):
    """A collection in Qdrant.

    A point's id is a UUID made from its document's id. Its payload has ``document_id``, ``title`` where there is one,
    ``text`` if wanted, and the fields, null where there is no value; that of a passage has ``passage_id``, too, from
    which its UUID is made. Its vector is named by its kind (``dense``, ``sparse``, ``multi-vector``). A document
    without any entry or token has no vector and is never found. The collection's metadata holds the manifest with the
    contract of the space, so that queries of another space are refused. `close` closes the client; `place` is the
    folder or URL, for messages; `name` is the collection's unless the settings name one.
    """

    options = QdrantSettings

    def __init__(
        self, client: QdrantClient, settings: QdrantSettings | None = None, place: str = "CLIENT", name: str = ""
    ) -> None:
        self.client, self.settings, self.place = client, settings or QdrantSettings(), place
        self.name = self.settings.name or name
        # An embedded Qdrant searches exactly and ignores indexing, quantization and shards.
        self.embedded = client.init_options["path"] is not None or client.init_options["location"] == ":memory:"
        self.sample = self.settings.sample
        self.min_agreement = 1.0 if self.embedded else 0.0 if self.settings.quantization else self.settings.agreement
        self._continues = False

    @classmethod
    def open(cls, place: str, settings: QdrantSettings | None = None, *, create: bool = False) -> QdrantStore:
        """Open ``FOLDER#NAME`` or ``URL#NAME``; ``#NAME`` may be left out where there is one collection.

        A server's key is the environment variable QDRANT_API_KEY, which is not sent unencrypted to another machine.

        Raises:
            UserError: The package, the folder or the collection is missing, the folder holds something else or is in
                use, or the server does not answer.
        """
        folder, _, name = place.partition("#")
        if not folder:
            raise UserError(
                f"'qdrant:{place}' names no place; write 'qdrant:FOLDER#NAME' or 'qdrant:http://HOST:6333#NAME'."
            )
        client = _connect(folder, create=create)
        store = cls(client, settings, folder, name)
        weakref.finalize(store, client.close)  # left to itself, a client closes too late and complains
        if not create:
            names = sorted(collection.name for collection in store._call("get_collections").collections)
            store.name = names[0] if not name and len(names) == 1 else name
            if store.name not in names:
                store.close()
                what = f"has no collection {name!r}" if name else f"holds {len(names)} collections"
                listed = sample_of(names, 8) or "none"
                raise UserError(f"Qdrant at {folder} {what}; there are: {listed}. Write 'qdrant:{folder}#NAME'.")
        return store

    @property
    def root(self) -> Path | None:
        """As `VectorStore.root`."""
        return path_of(self.place) if self.client.init_options["path"] is not None else None

    @property
    def address(self) -> str:
        """``qdrant:PLACE#NAME``."""
        return f"qdrant:{self.place}" + (f"#{self.name}" if self.name else "")

    def create(self, spec: Records) -> None:
        """As `VectorStore.create`."""
        settings = self.settings
        config = _vectors_config(spec, settings.quantization)
        spread = {"shard_number": settings.shards, "replication_factor": settings.replicas}
        config |= {key: value for key, value in spread.items() if value is not None}
        self.name = self.name or spec.collection or slug(spec.name)
        check_file_name(self.name, "a collection of Qdrant")
        self.batch_size = settings.batch or batch_size(spec.kind, spec.space.dimension)
        decisive = {"texts": settings.texts, "quantization": settings.quantization}
        self._manifest = spec.manifest("Qdrant collection", decisive, self.root)
        if self.embedded and len(spec) > _MANY:
            log(f"{len(spec)} documents: an embedded Qdrant is meant for up to {_MANY}; use a server for more.")
        self._continues = self._call("collection_exists", self.name)
        if self._continues:
            advice = "choose another name, or delete that collection first"
            check_same(self.manifest(), self._manifest, self.address, advice)
            self._mark(_WRITING)
            return
        self._call("create_collection", self.name, metadata=self._metadata(_WRITING), **config)
        if not self.embedded:
            for name, kind in [("document_id", pa.string()), *spec.field_types]:
                self._call("create_payload_index", self.name, name, _payload_index(kind))
        if self.manifest() is None:
            self._call("delete_collection", self.name)
            raise UserError(f"Qdrant at {self.place} keeps no metadata of collections; use version 1.16 or newer.")

    def upload(self, batches: Iterable[Batch]) -> int:
        """As `VectorStore.upload`. Qdrant is asked what is there: an interrupted batch may be there in part."""
        written, build = 0, _library().models.PointStruct
        for batch in batches:
            ids, known = [point_id(document) for document in batch.ids], set()
            if self._continues:
                held = self._call("retrieve", self.name, ids=ids, with_payload=False, with_vectors=False)
                known = {str(point.id) for point in held}
            if len(known) == len(ids):
                continue
            columns, vectors, points = batch.payload, _to_qdrant(batch.vectors), []
            fields = [{} for _ in ids] if batch.fields is None else batch.fields.to_pylist()
            for row, id_ in enumerate(ids):
                if id_ not in known:
                    vector = {} if vectors[row] is None else {self._kind: vectors[row]}
                    payload = {name: values[row] for name, values in columns.items() if values[row]}
                    payload |= {name: to_json(value) for name, value in fields[row].items()}
                    points.append(build(id=id_, vector=vector, payload=payload))
            self.put(points)
            written += len(points)
        return written

    def put(self, points: list[Any]) -> None:
        """Write points in one request; one that is there is replaced. The client retries transient failures.

        In a folder, they are one transaction: all of them are there, or none.
        """
        with _one_line_errors(self.place), one_transaction(self.client, self.name):
            self._call("upload_points", self.name, points, batch_size=len(points), wait=True)

    def finish(self) -> dict[str, Any]:
        """As `VectorStore.finish`."""
        self._mark(_VERIFIED)
        return {}

    def manifest(self) -> Manifest | None:
        """As `VectorStore.manifest`."""
        held = (self._call("get_collection", self.name).config.metadata or {}).get(_OWNER)
        if held is None:
            return None
        check_stamp(held, held["artifact"], self.address)
        about = {**held["about"], "is_complete": held.get("state") == _VERIFIED}
        return Manifest(held["artifact"], held["inputs"], held["settings"], about)

    def count(self) -> int:
        """Number of points."""
        return int(self._call("count", self.name, exact=True).count)

    def stored(self, ids: Sequence[str]) -> tuple[list[str], Vectors]:
        """As `VectorStore.stored`; a point that names another document does not count."""
        documents = {point_id(document): document for document in ids}
        points = self._call("retrieve", self.name, ids=list(documents), with_payload=True, with_vectors=True)
        points = [point for point in points if (point.payload or {}).get(self._own_id) == documents[str(point.id)]]
        vectors = [point.vector.get(self._kind) if isinstance(point.vector, dict) else None for point in points]
        dimension = int(self._manifest.about["space"]["dimension"])
        return [documents[str(point.id)] for point in points], _from_qdrant(self._kind, vectors, dimension)

    def payloads(self, ids: Sequence[str]) -> dict[str, dict[str, Any]]:
        """As `VectorStore.payloads`."""
        points = self._call("retrieve", self.name, ids=[point_id(id_) for id_ in ids], with_payload=True)
        found, schema = {}, self.schema()
        for point in points:
            values = {name: value for name, value in (point.payload or {}).items() if value is not None}
            of = values.pop("document_id", None)
            document = values.pop(PASSAGE, of)
            found[document] = {
                name: from_json(values[name], schema.field(name).type) for name in values if name in schema.names
            }
        return found

    def best(self, queries: Vectors, k: int, filter: Filter | None = None) -> Answers:
        """As `VectorStore.best`; queries without any entry or token find nothing."""
        vectors = _to_qdrant(queries)
        options: dict[str, Any] = {"using": self._kind, "limit": k, "with_payload": [self._own_id]}
        if self._manifest.settings["quantization"] is not None and not self.embedded:
            options["params"] = _BY_CODES
        if filter is not None:
            options["filter"] = _to_qdrant_filter(filter)
        answers: Answers = [[] for _ in vectors]
        request = _library().models.QueryRequest
        rows = [row for row, vector in enumerate(vectors) if vector is not None]
        for start in range(0, len(rows), _QUERIES):
            part = rows[start : start + _QUERIES]
            requests = [request(query=vectors[row], **options) for row in part]
            responses = self._call("query_batch_points", self.name, requests)
            for row, response in zip(part, responses, strict=True):
                answers[row] = [(self._document(point), point.score) for point in response.points]
        return answers

    def close(self) -> None:
        """Release the folder, which one process holds at a time, or the connection."""
        self.client.close()

    def _metadata(self, state: str) -> dict[str, Any]:
        manifest = self._manifest
        about = {**asdict(manifest), "fingerprint": manifest.fingerprint, "state": state}
        return {_OWNER: {**about, **stamp(manifest.artifact)}}

    def _mark(self, state: str) -> None:
        self._call("update_collection", self.name, metadata=self._metadata(state))

    def _document(self, point: Any) -> str:
        document = (point.payload or {}).get(self._own_id)
        if document is None:
            raise UserError(f"{self.address} holds point {point.id}, which names no document; something else wrote it.")
        return str(document)

    def _call(self, method: str, *arguments: Any, **options: Any) -> Any:
        """Call the client; its errors become one line."""
        with _one_line_errors(self.place):
            return getattr(self.client, method)(*arguments, **options)


def point_id(document_id: str) -> str:
    """The UUID of a document's point, always the same: Qdrant takes no other strings as ids."""
    return str(uuid.uuid5(_POINTS, document_id))


class _Uncommitted:
    """A connection to SQLite that leaves commits to `one_transaction`."""

    def __init__(self, connection: sqlite3.Connection) -> None:
        self._connection = connection

    def __getattr__(self, name: str) -> Any:
        return getattr(self._connection, name)

    def commit(self) -> None:
        """Nothing."""

    def __enter__(self) -> _Uncommitted:
        return self

    def __exit__(self, *error: object) -> None:
        """Neither commits nor rolls back."""


@contextlib.contextmanager
def one_transaction(client: QdrantClient, name: str) -> Iterator[None]:
    """Commit what is written to a collection in a folder at the end of the block, not point by point.

    The client has no option for this: it commits each point, which waits for the disk. Where it does not keep points
    in SQLite as releases 1.19 and 1.20 do, nothing is changed.
    """
    collections = getattr(getattr(client, "_client", None), "collections", None)
    held = collections.get(name) if isinstance(collections, dict) else None
    persistence: Any = getattr(held, "storage", None)
    connection = getattr(persistence, "storage", None)
    if not isinstance(connection, sqlite3.Connection):
        yield
        return
    persistence.storage = _Uncommitted(connection)
    try:
        with connection:  # commits, or rolls back after an error
            yield
    finally:
        persistence.storage = connection


def batch_size(kind: str, dimension: int) -> int:
    """Documents per request."""
    if kind == "sparse":
        return _MOST
    return max(1, min(_MOST, _NUMBERS // (dimension * (_TOKENS if kind == "multi-vector" else 1))))


def _vectors_config(spec: Records, quantization: str | None) -> dict[str, Any]:
    """Arguments of `QdrantClient.create_collection`: unit vectors are compared by cosine, others by inner product."""
    models = _library().models
    if spec.kind == "sparse":
        if quantization is not None:
            raise UserError(f"quantization {quantization!r}: Qdrant quantizes no sparse vectors; leave it out.")
        return {"vectors_config": {}, "sparse_vectors_config": {spec.kind: models.SparseVectorParams()}}
    parameters = models.VectorParams(
        size=spec.space.dimension,
        distance="Cosine" if spec.kind == "dense" and spec.space.norm == "unit" else "Dot",
        quantization_config=QUANTIZATIONS[quantization] if quantization else None,
        multivector_config={"comparator": "max_sim"} if spec.kind == "multi-vector" else None,
    )
    return {"vectors_config": {spec.kind: parameters}}


def _payload_index(kind: pa.DataType) -> str:
    """The type of an index of a field, by which Qdrant filters fast."""
    kind = kind.value_type if pa.types.is_list(kind) else kind
    named = {pa.int64(): "integer", pa.float64(): "float", pa.bool_(): "bool", pa.string(): "keyword"}
    return named.get(kind, "datetime")


def _to_qdrant_filter(part: Filter | Condition) -> dict[str, Any]:
    """A filter as Qdrant takes it. Fields without a value are null in the payload."""
    if isinstance(part, Filter):
        return {"should" if part.is_any else "must": [_to_qdrant_filter(inner) for inner in part.parts]}
    name, word, value = part.field, part.operator, part.value
    # To Qdrant, an empty list is empty, too.
    is_null: dict[str, Any] = {("is_null" if pa.types.is_list(part.kind) else "is_empty"): {"key": name}}
    if word in ("exists", "null"):
        return {"must" if (word == "null") == value else "must_not": [is_null]}
    if word in ("in", "not in"):
        matches = {"should": [_equal(part, item) for item in value]} if value else {"must": [{"has_id": []}]}
        return matches if word == "in" else {"must_not": [matches, is_null]}
    if word in _RANGES:
        if part.kind in (pa.string(), pa.large_string()):
            raise UserError(f"filter: Qdrant does not order strings, and {name!r} has them; use == or in.")
        return {"key": name, "range": {_RANGES[word]: to_json(value)}}
    return {"must_not": [_equal(part, value), is_null]} if word == "!=" else _equal(part, value)


def _equal(condition: Condition, value: Any) -> dict[str, Any]:
    if isinstance(value, str | bool | int):
        return {"key": condition.field, "match": {"value": value}}
    return {"key": condition.field, "range": {"gte": to_json(value), "lte": to_json(value)}}


def _to_qdrant(vectors: Vectors) -> list[Any]:
    """Each row as Qdrant takes it; None for one without any entry or token."""
    if isinstance(vectors, Tokens):
        return [vectors[text].tolist() or None for text in range(len(vectors))]
    if isinstance(vectors, np.ndarray):
        return list(vectors.tolist())
    build = _library().models.SparseVector
    rows = (slice(*bounds) for bounds in zip(vectors.indptr[:-1], vectors.indptr[1:], strict=True))
    entries = [build(indices=vectors.indices[row].tolist(), values=vectors.data[row].tolist()) for row in rows]
    return [row if row.indices else None for row in entries]


def _from_qdrant(kind: str, vectors: list[Any], dimension: int) -> Vectors:
    """The inverse of `_to_qdrant`; a dense vector that is missing becomes NaN."""
    if kind == "multi-vector":
        return Tokens.of([np.array(row or []) for row in vectors], dimension)
    if kind == "dense":
        rows: list[Any] = [np.full((1, dimension), np.nan) if row is None else np.array([row]) for row in vectors]
    else:
        parts = [([], []) if row is None else (row.values, row.indices) for row in vectors]
        rows = [csr_array((*part, [0, len(part[0])]), shape=(1, dimension), dtype=np.float32) for part in parts]
    return stacked(kind, rows, dimension)


def _library() -> Any:
    try:
        import qdrant_client
    except ImportError as error:
        raise UserError(
            "Qdrant needs the package qdrant-client, which is not installed; 'pip install retrodistill[qdrant]'."
        ) from error
    # The client keeps the points of a folder as pickles, which could run any code.
    from qdrant_client.local import persistence

    persistence.pickle = types.SimpleNamespace(dumps=pickle.dumps, loads=_read_point)
    return qdrant_client


class _PointReader(pickle.Unpickler):
    """Reads a point of an embedded Qdrant: numbers, texts, and the data classes of the client, nothing else."""

    def find_class(self, module: str, name: str) -> Any:
        from pydantic import BaseModel

        if module.startswith("qdrant_client.http.models") and name.isidentifier():
            found = super().find_class(module, name)
            if isinstance(found, type) and issubclass(found, (BaseModel, enum.Enum)):
                return found
        raise pickle.UnpicklingError(f"a point holds {module}.{name}, which is no data of Qdrant")


def _read_point(content: bytes) -> Any:
    return _PointReader(io.BytesIO(content)).load()


def _connect(place: str, *, create: bool) -> QdrantClient:
    library = _library()
    is_server = place.startswith(("http://", "https://"))
    if is_server and holds_secret(place):
        raise UserError(f"the URL of a server must not hold a key or password; set {_API_KEY}.")
    place = place if is_server else str(path_of(place))
    if not is_server and create:
        check_replaceable(place, _EMBEDDED)
    elif not is_server and not (Path(place) / _EMBEDDED).is_file():
        raise UserError(f"no Qdrant folder {place} (no {_EMBEDDED} in it); a server is given as http://HOST:6333.")
    with _one_line_errors(place):
        if not is_server:
            return library.QdrantClient(path=place)
        key = os.environ.get(_API_KEY) or None
        require_encryption(place, key)
        client = library.QdrantClient(url=place, api_key=key, timeout=_TIMEOUT, check_compatibility=False)
        client.get_collections()  # the first request: whether it answers and accepts the key
        return client


@contextlib.contextmanager
def _one_line_errors(place: str) -> Iterator[None]:
    """Turn what the client raises into one line that says what to do."""
    exceptions = _library().http.exceptions
    try:
        with warnings.catch_warnings():
            warnings.filterwarnings("ignore", message="(?s).*(Local mode|Api key is used|Payload indexes)")
            yield
    except exceptions.ApiException as error:
        if getattr(error, "status_code", None) in (401, 403):
            raise UserError(f"Qdrant at {place} refuses the key; set the environment variable {_API_KEY}.") from error
        if isinstance(error, exceptions.UnexpectedResponse):
            raise UserError(f"Qdrant at {place} refuses: {_one_line(error)}.") from error
        raise UserError(
            f"Qdrant at {place} does not answer ({_one_line(error)}); is it running, and is this its URL?"
        ) from error
    except (sqlite3.DatabaseError, pickle.UnpicklingError, EOFError, RuntimeError, ValueError, OSError) as error:
        raise UserError(_of_a_folder(place, error)) from error


def _of_a_folder(place: str, error: Exception) -> str:
    """The message for an error of the client that is not a server's."""
    if is_refusal(error):
        return f"cannot write {place}: {reason_of(error, Path(place))}; run it again to go on."
    if isinstance(error, _DAMAGED):
        return f"Qdrant's folder {place} is damaged ({_one_line(error)}); export again."
    if "already accessed" in str(error):
        return f"Qdrant's folder {place} is in use by another process; wait or close it."
    return f"Qdrant at {place} refuses: {_one_line(error)}."


def _one_line(error: Exception) -> str:
    text = without_key(str(error).strip(), os.environ.get(_API_KEY, ""))
    return " ".join((text or type(error).__name__).split())[:200]


STORE = QdrantStore
