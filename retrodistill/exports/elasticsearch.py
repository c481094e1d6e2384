"""Elasticsearch: ``elasticsearch:http://HOST:9200#INDEX``, or a folder of bulk files, ``elasticsearch:FOLDER``."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, ClassVar, Literal

from pydantic import Field

from retrodistill.core.errors import UserError
from retrodistill.exports.records import Records
from retrodistill.exports.search_engines.layout import VECTOR, Dialect, SearchEngineSettings
from retrodistill.exports.search_engines.rest import Login
from retrodistill.exports.search_engines.store import SearchEngineStore

_OLDEST = (8, 15)  # the query sparse_vector
_MOST_CANDIDATES = 10_000
_BBQ = 64  # dimensions that one bit per number needs
_LOSSY = ("int4_hnsw", "bbq_hnsw")


class ElasticsearchSettings(SearchEngineSettings):
    """How an index is exported to Elasticsearch."""

    index: Literal["hnsw", "int8_hnsw", "int4_hnsw", "bbq_hnsw", "flat"] = "hnsw"
    """How dense vectors are searched: `hnsw` (approximately), on numbers of 8 bits, 4 bits, or 1 bit (`int8_hnsw`,
    `int4_hnsw`, `bbq_hnsw`; the vectors themselves are kept), or `flat` (exactly). Less than 8 bits are not held to
    `agreement`, which is reported only."""
    oversampling: float | None = Field(default=None, ge=1, le=10)
    """How many times as many documents as wanted are found by codes and ranked by their vectors; by default the
    server's choice. Needs Elasticsearch 8.18. The index remembers it."""


class _Elasticsearch(Dialect):
    prefix, name, dimensions = "elasticsearch", "Elasticsearch", 4096

    def login(self) -> Login:
        return Login.of_environment("ELASTICSEARCH_USER", "ELASTICSEARCH_PASSWORD", "ELASTICSEARCH_API_KEY")

    def check_server(self, about: Mapping[str, Any], place: str) -> None:
        version = about.get("version") or {}
        if version.get("distribution") == "opensearch":
            raise UserError(f"{place} is an OpenSearch; write 'opensearch:' in place of 'elasticsearch:'.")
        if version.get("build_flavor") == "serverless":  # whose number says nothing
            return
        self.check_version(version, place, _OLDEST)

    def check(self, spec: Records, settings: ElasticsearchSettings) -> None:
        if spec.kind == "dense" and settings.index == "bbq_hnsw" and spec.space.dimension < _BBQ:
            raise UserError(f"bbq_hnsw needs {_BBQ} dimensions, and these vectors have {spec.space.dimension}.")
        if spec.kind == "dense" and settings.index == "int4_hnsw" and spec.space.dimension % 2:
            raise UserError(f"int4_hnsw needs an even number of dimensions, and these are {spec.space.dimension}.")

    def decisive(self, settings: ElasticsearchSettings) -> dict[str, Any]:
        return {"index": settings.index}

    def index_settings(self, kind: str) -> dict[str, Any]:
        return {}

    def vector_mapping(self, kind: str, dimension: int, settings: ElasticsearchSettings) -> dict[str, Any]:
        if kind == "sparse":
            return {"type": "sparse_vector"}
        options: dict[str, Any] = {"type": settings.index}
        if settings.index != "flat":
            options |= {"m": settings.m, "ef_construction": settings.ef_construction}
        # Not dot_product, which refuses vectors that rounding made a little longer or shorter.
        return {
            "type": "dense_vector",
            "dims": dimension,
            "index": True,
            "similarity": "max_inner_product",
            "index_options": options,
        }

    def tuning(self, settings: ElasticsearchSettings) -> dict[str, Any]:
        return {"candidates": settings.candidates, "oversampling": settings.oversampling}

    def dense_search(self, vector: list[float], k: int, passing: Any, tuning: Mapping[str, Any]) -> dict[str, Any]:
        candidates = min(max(k, tuning["candidates"]), _MOST_CANDIDATES)
        knn: dict[str, Any] = {"field": VECTOR, "query_vector": vector, "k": k, "num_candidates": candidates}
        if passing is not None:
            knn["filter"] = passing
        if tuning["oversampling"] is not None:
            knn["rescore_vector"] = {"oversample": tuning["oversampling"]}
        return {"knn": knn}

    def sparse_query(self, weights: dict[str, float]) -> dict[str, Any]:
        # Later versions leave out weak tokens unless they are told not to.
        return {"sparse_vector": {"field": VECTOR, "query_vector": weights, "prune": False}}

    def min_agreement(self, settings: Mapping[str, Any], wanted: float) -> float:
        if settings["index"] == "flat":
            return 1.0
        return 0.0 if settings["index"] in _LOSSY else wanted

    def reading(self) -> dict[str, Any]:
        # From 9.2 on, vectors are not in the source.
        return {"_source": False, "fields": [VECTOR]}

    def read(self, hit: Mapping[str, Any]) -> Any:
        held = hit.get("fields", {}).get(VECTOR)
        return held[0] if held and isinstance(held[0], dict) else held


class ElasticsearchStore(SearchEngineStore):
    """An index in Elasticsearch."""

    options = ElasticsearchSettings
    dialect: ClassVar[Dialect] = _Elasticsearch()


STORE = ElasticsearchStore
