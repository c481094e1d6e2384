"""A bi-encoder as a ranker: inner products of stored embeddings."""

from __future__ import annotations

from collections.abc import Iterator, Sequence

import numpy as np
import pyarrow as pa

from retrodistill.core.errors import UserError
from retrodistill.core.progress import bar
from retrodistill.data.collection import Collection
from retrodistill.data.texts import Texts
from retrodistill.encoders.contract import Role
from retrodistill.encoders.embeddings import EmbeddingStore, embed, seconds_to_embed
from retrodistill.encoders.encoder import Encoder
from retrodistill.encoders.vectors import check_finite, exact_search, flat_index, pair_products
from retrodistill.rankers.protocol import CorpusScorer, Stage, Work, distinct, pair_positions
from retrodistill.rankers.two_sided import TwoSidedRanker
from retrodistill.runs.run import Run

HELD = 200_000  # documents; vectors of smaller corpora are stored, and held while they are searched
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

    def search_in_blocks(self, queries: Texts, collection: Collection, k: int) -> Run:
        """As `search`; of a corpus of more than `HELD` documents, one block of texts and vectors is held at a time.

        Vectors that are in the embedding store are taken from there; others are not stored, because a store of
        millions would be merged over and over.
        """
        documents = collection.documents
        if len(documents) <= HELD:
            return self.search(queries, collection, k)
        import faiss

        k = min(k, len(documents))
        vectors = embed(self.queries.bind(collection), queries.texts, "query", self.root)
        best = faiss.ResultHeap(len(vectors), k, keep_max=True)
        with bar(len(documents), f"searching ({self.name})", "documents") as progress:
            for start, block in self._blocks(collection):
                ids = documents.table["id"].slice(start, len(block)).to_pylist()
                check_finite(block, ids, self.documents.name)
                rows, scores = exact_search(vectors, block, k)
                best.add_result(scores, rows + start)
                progress.update(len(block))
        best.finalize()
        used = np.unique(best.I[best.I >= 0])
        named = dict(zip(used.tolist(), documents.table["id"].take(pa.array(used)).to_pylist(), strict=True))
        return Run.from_matrix(queries.ids, named, best.I, best.D, name=self.name)  # type: ignore[arg-type]

    def _blocks(self, collection: Collection) -> Iterator[tuple[int, np.ndarray]]:
        """Position of the first document, and vectors, of each block."""
        encoder, documents = self.documents.bind(collection), collection.documents
        is_quick = encoder.is_static or encoder.is_recorded
        store = None if is_quick else EmbeddingStore(encoder, "document", self.root)
        for start in range(0, len(documents), BLOCK):
            texts = documents.slice(start, start + BLOCK)
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

    def remaining(self, queries: Texts, collection: Collection, pairs: Run) -> Work:
        """Texts of both sides that have no embedding yet."""
        rows, columns = pair_positions(queries, collection, pairs)
        sides: list[tuple[Encoder, list[str], Role]] = [
            (self.queries, distinct(rows, queries)[1], "query"),
            (self.documents, distinct(columns, collection.documents)[1], "document"),
        ]
        counted = [seconds_to_embed(encoder, texts, role, self.root) for encoder, texts, role in sides]
        return Work(sum(items for items, _ in counted), "texts", sum(seconds for _, seconds in counted))

    def timed_stages(self, collection: Collection, k: int) -> Sequence[Stage]:
        """Encoding of queries, and search of a flat index.

        Raises:
            UserError: More than `HELD` documents.
        """
        if len(collection.documents) > HELD:
            count = len(collection.documents)
            raise UserError(f"{self.name}: {count:,} vectors are not held to be timed; build an index of them.")
        documents, encoder = self.documents.bind(collection), self.queries.bind(collection)
        index = flat_index(embed(documents, collection.documents.texts, "document", self.root))
        return lambda texts: encoder.encode(texts, "query"), lambda vectors: index.search(vectors, k)

    def bytes_per_document(self, collection: Collection) -> float | None:
        """float32 vectors."""
        return 4.0 * self.documents.dimension
