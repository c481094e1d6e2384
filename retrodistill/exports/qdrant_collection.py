"""One collection of a Qdrant: all that is said to it."""

from __future__ import annotations

import uuid
from collections.abc import Iterator, Sequence
from dataclasses import asdict, dataclass
from typing import TYPE_CHECKING, Any

from retrodistill.core.errors import UserError, sample_of
from retrodistill.core.manifest import Manifest
from retrodistill.exports.connection import is_embedded, library, telling
from retrodistill.exports.points import search_parameters, vectors_of
from retrodistill.exports.records import Kind, Vectors

if TYPE_CHECKING:
    from qdrant_client import QdrantClient

WRITING, VERIFIED = "being written", "verified"
_OWNER = "retrodistill"  # the key of a collection's metadata that is ours
_POINTS = uuid.uuid5(uuid.NAMESPACE_URL, "retrodistill:document")
_ASKED = 32  # queries per request


def point_id(document_id: str) -> str:
    """The UUID of a document's point, always the same: Qdrant takes no other strings as ids."""
    return str(uuid.uuid5(_POINTS, document_id))


@dataclass(frozen=True)
class QdrantCollection:
    """A collection that is there or is to be made.

    Attributes:
        client: Whose it is.
        name: Its name.
        place: The folder or URL, for messages.
    """

    client: QdrantClient
    name: str
    place: str

    @classmethod
    def find(cls, client: QdrantClient, name: str | None, place: str) -> QdrantCollection:
        """One that is there; the only one where none is named.

        Raises:
            UserError: It is not there, or none was named and there is not exactly one.
        """
        with telling(place):
            names = sorted(one.name for one in client.get_collections().collections)
        if name is None and len(names) == 1:
            return cls(client, names[0], place)
        if name is not None and name in names:
            return cls(client, name, place)
        what = "holds other than one collection" if name is None else f"has no collection {name!r}"
        listed = sample_of(names, 8) or "none"
        raise UserError(f"Qdrant at {place} {what}; there are: {listed}. Write 'qdrant:{place}#NAME'.")

    def __str__(self) -> str:
        return f"collection {self.name!r} in Qdrant at {self.place}"

    @property
    def embedded(self) -> bool:
        """Whether it is searched exactly, by the client itself."""
        return is_embedded(self.client)

    @property
    def exists(self) -> bool:
        """Whether it is there."""
        with telling(self.place):
            return bool(self.client.collection_exists(self.name))

    def create(self, manifest: Manifest, config: dict[str, Any]) -> None:
        """Make it, empty.

        Args:
            manifest: Kept in its metadata.
            config: Arguments of `QdrantClient.create_collection`.

        Raises:
            UserError: Qdrant refuses, or is too old to keep metadata.
        """
        with telling(self.place):
            self.client.create_collection(self.name, metadata=_metadata(manifest, WRITING), **config)
            if not self.embedded:
                keyword = library().models.PayloadSchemaType.KEYWORD
                self.client.create_payload_index(self.name, "document_id", keyword)
        if self.manifest is None:
            with telling(self.place):
                self.client.delete_collection(self.name)
            raise UserError(f"Qdrant at {self.place} keeps no metadata of collections; it has to be 1.16 or newer.")

    @property
    def _held(self) -> dict[str, Any] | None:
        with telling(self.place):
            about = self.client.get_collection(self.name).config.metadata or {}
        return about.get(_OWNER)

    @property
    def manifest(self) -> Manifest | None:
        """What its export wrote about it; None for a collection that is not ours."""
        held = self._held
        return None if held is None else Manifest(held["artifact"], held["inputs"], held["settings"], held["about"])

    @property
    def is_verified(self) -> bool:
        """Whether its export came to its end."""
        return (self._held or {}).get("state") == VERIFIED

    def mark(self, manifest: Manifest, state: str) -> None:
        """Note how far the export is."""
        with telling(self.place):
            self.client.update_collection(self.name, metadata=_metadata(manifest, state))

    @property
    def count(self) -> int:
        """Number of points."""
        with telling(self.place):
            return int(self.client.count(self.name, exact=True).count)

    def present(self, points: Sequence[str]) -> set[str]:
        """Which of some points are there."""
        with telling(self.place):
            found = self.client.retrieve(self.name, ids=list(points), with_payload=False, with_vectors=False)
        return {str(one.id) for one in found}

    def put(self, kind: Kind, points: Sequence[tuple[str, Any, dict[str, str]]]) -> None:
        """Write (point id, vector or None, payload); a point that is there is replaced. Transient failures are retried.

        Raises:
            UserError: Qdrant refuses them or does not answer.
        """
        build = library().models.PointStruct
        structs = [
            build(id=point, vector={} if vector is None else {kind: vector}, payload=payload)
            for point, vector, payload in points
        ]
        with telling(self.place):
            self.client.upload_points(self.name, structs, batch_size=max(1, len(structs)), wait=True)

    def stored(self, kind: Kind, points: Sequence[str]) -> Iterator[tuple[str, Any, dict[str, Any]]]:
        """Yield (point id, vector or None, payload) of those that are there."""
        with telling(self.place):
            found = self.client.retrieve(self.name, ids=list(points), with_payload=True, with_vectors=True)
        for point in found:
            vector = point.vector.get(kind) if isinstance(point.vector, dict) else None
            yield str(point.id), vector, point.payload or {}

    def ask(self, kind: Kind, queries: Vectors, k: int, *, quantized: bool = False) -> list[list[tuple[str, float]]]:
        """(document id, score) of the at most k best documents of each query; none for one without entry or token.

        Args:
            kind: Of the vectors.
            queries: Query vectors of that kind.
            k: Depth.
            quantized: Whether codes find the documents, so that their vectors are to rank them.

        Raises:
            UserError: Qdrant refuses or does not answer, or holds points of others.
        """
        models = library().models
        asked = vectors_of(kind, queries)
        parameters = search_parameters() if quantized and not self.embedded else None
        answers: list[list[tuple[str, float]]] = [[] for _ in asked]
        full = [place for place, vector in enumerate(asked) if vector is not None]
        for start in range(0, len(full), _ASKED):
            part = full[start : start + _ASKED]
            requests = [
                models.QueryRequest(
                    query=asked[place], using=kind, limit=k, params=parameters, with_payload=["document_id"]
                )
                for place in part
            ]
            with telling(self.place):
                responses = self.client.query_batch_points(self.name, requests)
            for place, response in zip(part, responses, strict=True):
                answers[place] = [(self._document(point), point.score) for point in response.points]
        return answers

    def _document(self, point: Any) -> str:
        found = (point.payload or {}).get("document_id")
        if found is None:
            raise UserError(f"{self} holds point {point.id}, which names no document; something else wrote it.")
        return str(found)


def _metadata(manifest: Manifest, state: str) -> dict[str, Any]:
    return {_OWNER: {**asdict(manifest), "fingerprint": manifest.fingerprint, "state": state}}
