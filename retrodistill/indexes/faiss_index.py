"""Dense documents in FAISS: settings, building, search, tuning, and changes."""

from __future__ import annotations

import os
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from pydantic import model_validator

from retrodistill.core.errors import UserError
from retrodistill.core.files import digest
from retrodistill.core.progress import log
from retrodistill.data.collection import Collection
from retrodistill.data.texts import Texts
from retrodistill.encoders.any_encoder import DENSE, load_encoder
from retrodistill.encoders.contract import EmbeddingSpace
from retrodistill.encoders.embeddings import embed
from retrodistill.encoders.encoder import Encoder
from retrodistill.encoders.vectors import check_finite, exact_search, leading
from retrodistill.indexes.auto import choose_factory
from retrodistill.indexes.base import (
    Index,
    StoredIndex,
    built_in,
    check_lengths,
    check_new,
    encoder_of,
    of_unit_length,
    saved_name,
    to_remove,
)
from retrodistill.indexes.factory import (
    build_faiss,
    can_remove,
    empty_index,
    file_bytes,
    keeps_labels,
    read_faiss,
    read_parameters,
    set_parameters,
    written_parameters,
)
from retrodistill.indexes.registry import IndexKind
from retrodistill.indexes.tuning import TuningResult, exact_labels, tune
from retrodistill.rankers.protocol import (
    Queries,
    Stage,
    as_queries,
    check_k,
    cut_depth,
    plain_queries,
    wanted_depth,
    within,
)
from retrodistill.runs.run import Run
from retrodistill.training.settings import Settings
from retrodistill.training.texts import training_queries, training_texts

_FAISS_FILE = "index.faiss"


