"""Dense documents in FAISS: settings, the choice of a factory, and building."""

from __future__ import annotations

import time
from typing import Any

import numpy as np
from pydantic import model_validator

from retrodistill.core.progress import log
from retrodistill.data.collection import Collection
from retrodistill.data.texts import Texts
from retrodistill.encoders.any_encoder import DENSE, load_encoder
from retrodistill.encoders.contract import EmbeddingSpace
from retrodistill.encoders.embeddings import embed
from retrodistill.encoders.encoder import Encoder
from retrodistill.encoders.vectors import check_finite, leading
from retrodistill.indexes.auto import choose_factory
from retrodistill.indexes.factory import build_faiss, empty_index
from retrodistill.indexes.faiss_index import FaissIndex
from retrodistill.indexes.registry import IndexKind
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

    @model_validator(mode="after")
    def _bytes_choose(self) -> FaissSettings:
        if self.bytes and self.factory != "auto":
            raise ValueError(f"bytes chooses the factory; leave factory {self.factory} out")
        return self


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


def _load(folder: Any, queries: Any, parameters: str | None, memory_map: bool) -> FaissIndex:
    return FaissIndex.load(folder, queries, parameters=parameters, memory_map=memory_map)


KIND = IndexKind("faiss", DENSE, FaissSettings, _build_dense, _load, has_parameters=True)
