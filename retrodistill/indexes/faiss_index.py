"""Dense documents in FAISS: settings, building, search, tuning, and changes."""

from __future__ import annotations

import os
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any, Self

import numpy as np
from pydantic import model_validator

from retrodistill.core.digests import digest
from retrodistill.core.errors import UserError, sample_of
from retrodistill.core.faiss import faiss, read_faiss, write_faiss
from retrodistill.core.runtime import log
from retrodistill.core.settings import Settings
from retrodistill.data.collection import Collection
from retrodistill.data.texts import Texts
from retrodistill.encoders.any_encoder import DENSE
from retrodistill.encoders.embeddings import TextVectors, embed
from retrodistill.encoders.encoder import Encoder
from retrodistill.encoders.space import EmbeddingSpace
from retrodistill.encoders.vectors import Vectors, check_finite, exact_search, leading
from retrodistill.indexes.base import Index, StoredIndex, load_sides
from retrodistill.indexes.factory import (
    build_faiss,
    can_remove,
    check_scores,
    empty_index,
    file_bytes,
    keeps_labels,
    own_labels,
    sampled_lengths,
    set_parameters,
    vector_holder,
    written_parameters,
)
from retrodistill.indexes.registry import IndexKind
from retrodistill.indexes.selected import search_among
from retrodistill.indexes.tuning import TuningResult, choose_factory, exact_labels, tune
from retrodistill.quantizers.bits import add_bits
from retrodistill.rankers.protocol import Queries, as_queries, check_k
from retrodistill.runs.run import ties_among, top_k
from retrodistill.training.texts import tuning_queries

_FAISS_FILE = "index.faiss"
_UNIT_TOLERANCE = 1e-3  # unit vectors from float16 stores are off by as much
_LARGEST = 1e15  # its square, summed over a thousand dimensions, is well within float32
_NEIGHBORS, _RECALL = 10, 0.95  # `auto` tunes for these unless a recall is given
_SAMPLED, _LONGEST_CODE = 64, 1.2  # vectors whose length is checked; codes of unit vectors are hardly longer than 1
_TIED_DEPTHS = (32, 1024)  # documents beyond k that are searched for those that tie with place k


class FaissSettings(Settings):
    """How dense vectors are indexed: see `IndexOptions`.

    Truncated unit vectors are normalized again; those of Matryoshka students (arXiv 2205.13147) keep most of their
    quality. nprobe, efSearch and k_factor_rf are tuned to `recall` on training queries or sentences, unless
    `parameters` are given.
    """

    factory: str = "Flat"
    parameters: str | None = None
    truncate: int | None = None
    bytes: int | None = None
    recall: float | None = None

    @model_validator(mode="after")
    def _bytes_need_auto(self) -> FaissSettings:
        if self.bytes and self.factory != "auto":
            raise ValueError(f"bytes chooses the factory; leave factory {self.factory} out")
        return self


