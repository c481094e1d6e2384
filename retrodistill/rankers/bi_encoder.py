"""Encoders as rankers: exact search and scoring with stored vectors of queries and documents."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any, Generic, TypeVar

import numpy as np
import pyarrow as pa
from scipy.sparse import csr_array

from retrodistill.core.files import digest
from retrodistill.core.runtime import bar
from retrodistill.data.collection import Collection
from retrodistill.data.texts import Texts
from retrodistill.encoders.contract import EmbeddingSpace, Role, TextModel
from retrodistill.encoders.embeddings import TokenVectors, embed, seconds_to_embed, store_of
from retrodistill.encoders.encoder import Encoder
from retrodistill.encoders.multi_vector import MultiVectorModel, Tokens, best_documents, maxsim
from retrodistill.encoders.sparse import SparseTextEncoder
from retrodistill.encoders.vectors import check_finite, exact_search, flat_index, pair_products
from retrodistill.rankers.postings import Postings, check_weights, search_rows
from retrodistill.rankers.protocol import CorpusScorer, Ranker, Stage, Work, distinct, pair_positions
from retrodistill.runs.run import Run

Model = TypeVar("Model", bound=TextModel)


class TwoSidedRanker(Ranker, Generic[Model]):
    """Documents by one encoder, queries by the same or by one that belongs to its space.

    Args:
        documents: Encodes the documents.
        queries: Encodes the queries into the documents' space; the same encoder by default.
        name: What its runs are called; the query encoder's name by default.
        root: Folder of the stores of vectors; the shared cache by default.
        checked: Refuse queries of another space; False for a student in training, which has no manifest yet.

    Raises:
        UserError: The query encoder's space is not the documents'.
    """

    can_search = can_score_pairs = can_score_corpus = is_cheap = True
    documents: Model
    queries: Model

    def __init__(
        self,
        documents: Model,
        queries: Model | None = None,
        name: str | None = None,
        root: Path | None = None,
        *,
        checked: bool = True,
    ) -> None:
        self.documents, self.queries, self.root = documents, queries or documents, root
        self.name, self.kind = name or self.queries.name, documents.kind
        if checked:
            EmbeddingSpace.of(documents).check_query_encoder(self.queries)

    def fingerprint(self, collection: Collection) -> str:
        """Contracts of both roles."""
        return digest(self.queries.fingerprint("query"), self.documents.fingerprint("document"))

    def remaining(self, queries: Texts, collection: Collection, pairs: Run) -> Work:
        """Texts of both sides that are not encoded yet."""
        rows, columns = pair_positions(queries, collection, pairs)
        sides: list[tuple[Model, list[str], Role]] = [
            (self.queries, distinct(rows, queries)[1], "query"),
            (self.documents, distinct(columns, collection.documents)[1], "document"),
        ]
        counted = [seconds_to_embed(encoder, texts, role, self.root) for encoder, texts, role in sides]
        return Work(sum(items for items, _ in counted), "texts", sum(seconds for _, seconds in counted))

    @property
    def can_be_timed(self) -> bool:
        """Whether queries are encoded: looking up recorded vectors is not what their model takes."""
        return not self.queries.is_recorded

    def query_fn(self, collection: Collection, k: int) -> Callable[[str], Any]:
        """Encodes one query and searches."""
        encode, search = self.timed_stages(collection, k)
        return lambda text: search(encode([text]))


HELD = 200_000  # documents; searches of larger corpora do not hold all vectors in memory
BLOCK = 16_384  # documents


class DenseRanker(TwoSidedRanker[Encoder]):
    """Inner products (cosines for cosine models), the model's prompts applied; search is exact."""

    def search(self, queries: Texts, collection: Collection, k: int) -> Run:
        """The k documents of highest inner product."""
        ids = collection.documents.ids
        vectors = embed(self.documents.bind(collection), collection.documents.texts, "document", self.root)
        check_finite(vectors, ids, self.documents.name)
        rows, scores = exact_search(embed(self.queries.bind(collection), queries.texts, "query", self.root), vectors, k)
        return Run.from_matrix(queries.ids, ids, rows, scores, name=self.name)

    def stream(self, queries: Texts, collection: Collection, k: int) -> Run:
        """As `search`; of a large corpus it holds one block of texts and vectors, and the best k of each query.

        Vectors that are in the embedding store are taken from there; others are computed and not kept, since a store of
        millions would be merged over and over.
        """
        if self.holds(collection):
            return self.search(queries, collection, k)
        import faiss

        documents = collection.documents
        vectors = embed(self.queries.bind(collection), queries.texts, "query", self.root)
        best = faiss.ResultHeap(len(vectors), min(k, len(documents)), keep_max=True)
        with bar(len(documents), f"searching ({self.name})", "documents") as progress:
            for start, block in self._blocks(collection):
                check_finite(block, documents.table["id"].slice(start, len(block)).to_pylist(), self.documents.name)
                rows, scores = exact_search(vectors, block, best.k)
                best.add_result(scores, rows + start)
                progress.update(len(block))
        best.finalize()
        used = np.unique(best.I[best.I >= 0])
        ids = dict(zip(used.tolist(), documents.table["id"].take(pa.array(used)).to_pylist(), strict=True))
        return Run.from_matrix(queries.ids, ids, best.I, best.D, name=self.name)  # type: ignore[arg-type]  # by row

    def holds(self, collection: Collection) -> bool:
        """Whether the corpus is small enough that all vectors are held while they are searched."""
        return len(collection.documents) <= HELD

    def _blocks(self, collection: Collection) -> Iterator[tuple[int, np.ndarray]]:
        """Row of the first document, and vectors, of each block."""
        encoder = self.documents.bind(collection)
        store = store_of(encoder, "document", self.root) if encoder.needs_store("document") else None
        for start in range(0, len(collection.documents), BLOCK):
            texts = collection.documents.slice(start, start + BLOCK)
            if store is not None and not store.missing(texts):
                yield start, store.gather(texts)
            else:
                yield start, encoder.encode(texts, "document")

    def score(self, queries: Texts, collection: Collection, pairs: Run) -> Run:
        """The pairs with inner products; each text is embedded once, ever."""
        rows, columns = pair_positions(queries, collection, pairs)
        query_rows, query_texts = distinct(rows, queries)
        document_rows, document_texts = distinct(columns, collection.documents)
        scores = pair_products(
            embed(self.queries.bind(collection), query_texts, "query", self.root),
            embed(self.documents.bind(collection), document_texts, "document", self.root),
            query_rows,
            document_rows,
        )
        return pairs.with_scores(scores, self.name)

    def corpus_scorer(self, queries: Texts, collection: Collection) -> CorpusScorer:
        """Inner products with the whole corpus, a block of queries at a time."""
        encoder = self.queries.bind(collection)
        documents = embed(self.documents.bind(collection), collection.documents.texts, "document", self.root)
        vectors = embed(encoder, queries.texts, "query", self.root)
        return lambda rows: vectors[rows] @ documents.T

    def timed_stages(self, collection: Collection, k: int) -> Sequence[Stage]:
        """Encoding of queries, and search of a flat index."""
        documents, encoder = self.documents.bind(collection), self.queries.bind(collection)
        index = flat_index(embed(documents, collection.documents.texts, "document", self.root))
        return lambda texts: encoder.encode(texts, "query"), lambda vectors: index.search(vectors, k)

    def bytes_per_document(self, collection: Collection) -> float | None:
        """float32 vectors."""
        return 4.0 * self.documents.dimension


