"""Export to Qdrant: in batches, resumed where it was interrupted, verified at the end."""

from __future__ import annotations

import time
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from retrodistill.core.errors import UserError, sample_of, unknown
from retrodistill.core.manifest import Manifest
from retrodistill.core.runtime import bar, log
from retrodistill.core.stores import slug
from retrodistill.data.collection import Collection
from retrodistill.exports.checking import agreement, as_queries, sampled_rows, sampled_vectors
from retrodistill.exports.connection import Address, connected
from retrodistill.exports.payload import Payload, differences
from retrodistill.exports.points import QUANTIZATIONS, Quantization, collection_config, distance_between, vectors_of
from retrodistill.exports.qdrant_collection import VERIFIED, WRITING, QdrantCollection, point_id
from retrodistill.exports.records import Exportable, flat_values
from retrodistill.exports.sources import exportable

if TYPE_CHECKING:
    from qdrant_client import QdrantClient

_DEPTH = 10  # of the rankings that are compared
_EXACT = 1e-4  # of the largest number of a vector: what float32 and a second normalization leave
_NUMBERS = 1_000_000  # of a request; 20 characters each
_TOKENS = 512  # of a long document
_MANY = 20_000  # points; qdrant-client keeps those of an embedded collection in memory and compares one by one


@dataclass(frozen=True)
class QdrantSettings:
    """How an index is exported.

    Attributes:
        name: Of the Qdrant collection; by default the collection's, or the index'.
        texts: Keep each document's text in its payload, too.
        quantization: ``scalar`` (1 byte a number), ``product`` (a quarter of that), ``binary`` (1 bit) or None. The
            vectors themselves are kept, and rank what the codes find. An embedded Qdrant records it and searches
            exactly.
        shards: Of the collection, on a cluster; Qdrant's choice by default.
        replicas: Copies of each shard, on a cluster; Qdrant's choice by default.
        batch: Documents per request; by default as many as a server takes at its own defaults, at most 256.
        sample: So many documents are compared number by number, and their vectors asked as queries.
        agreement: The least mean share of the exact top 10 that Qdrant has to find for them where it searches
            approximately (HNSW); an embedded Qdrant has to find all, a quantized collection is only reported on.
    """

    name: str | None = None
    texts: bool = False
    quantization: Quantization | None = None
    shards: int | None = None
    replicas: int | None = None
    batch: int | None = None
    sample: int = 50
    agreement: float = 0.9

    def __post_init__(self) -> None:
        for what in ("shards", "replicas", "batch", "sample"):
            given = getattr(self, what)
            if given is not None and given < 1:
                raise UserError(f"{what}={given}: give a number of at least 1.")
        if self.quantization is not None and self.quantization not in QUANTIZATIONS:
            raise unknown("quantization", self.quantization, QUANTIZATIONS)
        if not 0 <= self.agreement <= 1:
            raise UserError(f"agreement={self.agreement}: a share is from 0 to 1.")


@dataclass(frozen=True)
class QdrantReport:
    """What an export did, and what its verification found.

    Attributes:
        address: ``qdrant:PLACE#NAME``, for searching it.
        kind: ``dense``, ``sparse`` or ``multi-vector``.
        documents: Points in the collection; as many as documents in the source.
        written: Points that this export wrote; fewer where an interrupted one had written before.
        sampled: Documents that were compared and asked as queries.
        difference: Largest difference of a number of theirs in Qdrant from the source's.
        agreement: Mean share of the exact top 10 that Qdrant found for them, ties tolerated.
        seconds: Of the whole export, verification included.
    """

    address: str
    kind: str
    documents: int
    written: int
    sampled: int
    difference: float
    agreement: float
    seconds: float

    def __str__(self) -> str:
        return (
            f"{self.documents} documents ({self.kind}) in {self.address}, {self.written} written now "
            f"({self.seconds:.0f} s); of {self.sampled} sampled, the top ten agree to {self.agreement:.1%}"
        )


def export_qdrant(
    source: Any,
    collection: Collection | None,
    target: str | Path | QdrantClient,
    settings: QdrantSettings | None = None,
) -> QdrantReport:
    """Export an index to a Qdrant collection; the same command goes on where an export was interrupted.

    A point's id is a UUID made from its document's id. Its payload has ``document_id``, ``title`` where there is one,
    and ``text`` if wanted. Its vector is named by its kind (``dense``, ``sparse``, ``multi-vector``); a document
    without any entry or token has none and is never found. The collection's metadata holds the space's contract, so
    that searching refuses the queries of another space.

    Args:
        source: An index, its folder, an encoder or its name (with a collection), or an `Exportable`. See `exportable`
            for where exact vectors come from.
        collection: Titles and texts; None to export ids and vectors alone.
        target: A folder for Qdrant's embedded mode, which waits for the disk at every document (some 50 a second); the
            URL of a server or cluster, whose key is the environment variable QDRANT_API_KEY; or a client.
        settings: How.

    Returns:
        What was written and verified.

    Raises:
        UserError: The package is missing, Qdrant cannot be reached or refuses, the collection there holds something
            else (what differs is named), or what Qdrant holds in the end is not the source.
    """
    start, settings = time.perf_counter(), settings or QdrantSettings()
    with connected(target, create=True) as client:  # before documents are embedded for hours
        records = exportable(source, collection)
        config = collection_config(records.kind, records.space, settings.quantization)
        payload = Payload.of(records, collection, texts=settings.texts)
        name = settings.name or slug(collection.name if collection is not None else records.name)
        there = QdrantCollection(client, name, "the client's place" if client is target else str(target))
        if there.embedded and len(records) > _MANY:
            log(f"{len(records)} documents: an embedded Qdrant is meant for up to {_MANY}; a server takes more.")
        decisive = {"texts": settings.texts, "quantization": settings.quantization}
        manifest = payload.manifest("Qdrant collection", records, decisive)
        resumed = _open(there, manifest, {**config, **_spread(settings)})
        written = _write(there, records, payload, settings.batch, resumed=resumed)
        sampled, difference, share = verify(there, records, settings)
        there.mark(manifest, VERIFIED)
    seconds = time.perf_counter() - start
    address = str(Address(there.place, name))
    return QdrantReport(address, records.kind, len(records), written, sampled, difference, share, seconds)


