"""A bi-encoder as a ranker: inner products of stored embeddings."""

from __future__ import annotations

from collections.abc import Sequence

from retrodistill.data.collection import Collection
from retrodistill.data.texts import Texts
from retrodistill.encoders.contract import Role
from retrodistill.encoders.embeddings import embed, seconds_to_embed
from retrodistill.encoders.encoder import Encoder
from retrodistill.encoders.vectors import check_finite, exact_search, flat_index, pair_products
from retrodistill.rankers.protocol import CorpusScorer, Stage, Work, distinct, pair_positions
from retrodistill.rankers.two_sided import TwoSidedRanker
from retrodistill.runs.run import Run


class DenseRanker(TwoSidedRanker[Encoder]):
    """Inner products (cosines for cosine models), the model's prompts applied; search is exact."""

    def search(self, queries: Texts, collection: Collection, k: int) -> Run:
        """The k documents of highest inner product."""
        ids = collection.documents.ids
        vectors = embed(self.documents.bind(collection), collection.documents.texts, "document", self.root)
        check_finite(vectors, ids, self.documents.name)
        rows, scores = exact_search(embed(self.queries.bind(collection), queries.texts, "query", self.root), vectors, k)
        return Run.from_matrix(queries.ids, ids, rows, scores, name=self.name)

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
        """Encoding of queries, and search of a flat index."""
        documents, encoder = self.documents.bind(collection), self.queries.bind(collection)
        index = flat_index(embed(documents, collection.documents.texts, "document", self.root))
        return lambda texts: encoder.encode(texts, "query"), lambda vectors: index.search(vectors, k)

    def bytes_per_document(self, collection: Collection) -> float | None:
        """float32 vectors."""
        return 4.0 * self.documents.dimension