class FaissIndex(Index):
    """A plain FAISS index with document ids, the contract of its embedding space, and a query encoder of that space.

    `index` is the filled FAISS index of the string `factory`, by inner products, of unit vectors for a cosine space.
    `labels` are (n,) int64, ascending, the documents' labels in it, by default those of an `IndexIDMap`, or 0, 1...
    For the others see `Index`. An index of another metric, or of other labels, is a UserError.
    """

    index_kind, encoder_kinds = "faiss", DENSE

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
        check_scores(index)
        self.index, self.factory = index, factory
        super().__init__(ids, space, queries, name, documents)
        own = own_labels(index)
        if labels is None:
            labels = np.arange(len(ids)) if own is None else own
        self.labels = np.asarray(labels, dtype=np.int64)
        _check_labels(self.labels, own)
        if space.norm == "unit":
            self._check_unit_length()
        self._parameters: dict[str, int] = {}

    def fingerprint(self, collection: Collection) -> str:
        """As for any index, with the search parameters."""
        own = super().fingerprint(collection)
        return own and digest(own, self.parameters)

    @property
    def parameters(self) -> str | None:
        """FAISS search parameters that were set, e.g. ``nprobe=16``, or None; saved. Setting some leaves the others."""
        return written_parameters(self._parameters) or None

    @parameters.setter
    def parameters(self, parameters: str | None) -> None:
        if parameters:
            self._parameters |= set_parameters(self.index, parameters)

    def tune(
        self,
        queries: Queries | np.ndarray,
        recall: float = 0.95,
        k: int = 10,
        *,
        documents: Texts | Vectors | None = None,
    ) -> TuningResult:
        """Set nprobe, efSearch and k_factor_rf to the smallest values that reach a recall of exact search's k best.

        `queries` are held-out queries or their vectors: training queries or sentences of documents, never test queries.
        `recall` is above 0 and up to 1. An index that holds codes only needs `documents` for exact search: their
        `Texts`, or their (n, encoder's dimension) vectors in the order of `ids`. The result says what was set and the
        recall that it reaches; `parameters` holds it and `save` keeps it.
        """
        check_k(k, len(self))
        if not isinstance(queries, np.ndarray):
            encoded = embed(self._query_encoder(), as_queries(queries).texts, "query")
            return self.tune(encoded, recall, k, documents=documents)
        vectors = self._prepare(queries, "queries")
        self._check_values(vectors, [str(row) for row in range(len(vectors))], "queries")
        result = tune(self.index, vectors, self._exact(vectors, k, documents), recall=recall, k=k)
        self.parameters = result.parameters
        return result

    def _checked_new(self, vectors: np.ndarray, ids: Sequence[str]) -> np.ndarray:
        """Refuse zero vectors (with cosine) and numbers above 1e15, too.

        `add` skips this: an empty text may have a zero vector, which is counted and never found.
        """
        vectors = np.atleast_2d(np.asarray(vectors, dtype=np.float32))
        if len(ids) == len(vectors):
            check_finite(vectors, list(ids), "documents")
            _check_lengths(vectors, ids, unit=self.space.norm == "unit")
        return vectors

    def vector_reader(self) -> Callable[[int, int], np.ndarray] | None:
        """As `Index.vector_reader`; None for factories that code or transform the vectors."""
        holder = vector_holder(self.index)
        if holder is None:
            return None
        holder.referenced_objects = [self.index]  # which the part alone does not keep alive
        if isinstance(holder, faiss.IndexIVFFlat):
            return _list_reader(holder, self.labels)
        return lambda start, stop: holder.reconstruct_n(start, stop - start)

    @property
    def nbytes(self) -> int:
        """Size of the FAISS index as a file, codebooks included."""
        return file_bytes(self.index)

    @classmethod
    def load(
        cls,
        folder: str | os.PathLike[str],
        queries: Any = None,
        *,
        memory_map: bool | None = None,
        parameters: str | None = None,
    ) -> Self:
        """As `Index.load`; search `parameters` such as ``nprobe=16`` override saved ones.

        A memory-mapped index cannot be changed, and FAISS reads its fast-scan kinds (``PQ16x4fs``, ``RaBitQfs``) into
        memory regardless.
        """
        index = super().load(folder, queries, memory_map=memory_map)
        index.parameters = parameters
        return index

    def _exact(self, queries: np.ndarray, k: int, documents: Any) -> np.ndarray:
        """Labels (q, k) of the best documents by exact search."""
        if documents is None:
            if (labels := exact_labels(self.index, queries, k)) is not None:
                return labels
            raise UserError(
                f"an index of factory {self.factory!r} does not hold its documents' exact vectors, which tuning "
                "compares with; give documents=, their texts or vectors."
            )
        if isinstance(documents, Texts):
            documents = TextVectors(self._document_encoder(), documents.select(self.ids), "document")
        if (count := documents.shape[0]) != len(self):
            raise UserError(f"{count} vectors to tune by for {len(self)} documents; give one for each of `ids`.")

        def prepare(vectors: np.ndarray, rows: slice) -> np.ndarray:
            vectors = self._prepare(vectors, "documents")
            check_finite(vectors, self.ids[rows], "documents to tune by")
            return vectors

        return self.labels[exact_search(queries, _Prepared(documents, documents.shape[1], prepare), k)[0]]

    def _check_unit_length(self) -> None:
        """Refuse inner products of vectors that are not of unit length, which are no cosines.

        A sample shows it: exactly where the index holds the vectors, and where codes are decoded if they are longer.
        """
        lengths, exact = sampled_lengths(self.index, _SAMPLED)
        off = (np.abs(lengths - 1) > _UNIT_TOLERANCE) & (lengths > 0) if exact else lengths > _LONGEST_CODE
        if off.any():
            raise UserError(
                f"{int(off.sum())} of {len(lengths)} sampled vectors of this FAISS index are not of unit length (up to "
                f"{lengths.max():.3g}), and documents by {self.documents_by} are compared by cosine; normalize the "
                "vectors before they are added (faiss.normalize_L2)."
            )

    def _held(self) -> tuple[int, int]:
        return self.index.ntotal, self.index.d

    def _prepare(self, vectors: np.ndarray, what: str) -> np.ndarray:
        """Float32, truncated, and of unit length for cosine."""
        vectors = np.ascontiguousarray(np.atleast_2d(vectors), dtype=np.float32)
        self._check_width(vectors.shape[1], self.space.encoded, f"{what} of")
        unit = self.space.norm == "unit"
        vectors = leading(vectors, self.space.truncation, unit=unit)
        return _normalize(vectors) if unit else vectors

    def _check_values(self, vectors: np.ndarray, ids: Sequence[str], what: str) -> None:
        check_finite(vectors, list(ids), what)

    def _append(self, vectors: np.ndarray) -> None:
        labels = np.arange(len(vectors)) + (int(self.labels[-1]) + 1 if len(self) else 0)
        if keeps_labels(self.index):
            self.index.add_with_ids(vectors, labels)
        elif not add_bits(self.index, vectors):
            self.index.add(vectors)
        self.labels = np.concatenate([self.labels, labels])

    def _drop(self, removed: np.ndarray) -> None:
        if not can_remove(self.index):  # HNSW, refined and fast-scan kinds
            raise UserError(
                f"an index of factory {self.factory!r} cannot remove documents; build it again without them."
            )
        self.index.remove_ids(self.labels[removed])
        kept = self.labels[~removed]
        self.labels = kept if keeps_labels(self.index) else np.arange(len(kept))

    def _best(self, vectors: np.ndarray, k: int, among: np.ndarray | None = None) -> tuple[np.ndarray, np.ndarray]:
        vectors = np.ascontiguousarray(vectors)
        count = len(self) if among is None else len(among)
        # FAISS keeps any of the documents that tie for the last places. One more than k shows where that matters.
        rows, scores = self._search(vectors, min(k + 1, count), among)
        tied = np.flatnonzero(_ties_at(rows, scores, k))
        best = rows[:, :k].copy(), scores[:, :k].copy()
        for deeper in _TIED_DEPTHS:
            if not len(tied):
                break
            rows, scores = self._search(vectors[tied], min(k + deeper, count), among)
            for query, own, values in zip(tied, rows, scores, strict=True):
                order = top_k(np.where(own < 0, -np.inf, values), k, ties_among(own, self._id_order))
                best[0][query], best[1][query] = own[order], values[order]
            whole = rows.shape[1] == count
            tied = tied[(scores[:, -1] == scores[:, k - 1]) & (rows[:, -1] >= 0) & (not whole)]
        return best

    def _search(self, vectors: np.ndarray, k: int, among: np.ndarray | None) -> tuple[np.ndarray, np.ndarray]:
        """Rows (q, k) int64, -1 for none, and scores (q, k) float32, as FAISS finds them."""
        if among is None:
            scores, labels = self.index.search(vectors, k)
        else:
            scores, labels = search_among(self.index, vectors, k, self.labels[among])
        rows = np.minimum(np.searchsorted(self.labels, labels), len(self) - 1)
        if (strange := labels[(labels >= 0) & (self.labels[rows] != labels)]).size:
            raise UserError(
                f"the FAISS index found a document of label {strange[0]}, which is not among the {len(self)} labels of "
                "this index; give labels=, those under which the documents were added to it, in the order of ids."
            )
        return np.where(labels < 0, -1, rows), scores

    def _settings(self) -> dict[str, Any]:
        return {"factory": self.factory} | ({"parameters": self.parameters} if self.parameters else {})

    def _labels(self) -> np.ndarray:
        return self.labels

    def _write(self, folder: Path) -> None:
        write_faiss(self.index, folder / _FAISS_FILE)

    @classmethod
    def _read(cls, stored: StoredIndex, memory_map: bool | None) -> Self:
        filled = read_faiss(stored.folder / _FAISS_FILE, memory_map=bool(memory_map))
        factory, name = stored.settings["factory"], stored.about["name"]
        index = cls(filled, stored.ids, stored.space, None, factory, name, labels=stored.labels)
        index.parameters = stored.settings.get("parameters")
        index.is_read_only = bool(memory_map)
        return index


