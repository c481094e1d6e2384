"""Build an index of the kind that the documents' encoder asks for; load any."""

from __future__ import annotations

import os
import time
from typing import Any

import numpy as np

from retrodistill.core.errors import UserError
from retrodistill.core.progress import log
from retrodistill.data.collection import Collection
from retrodistill.data.texts import Texts
from retrodistill.encoders.any_encoder import DENSE, load_encoder
from retrodistill.encoders.contract import EmbeddingSpace
from retrodistill.encoders.embeddings import embed
from retrodistill.encoders.encoder import Encoder
from retrodistill.encoders.multi_vector import MultiVectorModel
from retrodistill.encoders.sparse import SparseTextEncoder
from retrodistill.encoders.vectors import check_finite, leading
from retrodistill.indexes.auto import choose_factory
from retrodistill.indexes.factory import build_faiss, empty_index
from retrodistill.indexes.faiss_index import FaissIndex
from retrodistill.indexes.impacts import InvertedSettings
from retrodistill.indexes.inverted import InvertedIndex, build_inverted
from retrodistill.indexes.multi_vector import MultiVectorIndex, MultiVectorSettings
from retrodistill.indexes.protocol import Index
from retrodistill.indexes.stored import kind_of
from retrodistill.indexes.token_building import build_multi_vector
from retrodistill.rankers.loading import is_store, open_store
from retrodistill.training.settings import Settings
from retrodistill.training.texts import training_queries, training_texts

_NEIGHBOURS, _RECALL = 10, 0.95  # what ``auto`` tunes for where no recall is wanted
_TUNED_ON, _FEW = 200, 20  # queries


class FaissSettings(Settings):
    """How dense vectors are indexed.

    Attributes:
        factory: A FAISS factory string, or ``auto``: chosen from the number of documents and what is wanted.
        parameters: FAISS search parameters, e.g. ``nprobe=16``.
        truncate: Keep so many leading dimensions of the vectors, of both sides (Matryoshka students keep most of their
            quality; arXiv 2205.13147); unit vectors stay so.
        bytes: Per document, that ``auto`` stays within.
        recall: Share of the exact ten neighbors to find: ``auto`` chooses by it, and nprobe, efSearch and the refining
            factor are tuned to it on training queries or sentences, unless `parameters` are given.
    """

    factory: str = "Flat"
    parameters: str | None = None
    truncate: int | None = None
    bytes: int | None = None
    recall: float | None = None


def build_index(
    collection: Collection,
    documents: Any,
    queries: Any = None,
    factory: str = "Flat",
    *,
    name: str = "index",
    truncate: int | None = None,
    settings: FaissSettings | InvertedSettings | MultiVectorSettings | None = None,
) -> Index:
    """Embed a collection and index it: dense vectors in FAISS, sparse ones inverted, token vectors for MaxSim.

    Args:
        collection: What to index.
        documents: Name or object of the encoder of documents; its kind decides the kind of index.
        queries: Name or object of the encoder of queries; the documents' by default.
        factory: A FAISS factory string, or ``auto``: short for ``settings=FaissSettings(factory=...)``.
        name: What its runs are called.
        truncate: Leading dimensions to keep: short for ``settings=FaissSettings(truncate=...)``.
        settings: Of the kind of index.

    Returns:
        An `FaissIndex`, `InvertedIndex` or `MultiVectorIndex`.

    Raises:
        UserError: The query encoder belongs to another space, settings of another kind of index, vectors that are not
            finite, or a factory that does not parse or cannot be trained on so few.
    """
    encoder = load_encoder(documents)
    if not isinstance(encoder, Encoder) and (factory != "Flat" or truncate is not None):
        raise UserError(f"documents by {encoder.name} are not in a FAISS index: leave factory and truncate out.")
    if isinstance(encoder, SparseTextEncoder):
        return build_inverted(collection, encoder, queries, _of(settings, InvertedSettings, encoder), name=name)
    if isinstance(encoder, MultiVectorModel):
        wanted = _of(settings, MultiVectorSettings, encoder)
        return build_multi_vector(collection.documents, encoder, queries, wanted, name=name)
    dense = _of(settings, FaissSettings, encoder) or FaissSettings(factory=factory, truncate=truncate)
    return _build_dense(collection, encoder, queries, dense, name)


