"""A bi-encoder as a teacher: inner products of stored embeddings."""

from __future__ import annotations

from pathlib import Path

from retrodistill.core.files import digest
from retrodistill.data.collection import Collection
from retrodistill.data.texts import Texts
from retrodistill.encoders.contract import Role
from retrodistill.encoders.embeddings import embed, seconds_to_embed
from retrodistill.encoders.encoder import Encoder
from retrodistill.encoders.vector_files import bound
from retrodistill.encoders.vectors import pair_products
from retrodistill.rankers.corpus_scores import CorpusScorer
from retrodistill.rankers.protocol import Work, distinct, pair_positions
from retrodistill.runs.run import Run


class DenseTeacher:
    """Inner products (cosines for cosine models), prompts of the model applied.

    Args:
        encoder: The bi-encoder.
        root: Folder of the embedding stores; the shared cache by default.
        documents: Encodes the documents in its place: that whose space the encoder's queries search.
    """

    def __init__(self, encoder: Encoder, root: Path | None = None, documents: Encoder | None = None) -> None:
        self.encoder, self.root, self.name = encoder, root, encoder.name
        self.documents = documents or encoder

    def fingerprint(self, collection: Collection) -> str:
        """Both roles' contracts."""
        return digest(self.encoder.fingerprint("query"), self.documents.fingerprint("document"))

    def score(self, collection: Collection, queries: Texts, candidates: Run) -> Run:
        """The candidates with inner products; each text is embedded once, ever."""
        rows, columns = pair_positions(collection, queries, candidates)
        encoder, other = bound(self.encoder, collection), bound(self.documents, collection)
        query_rows, query_texts = distinct(rows, queries)
        document_rows, document_texts = distinct(columns, collection.documents)
        scores = pair_products(
            embed(encoder, query_texts, "query", self.root),
            embed(other, document_texts, "document", self.root),
            query_rows,
            document_rows,
        )
        return candidates.with_scores(scores, self.name)

    def corpus_scorer(self, collection: Collection, queries: Texts) -> CorpusScorer:
        """Inner products with the whole corpus, a block of queries at a time."""
        encoder = bound(self.encoder, collection)
        documents = embed(bound(self.documents, collection), collection.documents.texts, "document", self.root)
        vectors = embed(encoder, queries.texts, "query", self.root)
        return lambda rows: vectors[rows] @ documents.T

    def remaining(self, collection: Collection, queries: Texts, candidates: Run) -> Work:
        """Texts that have no embedding yet, on both sides."""
        rows, columns = pair_positions(collection, queries, candidates)
        sides: list[tuple[Encoder, list[str], Role]] = [
            (self.encoder, distinct(rows, queries)[1], "query"),
            (self.documents, distinct(columns, collection.documents)[1], "document"),
        ]
        counted = [seconds_to_embed(encoder, texts, role, self.root) for encoder, texts, role in sides]
        return Work(sum(items for items, _ in counted), "texts", sum(seconds for _, seconds in counted))
