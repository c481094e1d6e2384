"""A kind of dense index beside FAISS: a module with a KIND, as a contributor would write it."""

from retrodistill.core.settings import Settings
from retrodistill.encoders.any_encoder import DENSE
from retrodistill.indexes.faiss_index import KIND as FAISS_KIND
from retrodistill.indexes.faiss_index import FaissIndex
from retrodistill.indexes.registry import IndexKind


class RoundedSettings(Settings):
    """No options of its own."""


class RoundedIndex(FaissIndex):
    index_kind = "rounded"


def _build(collection, documents, queries, settings, name):
    index = FAISS_KIND.build(collection, documents, queries, FAISS_KIND.settings(factory="SQ8"), name)
    index.__class__ = RoundedIndex
    return index


KIND = IndexKind("rounded", DENSE, RoundedSettings, _build, RoundedIndex.load)
