"""Where the exact vectors of an index' documents come from."""

from __future__ import annotations

import os
from dataclasses import replace
from pathlib import Path
from typing import Any

from retrodistill.core.errors import UserError
from retrodistill.data.collection import Collection
from retrodistill.encoders.any_encoder import DENSE, load_encoder
from retrodistill.encoders.contract import EmbeddingSpace, TextModel
from retrodistill.encoders.embeddings import embed
from retrodistill.encoders.encoder import Encoder
from retrodistill.encoders.names import KINDS, ModelName, parse_model_name
from retrodistill.encoders.vectors import leading
from retrodistill.exports.payload import texts_of
from retrodistill.exports.records import Exportable, dense_records, pin, records_of, sparse_records
from retrodistill.indexes.base import Index, saved_name
from retrodistill.indexes.building import load_index
from retrodistill.indexes.registry import get_kind


def exportable(source: Any, collection: Collection | None = None) -> Exportable:
    """The exact vectors of an index' documents.

    Of dense documents another system is given the vectors that their encoder made, not codes: that system quantizes for
    itself, and a code of a code loses twice. A FAISS index that holds its vectors as they were (Flat, HNSW, IVF and
    refined ones over Flat) gives them; for any other factory the documents are embedded again, which the store of
    embeddings answers where they were embedded on this machine. Impacts of an inverted index and tokens of a
    multi-vector index are taken as the index scores them: pruned and decoded; with ``bits: 32`` and the codec
    ``float32`` or ``float16`` they are the encoder's.

    Args:
        source: An `Exportable`, an index or its folder, a dense or sparse encoder or its name.
        collection: Where to take texts that have to be embedded (again).

    Raises:
        UserError: Texts have to be embedded and no collection is given or it lacks documents, or the documents'
            encoder is not at hand; or something that cannot be exported.
    """
    if isinstance(source, Exportable):
        return source
    if isinstance(source, (str, Path, ModelName)):
        source = _loaded(source)
    if hasattr(source, "index_kind"):
        return _of_index(source, collection)
    if getattr(source, "kind", None) == "multi-vector":
        raise UserError(f"{source.name}: token vectors are exported from an index; build one of codec 'float16' first.")
    if getattr(source, "has_model", False):
        return _of_encoder(source, collection)
    raise UserError(f"a {type(source).__name__} cannot be exported; give an index, its folder, or an encoder's name.")


def _loaded(source: str | Path | ModelName) -> Any:
    kind = source.kind if isinstance(source, ModelName) else str(source).partition(":")[0]
    if kind not in KINDS:
        return load_index(str(source))
    name = source if isinstance(source, ModelName) else parse_model_name(str(source))
    return load_encoder(name)


def _of_encoder(encoder: Any, collection: Collection | None) -> Exportable:
    if collection is None:
        raise UserError(f"{encoder.name} has no documents of its own to export; give a collection.")
    ids, texts = collection.documents.ids, collection.documents.texts
    if encoder.kind == "sparse":
        records = sparse_records(ids, embed(encoder, texts, "document"), EmbeddingSpace.of(encoder))
    else:
        records = dense_records(ids, embed(encoder.bind(collection), texts, "document"), EmbeddingSpace.of(encoder))
    return replace(
        records,
        fingerprint=pin(ids, encoder.fingerprint("document"), collection.documents.fingerprint),
        name=encoder.name,
        queries_by=_asked_by(encoder),
    )


def _of_index(index: Index, collection: Collection | None) -> Exportable:
    kind: Any = get_kind(index.index_kind).encoders[0]
    own, read = index.queries, index.vector_reader()
    # Token weights alone do not name a model; their index does.
    by = index.space.documents_by if own is not None and not own.has_model else _asked_by(own)
    if read is not None:
        return records_of(kind, index.ids, index.space, read, name=index.name, queries_by=by)
    if collection is None:
        raise UserError(
            f"{index!r} holds codes, not vectors; give the collection, so that its documents can be embedded again, or "
            "export an index of factory 'Flat'."
        )
    encoder = _document_encoder(index)
    texts = texts_of(collection.documents, index.ids)
    embedded = embed(encoder.bind(collection), texts.texts, "document")
    vectors = leading(embedded, index.space.truncation, unit=index.space.norm == "unit")
    records = dense_records(index.ids, vectors, index.space, name=index.name, queries_by=by)
    pinned = pin(index.ids, index.space.fingerprint, index.space.dimension, texts.fingerprint)
    return replace(records, fingerprint=pinned)


def _asked_by(queries: TextModel | None) -> str | None:
    """Name of the query encoder; a folder is named in full, since what is exported is searched from anywhere."""
    name = saved_name(queries)
    if name is None:
        return None
    kind, _, place = name.partition(":")
    return f"{kind}:{os.path.abspath(place)}" if os.path.isdir(place) else name


def _document_encoder(index: Index) -> Encoder:
    own = index.queries
    found = own if own is not None and own.document_space == index.space.fingerprint else None
    found = found or load_encoder(index.space.documents_by, DENSE)
    if found.document_space != index.space.fingerprint:
        raise UserError(
            f"{found.name} is no longer the model that made the documents "
            f"({'; '.join(index.space.differences(found))}); export an index of factory 'Flat', or build it again."
        )
    return found
