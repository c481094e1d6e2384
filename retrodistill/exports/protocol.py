"""Stores that vectors are exported to and searched in: the protocol, and a registry by the prefix of an address.

To add a store, write its module, which ends with ``STORE = CLASS``, and add a line to `_MODULES`. Then ``PREFIX:PLACE``
is a target of `export_index`, and a ranker for `load_index`, `load_ranker` and the command line.
"""

from __future__ import annotations

import importlib
from collections.abc import Iterable, Mapping, Sequence
from functools import cached_property
from pathlib import Path
from typing import Any, ClassVar, Protocol

import pyarrow as pa
from pydantic import field_validator

from retrodistill.core.errors import UserError, sample_of, unknown
from retrodistill.core.manifest import Manifest
from retrodistill.core.settings import Settings, validated
from retrodistill.data.fields import schema_of
from retrodistill.data.filters import Filter
from retrodistill.exports.records import Answers, Batch, Records, Vectors, run_of
from retrodistill.indexes.columns import Choice, read_choice
from retrodistill.runs.documents import PASSAGE
from retrodistill.runs.run import Run

# Prefix of the addresses, and module in this package. A module is imported when it is first used.
_MODULES = {
    "qdrant": "qdrant",
    "pgvector": "pgvector",
    "lancedb": "lancedb",
    "elasticsearch": "elasticsearch",
    "opensearch": "opensearch",
    "parquet": "parquet",
}
STORES = tuple(_MODULES)


class StoreSettings(Settings):
    """Options that every store takes."""

    texts: bool = False
    """Whether to store each document's text, too."""
    fields: Choice = "all"
    """Fields of the documents to store: `all`, `none`, or a list. They are those that the index stores, or otherwise
    those of the collection."""

    _field_names = field_validator("fields", mode="before")(read_choice)


class VectorStore(Protocol):
    """A place for documents' vectors."""

    options: ClassVar[type[StoreSettings]]
    settings: Any  # of the class `options`
    batch_size: int  # documents per batch of `upload`; known after `create`
    sample: int = 0
    """Documents whose vectors and rankings are compared with the source after the upload; 0 for a store that reads back
    all that it writes."""
    min_agreement: float = 1.0
    """Least mean share of the exact top 10 that it must find for these documents."""
    tolerance: float = 1e-4
    """How much of a vector's largest number a stored number may differ: what float32 and a second normalization may
    change."""

    @classmethod
    def open(cls, place: str, settings: Any = None, *, create: bool = False) -> VectorStore:
        """Open the store ``PREFIX:PLACE``, which must be there unless `create` is true."""

    @property
    def address(self) -> str:
        """``PREFIX:PLACE``, which opens it again."""

    @property
    def root(self) -> Path | None:
        """The folder that it is, to which the names of models in its manifest are relative; None for a server."""
        return None

    def create(self, spec: Records) -> None:
        """Make an empty store for documents, or continue an export of the same documents with the same settings.

        Raises:
            UserError: It holds something else; says what differs. Nothing is changed.
        """

    def upload(self, batches: Iterable[Batch]) -> int:
        """Write the documents that are not there yet; returns their number."""

    def finish(self) -> dict[str, Any]:
        """Mark the export as complete; returns facts for its report, as JSON values."""

    def manifest(self) -> Manifest | None:
        """What `create` noted; its `about` has `is_complete`. None for what retrodistill did not make."""

    def count(self) -> int:
        """Number of documents."""

    def stored(self, ids: Sequence[str]) -> tuple[list[str], Vectors]:
        """Ids and vectors of those of the documents that are there. A store without `sample` need not have it."""
        raise NotImplementedError

    def payloads(self, ids: Sequence[str]) -> dict[str, dict[str, Any]]:
        """By id, the fields, title, and text of those of the documents that are there; missing values are left out."""

    def best(self, queries: Vectors, k: int, filter: Filter | None = None) -> Answers:
        """The k best documents, or fewer, that pass the filter on their payload, by inner product or MaxSim."""

    def search(
        self, queries: Vectors, k: int, filter: Filter | None = None, *, query_ids: Sequence[str] | None = None
    ) -> Run:
        """As `best`, as a run; queries are named "0", "1"... by default."""
        return run_of(self.best(queries, k, filter), query_ids)

    def schema(self) -> pa.Schema:
        """Names and types of what a filter compares: fields, title and text if they are stored, and ``document_id``."""
        manifest = self.manifest()
        if manifest is None:
            return pa.schema([])
        texts = [name for name in ("title", "text") if f"{name}s" in manifest.inputs]
        passage = [PASSAGE] if "passages" in manifest.about else []
        own = pa.schema([(name, pa.string()) for name in ["document_id", *passage, *texts]])
        return pa.unify_schemas([schema_of(manifest.about.get("fields", {})), own])

    def close(self) -> None:
        """Release files and connections."""

    @cached_property
    def _manifest(self) -> Manifest:
        """That of `create`, or of what is there."""
        return self.manifest() or Manifest("nothing")

    @property
    def _kind(self) -> str:
        return str(self._manifest.settings["kind"])

    @property
    def _own_id(self) -> str:
        """The field of the payload with a record's own id."""
        return PASSAGE if "passages" in self._manifest.about else "document_id"


def store_class(prefix: str) -> type[VectorStore]:
    """The class of stores of a prefix; the error for an unknown one names the nearest."""
    if prefix not in _MODULES:
        raise unknown("target", prefix, STORES)
    return importlib.import_module(f"retrodistill.exports.{_MODULES[prefix]}").STORE


def open_store(
    address: str, settings: StoreSettings | Mapping[str, Any] | None = None, *, create: bool = False
) -> VectorStore:
    """Open ``PREFIX:PLACE``, e.g. ``qdrant:http://HOST:6333#NAME`` or ``parquet:FOLDER``; `create` allows a new one.

    Settings are options of its kind, for writing.

    Raises:
        UserError: An unknown prefix or option, nothing there, or it cannot be reached.
    """
    prefix, _, place = address.partition(":")
    store = store_class(prefix)
    if settings is not None and not isinstance(settings, Settings):
        settings = validated(store.options, dict(settings), f"export to {prefix}", "option")
    return store.open(place, settings, create=create)


def check_parts(folder: Path, pattern: str, names: Iterable[str]) -> None:
    """Refuse files among the parts of an export that are not of it, and which other programs would read."""
    if strange := sorted({path.name for path in folder.glob(pattern)}.difference(names)):
        raise UserError(f"{folder} holds files that are not of this export ({sample_of(strange)}); remove them.")


def check_same(existing: Manifest | None, wanted: Manifest, place: str, advice: str) -> None:
    """Refuse to continue an export where something else is; the error says what differs."""
    if existing is None:
        differences = ["retrodistill did not make it"]
    elif existing.artifact != wanted.artifact:
        differences = [f"{existing.artifact}, not {wanted.artifact}"]
    else:
        pairs = ((existing.inputs, wanted.inputs), (existing.settings, wanted.settings))
        differences = [
            f"{key} {old.get(key, 'none')}, wanted {new.get(key, 'none')}"
            for old, new in pairs
            for key in {**old, **new}
            if old.get(key) != new.get(key)
        ]
    if differences:
        raise UserError(f"{place} holds something else ({'; '.join(differences)}); {advice}.")
