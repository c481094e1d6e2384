"""Models: names, loading, encoders and their contract, the embedding store, BM25, retrievers."""

from retrodistill.models.encoder import Encoder, load_encoder
from retrodistill.models.names import KINDS, ModelName, parse_model_name
from retrodistill.models.retrievers import Retriever, load_retriever

__all__ = ["KINDS", "Encoder", "ModelName", "Retriever", "load_encoder", "load_retriever", "parse_model_name"]
