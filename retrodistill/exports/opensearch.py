"""OpenSearch: ``opensearch:http://HOST:9200#INDEX``, or a folder of bulk files, ``opensearch:FOLDER``."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, ClassVar, Literal

from retrodistill.core.errors import UserError
from retrodistill.exports.records import Records
from retrodistill.exports.search_engines.layout import VECTOR, Dialect, SearchEngineSettings
from retrodistill.exports.search_engines.rest import Login
from retrodistill.exports.search_engines.store import SearchEngineStore

_OLDEST = (2, 16)  # ef_search of a query


class OpenSearchSettings(SearchEngineSettings):
    """How an index is exported to OpenSearch."""

    engine: Literal["faiss", "lucene"] = "faiss"
    """The library that builds and searches HNSW graphs of dense vectors."""


class _OpenSearch(Dialect):
    prefix, name, dimensions = "opensearch", "OpenSearch", 16_000

    def login(self) -> Login:
        return Login.of_environment("OPENSEARCH_USER", "OPENSEARCH_PASSWORD")

    def check_server(self, about: Mapping[str, Any], place: str) -> None:
        version = about.get("version") or {}
        if version and version.get("distribution") != "opensearch":
            raise UserError(f"{place} is an Elasticsearch; write 'elasticsearch:' in place of 'opensearch:'.")
        self.check_version(version, place, _OLDEST)

    def check(self, spec: Records, settings: OpenSearchSettings) -> None:
        """It takes whatever both take."""

    def decisive(self, settings: OpenSearchSettings) -> dict[str, Any]:
        return {"engine": settings.engine}

    def index_settings(self, kind: str) -> dict[str, Any]:
        return {"knn": True} if kind == "dense" else {}

    def vector_mapping(self, kind: str, dimension: int, settings: OpenSearchSettings) -> dict[str, Any]:
        if kind == "sparse":
            return {"type": "rank_features"}
        method = {
            "name": "hnsw",
            "engine": settings.engine,
            "space_type": "innerproduct",
            "parameters": {"m": settings.m, "ef_construction": settings.ef_construction},
        }
        return {"type": "knn_vector", "dimension": dimension, "method": method}

    def tuning(self, settings: OpenSearchSettings) -> dict[str, Any]:
        return {"candidates": settings.candidates}

    def dense_search(self, vector: list[float], k: int, passing: Any, tuning: Mapping[str, Any]) -> dict[str, Any]:
        knn: dict[str, Any] = {"vector": vector, "k": k}
        knn["method_parameters"] = {"ef_search": max(k, tuning["candidates"])}
        if passing is not None:
            knn["filter"] = passing
        return {"query": {"knn": {VECTOR: knn}}}

    def sparse_query(self, weights: dict[str, float]) -> dict[str, Any]:
        return {"neural_sparse": {VECTOR: {"query_tokens": weights}}}

    def min_agreement(self, settings: Mapping[str, Any], wanted: float) -> float:
        return wanted

    def reading(self) -> dict[str, Any]:
        return {"_source": [VECTOR]}

    def read(self, hit: Mapping[str, Any]) -> Any:
        return hit.get("_source", {}).get(VECTOR)


class OpenSearchStore(SearchEngineStore):
    """An index in OpenSearch."""

    options = OpenSearchSettings
    dialect: ClassVar[Dialect] = _OpenSearch()


STORE = OpenSearchStore
