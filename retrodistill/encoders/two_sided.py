"""What exact retrievers by encoders share: one model for both sides, or two that fit each other."""

from __future__ import annotations

from typing import Generic, TypeVar

from retrodistill.encoders.contract import EmbeddingSpace, TextModel

Model = TypeVar("Model", bound=TextModel)


class TwoSided(Generic[Model]):
    """Documents by one encoder, queries by the same or by one that belongs to its space.

    Args:
        documents: Encodes the documents.
        queries: Encodes the queries, into the documents' space; the same encoder by default.
        name: What the run is called; the query encoder's name by default.

    Raises:
        UserError: The query encoder's space is not the documents'.
    """

    def __init__(self, documents: Model, queries: Model | None = None, name: str | None = None) -> None:
        self.documents, self.queries = documents, queries or documents
        self.name = name or self.queries.name
        EmbeddingSpace.of(documents).check_query_encoder(self.queries)