class _Prepared:
    """Vectors that a function of vectors and rows changes when they are read; `seconds` is the time of reading."""

    def __init__(self, vectors: Vectors, dimension: int, prepare: Callable[[np.ndarray, Any], np.ndarray]) -> None:
        self._vectors, self._prepare, self.seconds = vectors, prepare, 0.0
        self.shape = (vectors.shape[0], dimension)

    def __getitem__(self, rows: slice | np.ndarray) -> np.ndarray:
        start = time.perf_counter()
        vectors = self._prepare(self._vectors[rows], rows)
        self.seconds += time.perf_counter() - start
        return vectors


def resolve_factory(settings: FaissSettings, documents: int, dimension: int) -> tuple[str, str | None]:
    """The factory and the search parameters; ``auto`` is replaced by a choice, whose reason is logged."""
    if settings.factory != "auto":
        return settings.factory, settings.parameters
    choice = choose_factory(documents, dimension, bytes_per_document=settings.bytes, recall=settings.recall)
    log(choice.reason)
    return choice.factory, settings.parameters or choice.parameters


def _build(collection: Collection, documents: Any, queries: Any, settings: FaissSettings, name: str) -> FaissIndex:
    texts = collection.documents
    encoder, query_encoder, space = load_sides(documents, queries, DENSE, settings.truncate)
    factory, parameters = resolve_factory(settings, len(texts), space.dimension)
    empty_index(factory, space.dimension, len(texts), parameters)  # refuses a wrong factory before texts are encoded
    encoder, query_encoder = encoder.bind(collection), query_encoder.bind(collection)
    encoded = TextVectors(encoder, texts, "document")
    is_unit = space.norm == "unit"
    vectors = _Prepared(encoded, space.dimension, lambda read, _: leading(read, settings.truncate, unit=is_unit))
    start = time.perf_counter()
    faiss_index = build_faiss(factory, vectors, texts.ids, encoder.name)
    index = FaissIndex(faiss_index, texts.ids, space, query_encoder, factory, name, documents=encoder)
    index.build_seconds = time.perf_counter() - start - vectors.seconds
    index.parameters = parameters
    if not settings.parameters and (settings.recall or parameters):
        recall, k = settings.recall or _RECALL, min(_NEIGHBORS, len(texts))
        log(str(index.tune(tuning_queries(collection), recall, k, documents=encoded)))
    return index


