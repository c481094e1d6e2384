"""Build an index of the kind that the document encoder needs; load an index of any kind."""

from __future__ import annotations

import os
from pathlib import Path
from typing import Any

from retrodistill.core.errors import UserError
from retrodistill.data.collection import Collection
from retrodistill.encoders.any_encoder import load_encoder
from retrodistill.indexes.base import Index, read_index_manifest
from retrodistill.indexes.registry import IndexKind, IndexOptions, check_options_fit, checked, get_kind, kind_for
from retrodistill.rankers.loading import is_store, open_store
from retrodistill.training.settings import Settings


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
        documents: Name or object of the document encoder; its kind determines the kind of index.
        queries: Name or object of the query encoder; by default that of the documents.
        factory: A FAISS factory string, or ``auto``.
        name: Name of its runs.
        settings: Settings of the kind of index (`FaissSettings`, `InvertedSettings`, `MultiVectorSettings`), or
            `IndexOptions`.
        options: Keys of `IndexOptions`, e.g. ``truncate=128``, ``codec="residual"``; not together with `settings`.

    Returns:
        A `FaissIndex`, `InvertedIndex` or `MultiVectorIndex`.

    Raises:
        UserError: The query encoder belongs to another space, options or settings do not fit the kind of index, vectors
            are not finite, or a factory does not parse or needs more documents to train.
    """
    if factory != "Flat":
        options["factory"] = factory
    if settings is not None and options:
        raise UserError(f"give settings or {next(iter(options))}, not both.")
    encoder = load_encoder(documents)
    kind = kind_for(encoder)
    index: Index = kind.build(collection, encoder, queries, _settings(kind, settings, options), name)
    return index


def load_index(
    folder: str | os.PathLike[str], queries: Any = None, *, parameters: str | None = None, memory_map: bool = False
) -> Index:
    """Load an index of any kind, or an exported store.

    Args:
        folder: Where it was saved; or ``qdrant:PLACE#NAME``.
        queries: Name or object of the query encoder; by default the one it was saved with.
        parameters: FAISS search parameters, e.g. ``nprobe=16``.
        memory_map: Leave vectors or postings on disk. Token vectors always stay there.

    Raises:
        UserError: A file is missing or damaged, the query encoder belongs to another space, or the index takes no
            search parameters.
    """
    if is_store(folder):
        if parameters:
            raise UserError(f"search parameters {parameters!r} are for FAISS, and {folder} is an exported store.")
        return open_store(str(folder), queries)
    kind = get_kind(read_index_manifest(Path(folder)).settings["kind"])
    if parameters and not kind.has_parameters:
        raise UserError(
            f"search parameters {parameters!r} are for FAISS, and {folder} is an index of kind {kind.name}."
        )
    given = {"parameters": parameters} if parameters else {}
    index: Index = kind.load(folder, queries, memory_map=memory_map or None, **given)
    return index


def _settings(kind: IndexKind, settings: Settings | None, options: dict[str, Any]) -> Settings:
    """The settings of the kind; given ones must be of its class."""
    if settings is None:
        check_options_fit([name for name in options if name in IndexOptions.model_fields], [kind])
        settings = checked(IndexOptions, options, "index")
    if isinstance(settings, IndexOptions):
        settings.check([kind])
        return settings.of(kind)
    if not isinstance(settings, kind.settings):
        raise UserError(f"an index of kind {kind.name} takes {kind.settings.__name__}, not {type(settings).__name__}.")
    return settings
