"""The base of encoder rankers: one encoder for both sides, or two in the same space."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any, Generic, TypeVar

from retrodistill.core.files import digest
from retrodistill.data.collection import Collection
from retrodistill.data.texts import Texts
from retrodistill.encoders.contract import EmbeddingSpace, Role, TextModel
from retrodistill.encoders.embeddings import seconds_to_embed
from retrodistill.rankers.protocol import Ranker, Work, distinct, pair_positions
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
