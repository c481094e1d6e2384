"""Token vectors on disk, ranked by exact MaxSim, with or without candidates by MUVERA."""

from __future__ import annotations

import os
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from retrodistill.core.errors import UserError
from retrodistill.core.files import cache_folder, digest, exclusive
from retrodistill.core.manifest import FILE_NAME
from retrodistill.core.progress import bar
from retrodistill.data.collection import Collection
from retrodistill.data.texts import Texts
from retrodistill.encoders.any_encoder import MULTI_VECTOR, load_encoder
from retrodistill.encoders.contract import EmbeddingSpace
from retrodistill.encoders.embeddings import TokenVectors
from retrodistill.encoders.multi_vector import MultiVectorModel, Tokens, best_documents
from retrodistill.indexes.base import Index, StoredIndex, built_in, check_new, encoder_of, saved_name, to_remove
from retrodistill.indexes.codecs import Codec, CodecSettings, fit_codec
from retrodistill.indexes.factory import empty_index
from retrodistill.indexes.muvera import FAISS_FILE, CandidateIndex, Muvera, MuveraSettings
from retrodistill.indexes.registry import IndexKind, checked
from retrodistill.indexes.tokens import CODES_FILE, TokenStore, TokenWriter, check_tokens
from retrodistill.rankers.protocol import Queries, as_queries, cut_depth, wanted_depth, within
from retrodistill.runs.run import Run

_BLOCK = 256  # documents that are encoded at once; a kill loses one block


class MultiVectorSettings(CodecSettings):
    """How a multi-vector index keeps token vectors and finds documents by them.

    Attributes:
        muvera: Candidates by fixed-dimensional encodings, which exact MaxSim then ranks; None ranks all documents.
    """

    muvera: MuveraSettings | None = None


