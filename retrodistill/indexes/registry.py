"""Kinds of indexes, their options, and building and loading an index of any kind.

To add a kind, write a module that ends with ``KIND = IndexKind(...)``, add a line to `_MODULES`, and add its own
options, if any, to `IndexOptions`. Recipes (``index:``), the command line and `build_index` take them from there.
"""

from __future__ import annotations

import importlib
import os
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from typing import Annotated, Any, Literal

import pyarrow as pa
from pydantic import Field, field_validator

from retrodistill.core.errors import UserError, unknown
from retrodistill.core.files import read_whole
from retrodistill.core.paths import path_of
from retrodistill.core.settings import OneOf, Settings, validated
from retrodistill.data.collection import Collection
from retrodistill.encoders.any_encoder import load_encoder
from retrodistill.encoders.reading import readable, warn_of_length
from retrodistill.indexes.base import Index, read_index_manifest
from retrodistill.indexes.codecs import CodecName, refuse_dropped
from retrodistill.indexes.columns import Choice, columns_of, read_choice
from retrodistill.indexes.hub import download_index, is_on_hub
from retrodistill.indexes.muvera import MuveraSettings
from retrodistill.rankers.loading import is_store, open_store

# A module is imported when its kind is first used.
_MODULES = {"faiss": "faiss_index", "inverted": "inverted", "multi-vector": "multi_vector"}
KINDS = tuple(_MODULES)
_OF_ALL = ("kind", "fields", "store_texts")  # options of every kind


@dataclass(frozen=True)
class IndexKind:
    """A kind of index."""

    name: str  # in manifests
    encoders: tuple[str, ...]  # kinds of encoders whose documents it holds
    settings: type[Settings]  # how it is built; the fields are its options
    build: Callable[..., Index]  # (collection, document encoder, query encoder or None, settings, name) -> Index
    load: Callable[..., Index]  # (folder, queries, *, memory_map) -> Index; with `parameters` if that is an option
    check: Callable[[Any], None] = lambda _settings: None  # refuses what this machine cannot use, before any work

    @property
    def options(self) -> tuple[str, ...]:
        """Names of its options."""
        return tuple(self.settings.model_fields)


