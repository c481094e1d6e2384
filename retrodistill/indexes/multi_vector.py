"""Token vectors on disk, ranked by exact MaxSim, with or without candidates by MUVERA."""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any, Self

import numpy as np
import pyarrow as pa

from retrodistill.core.cache import cache_folder
from retrodistill.core.digests import digest
from retrodistill.core.disk import writing
from retrodistill.core.errors import UserError
from retrodistill.core.locks import lock_file, locked
from retrodistill.core.manifest import FILE_NAME
from retrodistill.core.paths import make_folder
from retrodistill.core.runtime import bar
from retrodistill.core.settings import validated
from retrodistill.data.collection import Collection
from retrodistill.data.texts import Texts, take_rows
from retrodistill.encoders.any_encoder import MULTI_VECTOR
from retrodistill.encoders.embeddings import TokenVectors
from retrodistill.encoders.multi_vector import MultiVectorModel, Tokens
from retrodistill.encoders.space import EmbeddingSpace
from retrodistill.indexes.base import Index, StoredIndex, load_sides
from retrodistill.indexes.codecs import Codec, CodecSettings, fit_codec
from retrodistill.indexes.factory import empty_index
from retrodistill.indexes.maxsim import best_of_store
from retrodistill.indexes.muvera import FAISS_FILE, CandidateIndex, Muvera, MuveraSettings
from retrodistill.indexes.registry import IndexKind
from retrodistill.indexes.tokens import CODES_FILE, TokenStore, TokenWriter, check_tokens
from retrodistill.rankers.protocol import check_queries

_BLOCK = 256  # documents that are encoded at once; a kill loses one block


class MultiVectorSettings(CodecSettings):
    """How a multi-vector index stores token vectors and searches them."""

    muvera: MuveraSettings | None = None
    """Candidates by fixed-dimensional encodings, which exact MaxSim ranks; null ranks all documents."""


