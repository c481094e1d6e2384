"""Indexes: plain FAISS files and others of one protocol, that know which encoder each side needs."""

from retrodistill.encoders.contract import EmbeddingSpace
from retrodistill.indexes.building import build_index, load_index
from retrodistill.indexes.dense import FaissSettings
from retrodistill.indexes.faiss_index import FaissIndex
from retrodistill.indexes.impacts import InvertedSettings
from retrodistill.indexes.inverted import InvertedIndex
from retrodistill.indexes.multi_vector import MultiVectorIndex, MultiVectorSettings
from retrodistill.indexes.protocol import Index
from retrodistill.indexes.registry import IndexOptions

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
