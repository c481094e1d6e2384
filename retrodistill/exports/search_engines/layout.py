"""An index of Elasticsearch or OpenSearch as an export fills it: settings, mapping, and lines of bulk requests.

A document's ``_id`` is the record's id. Its source has ``document_id``, ``title`` and ``text`` where they are exported,
the fields, and ``vector``; that of a passage has ``passage_id``, too. A document without any entry has no vector and is
never found. The mapping's ``_meta`` has the manifest with the contract of the space.
"""

from __future__ import annotations

import base64
import json
import re
import zlib
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import asdict
from functools import cached_property
from typing import Any, ClassVar, Literal, Protocol

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
from pydantic import Field

from retrodistill.core.errors import UserError
from retrodistill.core.formats import stamp
from retrodistill.core.json_files import json_text, parse_json
from retrodistill.core.manifest import Manifest
from retrodistill.core.stores import slug
from retrodistill.exports.protocol import StoreSettings
from retrodistill.exports.records import Batch, Records
from retrodistill.exports.search_engines.query_dsl import PRESENT, field_mapping, field_values, safe_name
from retrodistill.exports.search_engines.rest import Login
from retrodistill.runs.documents import PASSAGE

VECTOR = "vector"
OWNER = "retrodistill"  # our key in the metadata of a mapping
WRITING, VERIFIED = "being written", "verified"
DEEPEST = 10_000  # documents of an answer, and candidates, by default settings of a server
_ID = 512  # bytes of an _id
_NAME = 255  # bytes of an index's name
_VOCABULARY = 1 << 20  # bytes of a vocabulary, packed: each node keeps the mapping in memory


class SearchEngineSettings(StoreSettings):
    """Options that Elasticsearch and OpenSearch share."""

    name: str | None = None
    """Name of the index; by default the collection's, or that of the exported index, in lower case."""
    m: int = Field(default=16, ge=2, le=100)
    """Neighbors of a vector in an HNSW graph."""
    ef_construction: int = Field(default=100, ge=4, le=3200)
    """Candidates per vector while an HNSW graph is built."""
    candidates: int = Field(default=100, ge=1, le=DEEPEST)
    """Candidates per query and shard; more find more of the exact top documents. The index remembers it."""
    features: Literal["tokens", "numbers"] = "tokens"
    """Names of a sparse vector's entries: `tokens`, where the vocabulary is known, or `numbers` (columns)."""
    shards: int | None = Field(default=None, ge=1)
    """Primary shards; the server's choice by default."""
    replicas: int | None = Field(default=None, ge=0)
    """Copies of each shard; the server's choice by default."""
    bulk_mb: int = Field(default=10, ge=1, le=100)
    """Megabytes of a bulk request, or of a bulk file. Servers take 100 by default."""
    sample: int = Field(default=50, ge=1)
    """Number of documents that are compared with the source and whose vectors are used as queries at the end."""
    agreement: float = Field(default=0.9, ge=0, le=1)
    """Least mean share of the exact top 10 that the store must find for them."""


class Dialect(Protocol):
    """What differs between the two."""

    prefix: ClassVar[str]  # of addresses
    name: ClassVar[str]  # for messages
    dimensions: ClassVar[int]  # that a dense vector may have

    def login(self) -> Login:
        """The login of the environment."""

    def check_server(self, about: Mapping[str, Any], place: str) -> None:
        """Refuse another kind of server, or one that is too old, by what it says of itself."""

    def check_version(self, version: Mapping[str, Any], place: str, oldest: tuple[int, int]) -> None:
        """Refuse a server that is too old."""
        numbers = re.findall(r"\d+", str(version.get("number", "")))[:2]
        if not numbers:
            raise UserError(f"{place} does not say its version; is this its URL?")
        if tuple(map(int, numbers)) < oldest:
            needed = ".".join(map(str, oldest))
            raise UserError(f"{place} has version {version['number']}; version {needed} or newer is needed.")

    def check(self, spec: Records, settings: Any) -> None:
        """Refuse, before anything is written, what it cannot hold."""

    def decisive(self, settings: Any) -> dict[str, Any]:
        """Settings that make another index of dense vectors."""

    def index_settings(self, kind: str) -> dict[str, Any]:
        """Of an index, besides shards and replicas."""

    def vector_mapping(self, kind: str, dimension: int, settings: Any) -> dict[str, Any]:
        """The mapping of the vectors."""

    def tuning(self, settings: Any) -> dict[str, Any]:
        """What `dense_search` needs to know of the settings."""

    def dense_search(self, vector: list[float], k: int, passing: Any, tuning: Mapping[str, Any]) -> dict[str, Any]:
        """The body of a search for the k greatest inner products; `passing` is a query or None."""

    def sparse_query(self, weights: dict[str, float]) -> dict[str, Any]:
        """A query whose score is the inner product."""

    def min_agreement(self, settings: Mapping[str, Any], wanted: float) -> float:
        """As `VectorStore.min_agreement`, by the settings of the manifest."""

    def reading(self) -> dict[str, Any]:
        """What to add to a search so that `read` gives the vector of a hit."""

    def read(self, hit: Mapping[str, Any]) -> Any:
        """The vector of a hit as JSON value; None if it has none."""


