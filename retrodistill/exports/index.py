"""An exported store as a ranker: searched as any other index is."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import replace
from typing import Any

import pyarrow as pa

from retrodistill.core.errors import UserError, sample_of
from retrodistill.data.collection import Collection
from retrodistill.data.filters import Filter, Filtering, parse_filter
from retrodistill.data.parents import PassageSettings
from retrodistill.encoders.any_encoder import DENSE, MULTI_VECTOR, SPARSE, load_encoder
from retrodistill.encoders.names import found_from
from retrodistill.encoders.space import EmbeddingSpace
from retrodistill.encoders.vectors import leading
from retrodistill.exports.protocol import VectorStore, open_store
from retrodistill.exports.records import run_of
from retrodistill.indexes.base import Index
from retrodistill.rankers.protocol import wanted_depth
from retrodistill.runs.run import Run

_ENCODERS = {"dense": DENSE, "sparse": SPARSE, "multi-vector": MULTI_VECTOR}


class StoreIndex(Index):
    """Documents in a store that an export filled and verified, and a query encoder that their space admits.

    Raises:
        UserError: The export is not retrodistill's or not complete, or the query encoder belongs to another space.
    """

    index_kind = "store"

    def __init__(self, store: VectorStore, queries: Any = None) -> None:
        manifest, address = store.manifest(), store.address
        if manifest is None:
            raise UserError(f"{address} was not exported by retrodistill; it does not say which queries belong to it.")
        self._manifest_about = about = manifest.about
        self.store = store
        if not about["is_complete"]:
            raise UserError(
                f"{address} holds {store.count()} of {about['documents']} documents and is not verified: its "
                "export was interrupted or failed; run the same export again to continue it."
            )
        self.vector_kind: str = manifest.settings["kind"]
        self.encoder_kinds = _ENCODERS[self.vector_kind]
        space = EmbeddingSpace.from_json(about["space"])
        source = about["queries_by"] if queries is None else queries
        if store.root is not None:
            space = replace(space, documents_by=found_from(space.documents_by, store.root) or "")
            source = found_from(source, store.root) if queries is None else source
        encoder = None if source is None else load_encoder(source, self.encoder_kinds)
        self.space = space
        super().__init__([], self.space, encoder, about["name"], None)

    def __len__(self) -> int:
        return self.store.count()

    @property
    def rule(self) -> PassageSettings | None:
        """As `Index.rule`."""
        return PassageSettings.of(self._manifest_about["passages"]) if "passages" in self._manifest_about else None

    @property
    def size(self) -> int:
        """As `Index.size`."""
        return int(self._manifest_about["parents"]) if "passages" in self._manifest_about else len(self)

    @property
    def schema(self) -> pa.Schema:
        """As `Index.schema`, of the payload."""
        return self.store.schema()

    def fields_of(self, ids: Sequence[str]) -> list[dict[str, Any]]:
        """As `Index.fields_of`, from the payload; of passages by their own ids."""
        found = self.store.payloads(ids)
        if strange := [id_ for id_ in ids if id_ not in found]:
            raise UserError(f"{sample_of(strange)}: not in {self.store.address}.")
        return [found[id_] for id_ in ids]

    def search_vectors(
        self,
        vectors: Any,
        k: int | None = None,
        query_ids: Sequence[str] | None = None,
        filter: Filtering | None = None,
        *,
        aggregate: str | None = None,
    ) -> Run:
        """As `Index.search_vectors`; sparse and multi-vector queries may find fewer than k.

        A store does not know how many passages a document has, which ``mean@n`` needs.
        """
        parsed = self._passing(filter)
        k, vectors = wanted_depth(k, self.size), self._prepare(vectors, "queries")
        return self._answer(lambda depth: self._found(vectors, query_ids, depth, parsed), k, aggregate)

    def _passing(self, filter: Filtering | None) -> Filter | None:
        """The filter itself, which the store applies."""
        return None if filter is None else parse_filter(filter, self.schema)

    def _found(self, vectors: Any, query_ids: Sequence[str] | None, k: int, passing: Filter | None = None) -> Run:
        answers = self.store.best(vectors, k, passing)
        if self.space.similarity == "meanmaxsim":
            per_query = zip(answers, vectors.lengths.tolist(), strict=True)
            answers = [[(document, score / length) for document, score in pairs] for pairs, length in per_query]
        return run_of(answers, query_ids, self.name)

    def timed_stages(self, collection: Collection, k: int) -> tuple[Callable[[list[str]], Any], Callable[[Any], Any]]:
        """Encoding of queries, and search in the store."""
        encode, k = super().timed_stages(collection, k)[0], min(k, self.size)
        if self.rule is None:
            return encode, lambda vectors: self.store.best(vectors, k)
        return encode, lambda vectors: self._answer(lambda depth: self._found(vectors, None, depth), k)

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

    def _held(self) -> tuple[int, int]:
        return 0, self.space.dimension  # documents and ids are in the store, not here

    def _settings(self) -> dict[str, Any]:
        return {"store": self.store.address}

    def _encode_queries(self, texts: Sequence[str], collection: Collection | None) -> Any:
        # The store of token vectors keeps float16, exported ones may be float32: encode them again.
        return super()._encode_queries(texts, None if self.vector_kind == "multi-vector" else collection)

    def _prepare(self, vectors: Any, what: str) -> Any:
        if self.vector_kind != "dense":
            return vectors
        return leading(vectors, self.space.truncation, unit=self.space.norm == "unit")

    def _check_changeable(self) -> None:
        raise UserError(f"{self.store.address} is an exported store; change its index and export that again.")


def load_store(address: str, queries: Any = None) -> StoreIndex:
    """Open an exported store as an index.

    Args:
        address: ``qdrant:FOLDER#NAME``, ``qdrant:http://HOST:6333#NAME``, ``elasticsearch:http://HOST:9200#NAME``,
            ``lancedb:FOLDER#NAME``, ``parquet:FOLDER``... ``#NAME`` may be left out where there is one collection,
            index, or table.
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
