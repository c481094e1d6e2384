"""What goes out beside the vectors, and what pins an export to its source."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from retrodistill.core.errors import UserError, sample_of
from retrodistill.core.manifest import Manifest
from retrodistill.data.collection import Collection
from retrodistill.data.texts import Texts
from retrodistill.exports.records import Exportable


@dataclass(frozen=True)
class Payload:
    """Titles and texts of an index' documents, in its order.

    Attributes:
        titles: Of each document, '' where it has none; None without a collection.
        bodies: Its text less the title; None where texts are not wanted.
    """

    titles: Texts | None = None
    bodies: Texts | None = None

    @classmethod
    def of(cls, records: Exportable, collection: Collection | None, *, texts: bool) -> Payload:
        """The payload of a source.

        Raises:
            UserError: The collection lacks documents, or texts are wanted and there is none.
        """
        if collection is not None:
            bodies = texts_of(collection.bodies, records.ids) if texts else None
            return cls(texts_of(collection.titles, records.ids), bodies)
        if texts:
            raise UserError("texts are to be exported, and there is no collection to take them from; give one.")
        return cls()

    def columns(self, start: int, stop: int) -> dict[str, list[str]]:
        """``title`` and ``text`` of documents start to stop, those that are exported."""
        parts = (("title", self.titles), ("text", self.bodies))
        return {name: texts.slice(start, stop) for name, texts in parts if texts is not None}

    def manifest(self, artifact: str, records: Exportable, settings: dict[str, Any]) -> Manifest:
        """What decides an export of these records.

        Args:
            artifact: What is made.
            records: The source.
            settings: Those that decide what comes out.
        """
        inputs = {"space": records.space.fingerprint, "vectors": records.fingerprint}
        parts = (("titles", self.titles), ("texts", self.bodies))
        inputs |= {name: texts.fingerprint for name, texts in parts if texts is not None}
        about = {
            "space": records.space.to_json(),
            "documents": len(records),
            "name": records.name,
            "queries_by": records.queries_by,
        }
        return Manifest(artifact, inputs, {"kind": records.kind, **settings}, about)


def texts_of(texts: Texts, ids: Any) -> Texts:
    """The texts of an index' documents, in its order.

    Raises:
        UserError: The collection lacks documents of the index.
    """
    if len(ids) == len(texts) and list(ids) == texts.ids:
        return texts
    missing = [one for one in ids if one not in texts]
    if missing:
        raise UserError(
            f"the collection lacks {len(missing)} documents of the index ({sample_of(missing)}); give the collection "
            "that it was built on."
        )
    return texts.select(ids)


def differences(held: Manifest, wanted: Manifest) -> list[str]:
    """What an export that is there was made from otherwise, one short phrase each."""
    if held.artifact != wanted.artifact:
        return [f"{held.artifact}, no {wanted.artifact}"]
    found = []
    for one, other in ((held.inputs, wanted.inputs), (held.settings, wanted.settings)):
        for key in {**one, **other}:
            if one.get(key) != other.get(key):
                found.append(f"{key} {one.get(key, 'none')}, wanted {other.get(key, 'none')}")
    return found