_PAIRS = 65_536  # at once: bounds the memory of one product


class SparseRanker(TwoSidedRanker[SparseTextEncoder]):
    """Inner products of term weights; search is exact."""

    def search(self, queries: Texts, collection: Collection, k: int) -> Run:
        """The k documents of highest inner product among those that share a term with the query."""
        vectors = embed(self.queries, queries.texts, "query", self.root)
        rows, scores = search_rows(self._postings(collection), vectors, min(k, len(collection.documents)))
        return Run.from_matrix(queries.ids, collection.documents.ids, rows, scores, name=self.name)

    def score(self, queries: Texts, collection: Collection, pairs: Run) -> Run:
        """The pairs with inner products; 0 where no term is shared."""
        rows, columns = pair_positions(queries, collection, pairs)
        query_rows, query_texts = distinct(rows, queries)
        document_rows, document_texts = distinct(columns, collection.documents)
        asking = embed(self.queries, query_texts, "query", self.root)
        documents = embed(self.documents, document_texts, "document", self.root)
        scores = np.empty(len(pairs), dtype=np.float32)
        for start in range(0, len(pairs), _PAIRS):
            part = slice(start, start + _PAIRS)
            scores[part] = asking[query_rows[part]].multiply(documents[document_rows[part]]).sum(axis=1)
        return pairs.with_scores(scores, self.name)

    def corpus_scorer(self, queries: Texts, collection: Collection) -> CorpusScorer:
        """Inner products with the whole corpus, a block of queries at a time."""
        documents = csr_array(embed(self.documents, collection.documents.texts, "document", self.root).T)
        asking = embed(self.queries, queries.texts, "query", self.root)
        return lambda rows: (asking[rows] @ documents).toarray().astype(np.float32, copy=False)

    def timed_stages(self, collection: Collection, k: int) -> Sequence[Stage]:
        """Encoding of queries, and search of the postings."""
        postings = self._postings(collection)
        return lambda texts: self.queries.encode(texts, "query"), lambda vectors: search_rows(postings, vectors, k)

    def bytes_per_document(self, collection: Collection) -> float | None:
        """Exact float32 postings."""
        return self._postings(collection).nbytes / len(collection.documents)

    def _postings(self, collection: Collection) -> Postings:
        vectors = embed(self.documents, collection.documents.texts, "document", self.root)
        check_weights(vectors, collection.documents.ids, self.documents.name)
        return Postings.from_csr(vectors)


