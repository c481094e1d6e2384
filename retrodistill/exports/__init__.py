"""Exports: an index' documents, whole and checked, in a Qdrant collection or in Parquet files."""

from retrodistill.exports.parquet import ParquetReport, ParquetSettings, export_parquet
from retrodistill.exports.qdrant import QdrantReport, QdrantSettings, export_qdrant
from retrodistill.exports.qdrant_index import QdrantIndex, load_qdrant
from retrodistill.exports.records import Exportable, Tokens, dense_records, multi_vector_records, sparse_records
from retrodistill.exports.sources import exportable

__all__ = [
    "Exportable",
    "ParquetReport",
    "ParquetSettings",
    "QdrantIndex",
    "QdrantReport",
    "QdrantSettings",
    "Tokens",
    "dense_records",
    "export_parquet",
    "export_qdrant",
    "exportable",
    "load_qdrant",
    "multi_vector_records",
    "sparse_records",
]
