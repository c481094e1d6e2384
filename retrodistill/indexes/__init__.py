"""Indexes: plain FAISS files and others of one protocol, that know which encoder each side needs."""

from retrodistill.indexes.asymmetric import AsymmetricIndex
from retrodistill.indexes.building import FaissSettings, build_index, load_index
from retrodistill.indexes.impacts import InvertedSettings
from retrodistill.indexes.inverted import InvertedIndex
from retrodistill.indexes.multi_vector import MultiVectorIndex, MultiVectorSettings
from retrodistill.indexes.protocol import Index
from retrodistill.models.contract import Space

__all__ = [
    "AsymmetricIndex",
    "FaissSettings",
    "Index",
    "InvertedIndex",
    "InvertedSettings",
    "MultiVectorIndex",
    "MultiVectorSettings",
    "Space",
    "build_index",
    "load_index",
]