class FaissIndex(Index):
    """A plain FAISS index, the documents' ids, the space's contract and a query encoder that it admits.

    Args:
        index: The filled FAISS index.
        ids: (n,) document ids, in the order in which they were added.
        space: Where the documents lie.
        queries: Encodes queries; None to search by vectors only.
        factory: The string that it was built from.
        name: What its runs are called.
        labels: (n,) int64, ascending: by what the FAISS index names the documents; their places by default.
        documents: Encodes documents that are added as texts; loaded by the space's name where it is needed.

    Raises:
        UserError: The query encoder belongs to another space, or the number of ids is not that of the vectors.
    """

    index_kind = "faiss"

    def __init__(
        self,
        index: Any,
        ids: Sequence[str],
        space: EmbeddingSpace,
        queries: Encoder | None = None,
        factory: str = "Flat",
        name: str = "index",
        *,
        labels: np.ndarray | None = None,
        documents: Encoder | None = None,
    ) -> None:
        if index.ntotal != len(ids) or index.d != space.dimension:
            raise UserError(
                f"index of {index.ntotal} vectors of {index.d} dimensions with {len(ids)} ids and a space of "
                f"{space.dimension}; the files do not belong together: build the index again."
            )
        self.index, self.ids, self.space, self.factory, self.name = index, list(ids), space, factory, name
        self.labels = np.arange(len(self.ids)) if labels is None else np.asarray(labels, dtype=np.int64)
        self.queries, self._documents = queries, documents
        self._parameters: dict[str, int] = {}
        self._mapped = False
        if queries is not None:
            space.check_query_encoder(queries)

    def __repr__(self) -> str:
        asking = "no query encoder" if self.queries is None else f"queries by {self.queries.name}"
        return f"FaissIndex({len(self)} documents by {self.space.documents_by}, {asking}, {self.factory})"

    def fingerprint(self, collection: Collection) -> str:
        """As of any index, and the search parameters."""
        own = super().fingerprint(collection)
        return own and digest(own, self.parameters)

    @property
    def parameters(self) -> str | None:
        """FAISS search parameters that were chosen, e.g. ``nprobe=16``; saved with the index; None for none.

        Those that are set later are added to those set before.

        Raises:
            UserError: The index does not know them.
        """
        return written_parameters(self._parameters) or None

    @parameters.setter
    def parameters(self, parameters: str | None) -> None:
        if parameters:
            set_parameters(self.index, parameters)
            self._parameters |= read_parameters(parameters)

    def tune(
        self,
        queries: Queries | np.ndarray,
        recall: float = 0.95,
        k: int = 10,
        *,
        documents: Texts | np.ndarray | None = None,
    ) -> TuningResult:
        """Set nprobe, efSearch and k_factor_rf to the smallest that find a wanted share of exact search's k best.

        Args:
            queries: Held out: training queries or sentences of documents, never test queries; or their vectors.
            recall: The share that is wanted, above 0 and up to 1.
            k: Documents per query.
            documents: What exact search is done over, where the index holds codes only: the documents' texts (embedded,
                or taken from the store), or their (n, encoder's dimension) vectors in the order of `ids`.

        Returns:
            What was set and what it reaches; its text says so. `parameters` holds it, and `save` keeps it.

        Raises:
            UserError: No queries, k beyond the index, or codes without `documents`.
        """
        check_k(k, len(self))
        if not isinstance(queries, np.ndarray):
            queries = embed(self._query_encoder(), as_queries(queries).texts, "query")
        asked = self._shaped(queries, "queries")
        check_finite(asked, [str(row) for row in range(len(asked))], "queries")
        tuned = tune(self.index, asked, self._exact(asked, k, documents), recall=recall, k=k)
        self.parameters = tuned.parameters
        return tuned

    def add(self, documents: Texts) -> None:
        """Encode documents by the encoder of the space and index them, trained parts as they are.

        Raises:
            UserError: An id that is there already, a memory-mapped index, or the space's encoder is not at hand.
        """
        self._check_new(documents.ids)
        # An empty text may have a zero vector: it is there, and no query finds it.
        self._add(documents.ids, embed(self._document_encoder(), documents.texts, "document"))

    def add_vectors(self, ids: Sequence[str], vectors: np.ndarray) -> None:
        """Index (n, encoder's dimension) float32 vectors of the documents' space.

        Raises:
            UserError: An id that is there already or twice, another dimension, vectors that are not finite, zero (by
                cosine) or beyond all use, or a memory-mapped index.
        """
        self._check_new(ids)
        given = np.atleast_2d(np.asarray(vectors, dtype=np.float32))
        if len(ids) == len(given):
            check_finite(given, list(ids), "documents")
            check_lengths(given, ids, unit=self.space.norm == "unit")
        self._add(ids, given)

    def _add(self, ids: Sequence[str], vectors: np.ndarray) -> None:
        """Index vectors whose ids are new."""
        vectors = self._shaped(vectors, "documents")
        if len(ids) != len(vectors):
            raise UserError(f"{len(ids)} ids for {len(vectors)} vectors; give one id per vector.")
        check_finite(vectors, list(ids), "documents")
        self.made_from = ""
        labels = np.arange(len(ids)) + (int(self.labels[-1]) + 1 if len(self) else 0)
        if keeps_labels(self.index):
            self.index.add_with_ids(vectors, labels)
        else:
            self.index.add(vectors)
        self.ids += list(ids)
        self.labels = np.concatenate([self.labels, labels])

    def remove(self, ids: Sequence[str]) -> None:
        """Remove documents.

        Raises:
            UserError: Ids that are not there, a memory-mapped index, or a kind of FAISS index that cannot forget (HNSW,
                refined and fast-scan ones); nothing is changed.
        """
        self._check_changeable()
        gone = to_remove(ids, self.ids)
        if not can_remove(self.index):
            raise UserError(
                f"an index of factory {self.factory!r} cannot remove documents; build it again without them."
            )
        self.made_from = ""
        self.index.remove_ids(self.labels[gone])
        self.ids = [one for one, out in zip(self.ids, gone, strict=True) if not out]
        self.labels = self.labels[~gone] if keeps_labels(self.index) else np.arange(len(self.ids))

    def search(self, queries: Queries, collection: Collection | None = None, k: int | None = None) -> Run:
        """Search by text.

        Args:
            queries: One text, several (their ids are "0", "1"...), or queries with ids: a mapping of them, or `Texts`.
            collection: Of the documents, where there is one: k is then cut to the size of the index, vectors of queries
                come from the store, and documents that the collection lacks are refused.
            k: Documents per query, 1 to the size of the index; 10 by default, or all of fewer.

        Returns:
            A run in rank order.

        Raises:
            UserError: No query encoder, an empty query, or k beyond the index.
        """
        if collection is None:
            asked = as_queries(queries)
            return self.search_vectors(self._encode(asked.texts), k, asked.ids)
        asked = plain_queries(queries)
        vectors = embed(self._query_encoder().bind(collection), asked.texts, "query")
        return within(collection, self.search_vectors(vectors, cut_depth(k, len(self)), asked.ids))

    def search_vectors(self, vectors: np.ndarray, k: int | None = None, query_ids: Sequence[str] | None = None) -> Run:
        """Search by vectors that an admitted encoder made.

        Args:
            vectors: (q, encoder's dimension) float32.
            k: Documents per query, 1 to the size of the index; 10 by default, or all of fewer.
            query_ids: (q,) ids; "0", "1"... by default.

        Raises:
            UserError: Another dimension, vectors that are not finite, another number of ids, or k beyond the index.
        """
        k = wanted_depth(k, len(self))
        vectors = self._shaped(vectors, "queries")
        names = list(query_ids) if query_ids is not None else [str(number) for number in range(len(vectors))]
        if len(names) != len(vectors):
            raise UserError(f"{len(names)} query ids for {len(vectors)} vectors; give one id per vector.")
        check_finite(vectors, names, "queries")
        scores, labels = self.index.search(vectors, k)
        places = np.where(labels < 0, -1, np.searchsorted(self.labels, labels))  # -1 where FAISS found fewer than k
        return Run.from_matrix(names, self.ids, places, scores, name=self.name).ranked()

    def query_fn(self, collection: Collection, k: int) -> Callable[[str], Any]:
        """Encodes and searches one query."""
        k = min(k, len(self))
        return lambda text: self.index.search(self._shaped(self._encode([text]), "queries"), k)

    def timed_stages(self, collection: Collection, k: int) -> Sequence[Stage]:
        """Encoding of queries, and search by them."""
        encoder, k, unit = self._query_encoder(), min(k, len(self)), self.space.norm == "unit"
        return (
            lambda texts: leading(encoder.encode(texts, "query"), self.space.truncation, unit=unit),
            lambda vectors: self.index.search(np.ascontiguousarray(vectors), k),
        )

    def vector_reader(self) -> Callable[[int, int], np.ndarray] | None:
        """As `Index.vector_reader`; None for factories that code or transform the vectors."""
        import faiss

        inner: Any = faiss.downcast_index(self.index)
        if isinstance(inner, faiss.IndexRefineFlat):
            inner = faiss.downcast_index(inner.refine_index)
        inner.referenced_objects = [self.index]  # what FAISS downcasts does not keep the whole index alive
        if isinstance(inner, faiss.IndexIVFFlat):
            return _list_reader(inner, self.labels)
        if isinstance(inner, (faiss.IndexFlat, faiss.IndexHNSWFlat)):
            return lambda start, stop: inner.reconstruct_n(start, stop - start)
        return None

    def bytes_per_document(self, collection: Collection | None = None) -> float | None:
        """Size of the FAISS index as a file, codebooks included, per document; None for an empty index."""
        return file_bytes(self.index) / len(self) if len(self) else None

    def save(self, folder: str | os.PathLike[str]) -> None:
        """Write ``index.faiss`` (any FAISS program reads it), ``ids.parquet`` (ids by FAISS label) and a manifest.

        Raises:
            UserError: The folder is not writable, the disk is full, or the folder holds something else than an index;
                what stood there stays.
        """
        import faiss

        settings = {"factory": self.factory} | ({"parameters": self.parameters} if self.parameters else {})
        stored = StoredIndex(
            "faiss",
            settings,
            self.space,
            self.ids,
            self.name,
            saved_name(self.queries),
            self.labels,
            built_in(self.build_seconds),
        )
        stored.write(folder, lambda place: faiss.write_index(self.index, str(place / _FAISS_FILE)))

    @classmethod
    def load(
        cls,
        folder: str | os.PathLike[str],
        queries: Any = None,
        *,
        parameters: str | None = None,
        memory_map: bool = False,
    ) -> FaissIndex:
        """Load an index.

        Args:
            folder: Where it was saved.
            queries: Name or object of the query encoder; by default the one it was saved with.
            parameters: FAISS search parameters, e.g. ``nprobe=16``; they go before those that it was saved with.
            memory_map: Leave the vectors on disk, or codes, lists and graph; such an index is searched and tuned, and
                not changed. FAISS reads its fast-scan kinds (``PQ16x4fs``, ``RaBitQfs``) into memory all the same.

        Raises:
            UserError: A file is missing, cut short or altered, the query encoder belongs to another space, or the index
                does not know the parameters.
        """
        stored = StoredIndex.open(folder)
        if stored.kind != "faiss":
            raise UserError(f"{folder} holds an index of kind {stored.kind}, not a FAISS index; load it as such.")
        index = read_faiss(Path(folder) / _FAISS_FILE, memory_map=memory_map)
        asking = stored.queries_by if queries is None else queries
        encoder = None if asking is None else load_encoder(asking, DENSE)
        factory = stored.settings["factory"]
        loaded = cls(index, stored.ids, stored.space, encoder, factory, stored.name, labels=stored.labels)
        loaded.parameters = stored.settings.get("parameters")
        loaded.parameters = parameters
        loaded.build_seconds = stored.about.get("build_seconds")
        loaded._mapped = memory_map
        loaded.made_from = stored.fingerprint
        return loaded

    def _exact(self, queries: np.ndarray, k: int, documents: Texts | np.ndarray | None) -> np.ndarray:
        """Labels (q, k) of the best documents by exact search."""
        if documents is None:
            found = exact_labels(self.index, queries, k)
            if found is None:
                raise UserError(
                    f"an index of factory {self.factory!r} does not hold its documents' exact vectors, which tuning "
                    "compares with; give documents=, their texts or vectors."
                )
            return found
        if isinstance(documents, Texts):
            documents = embed(self._document_encoder(), documents.select(self.ids).texts, "document")
        vectors = self._shaped(documents, "documents")
        if len(vectors) != len(self):
            raise UserError(f"{len(vectors)} vectors to tune by for {len(self)} documents; give one for each of `ids`.")
        check_finite(vectors, self.ids, "documents")
        return self.labels[exact_search(queries, vectors, k)[0]]

    def _encode(self, texts: list[str]) -> np.ndarray:
        return self._query_encoder().encode(texts, "query")

    def _query_encoder(self) -> Encoder:
        if self.queries is None:
            raise UserError("this index has no query encoder; give one, or search by vectors.")
        return self.queries

    def _document_encoder(self) -> Encoder:
        self._documents = self._documents or encoder_of(self.space, DENSE)
        return self._documents

    def _shaped(self, vectors: np.ndarray, what: str) -> np.ndarray:
        """Vectors of the encoder as the index holds them: float32, truncated, of unit length where it is by cosine."""
        vectors = np.ascontiguousarray(np.atleast_2d(vectors), dtype=np.float32)
        if vectors.shape[1] != self.space.encoded:
            raise UserError(
                f"{what} of {vectors.shape[1]} dimensions, the index has {self.space.encoded}; use the "
                f"encoder of its documents ({self.space.documents_by}) or one distilled into its space."
            )
        unit = self.space.norm == "unit"
        vectors = leading(vectors, self.space.truncation, unit=unit)
        return of_unit_length(vectors) if unit else vectors

    def _check_new(self, ids: Sequence[str]) -> None:
        self._check_changeable()
        check_new(ids, self.ids)

    def _check_changeable(self) -> None:
        if self._mapped:
            raise UserError("a memory-mapped index cannot be changed; load it without memory_map.")


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