_BLOCK = 256  # documents whose token vectors are in memory at once


class MultiVectorRanker(TwoSidedRanker[MultiVectorModel]):
    """MaxSim of token vectors; search is exact."""

    can_score_corpus = is_cheap = False

    def search(self, queries: Texts, collection: Collection, k: int) -> Run:
        """The k documents of highest MaxSim."""
        tokens = embed(self.queries, queries.texts, "query", self.root)
        rows, scores = best_documents(tokens, self._blocks(collection), min(k, len(collection.documents)))
        if self.queries.similarity == "meanmaxsim":
            scores = scores / tokens.lengths[:, None]
        return Run.from_matrix(queries.ids, collection.documents.ids, rows, scores, name=self.name)

    def score(self, queries: Texts, collection: Collection, pairs: Run) -> Run:
        """The pairs with MaxSim, one query's documents at a time."""
        rows, columns = pair_positions(queries, collection, pairs)
        places, texts = distinct(rows, queries)
        tokens = embed(self.queries, texts, "query", self.root)
        document_places, document_texts = distinct(columns, collection.documents)
        store = TokenVectors(self.documents, "document", self.root)
        store.fill(document_texts)
        scores = np.empty(len(pairs), dtype=np.float32)
        for place in range(len(texts)):
            own = np.flatnonzero(places == place)
            documents = store.gather([document_texts[row] for row in document_places[own]])
            scores[own] = maxsim(tokens.slice(place, place + 1), documents)[0]
        if self.queries.similarity == "meanmaxsim":
            scores /= tokens.lengths[places]
        return pairs.with_scores(scores, self.name)

    def timed_stages(self, collection: Collection, k: int) -> Sequence[Stage]:
        """Encoding of queries, and MaxSim with every document, whose token vectors are in memory."""
        documents = list(self._blocks(collection))
        return lambda texts: self.queries.encode(texts, "query"), lambda tokens: best_documents(tokens, documents, k)

    def bytes_per_document(self, collection: Collection) -> float | None:
        """float16 token vectors."""
        tokens = sum(len(block.vectors) for _, block in self._blocks(collection))
        return 2.0 * self.documents.dimension * tokens / len(collection.documents)

    def _blocks(self, collection: Collection) -> Iterator[tuple[int, Tokens]]:
        texts = collection.documents
        store = TokenVectors(self.documents, "document", self.root)
        store.fill(texts.texts)
        for start in range(0, len(texts), _BLOCK):
            yield start, store.gather(texts.slice(start, start + _BLOCK))
