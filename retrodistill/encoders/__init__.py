"""Encoders: names, loading, the contract of a space, the stores of vectors."""

from retrodistill.encoders.any_encoder import load_encoder
from retrodistill.encoders.encoder import Encoder
from retrodistill.encoders.names import KINDS, ModelName, parse_model_name

__all__ = ["KINDS", "Encoder", "ModelName", "load_encoder", "parse_model_name"]
