"""Indexes: plain FAISS files and others of one protocol, that know which encoder each side needs."""

from retrodistill.encoders.contract import Space
from retrodistill.indexes.building import FaissSettings, build_index, load_index
from retrodistill.indexes.faiss_index import AsymmetricIndex
from retrodistill.indexes.impacts import InvertedSettings
from retrodistill.indexes.inverted import InvertedIndex
from retrodistill.indexes.multi_vector import MultiVectorIndex, MultiVectorSettings
from retrodistill.indexes.protocol import Index

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
