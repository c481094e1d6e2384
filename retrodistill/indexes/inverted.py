"""Sparse documents in an inverted index, with quantized impacts, or in Seismic."""

from __future__ import annotations

import os
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any, Literal

import numpy as np
from pydantic import Field, field_validator, model_validator
from scipy.sparse import csr_array, issparse, vstack

from retrodistill.core.errors import UserError
from retrodistill.data.collection import Collection
from retrodistill.data.texts import Texts
from retrodistill.encoders.any_encoder import SPARSE, load_encoder
from retrodistill.encoders.contract import EmbeddingSpace
from retrodistill.encoders.embeddings import embed
from retrodistill.encoders.sparse import SparseTextEncoder, TokenWeights
from retrodistill.indexes.base import Index, StoredIndex, built_in, check_new, encoder_of, saved_name, to_remove
from retrodistill.indexes.registry import IndexKind, checked
from retrodistill.indexes.seismic import SeismicPostings, seismic
from retrodistill.rankers.postings import Postings, check_weights, search_rows
from retrodistill.rankers.protocol import Queries, as_queries, cut_depth, plain_queries, wanted_depth, within
from retrodistill.runs.run import Run
from retrodistill.training.settings import Settings

_FLOAT, _DROPPED_BITS = 32, (4, 16)  # 4 and 16: of version 0.1.0; neither was better than 8 (evaluation/README.md)
_OF_EXACT, _OF_SEISMIC = {"bits"}, {"query_cut", "heap_factor"}


class InvertedSettings(Settings):
    """How sparse documents are indexed.

    Attributes:
        backend: ``exact``, or ``seismic``: approximate, for corpora of many hundred thousand documents.
        bits: Bits of an impact: 8, in steps of its term's own, or 32 (None) for exact float32 weights. ``exact`` only.
        prune: Keep so many terms of largest weight per document; None for all.
        query_cut: So many of a query's heaviest terms choose what Seismic visits.
        heap_factor: Above 0 up to 1; a block of documents that promises less than the k-th score over this is skipped
            by Seismic: lower is faster and finds less.
    """

    backend: Literal["exact", "seismic"] = "exact"
    bits: Literal[8] | None = 8
    prune: int | None = Field(default=None, ge=1)
    query_cut: int = Field(default=10, ge=1)
    heap_factor: float = Field(default=0.8, gt=0, le=1)

    @field_validator("bits", mode="before")
    @classmethod
    def _bits_that_are_kept(cls, bits: Any) -> Any:
        if bits in _DROPPED_BITS:
            raise ValueError(f"{bits}-bit impacts were dropped; take 8 (the default) or 32 for exact weights")
        return None if bits == _FLOAT else bits

    @model_validator(mode="after")
    def _each_to_its_backend(self) -> InvertedSettings:
        strange = self.model_fields_set & (_OF_EXACT if self.backend == "seismic" else _OF_SEISMIC)
        if strange:
            raise ValueError(f"{sorted(strange)[0]} is not a setting of the backend {self.backend!r}; leave it out")
        return self

    def kept(self) -> dict[str, Any]:
        """The settings that count for the backend, as JSON values."""
        return self.model_dump(exclude=_OF_EXACT if self.backend == "seismic" else _OF_SEISMIC)


def make_postings(
    matrix: csr_array, settings: InvertedSettings, scales: np.ndarray | None = None
) -> Postings | SeismicPostings:
    """Postings of (documents, terms) weights; `scales` as in `Postings.from_csr`."""
    if settings.backend == "seismic":
        return SeismicPostings.from_csr(matrix, settings.query_cut, settings.heap_factor)
    return Postings.from_csr(matrix, settings.bits, scales)


def read_postings(
    folder: Path, documents: int, terms: int, settings: InvertedSettings, *, memory_map: bool = False
) -> Postings | SeismicPostings:
    """Read postings that were written; `memory_map` leaves exact ones on disk."""
    if settings.backend == "seismic":
        return SeismicPostings.read(folder, documents, terms, settings.query_cut, settings.heap_factor)
    return Postings.read(folder, documents, settings.bits, memory_map=memory_map)


