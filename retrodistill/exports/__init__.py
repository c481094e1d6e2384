"""Exports: an index's documents, complete and verified, in a vector store, a search engine, or files."""

from retrodistill.exports.exporting import ExportReport, export_index
from retrodistill.exports.index import StoreIndex, load_store
from retrodistill.exports.protocol import StoreSettings, VectorStore, open_store
from retrodistill.exports.records import Records, records_from, vector_records

__all__ = [
    "ExportReport",
    "Records",
    "StoreIndex",
    "StoreSettings",
    "VectorStore",
    "export_index",
    "load_store",
    "open_store",
    "records_from",
    "vector_records",
]
