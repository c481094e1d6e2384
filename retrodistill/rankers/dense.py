"""A bi-encoder as a ranker: inner products of stored embeddings."""

from __future__ import annotations

from collections.abc import Iterator, Sequence

import numpy as np
import pyarrow as pa

from retrodistill.core.runtime import bar
from retrodistill.data.collection import Collection
from retrodistill.data.texts import Texts
from retrodistill.encoders.embeddings import embed, store_of
from retrodistill.encoders.encoder import Encoder
from retrodistill.encoders.vectors import check_finite, exact_search, flat_index, pair_products
from retrodistill.rankers.protocol import CorpusScorer, Stage, distinct, pair_positions
from retrodistill.rankers.two_sided import TwoSidedRanker
from retrodistill.runs.run import Run

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