def resolve_factory(settings: FaissSettings, documents: int, dimension: int) -> tuple[str, str | None]:
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
    factory, parameters = resolve_factory(settings, len(texts), space.dimension)
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


def _list_reader(ivf: Any, labels: np.ndarray) -> Callable[[int, int], np.ndarray]:
    """Reads vectors of inverted lists by row; FAISS's own direct map would become part of the index."""
    import faiss

    lists, places = np.empty(len(labels), dtype=np.int32), np.empty(len(labels), dtype=np.int64)
    for number in range(ivf.nlist):
        size = ivf.invlists.list_size(number)
        if size:
            rows = np.searchsorted(labels, faiss.rev_swig_ptr(ivf.invlists.get_ids(number), size))
            lists[rows], places[rows] = number, np.arange(size)

    def read(start: int, stop: int) -> np.ndarray:
        vectors = np.empty((stop - start, ivf.d), dtype=np.float32)
        for number in np.unique(lists[start:stop]).tolist():
            rows = np.flatnonzero(lists[start:stop] == number)
            flat = faiss.rev_swig_ptr(ivf.invlists.get_codes(number), ivf.invlists.list_size(number) * ivf.code_size)
            vectors[rows] = flat.view(np.float32).reshape(-1, ivf.d)[places[start:stop][rows]]
        return vectors

    return read
