"""Encoders: names, loading, the contract of a space, the embedding store."""

from retrodistill.encoders.encoder import Encoder, load_encoder
from retrodistill.encoders.names import KINDS, ModelName, parse_model_name

__all__ = ["KINDS", "Encoder", "ModelName", "load_encoder", "parse_model_name"]
