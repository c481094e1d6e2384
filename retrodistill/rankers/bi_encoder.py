"""Encoders as rankers: exact search and scoring with stored vectors of queries and documents."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa

from retrodistill.core.digests import digest
from retrodistill.core.runtime import bar
from retrodistill.core.spending import Bill
from retrodistill.data.collection import Collection
from retrodistill.data.texts import Texts
from retrodistill.encoders.contract import Role, TextModel
from retrodistill.encoders.embeddings import TextVectors, TokenVectors, embed, seconds_to_embed, store_of
from retrodistill.encoders.multi_vector import Tokens, best_documents, maxsim
from retrodistill.encoders.reading import readable, readable_queries
from retrodistill.encoders.space import EmbeddingSpace
from retrodistill.encoders.vectors import check_finite, exact_search, join_best, pair_products
from retrodistill.rankers.corpus import CorpusScores, Products
from retrodistill.rankers.postings import Postings, check_weights, search_rows
from retrodistill.rankers.protocol import Ranker, Stage, Work, distinct_texts
from retrodistill.runs.run import Run, ties_among

HELD = 200_000  # documents; searches of larger corpora do not hold all vectors in memory
BLOCK = 16_384  # documents
_TOKEN_BLOCK = 256  # documents whose token vectors are in memory at once


class BiEncoderRanker(Ranker):
    """Documents encoded by one encoder, queries by the same (the default) or by one that belongs to its space.

    `name` is that of its runs, by default the query encoder's, and `root` the folder of the stores of vectors, by
    default the shared cache. `checked` is False for a student in training, which has no manifest to check yet.
    """

    can_search = can_score_pairs = can_score_corpus = is_cheap = True

    def __init__(
        self,
        documents: TextModel,
        queries: TextModel | None = None,
        name: str | None = None,
        root: Path | None = None,
        *,
        checked: bool = True,
    ) -> None:
        self.documents: Any = documents
        self.queries: Any = queries or documents
        self.root, self.name, self.kind = root, name or self.queries.name, documents.kind
        if checked:
            EmbeddingSpace.of(documents).check_query_encoder(self.queries)

    def fingerprint(self, collection: Collection) -> str:
        """Digest of the contracts of both roles."""
        return digest(self.queries.fingerprint("query"), self.documents.fingerprint("document"))

    def search(self, queries: Texts, collection: Collection, k: int) -> Run:
        """The best k documents of each query. Texts that its models cannot read are not found and find nothing."""
        return self._search(readable_queries(self.queries, queries), readable(self.documents, collection), k)

    def _search(self, queries: Texts, collection: Collection, k: int) -> Run:
        """As `search`, of texts that the models can read."""
        raise NotImplementedError

    def score(self, queries: Texts, collection: Collection, pairs: Run) -> Run:
        """The pairs with inner products."""
        q, query_texts, d, document_texts = distinct_texts(queries, collection, pairs)
        query_vectors = self._query_vectors(query_texts, collection)
        scores = pair_products(query_vectors, self._document_vectors(document_texts, collection), q, d)
        return pairs.with_scores(scores, self.name)

    def corpus_scores(self, queries: Texts, collection: Collection) -> CorpusScores:
        """Inner products."""
        if self.holds(collection):
            documents = self._document_vectors(collection.documents.column, collection)
        else:
            documents = TextVectors(self.documents.bind(collection), collection.documents, "document", self.root)
        return Products(self._query_vectors(queries.texts, collection), documents)

    def remaining(self, queries: Texts, collection: Collection, pairs: Run) -> Work:
        """Texts of both sides that are not encoded yet."""
        _, query_texts, _, document_texts = distinct_texts(queries, collection, pairs)
        query_count, query_seconds = seconds_to_embed(self.queries, query_texts, "query", self.root)
        count, seconds = seconds_to_embed(self.documents, document_texts, "document", self.root)
        bill = self._bill(query_texts, "query") + self._bill(document_texts, "document")
        return Work(query_count + count, "texts", query_seconds + seconds, bill)

    def _bill(self, texts: Sequence[str], role: Role) -> Bill:
        encoder = self.queries if role == "query" else self.documents
        left = store_of(encoder, role, self.root).missing(texts) if encoder.needs_store(role) else []
        return encoder.bill(left, role)

    @property
    def can_be_timed(self) -> bool:
        """False for recorded vectors and APIs: a look-up or the network says nothing about their model."""
        return bool(self.queries.can_be_timed)

    def _query_vectors(self, texts: Sequence[str], collection: Collection) -> Any:
        return embed(self.queries.bind(collection), texts, "query", self.root)

    def _document_vectors(self, texts: Sequence[str], collection: Collection) -> Any:
        return embed(self.documents.bind(collection), texts, "document", self.root)


class DenseRanker(BiEncoderRanker):
    """Inner products (cosines for cosine models), with the model's prompts; search is exact."""

    def _search(self, queries: Texts, collection: Collection, k: int) -> Run:
        ids = collection.documents.ids
        vectors = self._document_vectors(collection.documents.column, collection)
        check_finite(vectors, ids, self.documents.name)
        query_vectors = self._query_vectors(queries.texts, collection)
        rows, scores = exact_search(query_vectors, vectors, k, collection.documents.id_order)
        return Run.from_matrix(queries.ids, ids, rows, scores, name=self.name)

    def stream(self, queries: Texts, collection: Collection, k: int) -> Run:
        """As `search`; of a large corpus it holds one block of texts and vectors, and the best k of each query."""
        if self.holds(collection):
            return self.search(queries, collection, k)
        return self._stream(readable_queries(self.queries, queries), readable(self.documents, collection), k)

    def _stream(self, queries: Texts, collection: Collection, k: int) -> Run:
        documents = collection.documents
        vectors = self._query_vectors(queries.texts, collection)
        best = exact_search(vectors, np.empty((0, vectors.shape[1]), dtype=np.float32), k)
        with bar(len(documents), f"searching ({self.name})", "documents") as progress:
            for start, block in self._blocks(collection):
                check_finite(block, documents.table["id"].slice(start, len(block)).to_pylist(), self.documents.name)
                in_block = ties_among(np.arange(start, start + len(block)), documents.id_order)
                rows, scores = exact_search(vectors, block, k, in_block)
                best = join_best(best, (rows + start, scores), k, documents.id_order)
                progress.update(len(block))
        used = np.unique(best[0])
        ids = dict(zip(used.tolist(), documents.table["id"].take(pa.array(used)).to_pylist(), strict=True))
        return Run.from_matrix(queries.ids, ids, *best, name=self.name)  # type: ignore[arg-type]  # by row

    def holds(self, collection: Collection) -> bool:
        """Whether the corpus is small enough to hold all vectors in memory during a search."""
        return len(collection.documents) <= HELD

    def _blocks(self, collection: Collection) -> Iterator[tuple[int, np.ndarray]]:
        """Row of the first document, and vectors, of each block."""
        encoder = self.documents.bind(collection)
        store = store_of(encoder, "document", self.root) if encoder.needs_store("document") else None
        for start in range(0, len(collection.documents), BLOCK):
            texts = collection.documents.slice(start, start + BLOCK)
            if store is not None and not store.missing(texts):
                yield start, store.gather(texts)
            else:  # not stored: a store of millions would be merged again and again
                yield start, encoder.encode(texts, "document")

    def timed_stages(self, collection: Collection, k: int) -> Sequence[Stage]:
        """Encoding of queries, and exact search."""
        encoder = self.queries.bind(collection)
        documents = self._document_vectors(collection.documents.column, collection)
        return lambda texts: encoder.encode(texts, "query"), lambda vectors: exact_search(vectors, documents, k)

    def bytes_per_document(self, collection: Collection) -> float | None:
        """Bytes of a float32 vector."""
        return 4.0 * self.documents.dimension


