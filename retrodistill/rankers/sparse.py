"""A learned sparse encoder as a ranker: inner products of stored term weights."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
from scipy.sparse import csr_array

from retrodistill.data.collection import Collection
from retrodistill.data.texts import Texts
from retrodistill.encoders.embeddings import embed
from retrodistill.encoders.sparse import SparseTextEncoder
from retrodistill.rankers.postings import Postings, check_weights, search_rows
from retrodistill.rankers.protocol import CorpusScorer, Stage, distinct, pair_positions
from retrodistill.rankers.two_sided import TwoSidedRanker
from retrodistill.runs.run import Run

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