class MultiVectorIndex(Index):
    """An `Index` of a token store; MUVERA's `candidate_index` is built from it if the settings ask for one.

    `build_index` writes the codes to the shared cache, where a build that was killed continues; memory does not grow
    with the corpus. The index reads them there, memory-mapped, until `save` copies them into its own folder.
    """

    index_kind, encoder_kinds = "multi-vector", MULTI_VECTOR

    def __init__(
        self,
        store: TokenStore,
        ids: Sequence[str],
        space: EmbeddingSpace,
        queries: MultiVectorModel | None = None,
        settings: MultiVectorSettings | None = None,
        name: str = "index",
        *,
        candidate_index: CandidateIndex | None = None,
        documents: MultiVectorModel | None = None,
    ) -> None:
        self.store, self.settings = store, settings or MultiVectorSettings()
        super().__init__(ids, space, queries, name, documents)
        if candidate_index is None and self.settings.muvera is not None:
            candidate_index = CandidateIndex.build(self.settings.muvera, store)
        if candidate_index is not None and len(candidate_index) != len(store):
            raise UserError(
                f"{CODES_FILE} holds {len(store)} documents, {FAISS_FILE} {len(candidate_index)} encodings; the token "
                "store does not match its FAISS file: build the index again."
            )
        self.candidate_index = candidate_index

    @classmethod
    def from_tokens(
        cls,
        tokens: Tokens,
        ids: Sequence[str],
        space: EmbeddingSpace,
        queries: MultiVectorModel | None = None,
        settings: MultiVectorSettings | None = None,
        name: str = "index",
    ) -> MultiVectorIndex:
        """Index token vectors in memory; a residual codec is fitted on a sample of the documents."""
        check_tokens(tokens, ids, "documents")
        settings = settings or MultiVectorSettings()
        sample = Tokens.of([tokens[row] for row in _sampled_rows(len(tokens), settings)], tokens.dimension)
        store = TokenStore.empty(fit_codec(settings, sample, len(tokens.vectors)))
        store.append(tokens)
        return cls(store, ids, space, queries, settings, name)

    def _add_texts(self, ids: Sequence[str], texts: Texts, rows: pa.Table | None) -> None:
        """As `Index._add_texts`, in blocks."""
        encoder = self._document_encoder()
        for start in range(0, len(texts), _BLOCK):
            stop = min(start + _BLOCK, len(texts))
            block = None if rows is None else rows.slice(start, stop - start)
            self._extend(ids[start:stop], encoder.encode(texts.slice(start, stop), "document"), block)

    @property
    def vectors_per_document(self) -> float:
        """Mean number of stored token vectors per document."""
        return float(self.store.lengths.mean())

    def vector_reader(self) -> Callable[[int, int], Tokens]:
        """As `Index.vector_reader`: decoded token vectors."""
        return lambda start, stop: self.store.gather(np.arange(start, stop))

    @property
    def nbytes(self) -> int:
        """Size of token codes, offsets, codec, and MUVERA's FAISS index."""
        return self.store.nbytes + (0 if self.candidate_index is None else self.candidate_index.nbytes)

    def _held(self) -> tuple[int, int]:
        return len(self.store), self.store.codec.dimension

    def _prepare(self, vectors: Tokens, what: str) -> Tokens:
        self._check_width(vectors.dimension, self.space.dimension, f"{what} of")
        return vectors

    def _check_values(self, vectors: Tokens, ids: Sequence[str], what: str) -> None:
        check_tokens(vectors, ids, what)

    def _encode_queries(self, texts: Sequence[str], collection: Collection | None) -> Tokens:
        check_queries(texts)  # those of a collection too: an empty query has no token vectors to compare
        tokens: Tokens = self._query_encoder().encode(texts, "query")
        return tokens

    def _append(self, vectors: Tokens) -> None:
        first = len(self.store)
        self.store.append(vectors)
        if self.candidate_index is not None:  # encodings are made of vectors as the codec keeps them
            self.candidate_index.add(self.store.gather(np.arange(first, len(self.store))))

    def _drop(self, removed: np.ndarray) -> None:
        self.store = self.store.without(removed)
        if self.candidate_index is not None:
            self.candidate_index.remove(removed)

    def _best(self, vectors: Tokens, k: int, among: np.ndarray | None = None) -> tuple[np.ndarray, np.ndarray]:
        if self.candidate_index is None:
            rows, scores = best_of_store(self.store, vectors, k, among, self._id_order)
        else:
            rows = np.full((len(vectors), k), -1, dtype=np.int64)
            scores = np.zeros((len(vectors), k), dtype=np.float32)
            for query, nearest in enumerate(self.candidate_index.candidates(vectors, k, among)):
                candidates = np.sort(nearest)  # so that ties are by row
                only = vectors.slice(query, query + 1)
                found, best = best_of_store(self.store, only, k, candidates, self._id_order)
                rows[query, : found.shape[1]], scores[query, : found.shape[1]] = found[0], best[0]
        if self.space.similarity == "meanmaxsim":
            scores = scores / vectors.lengths[:, None]
        return rows, scores

    def _settings(self) -> dict[str, Any]:
        return self.settings.model_dump(mode="json")

    def _labels(self) -> np.ndarray:
        return super()._labels() if self.candidate_index is None else self.candidate_index.labels

    def _write(self, folder: Path) -> None:
        self.store.save(folder)
        if self.candidate_index is not None:
            self.candidate_index.save(folder)

    @classmethod
    def _read(cls, stored: StoredIndex, memory_map: bool | None) -> Self:
        # Version 0.1.0 also stored the bytes of a codec that was dropped, and null for what was not set.
        content = {name: value for name, value in stored.settings.items() if name != "bytes" and value is not None}
        where = str(stored.folder / FILE_NAME)
        settings = validated(MultiVectorSettings, content, where, "option", "; build the index again")
        store = TokenStore.load(stored.folder)
        if memory_map is False:
            store.read_into_memory()
        found = None
        if settings.muvera is not None:
            found = CandidateIndex.load(settings.muvera, store.codec.dimension, stored.folder, stored.labels)
        return cls(store, stored.ids, stored.space, None, settings, stored.about["name"], candidate_index=found)