class SparseRanker(BiEncoderRanker):
    """Inner products of term weights; search is exact."""

    def _search(self, queries: Texts, collection: Collection, k: int) -> Run:
        vectors = self._query_vectors(queries.texts, collection)
        documents = collection.documents
        rows, scores = search_rows(self._postings(collection), vectors, min(k, len(documents)), documents.id_order)
        return Run.from_matrix(queries.ids, documents.ids, rows, scores, name=self.name)

    def timed_stages(self, collection: Collection, k: int) -> Sequence[Stage]:
        """Encoding of queries, and search of the postings."""
        postings = self._postings(collection)
        return lambda texts: self.queries.encode(texts, "query"), lambda vectors: search_rows(postings, vectors, k)

    def bytes_per_document(self, collection: Collection) -> float | None:
        """Bytes of exact float32 postings."""
        return self._postings(collection).nbytes / len(collection.documents)

    def _postings(self, collection: Collection) -> Postings:
        vectors = self._document_vectors(collection.documents.column, collection)
        check_weights(vectors, collection.documents.ids, self.documents.name)
        return Postings.from_csr(vectors)


class MultiVectorRanker(BiEncoderRanker):
    """MaxSim of token vectors; search is exact."""

    can_score_corpus = is_cheap = False

    def _search(self, queries: Texts, collection: Collection, k: int) -> Run:
        tokens = self._query_vectors(queries.texts, collection)
        documents = collection.documents
        rows, scores = best_documents(tokens, self._blocks(collection), min(k, len(documents)), documents.id_order)
        if self.queries.similarity == "meanmaxsim":
            scores = scores / tokens.lengths[:, None]
        return Run.from_matrix(queries.ids, documents.ids, rows, scores, name=self.name)

    def score(self, queries: Texts, collection: Collection, pairs: Run) -> Run:
        """The pairs with MaxSim, computed for one query's documents at a time."""
        q, query_texts, d, document_texts = distinct_texts(queries, collection, pairs)
        tokens = self._query_vectors(query_texts, collection)
        store = self._stored(document_texts)
        scores = np.empty(len(pairs), dtype=np.float32)
        for query, own in enumerate(np.split(np.argsort(q, kind="stable"), np.cumsum(np.bincount(q))[:-1])):
            documents = store.gather([document_texts[row] for row in d[own]])
            scores[own] = maxsim(tokens.slice(query, query + 1), documents)[0]
        if self.queries.similarity == "meanmaxsim":
            scores /= tokens.lengths[q]
        return pairs.with_scores(scores, self.name)

    def timed_stages(self, collection: Collection, k: int) -> Sequence[Stage]:
        """Encoding of queries, and MaxSim with every document, whose token vectors are in memory."""
        documents = list(self._blocks(collection))
        return lambda texts: self.queries.encode(texts, "query"), lambda tokens: best_documents(tokens, documents, k)

    def bytes_per_document(self, collection: Collection) -> float | None:
        """Bytes of float16 token vectors."""
        tokens = sum(len(block.vectors) for _, block in self._blocks(collection))
        return 2.0 * self.documents.dimension * tokens / len(collection.documents)

    def _blocks(self, collection: Collection) -> Iterator[tuple[int, Tokens]]:
        texts = collection.documents
        store = self._stored(texts.texts)
        for start in range(0, len(texts), _TOKEN_BLOCK):
            yield start, store.gather(texts.slice(start, start + _TOKEN_BLOCK))

    def _stored(self, texts: Sequence[str]) -> TokenVectors:
        store = TokenVectors(self.documents, "document", self.root)
        store.fill(texts)
        return store
