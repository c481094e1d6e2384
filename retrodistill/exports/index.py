"""An exported store as a ranker: searched as any other index is."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

from retrodistill.core.errors import UserError
from retrodistill.data.collection import Collection
from retrodistill.encoders.any_encoder import DENSE, MULTI_VECTOR, SPARSE, load_encoder
from retrodistill.encoders.contract import EmbeddingSpace
from retrodistill.encoders.embeddings import embed
from retrodistill.encoders.vectors import leading
from retrodistill.exports.protocol import Filter, VectorStore, open_store
from retrodistill.rankers.protocol import Queries, Ranker, as_queries, cut_depth, plain_queries, wanted_depth, within
from retrodistill.runs.run import Run

_ENCODERS = {"dense": DENSE, "sparse": SPARSE, "multi-vector": MULTI_VECTOR}


class StoreIndex(Ranker):
    """Documents in a store and an encoder of queries that their space admits.

    Args:
        store: A store that an export filled to its end.
        queries: Name or object of the query encoder; by default the one that the index was exported with.

    Raises:
        UserError: The store was not exported by retrodistill or not to its end, or the query encoder belongs to another
            space.
    """

    can_search = True

    def __init__(self, store: VectorStore, queries: Any = None) -> None:
        manifest = store.manifest()
        if manifest is None:
            raise UserError(
                f"{store.address} was not exported by retrodistill; it does not say which queries belong to it."
            )
        about = manifest.about
        if not store.is_complete():
            raise UserError(
                f"{store.address} holds {store.count()} of {about['documents']} documents and is not verified: its "
                "export was interrupted or failed; run the same export again to continue it."
            )
        self.store = store
        self.vectors: str = manifest.settings["kind"]
        self.space = EmbeddingSpace.from_json(about["space"])
        self.name: str = about["name"]
        by = about["queries_by"] if queries is None else queries
        self.queries = None if by is None else load_encoder(by, _ENCODERS[self.vectors])
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
        by = "no query encoder" if self.queries is None else f"queries by {self.queries.name}"
        return f"StoreIndex({len(self)} documents by {self.space.documents_by}, {by}, {self.store.address})"

    def __len__(self) -> int:
        return self.store.count()

    def search(self, queries: Queries, collection: Collection | None = None, k: int | None = None) -> Run:
        """Search by text.

        Args:
            queries: One text, several (their ids are "0", "1"...), or queries with ids: a mapping of them, or `Texts`.
            collection: The documents' collection, if there is one. Then k is cut to the size of the index, stored
                query vectors are used, and documents that the collection lacks are refused.
            k: Documents per query, 1 to the number of documents; 10 by default, or all of fewer.

        Returns:
            A run in rank order; sparse and multi-vector queries may find fewer.

        Raises:
            UserError: No query encoder, an empty query, k beyond the number of documents, or the store does not answer.
        """
        encoder = self._encoder()
        if collection is None:
            texts = as_queries(queries)
            return self.search_vectors(encoder.encode(texts.texts, "query"), wanted_depth(k, len(self)), texts.ids)
        texts = plain_queries(queries)
        if self.vectors == "multi-vector":  # stored token vectors are float16; the exported ones may be float32
            vectors = encoder.encode(texts.texts, "query")
        else:
            vectors = embed(encoder.bind(collection), texts.texts, "query")
        return within(collection, self.search_vectors(vectors, cut_depth(k, len(self)), texts.ids))

    def search_vectors(
        self,
        vectors: Any,
        k: int | None = None,
        query_ids: Sequence[str] | None = None,
        filter: Filter | None = None,
    ) -> Run:
        """Search by vectors that an admitted encoder made.

        Args:
            vectors: (q, encoder's dimension) float32, (q, vocabulary) CSR, or `Tokens`, by the kind of the documents.
            k: Documents per query, 1 to the number of documents; 10 by default, or all of fewer.
            query_ids: (q,) ids; "0", "1"... by default.
            filter: Only documents whose payload has one of these values, e.g. ``{"title": ["Anemia"]}``.

        Raises:
            UserError: k beyond the number of documents, or the store refuses or does not answer.
        """
        k = wanted_depth(k, len(self))
        run = self.store.search(self._cut(vectors), k, filter, query_ids=query_ids).renamed(self.name)
        if self.space.similarity != "meanmaxsim":
            return run
        ids = list(query_ids) if query_ids is not None else [str(number) for number in range(len(vectors))]
        lengths = dict(zip(ids, vectors.lengths.tolist(), strict=True))
        per_query = [lengths[query] for query in run.query_ids]
        return run.with_scores(run.scores / [per_query[code] for code in run.query_codes])

    def query_fn(self, collection: Collection, k: int) -> Callable[[str], Run]:
        """Encodes one query and searches the store."""
        k, encoder = min(k, len(self)), self._encoder()
        return lambda text: self.store.search(self._cut(encoder.encode([text], "query")), k)

    def bytes_per_document(self, collection: Collection | None = None) -> float | None:
        """Unknown: a server does not say what it keeps in memory and on disk."""
        return None

    def close(self) -> None:
        """Release the folder, which one process holds at a time, or the connection."""
        self.store.close()

    def __enter__(self) -> StoreIndex:
        return self

    def __exit__(self, *error: object) -> None:
        self.close()

    def _encoder(self) -> Any:
        if self.queries is None:
            raise UserError("this index has no query encoder; give one, or search by vectors.")
        return self.queries

    def _cut(self, vectors: Any) -> Any:
        if self.vectors != "dense":
            return vectors
        return leading(vectors, self.space.truncation, unit=self.space.norm == "unit")


def load_store(address: str, queries: Any = None) -> StoreIndex:
    """Open an exported store as an index.

    Args:
        address: ``qdrant:FOLDER#NAME``, ``qdrant:http://HOST:6333#NAME`` or ``parquet:FOLDER``. ``#NAME`` may be left
            out where there is one collection. A Qdrant folder is read with pickle by qdrant-client: open only those
            that you trust.
        queries: Name or object of the query encoder; by default the one that the index was exported with.

    Raises:
        UserError: A package, the place or the collection is missing; or as `StoreIndex`.
    """
    store = open_store(address)
    try:
        return StoreIndex(store, queries)
    except BaseException:
        store.close()
        raise
