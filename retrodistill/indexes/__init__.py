"""Indexes: plain FAISS files that know which encoder each side needs."""

from retrodistill.indexes.asymmetric import AsymmetricIndex, Space, build_index

__all__ = ["AsymmetricIndex", "Space", "build_index"]
