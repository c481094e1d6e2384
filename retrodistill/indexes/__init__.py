"""Indexes: plain FAISS files and others of one protocol, that know which encoder each side needs."""

from retrodistill.indexes.asymmetric import AsymmetricIndex
from retrodistill.indexes.building import build_index, load_index
from retrodistill.indexes.protocol import Index
from retrodistill.models.contract import Space

__all__ = ["AsymmetricIndex", "Index", "Space", "build_index", "load_index"]
