"""Quantisers: product quantisers learned by distillation, exported as plain FAISS indexes."""

from retrodistill.quantisers.export import to_faiss
from retrodistill.quantisers.learning import Learned, Point, learn_quantiser
from retrodistill.quantisers.settings import QuantiserSettings
from retrodistill.quantisers.start import Codes, factory_for, read_index, start_index
from retrodistill.quantisers.targets import run_teacher

__all__ = [
    "Codes",
    "Learned",
    "Point",
    "QuantiserSettings",
    "factory_for",
    "learn_quantiser",
    "read_index",
    "run_teacher",
    "start_index",
    "to_faiss",
]