def _check_labels(labels: np.ndarray, own: np.ndarray | None) -> None:
    """Refuse labels that are not ascending, or not those of the FAISS index."""
    if (np.diff(labels) <= 0).any():
        raise UserError("labels of a FAISS index are not ascending; add the documents in the order of their labels.")
    if own is not None and not np.array_equal(own, labels):
        raise UserError("labels differ from the ids in the FAISS index (IndexIDMap); leave labels= out.")


def _ties_at(rows: np.ndarray, scores: np.ndarray, k: int) -> np.ndarray:
    """(q,) bool: the results at places k and k + 1 tie."""
    if rows.shape[1] <= k:
        return np.zeros(len(rows), dtype=bool)
    return (scores[:, k] == scores[:, k - 1]) & (rows[:, k] >= 0)


def _check_lengths(vectors: np.ndarray, ids: Sequence[str], *, unit: bool) -> None:
    """Refuse vectors without a cosine, and vectors whose products overflow float32."""
    largest = np.abs(vectors).max(axis=1, initial=0.0)
    zero, huge = np.flatnonzero(largest == 0).tolist(), np.flatnonzero(largest > _LARGEST).tolist()
    if unit and zero:
        named = sample_of(ids[row] for row in zero)
        raise UserError(f"documents: {len(zero)} vectors are zero ({named}), which have no cosine; leave them out.")
    if huge:
        named = sample_of(ids[row] for row in huge)
        raise UserError(f"documents: {len(huge)} vectors hold numbers beyond {_LARGEST:g} ({named}); leave them out.")


def _normalize(vectors: np.ndarray) -> np.ndarray:
    """Unit vectors. Those of unit length already do not change by a bit."""
    lengths = np.linalg.norm(vectors, axis=1, keepdims=True)
    off = (np.abs(lengths - 1) > _UNIT_TOLERANCE) & (lengths > 0) & np.isfinite(lengths)
    return vectors / np.where(off, lengths, np.float32(1)) if off.any() else vectors


def _list_reader(ivf: Any, labels: np.ndarray) -> Callable[[int, int], np.ndarray]:
    """Reads vectors of inverted lists by row; FAISS's own direct map would become part of the index."""
    lists, places = np.empty(len(labels), dtype=np.int32), np.empty(len(labels), dtype=np.int64)
    for number in range(ivf.nlist):
        if size := ivf.invlists.list_size(number):
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


KIND = IndexKind("faiss", DENSE, FaissSettings, _build, FaissIndex.load)
