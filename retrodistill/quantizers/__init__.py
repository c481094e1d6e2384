"""Product quantizers learned by distillation, as plain FAISS indexes."""

from retrodistill.quantizers.codes import Codes, factory_for, read_index, start_index, to_faiss
from retrodistill.quantizers.learning import Learned, Point, learn_quantizer
from retrodistill.quantizers.settings import QuantizerSettings

__all__ = [
    "Codes",
    "Learned",
    "Point",
    "QuantizerSettings",
    "factory_for",
    "learn_quantizer",
    "read_index",
    "start_index",
    "to_faiss",
]
