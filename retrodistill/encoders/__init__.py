"""Encoders: names, loading, the contract of a space, the stores of vectors."""

from retrodistill.core.engines import engine
from retrodistill.encoders.any_encoder import load_encoder
from retrodistill.encoders.contract import encode_with
from retrodistill.encoders.encoder import Encoder
from retrodistill.encoders.names import KINDS, ModelName, parse_model_name
from retrodistill.encoders.remote_code import trust_remote_code

__all__ = [
    "KINDS",
    "Encoder",
    "ModelName",
    "encode_with",
    "engine",
    "load_encoder",
    "parse_model_name",
    "trust_remote_code",
]
