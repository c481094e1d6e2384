"""Quantizers: product quantizers learned by distillation, exported as plain FAISS indexes."""

from retrodistill.quantizers.export import to_faiss
from retrodistill.quantizers.learning import Learned, Point, learn_quantizer
from retrodistill.quantizers.settings import QuantizerSettings
from retrodistill.quantizers.start import Codes, factory_for, read_index, start_index
from retrodistill.quantizers.targets import run_teacher

__all__ = [
    "Codes",
    "Learned",
    "Point",
    "QuantizerSettings",
    "factory_for",
    "learn_quantizer",
    "read_index",
    "run_teacher",
    "start_index",
    "to_faiss",
]
