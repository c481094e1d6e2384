"""Exact sparse search as a retriever."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from scipy.sparse import csr_array

from retrodistill.data.collection import Collection
from retrodistill.data.texts import Texts
from retrodistill.encoders.sparse import SparseTextEncoder
from retrodistill.encoders.sparse_store import embed_sparse
from retrodistill.encoders.two_sided import TwoSided
from retrodistill.rankers.postings import Postings, check_weights, search_rows
from retrodistill.runs.run import Run


class SparseRetriever(TwoSided[SparseTextEncoder]):
    """Exact inner-product search with one sparse encoder for both sides, or two."""

    def retrieve(self, collection: Collection, queries: Texts, k: int) -> Run:
        """The k documents of highest inner product among those that share a term with the query."""
        asked = embed_sparse(self.queries, queries.texts, "query")
        rows, scores = search_rows(self._postings(collection), asked, min(k, len(collection.documents)))
        return Run.from_matrix(queries.ids, collection.documents.ids, rows, scores, name=self.name)

    def query_fn(self, collection: Collection, k: int) -> Callable[[str], Any]:
        """Encodes and searches."""
        postings = self._postings(collection)

        def respond(text: str) -> Any:
            query: csr_array = self.queries.encode([text], "query")
            return postings.search(query.indices, query.data, k)

        return respond

    def timed_stages(
        self, collection: Collection, k: int
    ) -> tuple[Callable[[list[str]], csr_array], Callable[[csr_array], Any]]:
        """Encoding of queries, and search by them: for timing."""
        postings = self._postings(collection)
        return lambda texts: self.queries.encode(texts, "query"), lambda vectors: search_rows(postings, vectors, k)

    def bytes_per_document(self, collection: Collection) -> float | None:
        """Of exact float32 postings."""
        return self._postings(collection).nbytes / len(collection.documents)

    def _postings(self, collection: Collection) -> Postings:
        vectors = embed_sparse(self.documents, collection.documents.texts, "document")
        check_weights(vectors, collection.documents.ids, self.documents.name)
        return Postings.from_csr(vectors)