def strongest(matrix: csr_array, most: int | None) -> csr_array:
    """Rows cut to their `most` largest weights, equal ones by term; None leaves them as they are."""
    counts = np.diff(matrix.indptr)
    if most is None or counts.max(initial=0) <= most:
        return matrix
    rows = np.repeat(np.arange(matrix.shape[0]), counts)
    order = np.lexsort((matrix.indices, -matrix.data, rows))
    rank = np.arange(matrix.nnz) - np.repeat(matrix.indptr[:-1], counts)  # within its row, in that order
    kept = np.sort(order[rank < most])
    bounds = np.concatenate([[0], np.cumsum(np.minimum(counts, most))])
    return csr_array((matrix.data[kept], matrix.indices[kept], bounds), shape=matrix.shape)


class InvertedIndex(Index):
    """Postings of the documents' terms, their ids, the space's contract and a query encoder that it admits.

    Args:
        postings: The filled `Postings` or `SeismicPostings`.
        ids: (n,) document ids, in the order in which they were added.
        space: Where the documents lie.
        queries: Encodes queries: an encoder, or `TokenWeights`, which need no model; None to search by vectors only.
        settings: How it was built.
        name: What its runs are called.
        documents: Encodes documents that are added as texts; loaded by the space's name where it is needed.

    Raises:
        UserError: The query encoder belongs to another space, or the number of ids is not that of the documents.
    """

    index_kind = "inverted"

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
        if postings.documents != len(ids) or postings.terms != space.dimension:
            raise UserError(
                f"postings of {postings.documents} documents over {postings.terms} terms with {len(ids)} ids and a "
                f"space of {space.dimension}; the files do not belong together: build the index again."
            )
        self.postings, self.ids, self.space, self.name = postings, list(ids), space, name
        self.settings, self.queries, self._documents = settings or InvertedSettings(), queries, documents
        self._queries_by: str | None = None
        asking: Any = queries
        if asking is not None and asking.has_model:
            space.check_query_encoder(asking)
            self._queries_by = saved_name(asking)

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
        """Index (n, terms) weights of any scipy sparse form: zero or above, finite; rows may be empty.

        Raises:
            UserError: As the class; or ids that stand twice, another number of terms, or weights that are NaN,
                infinite or negative (named).
        """
        nothing = Postings.from_csr(csr_array((0, space.dimension), dtype=np.float32))
        index = cls(nothing, [], space, queries, settings, name, documents=documents)
        index.add_vectors(ids, matrix)
        return index

    def __repr__(self) -> str:
        return (
            f"InvertedIndex({len(self)} documents by {self.space.documents_by}, {self.space.dimension} terms, "
            f"{self.settings.backend}{f', {self.settings.bits} bits' if self.postings.bits else ''})"
        )

    @property
    def without_terms(self) -> list[str]:
        """Ids of documents that hold no term: they count, and no query finds them."""
        counts = np.diff(self.postings.matrix().indptr)
        return [self.ids[row] for row in np.flatnonzero(counts == 0)]

    def add(self, documents: Texts) -> None:
        """Encode documents by the encoder of the space and index them.

        Raises:
            UserError: An id that is there already, or the space's encoder is not at hand.
        """
        check_new(documents.ids, self.ids)
        self.add_vectors(documents.ids, embed(self._document_encoder(), documents.texts, "document"))

    def add_vectors(self, ids: Sequence[str], vectors: Any) -> None:
        """Index (n, terms) weights of the documents' space; codes that are there change only where a step must grow.

        Raises:
            UserError: An id that is there already or twice, another number of terms, or weights that are NaN, infinite
                or negative.
        """
        check_new(ids, self.ids)
        added = self._shaped(vectors, "documents")
        if len(ids) != added.shape[0]:
            raise UserError(f"{len(ids)} ids for {added.shape[0]} vectors; give one id per vector.")
        check_weights(added, ids, "documents")
        added = strongest(added, self.settings.prune)
        self._fill(csr_array(vstack([self.postings.matrix(), added], format="csr")) if len(self) else added)
        self.ids += list(ids)

    def remove(self, ids: Sequence[str]) -> None:
        """Remove documents; codes of those that stay stay as they are.

        Raises:
            UserError: Ids that are not there.
        """
        kept = ~to_remove(ids, self.ids)
        self._fill(self.postings.matrix()[np.flatnonzero(kept)])
        self.ids = [one for one, stays in zip(self.ids, kept, strict=True) if stays]

    def search(self, queries: Queries, collection: Collection | None = None, k: int | None = None) -> Run:
        """Search by text.

        Args:
            queries: One text, several (their ids are "0", "1"...), or queries with ids: a mapping of them, or `Texts`.
            collection: Of the documents, where there is one: k is then cut to the size of the index, vectors of queries
                come from the store, and documents that the collection lacks are refused.
            k: Documents per query, 1 to the size of the index; 10 by default; fewer come back where fewer score
                above zero.

        Returns:
            A run in rank order.

        Raises:
            UserError: No query encoder, an empty query, or k beyond the index.
        """
        if collection is None:
            asked = as_queries(queries)
            return self.search_vectors(self._encode(asked.texts), k, asked.ids)
        asked = plain_queries(queries)
        vectors = embed(self._query_encoder(), asked.texts, "query")
        return within(collection, self.search_vectors(vectors, cut_depth(k, len(self)), asked.ids))

    def search_vectors(self, vectors: Any, k: int | None = None, query_ids: Sequence[str] | None = None) -> Run:
        """Search by sparse vectors that an admitted encoder made.

        Args:
            vectors: (q, terms) weights of any scipy sparse form; negative ones count against a document.
            k: Documents per query, 1 to the size of the index; 10 by default, or all of fewer.
            query_ids: (q,) ids; "0", "1"... by default.

        Raises:
            UserError: Another number of terms, weights that are not finite, or k beyond the index.
        """
        k = wanted_depth(k, len(self))
        asked = self._shaped(vectors, "queries")
        names = list(query_ids) if query_ids is not None else [str(number) for number in range(asked.shape[0])]
        check_weights(asked, names, "queries", negative=True)
        rows, scores = search_rows(self.postings, asked, k)
        return Run.from_matrix(names, self.ids, rows, scores, name=self.name).ranked()

    def query_fn(self, collection: Collection, k: int) -> Callable[[str], Any]:
        """Encodes and searches one query."""
        k = min(k, len(self))

        def respond(text: str) -> Any:
            query = self._encode([text])
            return self.postings.search(query.indices, query.data, k)

        return respond

    def timed_stages(
        self, collection: Collection, k: int
    ) -> tuple[Callable[[list[str]], csr_array], Callable[[csr_array], Any]]:
        """Encoding of queries, and search by them: for timing."""
        k = min(k, len(self))
        return self._encode, lambda vectors: search_rows(self.postings, vectors, k)

    def vector_reader(self) -> Callable[[int, int], csr_array]:
        """As `Index.vector_reader`: pruned and decoded impacts."""
        rows = csr_array(self.postings.matrix())
        return lambda start, stop: rows[start:stop]

    def bytes_per_document(self, collection: Collection | None = None) -> float | None:
        """Size of the postings as stored (document numbers, impacts, steps, pointers), per document."""
        return self.postings.nbytes / len(self) if len(self) else None

    def save(self, folder: str | os.PathLike[str]) -> None:
        """Write the postings, ids and a manifest; of inference-free queries also their tokenizer and weights.

        Raises:
            UserError: The folder is not writable, the disk is full, or the folder holds something else than an index;
                what stood there stays.
        """
        weights = self._token_weights()
        about = {} if weights is None else {"token_weights": weights.settings()}
        about |= built_in(self.build_seconds)
        stored = StoredIndex(
            "inverted", self.settings.kept(), self.space, self.ids, self.name, self._queries_by, about=about
        )

        def write(place: Path) -> None:
            self.postings.write(place)
            if weights is not None:
                weights.write(place)

        stored.write(folder, write)

    @classmethod
    def load(cls, folder: str | os.PathLike[str], queries: Any = None, *, memory_map: bool = False) -> InvertedIndex:
        """Load an index; where its queries are inference-free, no model is loaded and torch is not imported.

        Args:
            folder: Where it was saved.
            queries: Name or object of the query encoder; by default the one it was saved with.
            memory_map: Leave the postings on disk (not for seismic).

        Raises:
            UserError: A file is missing, cut short or altered, the query encoder belongs to another space, or Seismic
                is not installed.
        """
        stored = StoredIndex.open(folder)
        if stored.kind != "inverted":
            raise UserError(f"{folder} holds an index of kind {stored.kind}, not an inverted index; load it as such.")
        settings, place = (
            checked(InvertedSettings, stored.settings, f"index {folder}", "; build the index again"),
            Path(folder),
        )
        postings = read_postings(place, len(stored.ids), stored.space.dimension, settings, memory_map=memory_map)
        encoder: SparseTextEncoder | TokenWeights | None = None
        if queries is None and "token_weights" in stored.about:
            encoder = TokenWeights.read(place, stored.about["token_weights"])
        else:
            asking = stored.queries_by if queries is None else queries
            encoder = None if asking is None else load_encoder(asking, SPARSE)
        index = cls(postings, stored.ids, stored.space, encoder, settings, stored.name)
        index.made_from = stored.fingerprint
        index.build_seconds = stored.about.get("build_seconds")
        if queries is None:
            index._queries_by = stored.queries_by
        return index

    def _fill(self, matrix: csr_array) -> None:
        """Put (documents, terms) weights in the place of the postings."""
        self.made_from = ""
        scales = self.postings.scales if isinstance(self.postings, Postings) and self.postings.bits else None
        self.postings = make_postings(matrix, self.settings, scales)

    def _encode(self, texts: list[str]) -> csr_array:
        return self._query_encoder().encode(texts, "query")

    def _query_encoder(self) -> Any:
        if self.queries is None:
            raise UserError("this index has no query encoder; give one, or search by vectors.")
        return self.queries

    def _token_weights(self) -> TokenWeights | None:
        return None if self.queries is None else self.queries.token_weights("query")

    def _document_encoder(self) -> SparseTextEncoder:
        self._documents = self._documents or encoder_of(self.space, SPARSE)
        return self._documents

    def _shaped(self, vectors: Any, what: str) -> csr_array:
        """Vectors as CSR without stored zeros, checked against the vocabulary."""
        if not issparse(vectors):
            raise UserError(
                f"{what} of type {type(vectors).__name__}; give a scipy sparse array of (n, terms) weights."
            )
        shaped = csr_array(vectors, dtype=np.float32, copy=True)
        if shaped.shape[1] != self.space.dimension:
            raise UserError(
                f"{what} over {shaped.shape[1]} terms, the index has {self.space.dimension}; use the encoder of its "
                f"documents ({self.space.documents_by}) or one distilled into its space."
            )
        shaped.sum_duplicates()
        shaped.eliminate_zeros()
        return shaped