class IndexOptions(Settings):
    """How an index is built: the options of all kinds. Options at their defaults count as not given."""

    kind: Annotated[str, OneOf("kind of index", "retrodistill.indexes.registry:KINDS")] | None = None
    """Kind of index, such as `faiss`; by default the first one that holds vectors of the document encoder."""
    factory: str = "Flat"
    """Dense: a FAISS factory string, or `auto`, which chooses by the number of documents, `bytes` and `recall`. Setting
    either of these means `auto`."""
    parameters: str | None = None
    """Dense: FAISS search parameters, such as `nprobe=16`."""
    truncate: int | None = Field(default=None, ge=1)
    """Dense: number of leading dimensions to keep (Matryoshka)."""
    bytes: int | None = Field(default=None, ge=1)
    """Dense: maximum number of bytes per document for `auto`, or the size of a code for `learn`: 16 by default, with
    `bits: 1` one bit per dimension."""
    recall: float | None = Field(default=None, gt=0, le=1)
    """Dense: share of the ten exact nearest neighbors that `auto` should find; search parameters are tuned to it."""
    codec: CodecName | None = None
    """Multi-vector: how token vectors are stored; `float16` by default. `float32` keeps them in 8 bits too, which exact
    search reads first: a quarter more bytes, and a third of the time for one query."""
    bits: Literal[1, 2, 4, 8, 32] | None = None
    """Sparse: bits of an impact, 8 (the default) or 32 for exact weights. Multi-vector with the codec `residual`: bits
    per dimension, 1, 2 (the default) or 4. Dense with `learn`: bits of each codeword's number, 8 (the default), 4, or 1
    for binary codes."""
    centroids: int | None = Field(default=None, ge=1)
    """Multi-vector with the codec `residual`: number of centroids; PLAID's rule by default."""
    sample: int | None = Field(default=None, ge=1)
    """Multi-vector with the codec `residual`: number of documents that it is fitted on; 1,000 by default."""
    muvera: MuveraSettings | None = None
    """Multi-vector: MUVERA's encodings find candidates, which exact MaxSim ranks; `true` for the defaults. Without it,
    MaxSim ranks all documents."""
    backend: Literal["exact", "seismic"] | None = None
    """Sparse: `exact` (the default), or `seismic`, which is approximate and for large corpora."""
    prune: int | None = Field(default=None, ge=1)
    """Sparse: number of terms to keep per document, those of largest weight."""
    query_cut: int | None = Field(default=None, ge=1)
    """Seismic: number of a query's heaviest terms that choose the lists to visit; 10 by default."""
    heap_factor: float | None = Field(default=None, gt=0, le=1)
    """Seismic: lower is faster and finds less; 0.8 by default."""

    fields: Choice = "all"
    """Fields of the documents that the index stores, so that searches can filter by them: `all`, `none`, or a list."""
    store_texts: bool = False
    """Whether the index stores titles and texts, too, so that searches can print them."""

    _field_names = field_validator("fields", mode="before")(read_choice)
    _codec_not_dropped = field_validator("codec", mode="before")(refuse_dropped)

    @field_validator("bits", mode="before")
    @classmethod
    def _bits_not_dropped(cls, bits: Any) -> Any:
        if bits == 16:
            raise ValueError("16-bit impacts were dropped; use 8 (the default) or 32 for exact weights")
        return bits

    @field_validator("muvera", mode="before")
    @classmethod
    def _muvera_defaults(cls, muvera: Any) -> Any:
        return ({} if muvera else None) if isinstance(muvera, bool) else muvera

    def given(self) -> dict[str, Any]:
        """The options that are not at their defaults, without `kind` and those that all kinds take."""
        values = {name: getattr(self, name) for name in IndexOptions.model_fields if name not in _OF_ALL}
        return {name: value for name, value in values.items() if value != IndexOptions.model_fields[name].default}

    def columns_of(self, collection: Collection) -> pa.Table | None:
        """What an index of the collection stores beside vectors; a chosen field that does not exist is refused."""
        return columns_of(collection, self.fields, texts=self.store_texts)

    def kind_for(self, encoder_kinds: Sequence[str]) -> IndexKind:
        """The kind of index for documents of these kinds of encoders: `kind` if it holds them, otherwise the first."""
        kinds = [kind for kind in map(get_kind, KINDS) if set(encoder_kinds) & set(kind.encoders)]
        if not kinds:
            known = [name for kind in map(get_kind, KINDS) for name in kind.encoders]
            raise unknown("kind of encoder for an index", encoder_kinds[0], known)
        return next((kind for kind in kinds if kind.name == self.kind), kinds[0])

    def check(self, kinds: Iterable[IndexKind]) -> None:
        """Refuse an option that none of these kinds takes, a wrong value, or a missing package."""
        kinds = list(kinds)
        names = [kind.name for kind in kinds]
        if self.kind not in (None, *names):
            raise UserError(f"kind={self.kind}: these documents need an index of kind {' or '.join(names)}.")
        _check_options_fit(self.given(), kinds)
        for kind in kinds:
            kind.check(self.of(kind))

    def checked_kind(self, encoder_kind: str, names: Iterable[str]) -> IndexKind:
        """As `kind_for`, after a check of the options and of all names that were given, also those at defaults."""
        kind = self.kind_for([encoder_kind])
        _check_options_fit([name for name in names if name not in _OF_ALL], [kind])
        self.check([kind])
        return kind

    def of(self, kind: IndexKind) -> Settings:
        """The settings of one kind, without the options that it does not take."""
        given = {name: value for name, value in self.given().items() if name in kind.options}
        if "bytes" in given or "recall" in given:
            given = {"factory": "auto", **given}
        return validated(kind.settings, given, f"index of kind {kind.name}", "option")


def get_kind(name: str) -> IndexKind:
    """The kind of index of a name."""
    if name not in _MODULES:
        raise unknown("kind of index", name, KINDS)
    kind: IndexKind = importlib.import_module(f"retrodistill.indexes.{_MODULES[name]}").KIND
    return kind


