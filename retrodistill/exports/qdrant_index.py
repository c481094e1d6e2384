"""Searching a collection that was exported to Qdrant, as any other index is searched."""

from __future__ import annotations

import weakref
from collections.abc import Callable, Sequence
from typing import Any

from retrodistill.core.errors import UserError
from retrodistill.data.collection import Collection
from retrodistill.encoders.any_encoder import DENSE, MULTI_VECTOR, SPARSE, load_encoder
from retrodistill.encoders.contract import EmbeddingSpace
from retrodistill.encoders.embeddings import embed
from retrodistill.encoders.vectors import leading
from retrodistill.exports.connection import Address, connect
from retrodistill.exports.qdrant_collection import QdrantCollection
from retrodistill.exports.records import Kind
from retrodistill.rankers.protocol import Queries, Ranker, as_queries, cut_depth, plain_queries, wanted_depth, within
from retrodistill.runs.run import Run

_KINDS = {"dense": DENSE, "sparse": SPARSE, "multi-vector": MULTI_VECTOR}


class QdrantIndex(Ranker):
    """Documents in a Qdrant collection and an encoder of queries that their space admits.

    Args:
        there: The collection, verified by its export.
        queries: Name or object of the query encoder; by default the one that the index was exported with.

    Raises:
        UserError: The collection was not exported from here or not to its end, or the query encoder belongs to another
            space.
    """

    can_search = True

    def __init__(self, there: QdrantCollection, queries: Any = None) -> None:
        held = there.manifest
        if held is None:
            raise UserError(f"{there} was not exported by retrodistill; it does not say which queries belong to it.")
        about, settings = held.about, held.settings
        if not there.is_verified:
            raise UserError(
                f"{there} holds {there.count} of {about['documents']} documents and is not verified: its export was "
                "interrupted or failed; run the same export again, it goes on."
            )
        self.there = there
        self.kind: Kind = settings["kind"]
        self.quantized: bool = settings["quantization"] is not None
        self.space = EmbeddingSpace.from_json(about["space"])
        self.name: str = about["name"]
        asking = about["queries_by"] if queries is None else queries
        self.queries = None if asking is None else load_encoder(asking, _KINDS[self.kind])
        if self.queries is not None:
            self.space.check_query_encoder(self.queries)

    @property
    def documents_by(self) -> str:
        """Name of the encoder of its documents."""
        return self.space.documents_by

    @property
    def can_be_timed(self) -> bool:
        """Whether it has a query encoder that encodes new queries."""
        return self.queries is not None and not self.queries.is_recorded

    def __repr__(self) -> str:
        asking = "no query encoder" if self.queries is None else f"queries by {self.queries.name}"
        return f"QdrantIndex({len(self)} documents by {self.space.documents_by}, {asking}, {self.there})"

    def __len__(self) -> int:
        return self.there.count

    def search(self, queries: Queries, collection: Collection | None = None, k: int | None = None) -> Run:
        """Search by text.

        Args:
            queries: One text, several (their ids are "0", "1"...), or queries with ids: a mapping of them, or `Texts`.
            collection: Of the documents, where there is one: k is then cut to the size of the index, vectors of queries
                come from the store, and documents that the collection lacks are refused.
            k: Documents per query, 1 to the number of documents; 10 by default, or all of fewer.

        Returns:
            A run in rank order; sparse and multi-vector queries may find fewer.

        Raises:
            UserError: No query encoder, an empty query, k beyond the collection, or Qdrant does not answer.
        """
        encoder = self._encoder()
        if collection is None:
            asked = as_queries(queries)
            return self.search_vectors(encoder.encode(asked.texts, "query"), wanted_depth(k, len(self)), asked.ids)
        asked = plain_queries(queries)
        if self.kind == "multi-vector":  # its store keeps float16, the export's check float32
            vectors = encoder.encode(asked.texts, "query")
        else:
            vectors = embed(encoder.bind(collection), asked.texts, "query")
        return within(collection, self.search_vectors(vectors, cut_depth(k, len(self)), asked.ids))

    def search_vectors(self, vectors: Any, k: int | None = None, query_ids: Sequence[str] | None = None) -> Run:
        """Search by vectors that an admitted encoder made.

        Args:
            vectors: (q, encoder's dimension) float32, (q, vocabulary) CSR, or `Tokens`, by the kind of the documents.
            k: Documents per query, 1 to the number of documents; 10 by default, or all of fewer.
            query_ids: (q,) ids; "0", "1"... by default.

        Raises:
            UserError: k beyond the collection, or Qdrant refuses or does not answer.
        """
        k = wanted_depth(k, len(self))
        answers = self.there.ask(self.kind, self._cut(vectors), k, quantized=self.quantized)
        if self.space.similarity == "meanmaxsim":
            answers = [
                [(document, score / length) for document, score in found]
                for found, length in zip(answers, vectors.lengths, strict=True)
            ]
        names = list(query_ids) if query_ids is not None else [str(number) for number in range(len(answers))]
        rows = [
            (query, document, score) for query, found in zip(names, answers, strict=True) for document, score in found
        ]
        queries, documents, scores = zip(*rows, strict=True) if rows else ((), (), ())
        return Run.from_arrays(list(queries), list(documents), list(scores), name=self.name).ranked()

    def query_fn(self, collection: Collection, k: int) -> Callable[[str], Any]:
        """Encodes one query and asks Qdrant."""
        k, encoder = min(k, len(self)), self._encoder()

        def respond(text: str) -> Any:
            return self.there.ask(self.kind, self._cut(encoder.encode([text], "query")), k, quantized=self.quantized)

        return respond

    def bytes_per_document(self, collection: Collection | None = None) -> float | None:
        """Unknown: what a server keeps in memory and on disk is its own affair, and it does not say."""
        return None

    def close(self) -> None:
        """Let go of the folder, which one process holds at a time, or of the connection."""
        self.there.client.close()

    def __enter__(self) -> QdrantIndex:
        return self

    def __exit__(self, *error: object) -> None:
        self.close()

    def _encoder(self) -> Any:
        if self.queries is None:
            raise UserError("this index has no query encoder; give one, or search by vectors.")
        return self.queries

    def _cut(self, vectors: Any) -> Any:
        if self.kind != "dense":
            return vectors
        return leading(vectors, self.space.truncation, unit=self.space.norm == "unit")


def load_qdrant(address: str, queries: Any = None) -> QdrantIndex:
    """Open a collection that was exported to Qdrant.

    Args:
        address: ``qdrant:FOLDER#NAME`` or ``qdrant:http://HOST:6333#NAME``; ``#NAME`` may be left out where there is
            one collection. A folder is read with pickle by qdrant-client: open only those that you trust.
        queries: Name or object of the query encoder; by default the one that the index was exported with.

    Raises:
        UserError: The package, the folder, the server or the collection is missing; or as `QdrantIndex`.
    """
    where = Address.parse(address)
    client = connect(where.place)
    try:
        index = QdrantIndex(QdrantCollection.find(client, where.name, where.place), queries)
    except BaseException:
        client.close()
        raise
    weakref.finalize(index, client.close)  # left to itself, a client closes too late and complains
    return index
