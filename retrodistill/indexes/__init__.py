"""Indexes: plain FAISS files and others of one protocol, that know which encoder each side needs."""

from retrodistill.encoders.space import EmbeddingSpace
from retrodistill.indexes.base import Index
from retrodistill.indexes.faiss_index import FaissIndex, FaissSettings
from retrodistill.indexes.inverted import InvertedIndex, InvertedSettings
from retrodistill.indexes.multi_vector import MultiVectorIndex, MultiVectorSettings
from retrodistill.indexes.registry import IndexOptions, build_index, load_index

__all__ = [
    "EmbeddingSpace",
    "FaissIndex",
    "FaissSettings",
    "Index",
    "IndexOptions",
    "InvertedIndex",
    "InvertedSettings",
    "MultiVectorIndex",
    "MultiVectorSettings",
    "build_index",
    "load_index",
]