def _check_options_fit(options: Iterable[str], kinds: Sequence[IndexKind]) -> None:
    if wrong := [name for name in options if not any(name in kind.options for kind in kinds)]:
        takes = "; ".join(f"{kind.name} takes {', '.join(kind.options)}" for kind in kinds)
        raise UserError(f"option {wrong[0]!r} does not fit this kind of index: {takes}.")


def build_index(
    collection: Collection,
    documents: Any,
    queries: Any = None,
    factory: str = "Flat",
    *,
    name: str = "index",
    settings: Settings | None = None,
    **options: Any,
) -> Index:
    """Encode a collection and index it: dense vectors in FAISS, sparse ones inverted, token vectors for MaxSim.

    Args:
        collection: What to index.
        documents: Name or object of the document encoder; its kind determines the index: a `FaissIndex`,
            `InvertedIndex` or `MultiVectorIndex`.
        queries: Name or object of the query encoder; by default that of the documents.
        factory: A FAISS factory string, or ``auto``.
        name: Name of its runs.
        settings: `FaissSettings`, `InvertedSettings`, `MultiVectorSettings`, or `IndexOptions`. The index stores all
            fields of the documents; `IndexOptions` choose some, and whether it stores texts.
        options: Keys of `IndexOptions`, e.g. ``truncate=128``, ``codec="residual"``; not together with `settings`.

    Raises:
        UserError: The query encoder belongs to another space, options or settings do not fit the kind of index, vectors
            are not finite, or a factory does not parse or needs more documents to train.
    """
    if factory != "Flat":
        options["factory"] = factory
    if settings is not None and options:
        raise UserError(f"give settings or {next(iter(options))}, not both.")
    encoder, given = load_encoder(documents), collection
    collection = readable(encoder, collection)
    choice = validated(IndexOptions, options, "index", "option") if settings is None else settings
    columns = columns_of(collection)
    if isinstance(choice, IndexOptions):
        kind = choice.checked_kind(encoder.kind, options)
        columns = choice.columns_of(collection)
        choice = choice.of(kind)
    else:
        name_of_kind = next((name for name in KINDS if get_kind(name).settings is type(choice)), None)
        kind = IndexOptions(kind=name_of_kind).kind_for([encoder.kind])
    if not isinstance(choice, kind.settings):
        raise UserError(f"an index of kind {kind.name} takes {kind.settings.__name__}, not {type(choice).__name__}.")
    warn_of_length(encoder, collection)
    index = kind.build(collection, encoder, queries, choice, name)
    index.parents, index.columns = collection.parents, columns
    index.set_source(given)
    return index


def load_index(
    folder: str | os.PathLike[str], queries: Any = None, *, parameters: str | None = None, memory_map: bool = False
) -> Index:
    """Load an index from its folder, the hub (``hf:USER/NAME``), or an exported store (``qdrant:PLACE#NAME``).

    `queries` is the name or object of the query encoder, by default the one it was saved with; `parameters` are of
    FAISS, e.g. ``nprobe=16``. `memory_map` leaves vectors or postings on disk, where token vectors always stay. A
    missing or damaged file, a query encoder of another space, and parameters that do not fit are a `UserError`.
    """
    if is_store(folder):
        if parameters:
            raise UserError(f"search parameters {parameters!r} are for FAISS, and {folder} is an exported store.")
        return open_store(str(folder), queries)
    place = download_index(folder) if is_on_hub(folder) else folder
    return read_whole(place, lambda: _load_index(place, queries, parameters, memory_map))


def _load_index(folder: str | os.PathLike[str], queries: Any, parameters: str | None, memory_map: bool) -> Index:
    kind = get_kind(read_index_manifest(path_of(folder)).settings["kind"])
    if not parameters:
        return kind.load(folder, queries, memory_map=memory_map or None)
    if "parameters" not in kind.options:
        raise UserError(f"search parameters {parameters!r} are for FAISS, and {folder} is of kind {kind.name}.")
    return kind.load(folder, queries, memory_map=memory_map or None, parameters=parameters)