def build_inverted(
    collection: Collection,
    documents: Any,
    queries: Any = None,
    settings: InvertedSettings | None = None,
    *,
    name: str = "index",
) -> InvertedIndex:
    """Encode a collection by a sparse encoder and index it.

    Args:
        collection: What to index.
        documents: Name (``sparse:...``) or object of the encoder of documents.
        queries: Name or object of the encoder of queries; the documents' by default.
        settings: How to index.
        name: What its runs are called.

    Raises:
        UserError: The query encoder belongs to another space, weights that are not finite or negative, or Seismic is
            asked for and not installed.
    """
    if settings is not None and settings.backend == "seismic":
        seismic()
    encoder = load_encoder(documents, SPARSE)
    asking = encoder if queries is None else load_encoder(queries, SPARSE)
    space = EmbeddingSpace.of(encoder)
    space.check_query_encoder(asking)
    vectors = embed(encoder, collection.documents.texts, "document")
    start, ids = time.perf_counter(), collection.documents.ids
    built = InvertedIndex.from_csr(ids, vectors, space, asking, settings, name, documents=encoder)
    built.build_seconds = time.perf_counter() - start
    return built


def _build(collection: Collection, documents: Any, queries: Any, settings: Any, name: str) -> InvertedIndex:
    return build_inverted(collection, documents, queries, settings, name=name)


def _load(folder: Any, queries: Any, _parameters: None, memory_map: bool) -> InvertedIndex:
    return InvertedIndex.load(folder, queries, memory_map=memory_map)


KIND = IndexKind("inverted", SPARSE, InvertedSettings, _build, _load)
