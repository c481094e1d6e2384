"""Sparse documents in an inverted index, with exact or quantized impacts, or in Seismic."""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any, Literal, Self

import numpy as np
from pydantic import Field, field_validator, model_validator
from scipy.sparse import csr_array, issparse, vstack

from retrodistill.core.errors import UserError
from retrodistill.core.settings import Settings, validated
from retrodistill.data.collection import Collection
from retrodistill.encoders.any_encoder import SPARSE
from retrodistill.encoders.embeddings import embed
from retrodistill.encoders.space import EmbeddingSpace
from retrodistill.encoders.sparse import SparseTextEncoder, TokenWeights
from retrodistill.indexes.base import Index, StoredIndex, load_sides
from retrodistill.indexes.registry import IndexKind
from retrodistill.indexes.seismic import SeismicPostings, seismic
from retrodistill.rankers.postings import Postings, check_weights, search_rows

_FLOAT = 32  # bits of an exact weight
_DROPPED_BITS = (4, 16)  # of version 0.1.0; neither was better than 8 (evaluation/README.md)
_OF_THE_OTHER = {"exact": {"query_cut", "heap_factor"}, "seismic": {"bits"}}  # settings that a backend does not take


class InvertedSettings(Settings):
    """How sparse documents are indexed: see `IndexOptions`.

    `bits` is 8, with steps of their own for each term, or None (32 in recipes) for float32 weights. Seismic is for
    corpora of many hundred thousand documents; see `SeismicPostings` for `query_cut` and `heap_factor`.
    """

    backend: Literal["exact", "seismic"] = "exact"
    bits: Literal[8] | None = 8
    prune: int | None = Field(default=None, ge=1)
    query_cut: int = Field(default=10, ge=1)
    heap_factor: float = Field(default=0.8, gt=0, le=1)

    @field_validator("bits", mode="before")
    @classmethod
    def _bits_not_dropped(cls, bits: Any) -> Any:
        if bits in _DROPPED_BITS:
            raise ValueError(f"{bits}-bit impacts were dropped; use 8 (the default) or 32 for exact weights")
        return None if bits == _FLOAT else bits

    @model_validator(mode="after")
    def _fits_backend(self) -> InvertedSettings:
        if wrong := sorted(self.model_fields_set & _OF_THE_OTHER[self.backend]):
            raise ValueError(f"{wrong[0]} is not a setting of the backend {self.backend!r}; leave it out")
        return self