def _spread(settings: QdrantSettings) -> dict[str, int]:
    wanted = {"shard_number": settings.shards, "replication_factor": settings.replicas}
    return {key: value for key, value in wanted.items() if value is not None}


def _open(there: QdrantCollection, manifest: Manifest, config: dict[str, Any]) -> bool:
    """Create the collection, or check that it is this export's; returns whether it was there."""
    if not there.exists:
        there.create(manifest, config)
        return False
    held = there.manifest
    differing = ["retrodistill did not make it"] if held is None else differences(held, manifest)
    if differing:
        raise UserError(
            f"{there} holds something else ({'; '.join(differing)}); choose another name, or delete that collection "
            "first."
        )
    there.mark(manifest, WRITING)
    return True


def _write(
    there: QdrantCollection,
    records: Exportable,
    payload: Payload,
    batch: int | None,
    *,
    resumed: bool,
) -> int:
    """Write what is not there yet, which Qdrant itself is asked for: an interrupted batch may be there in part."""
    size = batch or batch_size(records)
    written = 0
    with bar(len(records), f"exporting ({there.name})", "documents") as progress:
        for start in range(0, len(records), size):
            stop = min(start + size, len(records))
            points = [point_id(one) for one in records.ids[start:stop]]
            known = there.present(points) if resumed else set()
            if len(known) < len(points):
                vectors = vectors_of(records.kind, records.block(start, stop))
                rows = zip(points, vectors, _payloads(payload, records, start, stop), strict=True)
                new = [row for row in rows if row[0] not in known]
                there.put(records.kind, new)
                written += len(new)
            progress.update(stop - start)
    return written


def batch_size(records: Exportable) -> int:
    """Documents per request: at most 256, and some 20 MB as JSON, since a server takes 32 unless it is told more."""
    if records.kind == "sparse":
        return 256
    numbers = records.space.dimension * (_TOKENS if records.kind == "multi-vector" else 1)
    return max(1, min(256, _NUMBERS // numbers))


def _payloads(payload: Payload, records: Exportable, start: int, stop: int) -> list[dict[str, str]]:
    """Of documents start to stop; what a document does not have is left out."""
    columns = {"document_id": list(records.ids[start:stop]), **payload.columns(start, stop)}
    return [{name: values[row] for name, values in columns.items() if values[row]} for row in range(stop - start)]


def verify(there: QdrantCollection, records: Exportable, settings: QdrantSettings) -> tuple[int, float, float]:
    """Compare a collection with its source: count, sampled documents' ids and vectors, and their rankings.

    Returns:
        Documents sampled, the largest difference of a number, and the mean share of the exact top 10.

    Raises:
        UserError: They differ; says in what.
    """
    count = there.count
    if count != len(records):
        raise UserError(
            f"{there} holds {count} points, the source {len(records)} documents; something else writes to it: delete "
            "the collection and export again."
        )
    rows = sampled_rows(len(records), settings.sample)
    difference = _largest_difference(there, records, rows)
    queries = as_queries(sampled_vectors(records, rows))
    answers = there.ask(records.kind, queries, _DEPTH, quantized=settings.quantization is not None)
    place = {one: row for row, one in enumerate(records.ids)}
    found = [np.array([place.get(one, -1) for one, _ in answer], dtype=np.int64) for answer in answers]
    share = float(agreement(records, queries, found, min(_DEPTH, len(records))).mean())
    wanted = 1.0 if there.embedded else 0.0 if settings.quantization else settings.agreement
    if share < wanted:
        raise UserError(
            f"{there} finds {share:.1%} of the exact top {_DEPTH} of {len(rows)} documents, wanted {wanted:.0%}; wait "
            "until Qdrant has indexed it or raise its HNSW parameters and export again, or lower what is wanted."
        )
    return len(rows), difference, share


def _largest_difference(there: QdrantCollection, records: Exportable, rows: np.ndarray) -> float:
    """Largest difference of a number of the sampled documents; ids and vectors are checked on the way."""
    sampled = {point_id(records.ids[row]): int(row) for row in rows}
    altered, largest = set(sampled), 0.0
    for point, stored, payload in there.stored(records.kind, list(sampled)):
        row = sampled[point]
        wanted = records.block(row, row + 1)
        difference = distance_between(records.kind, stored, wanted)
        scale = float(np.abs(flat_values(wanted)).max(initial=0.0))
        if payload.get("document_id") == records.ids[row] and difference <= _EXACT * scale:
            altered.discard(point)
            largest = max(largest, difference)
    if altered:
        raise UserError(
            f"{there} holds other vectors or ids than the source for {len(altered)} of {len(rows)} documents "
            f"({sample_of(records.ids[sampled[point]] for point in altered)}); delete the collection and export again."
        )
    return largest
