"""Exact MaxSim search as a retriever."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import Any

from retrodistill.data.collection import Collection
from retrodistill.data.texts import Texts
from retrodistill.encoders.maxsim import best_documents
from retrodistill.encoders.multi_vector import MultiVectorModel, Tokens
from retrodistill.encoders.token_vectors import TokenVectors, embed_tokens
from retrodistill.encoders.two_sided import TwoSided
from retrodistill.runs.run import Run

_BLOCK = 256  # documents whose token vectors are in memory at once


class MultiVectorRetriever(TwoSided[MultiVectorModel]):
    """Exact MaxSim search with one multi-vector encoder for both sides, or two."""

    def retrieve(self, collection: Collection, queries: Texts, k: int) -> Run:
        """The k documents of highest MaxSim."""
        asked = embed_tokens(self.queries, queries.texts, "query")
        rows, scores = best_documents(asked, self._blocks(collection), min(k, len(collection.documents)))
        if self.queries.similarity == "meanmaxsim":
            scores = scores / asked.lengths[:, None]
        return Run.from_matrix(queries.ids, collection.documents.ids, rows, scores, name=self.name)

    def query_fn(self, collection: Collection, k: int) -> Callable[[str], Any]:
        """Encodes and compares with every document, whose token vectors are in memory."""
        documents = list(self._blocks(collection))
        return lambda text: best_documents(self.queries.encode([text], "query"), documents, k)

    def timed_stages(
        self, collection: Collection, k: int
    ) -> tuple[Callable[[list[str]], Tokens], Callable[[Tokens], Any]]:
        """Encoding of queries, and MaxSim with every document, whose token vectors are in memory: for timing."""
        documents = list(self._blocks(collection))
        return lambda texts: self.queries.encode(texts, "query"), lambda tokens: best_documents(tokens, documents, k)

    def bytes_per_document(self, collection: Collection) -> float | None:
        """float16 vectors of its tokens."""
        tokens = sum(len(block.vectors) for _, block in self._blocks(collection))
        return 2.0 * self.documents.dimension * tokens / len(collection.documents)

    def _blocks(self, collection: Collection) -> Iterator[tuple[int, Tokens]]:
        texts = collection.documents
        store = TokenVectors(self.documents, "document")
        store.fill(texts.texts)
        for start in range(0, len(texts), _BLOCK):
            yield start, store.gather(texts.slice(start, start + _BLOCK))