class MultiVectorIndex(Index):
    """A token store, the documents' ids, the space's contract and a query encoder that it admits.

    Args:
        store: The documents' token vectors.
        ids: (n,) document ids, in the order in which they were added.
        space: Where the documents lie.
        queries: Encodes queries; None to search by token vectors only.
        settings: How it was built.
        name: What its runs are called.
        candidate_index: MUVERA's encodings of the documents in a FAISS index; made from the store where the settings
            ask for it and None is given.
        documents: Encodes documents that are added as texts; loaded by the space's name where it is needed.

    Raises:
        UserError: The query encoder belongs to another space, or store, ids and encodings are not of one index.
    """

    index_kind = "multi-vector"

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
        if len(store) != len(ids) or store.codec.dimension != space.dimension:
            raise UserError(
                f"token store of {len(store)} documents of {store.codec.dimension} dimensions with {len(ids)} ids and "
                f"a space of {space.dimension}; the files do not belong together: build the index again."
            )
        self.store, self.ids, self.space, self.name = store, list(ids), space, name
        self.settings = settings or MultiVectorSettings()
        self.queries, self._documents = queries, documents
        if queries is not None:
            space.check_query_encoder(queries)
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
        """An index of token vectors that are at hand; the codec is fitted on those of a sample of the documents.

        Args:
            tokens: Of the documents.
            ids: Of the documents.
            space: Where they lie.
            queries: Encodes queries; None to search by token vectors only.
            settings: Codec and candidates.
            name: What its runs are called.

        Raises:
            UserError: As the class, or token vectors that are not finite, a document without any, or too few to fit on.
        """
        check_tokens(tokens, ids, "documents")
        settings = settings or MultiVectorSettings()
        sample = Tokens.of([tokens[row] for row in sampled_rows(len(tokens), settings)], tokens.dimension)
        store = TokenStore.empty(fit_codec(settings, sample, len(tokens.vectors)))
        store.append(tokens)
        return cls(store, ids, space, queries, settings, name)

    def __repr__(self) -> str:
        asking = "no query encoder" if self.queries is None else f"queries by {self.queries.name}"
        by = "all" if self.settings.muvera is None else f"MUVERA's {self.settings.muvera.candidates}"
        return (
            f"MultiVectorIndex({len(self)} documents by {self.space.documents_by}, {asking}, {self.settings.codec}, "
            f"MaxSim over {by})"
        )

    def add(self, documents: Texts) -> None:
        """Encode documents by the encoder of the space and index them, fitted parts as they are.

        Raises:
            UserError: An id that is there already, or the space's encoder is not at hand.
        """
        check_new(documents.ids, self.ids)
        encoder = self._document_encoder()
        for start in range(0, len(documents), _BLOCK):
            stop = min(start + _BLOCK, len(documents))
            self.add_tokens(documents.ids[start:stop], encoder.encode(documents.slice(start, stop), "document"))

    def add_tokens(self, ids: Sequence[str], tokens: Tokens) -> None:
        """Index documents by their token vectors, of the documents' space.

        Raises:
            UserError: An id that is there already or twice, another dimension, vectors that are not finite, or a
                document without any.
        """
        check_new(ids, self.ids)
        self._check_dimension(tokens, "documents")
        check_tokens(tokens, ids, "documents")
        self.made_from = ""
        self.store.append(tokens)
        self.ids += list(ids)
        if self.candidate_index is not None:
            self.candidate_index.add(self.store.gather(np.arange(len(self) - len(ids), len(self))))

    def remove(self, ids: Sequence[str]) -> None:
        """Remove documents: from the search at once, from the token store's files when it is saved.

        Their encodings stay in the FAISS index, whose kinds cannot all forget, and are passed over.

        Raises:
            UserError: Ids that are not there.
        """
        gone = to_remove(ids, self.ids)
        self.made_from = ""
        self.store = self.store.without(gone)
        self.ids = [one for one, out in zip(self.ids, gone, strict=True) if not out]
        if self.candidate_index is not None:
            self.candidate_index.forget(gone)

    def search(self, queries: Queries, collection: Collection | None = None, k: int | None = None) -> Run:
        """Search by text.

        Args:
            queries: One text, several (their ids are "0", "1"...), or queries with ids: a mapping of them, or `Texts`.
            collection: Of the documents, where there is one: k is then cut to the size of the index, and documents
                that the collection lacks are refused.
            k: Documents per query, 1 to the size of the index; 10 by default, or all of fewer.

        Returns:
            A run in rank order, MaxSim as score.

        Raises:
            UserError: No query encoder, an empty query, or k beyond the index.
        """
        asked, encoder = as_queries(queries), self._query_encoder()
        if collection is None:
            return self.search_tokens(encoder.encode(asked.texts, "query"), k, asked.ids)
        tokens = encoder.encode(asked.texts, "query")
        return within(collection, self.search_tokens(tokens, cut_depth(k, len(self)), asked.ids))

    def search_tokens(self, tokens: Tokens, k: int | None = None, query_ids: Sequence[str] | None = None) -> Run:
        """Search by token vectors that an admitted encoder made.

        Args:
            tokens: Of the queries.
            k: Documents per query, 1 to the size of the index; 10 by default, or all of fewer.
            query_ids: One per query; "0", "1"... by default.

        Raises:
            UserError: Another dimension, vectors that are not finite, a query without any, or k beyond the index.
        """
        k = wanted_depth(k, len(self))
        names = list(query_ids) if query_ids is not None else [str(number) for number in range(len(tokens))]
        self._check_dimension(tokens, "queries")
        check_tokens(tokens, names, "queries")
        rows, scores = self._best(tokens, k)
        return Run.from_matrix(names, self.ids, rows, scores, name=self.name).ranked()

    def query_fn(self, collection: Collection, k: int) -> Callable[[str], Any]:
        """Encodes and searches one query."""
        encoder, k = self._query_encoder(), min(k, len(self))
        return lambda text: self._best(encoder.encode([text], "query"), k)

    def timed_stages(
        self, collection: Collection, k: int
    ) -> tuple[Callable[[list[str]], Tokens], Callable[[Tokens], Any]]:
        """Encoding of queries, and search by their token vectors: for timing."""
        encoder, k = self._query_encoder(), min(k, len(self))
        return lambda texts: encoder.encode(texts, "query"), lambda tokens: self._best(tokens, k)

    @property
    def vectors_per_document(self) -> float:
        """Mean number of stored token vectors per document."""
        return float(self.store.lengths.mean())

    def vector_reader(self) -> Callable[[int, int], Tokens]:
        """As `Index.vector_reader`: decoded token vectors."""
        return lambda start, stop: self.store.gather(np.arange(start, stop))

    def bytes_per_document(self, collection: Collection | None = None) -> float | None:
        """Of token codes, offsets, codec and MUVERA's FAISS index."""
        return (self.store.nbytes + (0 if self.candidate_index is None else self.candidate_index.nbytes)) / len(self)

    def save(self, folder: str | os.PathLike[str]) -> None:
        """Write the token store, MUVERA's encodings (a plain FAISS file), ``ids.parquet`` and a manifest.

        Raises:
            UserError: The folder is not writable, the disk is full, or the folder holds something else than an index;
                what stood there stays.
        """
        settings = self.settings.model_dump(mode="json")
        labels = None if self.candidate_index is None else self.candidate_index.labels
        stored = StoredIndex(
            "multi-vector",
            settings,
            self.space,
            self.ids,
            self.name,
            saved_name(self.queries),
            labels,
            built_in(self.build_seconds),
        )

        def write_files(place: Path) -> None:
            self.store.save(place)
            if self.candidate_index is not None:
                self.candidate_index.save(place)

        stored.write(folder, write_files)

    @classmethod
    def load(cls, folder: str | os.PathLike[str], queries: Any = None, *, memory_map: bool = True) -> MultiVectorIndex:
        """Load an index.

        Args:
            folder: Where it was saved.
            queries: Name or object of the query encoder; by default the one it was saved with.
            memory_map: Leave the tokens' codes on disk; else they are read at once.

        Raises:
            UserError: A file is missing, cut short, altered or of another index, or the query encoder belongs to
                another space.
        """
        stored = StoredIndex.open(folder)
        if stored.kind != "multi-vector":
            raise UserError(f"{folder} holds an index of kind {stored.kind}, not multi-vector; load it as such.")
        settings = _settings(stored.settings, folder)
        store = TokenStore.load(Path(folder))
        if not memory_map:
            store.parts = [np.array(part) for part in store.parts]
        candidate_index = None
        if settings.muvera is not None:
            labels = np.asarray(stored.labels)
            candidate_index = CandidateIndex.load(settings.muvera, store.codec.dimension, Path(folder), labels)
        asking = stored.queries_by if queries is None else queries
        encoder = None if asking is None else load_encoder(asking, MULTI_VECTOR)
        loaded = cls(store, stored.ids, stored.space, encoder, settings, stored.name, candidate_index=candidate_index)
        loaded.made_from = stored.fingerprint
        loaded.build_seconds = stored.about.get("build_seconds")
        return loaded

    def _best(self, tokens: Tokens, k: int) -> tuple[np.ndarray, np.ndarray]:
        """Rows (q, k) and scores; -1 where the candidates are fewer than k."""
        if self.candidate_index is None:
            rows, scores = best_documents(tokens, self.store.blocks(), k)
        else:
            rows = np.full((len(tokens), k), -1, dtype=np.int64)
            scores = np.zeros((len(tokens), k), dtype=np.float32)
            for query, candidates in enumerate(self.candidate_index.candidates(tokens, k)):
                found, score = best_documents(tokens.slice(query, query + 1), [(0, self.store.gather(candidates))], k)
                rows[query, : found.shape[1]] = candidates[found[0]]
                scores[query, : found.shape[1]] = score[0]
        if self.space.similarity == "meanmaxsim":
            scores = scores / tokens.lengths[:, None]
        return rows, scores

    def _query_encoder(self) -> MultiVectorModel:
        if self.queries is None:
            raise UserError("this index has no query encoder; give one, or search by token vectors.")
        return self.queries

    def _document_encoder(self) -> MultiVectorModel:
        self._documents = self._documents or encoder_of(self.space, MULTI_VECTOR)
        return self._documents

    def _check_dimension(self, tokens: Tokens, what: str) -> None:
        if tokens.dimension != self.space.dimension:
            raise UserError(
                f"{what} of {tokens.dimension} dimensions, the index has {self.space.dimension}; use the encoder of "
                f"its documents ({self.space.documents_by}) or one distilled into its space."
            )


def sampled_rows(documents: int, settings: CodecSettings) -> np.ndarray:
    """Rows of the documents that a codec is fitted on, ascending."""
    random = np.random.default_rng(settings.seed)
    return np.sort(random.choice(documents, min(documents, settings.sample), replace=False))


def _settings(stored: dict[str, Any], folder: str | os.PathLike[str]) -> MultiVectorSettings:
    """Settings of a manifest; those of version 0.1.0 also have the bytes of a codec that was dropped."""
    known = {name: value for name, value in stored.items() if name != "bytes" and value is not None}
    return checked(MultiVectorSettings, known, f"{Path(folder) / FILE_NAME}", "; build the index again")


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
