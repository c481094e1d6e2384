"""Build a multi-vector index from texts, block by block: memory does not grow with the corpus, a kill loses a block."""

from __future__ import annotations

import time
from typing import Any

import numpy as np

from retrodistill.core.files import cache_folder, digest, exclusive
from retrodistill.core.progress import bar
from retrodistill.data.collection import Collection
from retrodistill.data.texts import Texts
from retrodistill.encoders.any_encoder import MULTI_VECTOR, load_encoder
from retrodistill.encoders.contract import EmbeddingSpace
from retrodistill.encoders.embeddings import TokenVectors
from retrodistill.encoders.multi_vector import MultiVectorModel, Tokens
from retrodistill.indexes.codec import Codec
from retrodistill.indexes.codecs import fit_codec
from retrodistill.indexes.factory import empty_index
from retrodistill.indexes.multi_vector import MultiVectorIndex, MultiVectorSettings, sampled_rows
from retrodistill.indexes.muvera import Muvera
from retrodistill.indexes.registry import IndexKind
from retrodistill.indexes.tokens import TokenStore, TokenWriter, check_tokens

_BLOCK = 256  # documents: what a kill may lose


def build_multi_vector(
    texts: Texts,
    documents: Any,
    queries: Any = None,
    settings: MultiVectorSettings | None = None,
    *,
    name: str = "index",
) -> MultiVectorIndex:
    """Encode documents and index their tokens.

    Codes are written to the shared cache as they come, where a build that was killed goes on and where the index reads
    them, memory-mapped; `MultiVectorIndex.save` copies them into the index' own folder.

    Args:
        texts: The documents.
        documents: Name or object of their multi-vector encoder.
        queries: Name or object of the encoder of queries; the documents' by default.
        settings: Codec and candidates.
        name: What its runs are called.

    Raises:
        UserError: The query encoder belongs to another space, settings that do not fit the vectors or so few documents,
            vectors that are not finite, or a document without tokens.
    """
    settings = settings or MultiVectorSettings()
    encoder = load_encoder(documents, MULTI_VECTOR)
    asking = encoder if queries is None else load_encoder(queries, MULTI_VECTOR)
    space = EmbeddingSpace.of(encoder)
    space.check_query_encoder(asking)
    if settings.muvera is not None:
        width = Muvera(settings.muvera, space.dimension).dimension
        empty_index(settings.muvera.factory, width, len(texts), settings.muvera.parameters)
    start = time.perf_counter()
    store = _encoded(texts, encoder, settings)
    built = MultiVectorIndex(store, texts.ids, space, asking, settings, name, documents=encoder)
    built.build_seconds = time.perf_counter() - start  # tokens are encoded as they are stored: this counts both
    return built


def _encoded(texts: Texts, encoder: MultiVectorModel, settings: MultiVectorSettings) -> TokenStore:
    """The store of these texts in the cache, finished where it was left."""
    codec = settings.model_dump(mode="json", exclude={"muvera"})
    folder = cache_folder() / "tokens" / digest(encoder.document_space, texts.fingerprint, codec)
    store = TokenVectors(encoder, "document")
    found: dict[int, np.ndarray] = {}  # the sample's tokens, which need not be encoded twice

    def fit() -> Codec:
        if settings.codec != "residual":
            return fit_codec(settings, Tokens.of([], encoder.dimension))
        rows = sampled_rows(len(texts), settings)
        found.update(zip(rows.tolist(), _tokens(texts, rows, encoder, store), strict=True))
        sample = Tokens.of([found[row] for row in rows.tolist()], encoder.dimension)
        return fit_codec(settings, sample, len(sample.vectors) * len(texts) // len(rows))

    with exclusive(folder / ".lock"), bar(len(texts), f"token vectors ({encoder.name})", "texts") as progress:
        writer = TokenWriter(folder, fit)
        progress.update(writer.documents)
        for start in range(writer.documents, len(texts), _BLOCK):
            rows = np.arange(start, min(start + _BLOCK, len(texts)))
            absent = np.array([row for row in rows if row not in found], dtype=np.int64)
            found.update(zip(absent.tolist(), _tokens(texts, absent, encoder, store), strict=True))
            writer.append(Tokens.of([found.pop(row) for row in rows.tolist()], encoder.dimension))
            progress.update(len(rows))
        return writer.finish()


def _tokens(texts: Texts, rows: np.ndarray, encoder: MultiVectorModel, store: TokenVectors) -> list[np.ndarray]:
    """Checked token vectors of each row: out of the store where all are there, which is not filled by this."""
    wanted = texts.table.take(rows)
    ids, contents = wanted["id"].to_pylist(), wanted["text"].to_pylist()
    tokens = encoder.encode(contents, "document") if store.missing(contents) else store.gather(contents)
    check_tokens(tokens, ids, f"documents by {encoder.name}")
    return [tokens[place] for place in range(len(tokens))]


def _build(collection: Collection, documents: Any, queries: Any, settings: Any, name: str) -> MultiVectorIndex:
    return build_multi_vector(collection.documents, documents, queries, settings, name=name)


def _load(folder: Any, queries: Any, _parameters: None, _memory_map: bool) -> MultiVectorIndex:
    return MultiVectorIndex.load(folder, queries)  # token vectors always stay on disk


KIND = IndexKind("multi-vector", MULTI_VECTOR, MultiVectorSettings, _build, _load)