class Layout:
    """The index of an export: its mapping, and its documents as lines of a bulk request.

    Args:
        dialect: Of the server.
        spec: What is exported.
        settings: Of the export.

    Raises:
        UserError: Something cannot be held; nothing is written yet.
    """

    def __init__(self, dialect: Dialect, spec: Records, settings: Any) -> None:
        self.dialect, self.spec, self.settings = dialect, spec, settings
        _check_spec(dialect, spec)
        dialect.check(spec, settings)
        decisive: dict[str, Any] = {"texts": settings.texts}
        self.vocabulary: list[str] | None = None
        if spec.kind == "dense":
            decisive |= dialect.decisive(settings)
        else:
            if settings.features == "tokens" and spec.vocabulary is not None:
                self.vocabulary = list(spec.vocabulary)
            decisive["features"] = "numbers" if self.vocabulary is None else "tokens"
        self.packed = None if self.vocabulary is None else _packed(self.vocabulary)
        self.manifest = spec.manifest(f"{dialect.name} index", decisive)
        self.manifest.about["tuning"] = dialect.tuning(settings)

    @property
    def body(self) -> dict[str, Any]:
        """That creates the index."""
        settings, spec = self.settings, self.spec
        index = self.dialect.index_settings(spec.kind)
        counts = {"number_of_shards": settings.shards, "number_of_replicas": settings.replicas}
        index |= {name: count for name, count in counts.items() if count is not None}
        own = ["document_id", *([PASSAGE] if spec.parents is not None else [])]
        kinds = [*((name, pa.string()) for name in (*own, PRESENT, *spec.payload)), *spec.field_types]
        properties = {safe_name(name): field_mapping(name, kind) for name, kind in kinds}
        properties[VECTOR] = self.dialect.vector_mapping(spec.kind, spec.space.dimension, settings)
        meta = self.meta(self.manifest, WRITING)
        mappings = {"dynamic": "strict", "_meta": {OWNER: meta}, "properties": properties}
        return {"settings": {"index": index} if index else {}, "mappings": mappings}

    def meta(self, manifest: Manifest, state: str) -> dict[str, Any]:
        """What the mapping says of the export."""
        content = {**asdict(manifest), "fingerprint": manifest.fingerprint, "state": state, **stamp(manifest.artifact)}
        return content if self.packed is None else {**content, "vocabulary": self.packed}

    def lines(self, batch: Batch, rows: Sequence[int]) -> Iterator[bytes]:
        """Of each of these rows of a batch, the two lines of a bulk request."""
        vectors = _texts_of_vectors(batch.vectors, self._entries, self.dialect.name)
        payload, ids = batch.payload, batch.ids
        fields = None if batch.fields is None else batch.fields.take(pa.array(rows)).to_pylist()
        for place, row in enumerate(rows):
            source = {name: values[row] for name, values in payload.items() if values[row]}
            values = field_values(source | ({} if fields is None else fields[place]))
            yield _line(ids[row], values, vectors[row], self.dialect.name)

    @cached_property
    def _entries(self) -> pa.Array | None:
        """(d,) names of entries as JSON; None for numbers."""
        return None if self.vocabulary is None else pa.array([json_text(safe_name(one)) for one in self.vocabulary])


def default_name(spec: Records) -> str:
    """The name of an index where none is given."""
    return re.sub(r"[^a-z0-9._-]", "-", (spec.collection or slug(spec.name)).lower()).lstrip("-_.") or "index"


def check_name(name: str, engine: str) -> None:
    """Refuse a name that an index cannot have."""
    if not re.fullmatch(r"(?![-_+])[^\\/*?\"<>| ,#:]+", name) or name != name.lower() or name in (".", ".."):
        raise UserError(
            f'{name!r} is not a name of an index of {engine}: lower case, without spaces and any of \\ / * ? " < > | , '
            "# :, and not beginning with - _ +."
        )
    if len(name.encode()) > _NAME:
        raise UserError(f"{engine} takes names of {_NAME} bytes, and {name[:40]!r}... is longer; choose a shorter one.")