def resolved(settings: FaissSettings, documents: int, dimension: int) -> tuple[str, str | None]:
    """The factory and the search parameters, chosen and told where they are ``auto``.

    Raises:
        UserError: Nothing fits what is wanted.
    """
    if settings.factory != "auto":
        return settings.factory, settings.parameters
    choice = choose_factory(documents, dimension, bytes_per_document=settings.bytes, recall=settings.recall)
    log(choice.reason)
    return choice.factory, settings.parameters or choice.parameters


def load_index(
    folder: str | os.PathLike[str], queries: Any = None, *, parameters: str | None = None, memory_map: bool = False
) -> Index:
    """Load an index of any kind, or an exported store.

    Args:
        folder: Where it was saved; or ``qdrant:PLACE#NAME``.
        queries: Name or object of the query encoder; by default the one it was saved with.
        parameters: FAISS search parameters, e.g. ``nprobe=16``.
        memory_map: Leave vectors or postings on disk (token vectors always stay there).

    Raises:
        UserError: A file is missing, cut short or altered, the query encoder belongs to another space, or parameters
            for an index that is not FAISS.
    """
    if is_store(folder):
        if parameters:
            raise UserError(f"search parameters {parameters!r} are for FAISS, and {folder} is an exported store.")
        return open_store(str(folder), queries)
    kind = kind_of(folder)
    if kind == "faiss":
        return FaissIndex.load(folder, queries, parameters=parameters, memory_map=memory_map)
    if parameters:
        raise UserError(f"search parameters {parameters!r} are for FAISS, and {folder} is an index of kind {kind}.")
    if kind == "inverted":
        return InvertedIndex.load(folder, queries, memory_map=memory_map)
    return MultiVectorIndex.load(folder, queries)


def _build_dense(
    collection: Collection, encoder: Encoder, queries: Any, settings: FaissSettings, name: str
) -> FaissIndex:
    asking = encoder if queries is None else load_encoder(queries, DENSE)
    space, texts = EmbeddingSpace.of(encoder, settings.truncate), collection.documents
    space.check_query_encoder(asking)
    factory, parameters = resolved(settings, len(texts), space.dimension)
    empty_index(factory, space.dimension, len(texts), parameters)
    encoder, asking = encoder.bind(collection), asking.bind(collection)
    vectors = leading(embed(encoder, texts.texts, "document"), settings.truncate, unit=space.norm == "unit")
    check_finite(vectors, texts.ids, encoder.name)
    start = time.perf_counter()
    index = build_faiss(factory, np.ascontiguousarray(vectors))
    built = FaissIndex(index, texts.ids, space, asking, factory, name, documents=encoder)
    built.build_seconds = time.perf_counter() - start
    built.parameters = parameters
    chosen = settings.factory == "auto" and parameters is not None
    if (settings.recall or chosen) and not settings.parameters:
        neighbors = min(_NEIGHBOURS, len(texts))
        log(str(built.tune(_held_out(collection), settings.recall or _RECALL, neighbors, documents=texts)))
    return built


def _held_out(collection: Collection) -> Texts:
    """Queries to tune on, at most 200: those that may be trained on, else sentences of the documents."""
    test = collection.split("test") if "test" in collection.split_sizes else None
    queries = training_queries(collection, "auto", test)[0]
    found = queries if len(queries) >= _FEW else training_texts(collection, queries, titles=False, sentences=1).texts
    step = max(1, len(found) // _TUNED_ON)
    return found.select(found.ids[::step][:_TUNED_ON])


def _of(settings: Any, kind: Any, encoder: Any) -> Any:
    """The settings, where they are of this kind or none."""
    if settings is not None and not isinstance(settings, kind):
        raise UserError(f"documents by {encoder.name} take {kind.__name__}, not {type(settings).__name__}.")
    return settings
