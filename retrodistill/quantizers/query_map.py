"""The query side: a learned linear map as a module of the encoder, and documents as the codes tell them."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import numpy as np

from retrodistill.core.errors import UserError
from retrodistill.encoders.encoder import Encoder
from retrodistill.encoders.modules import with_modules
from retrodistill.quantizers.start import read_index

if TYPE_CHECKING:
    from sentence_transformers import SentenceTransformer


def query_student(encoder: Encoder, query_map: np.ndarray) -> SentenceTransformer:
    """The encoder with a learned map at its end: its queries are for the learned index, its documents are not.

    Args:
        encoder: Whose queries the map was learned on; it shares its modules with the result.
        query_map: (d, d) float32, `Learned.query_map`.

    Returns:
        A sentence-transformers model of the encoder's modules, a linear map without bias, and a normalization where
        its similarity is cosine; it saves and loads as any.

    Raises:
        UserError: A map of another width, or an encoder with towers (a Router), whose end is not one.
    """
    import torch
    from sentence_transformers.base.modules import Dense
    from sentence_transformers.sentence_transformer.modules import Normalize

    width = encoder.dimension
    if query_map.shape != (width, width):
        raise UserError(f"a query map of shape {query_map.shape} for vectors of {width} dimensions; learn it on them.")
    own = list(encoder.model)
    if any(type(module).__name__ == "Router" for module in own):
        raise UserError(f"model {encoder.name} has towers; give its query tower as a model of its own.")
    projection = Dense(width, width, bias=False, activation_function=torch.nn.Identity())
    with torch.no_grad():
        projection.linear.weight.copy_(torch.from_numpy(query_map))
    cosine = encoder.similarity == "cosine"
    # The map was learned on unit vectors: a cosine model without a last normalization gets one before it.
    before = [] if not cosine or isinstance(own[-1], Normalize) else [Normalize()]
    behind = [Normalize()] if cosine else []
    return with_modules(encoder.model, [*own, *before, projection, *behind], "SentenceTransformer")


def reconstructed(index: Any) -> np.ndarray:
    """(n, d) float32 documents as a product-quantized FAISS index tells them, in the vectors' own space.

    ``queries @ reconstructed(index).T`` are the index's scores. As the stored document vectors of a stage with
    ``train: query_encoder`` they let a query encoder be fine-tuned against the index itself: Distill-VQ's
    joint learning, with the codes kept.

    Raises:
        UserError: Not a PQ or IVF-PQ index, behind at most one linear transform.
    """
    return read_index(index).rebuilt()