def chunks(lines: Iterable[bytes], megabytes: int) -> Iterator[list[bytes]]:
    """Lines in parts of at most so many megabytes; a longer line is a part of its own."""
    part: list[bytes] = []
    size = 0
    for line in lines:
        if part and size + len(line) > megabytes * 1_000_000:
            yield part
            part, size = [], 0
        part.append(line)
        size += len(line)
    if part:
        yield part


def _check_spec(dialect: Dialect, spec: Records) -> None:
    """Refuse, before anything is written, what neither of the two holds."""
    if spec.kind == "multi-vector":
        raise UserError(
            f"{dialect.name} does not search token vectors by MaxSim; export multi-vector indexes to qdrant, lancedb, "
            "or parquet."
        )
    if spec.kind == "dense" and spec.space.dimension > dialect.dimensions:
        raise UserError(
            f"{dialect.name} takes vectors of {dialect.dimensions:,} dimensions, and these have "
            f"{spec.space.dimension:,}; cut them to fewer when you build the index (truncate)."
        )
    if PRESENT in [name for name, _ in spec.field_types]:
        raise UserError(f"a field is called {PRESENT!r}, which the export uses itself; rename it.")
    lengths = pc.binary_length(pa.array(spec.ids, pa.string()))
    for row in pc.indices_nonzero(pc.or_(pc.greater(lengths, _ID), pc.equal(lengths, 0))).to_pylist()[:1]:
        shown = spec.ids[row][:40]
        raise UserError(
            f"document {shown!r}... has an id of {lengths[row]} bytes, and {dialect.name} takes 1 to {_ID}; give the "
            "documents shorter ids, or export to qdrant, pgvector, or parquet."
        )


def _packed(vocabulary: list[str]) -> str:
    """A vocabulary for the metadata of a mapping."""
    names = set(map(safe_name, vocabulary))
    packed = base64.b64encode(zlib.compress(json.dumps(vocabulary).encode(), 9)).decode()
    if len(names) < len(vocabulary) or len(packed) > _VOCABULARY:
        what = "has a token twice" if len(names) < len(vocabulary) else f"takes {len(packed):,} bytes in the mapping"
        raise UserError(f"the vocabulary of {len(vocabulary):,} tokens {what}; set features=numbers.")
    return packed


def unpacked(vocabulary: str) -> list[str]:
    """Names of entries, of a vocabulary in the metadata of a mapping."""
    return list(map(safe_name, parse_json(zlib.decompress(base64.b64decode(vocabulary)))))


def _line(id_: str, values: dict[str, Any], vector: str | None, engine: str) -> bytes:
    try:
        source = json_text(values)
    except ValueError as error:
        raise UserError(f"document {id_!r} has an infinite number, which {engine} does not take; remove it.") from error
    if vector is not None:
        source = f'{source[:-1]}, "{VECTOR}": {vector}}}'
    return f'{{"index": {{"_id": {json_text(id_)}}}}}\n{source}\n'.encode()


def _texts_of_vectors(vectors: Any, entries: pa.Array | None, engine: str) -> list[str | None]:
    """Rows as JSON; None for one without entries. Arrow writes the shortest decimals that give the same float32."""
    if isinstance(vectors, np.ndarray):
        numbers = pc.cast(pa.array(vectors.ravel()), pa.string())
        bounds = pa.array(np.arange(len(vectors) + 1, dtype=np.int32) * vectors.shape[1])
        return [f"[{row}]" for row in pc.binary_join(pa.ListArray.from_arrays(bounds, numbers), ",").to_pylist()]
    if (vectors.data < np.finfo(np.float32).tiny).any():
        raise UserError(f"{engine} takes positive weights of sparse vectors only, and a document has others.")
    columns = pa.array(vectors.indices)
    if entries is None:
        names = pc.binary_join_element_wise('"', pc.cast(columns, pa.string()), '"', "")
    else:
        names = entries.take(columns)
    pairs = pc.binary_join_element_wise(names, pc.cast(pa.array(vectors.data), pa.string()), ":")
    rows = pc.binary_join(pa.ListArray.from_arrays(pa.array(vectors.indptr.astype(np.int32)), pairs), ",")
    return [f"{{{row}}}" if row else None for row in rows.to_pylist()]