class InvertedIndex(Index):
    """An `Index` of postings of document terms. `TokenWeights` as `queries` need no model."""

    index_kind, encoder_kinds = "inverted", SPARSE

    def __init__(
        self,
        postings: Postings | SeismicPostings,
        ids: Sequence[str],
        space: EmbeddingSpace,
        queries: SparseTextEncoder | TokenWeights | None = None,
        settings: InvertedSettings | None = None,
        name: str = "index",
        *,
        documents: SparseTextEncoder | None = None,
    ) -> None:
        self.postings, self.settings = postings, settings or InvertedSettings()
        super().__init__(ids, space, queries, name, documents)

    @classmethod
    def from_csr(
        cls,
        ids: Sequence[str],
        matrix: Any,
        space: EmbeddingSpace,
        queries: SparseTextEncoder | TokenWeights | None = None,
        settings: InvertedSettings | None = None,
        name: str = "index",
        *,
        documents: SparseTextEncoder | None = None,
    ) -> InvertedIndex:
        """Index (n, terms) weights of any scipy sparse form: finite, zero or above; rows may be empty."""
        empty = Postings.from_csr(csr_array((0, space.dimension), dtype=np.float32))
        index = cls(empty, [], space, queries, settings, name, documents=documents)
        index.add_vectors(ids, matrix)
        return index

    def vector_reader(self) -> Callable[[int, int], csr_array]:
        """As `Index.vector_reader`: pruned and decoded impacts."""
        rows = csr_array(self.postings.matrix())
        return lambda start, stop: rows[start:stop]

    @property
    def nbytes(self) -> int:
        """Size of the postings as stored: document numbers, impacts, steps, and pointers."""
        return self.postings.nbytes

    def _held(self) -> tuple[int, int]:
        return self.postings.documents, self.postings.terms

    def _prepare(self, vectors: Any, what: str) -> csr_array:
        """CSR without duplicates and stored zeros; it shares the memory of one that has none."""
        if not issparse(vectors):
            kind = type(vectors).__name__
            raise UserError(f"{what} of type {kind}; give a scipy sparse array of (n, terms) weights.")
        matrix = csr_array(vectors, dtype=np.float32)
        self._check_width(matrix.shape[1], self.space.dimension, f"{what} over", "terms")
        if not (matrix.has_canonical_format and matrix.data.all()):
            matrix = matrix.copy()
            matrix.sum_duplicates()
            matrix.eliminate_zeros()
        return matrix

    def _check_values(self, vectors: csr_array, ids: Sequence[str], what: str) -> None:
        check_weights(vectors, ids, what, negative=what == "queries")  # negative ones count against a document

    def _append(self, vectors: csr_array) -> None:
        added = keep_largest(vectors, self.settings.prune)
        self._fill(csr_array(vstack([self.postings.matrix(), added], format="csr")) if len(self) else added)

    def _drop(self, removed: np.ndarray) -> None:
        self._fill(self.postings.matrix()[np.flatnonzero(~removed)])

    def _fill(self, matrix: csr_array) -> None:
        """Replace the postings; codes change only for terms whose step must grow."""
        if self.settings.backend == "seismic":
            self.postings = SeismicPostings.from_csr(matrix, self.settings.query_cut, self.settings.heap_factor)
        else:
            scales = getattr(self.postings, "scales", None) if self.postings.bits else None
            self.postings = Postings.from_csr(matrix, self.settings.bits, scales)

    def _best(self, vectors: csr_array, k: int, among: np.ndarray | None = None) -> tuple[np.ndarray, np.ndarray]:
        return search_rows(self.postings, vectors, k, self._id_order, among)

    def _settings(self) -> dict[str, Any]:
        return self.settings.model_dump(exclude=_OF_THE_OTHER[self.settings.backend])

    def _token_weights(self) -> TokenWeights | None:  # of inference-free queries; they are saved with the index
        return None if self.queries is None else self.queries.token_weights("query")

    def _about(self) -> dict[str, Any]:
        weights = self._token_weights()
        return {} if weights is None else {"token_weights": weights.settings()}

    def _write(self, folder: Path) -> None:
        self.postings.write(folder)
        if (weights := self._token_weights()) is not None:
            weights.write(folder)

    @classmethod
    def _read(cls, stored: StoredIndex, memory_map: bool | None) -> Self:
        folder, documents, terms = stored.folder, len(stored.ids), stored.space.dimension
        settings = validated(InvertedSettings, stored.settings, f"index {folder}", "option", "; build the index again")
        postings: Postings | SeismicPostings
        if settings.backend == "seismic":
            postings = SeismicPostings.read(folder, documents, terms, settings.query_cut, settings.heap_factor)
        else:
            postings = Postings.read(folder, documents, settings.bits, memory_map=bool(memory_map))
        return cls(postings, stored.ids, stored.space, None, settings, stored.about["name"])

    @classmethod
    def _load_queries(cls, stored: StoredIndex, queries: Any) -> Any:
        """Inference-free queries need neither a model nor torch."""
        if queries is None and "token_weights" in stored.about:
            return TokenWeights.read(stored.folder, stored.about["token_weights"])
        return super()._load_queries(stored, queries)


def keep_largest(matrix: csr_array, number: int | None) -> csr_array:
    """The rows, cut to this number of largest weights; of equal weights the lower terms stay. None keeps all."""
    counts = np.diff(matrix.indptr)
    if number is None or counts.max(initial=0) <= number:
        return matrix
    rows = np.repeat(np.arange(matrix.shape[0]), counts)
    order = np.lexsort((matrix.indices, -matrix.data, rows))
    rank = np.arange(matrix.nnz) - np.repeat(matrix.indptr[:-1], counts)  # within its row, in that order
    kept = np.sort(order[rank < number])
    bounds = np.concatenate([[0], np.cumsum(np.minimum(counts, number))])
    return csr_array((matrix.data[kept], matrix.indices[kept], bounds), shape=matrix.shape)


def _build(
    collection: Collection, documents: Any, queries: Any, settings: InvertedSettings, name: str
) -> InvertedIndex:
    _check_backend(settings)
    encoder, query_encoder, space = load_sides(documents, queries, SPARSE)
    ids, vectors = collection.documents.ids, embed(encoder, collection.documents.column, "document")
    start = time.perf_counter()
    index = InvertedIndex.from_csr(ids, vectors, space, query_encoder, settings, name, documents=encoder)
    index.build_seconds = time.perf_counter() - start
    return index


def _check_backend(settings: InvertedSettings) -> None:
    if settings.backend == "seismic":
        seismic()


KIND = IndexKind("inverted", SPARSE, InvertedSettings, _build, InvertedIndex.load, check=_check_backend)