def _build(
    collection: Collection, documents: Any, queries: Any, settings: MultiVectorSettings, name: str
) -> MultiVectorIndex:
    texts = collection.documents
    encoder, query_encoder, space = load_sides(documents, queries, MULTI_VECTOR)
    if settings.muvera is not None:  # refuses a wrong factory before texts are encoded
        width = Muvera(settings.muvera, space.dimension).dimension
        empty_index(settings.muvera.factory, width, len(texts), settings.muvera.parameters)
    start = time.perf_counter()
    store = _encode(texts, encoder, settings)
    index = MultiVectorIndex(store, texts.ids, space, query_encoder, settings, name, documents=encoder)
    index.build_seconds = time.perf_counter() - start  # counts encoding too: tokens are stored as they are encoded
    return index


def _encode(texts: Texts, encoder: MultiVectorModel, settings: MultiVectorSettings) -> TokenStore:
    """The texts' token store in the cache, continued where an earlier build stopped."""
    codec = settings.model_dump(mode="json", exclude={"muvera"})
    folder = cache_folder() / "tokens" / digest(encoder.fingerprint("document"), texts.fingerprint, codec)
    if (finished := TokenStore.finished(folder, len(texts))) is not None:
        return finished
    store = TokenVectors(encoder, "document")
    encoded: dict[int, np.ndarray] = {}  # tokens of the codec's sample, so that they are not encoded twice

    def fit() -> Codec:
        if settings.codec != "residual":
            return fit_codec(settings, Tokens.of([], encoder.dimension))
        rows = _sampled_rows(len(texts), settings)
        encoded.update(zip(rows.tolist(), _tokens(texts, rows, encoder, store), strict=True))
        sample = Tokens.of([encoded[row] for row in rows.tolist()], encoder.dimension)
        return fit_codec(settings, sample, len(sample.vectors) * len(texts) // len(rows))

    with locked(lock_file(make_folder(folder) / ".lock")):
        if (finished := TokenStore.finished(folder, len(texts))) is not None:  # by another process meanwhile
            return finished
        with writing(folder):
            return _write(texts, encoder, store, encoded, TokenWriter(folder, fit))


def _write(
    texts: Texts, encoder: MultiVectorModel, store: TokenVectors, encoded: dict[int, np.ndarray], writer: TokenWriter
) -> TokenStore:
    """Encode what the token store lacks, but the rows that are `encoded`."""
    with bar(len(texts), f"token vectors ({encoder.name})", "texts") as progress:
        progress.update(writer.documents)
        for start in range(writer.documents, len(texts), _BLOCK):
            rows = np.arange(start, min(start + _BLOCK, len(texts)))
            missing = np.array([row for row in rows if row not in encoded], dtype=np.int64)
            encoded.update(zip(missing.tolist(), _tokens(texts, missing, encoder, store), strict=True))
            writer.append(Tokens.of([encoded.pop(row) for row in rows.tolist()], encoder.dimension))
            progress.update(len(rows))
        return writer.finish()


def _tokens(texts: Texts, rows: np.ndarray, encoder: MultiVectorModel, store: TokenVectors) -> list[np.ndarray]:
    """Checked token vectors of each row; read from the store of embeddings if all are there, and never added to it."""
    table = take_rows(texts.table, rows)
    ids, contents = table["id"].to_pylist(), table["text"].to_pylist()
    tokens = encoder.encode(contents, "document") if store.missing(contents) else store.gather(contents)
    check_tokens(tokens, ids, f"documents by {encoder.name}")
    return [tokens[place] for place in range(len(tokens))]


def _sampled_rows(documents: int, settings: CodecSettings) -> np.ndarray:
    """Ascending rows of the documents that a codec is fitted on."""
    random = np.random.default_rng(settings.seed)
    return np.sort(random.choice(documents, min(documents, settings.sample), replace=False))


KIND = IndexKind("multi-vector", MULTI_VECTOR, MultiVectorSettings, _build, MultiVectorIndex.load)
