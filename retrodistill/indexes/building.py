"""Build an index of the kind that the documents' encoder asks for; load any."""

from __future__ import annotations

import os
from typing import Any

import numpy as np

from retrodistill.collections.collection import Collection
from retrodistill.indexes.asymmetric import AsymmetricIndex
from retrodistill.indexes.factory import build_faiss, empty_index
from retrodistill.models.contract import Space
from retrodistill.models.embeddings import embed
from retrodistill.models.encoder import load_encoder
from retrodistill.models.vectors import check_finite, leading


def build_index(
    collection: Collection,
    documents: Any,
    queries: Any = None,
    factory: str = "Flat",
    *,
    name: str = "index",
    truncate: int | None = None,
) -> AsymmetricIndex:
    """Embed a collection and index it.

    Args:
        collection: What to index.
        documents: Name or object of the encoder of documents.
        queries: Name or object of the encoder of queries; the documents' by default.
        factory: A FAISS factory string.
        name: What its runs are called.
        truncate: Keep so many leading dimensions of the vectors, of both sides (Matryoshka students keep most of their
            quality; arXiv 2205.13147); unit vectors stay so.

    Raises:
        UserError: The query encoder belongs to another space, vectors that are not finite, or a factory that does not
            parse or cannot be trained on so few.
    """
    encoder = load_encoder(documents)
    asking = encoder if queries is None else load_encoder(queries)
    space = Space.of(encoder, truncate)
    space.admit(asking)
    empty_index(factory, space.dimension, len(collection.documents))
    vectors = leading(embed(encoder, collection.documents.texts, "document"), truncate, unit=space.norm == "unit")
    check_finite(vectors, collection.documents.ids, encoder.name)
    index = build_faiss(factory, np.ascontiguousarray(vectors))
    return AsymmetricIndex(index, collection.documents.ids, space, asking, factory, name, documents=encoder)


def load_index(
    folder: str | os.PathLike[str], queries: Any = None, *, parameters: str | None = None, memory_map: bool = False
) -> AsymmetricIndex:
    """Load an index of any kind; arguments and errors as `AsymmetricIndex.load`."""
    return AsymmetricIndex.load(folder, queries, parameters=parameters, memory_map=memory_map)
