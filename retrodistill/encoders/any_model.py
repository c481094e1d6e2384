"""Load a text model of whatever kind its name says."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

from retrodistill.encoders.contract import TextModel
from retrodistill.encoders.encoder import load_encoder
from retrodistill.encoders.multi_vector import load_multi_vector_encoder
from retrodistill.encoders.names import ModelName, parse_model_name
from retrodistill.encoders.sparse import load_sparse_encoder

_LOADERS: dict[str, Callable[[Any], TextModel]] = {
    "sparse": load_sparse_encoder,
    "multi-vector": load_multi_vector_encoder,
}
_CLASSES = {"SparseEncoder": "sparse", "MultiVectorEncoder": "multi-vector"}  # of sentence-transformers


def load_text_model(source: Any) -> TextModel:
    """An encoder of texts: dense, static, recorded vectors, sparse or multi-vector.

    Args:
        source: ``kind:name``, a sentence-transformers model, or a `TextModel`, which is taken as it is.

    Raises:
        UserError: Not the name of an encoder, or not to be found.
    """
    if isinstance(source, TextModel):
        return source
    if isinstance(source, (str, Path, ModelName)):
        kind = source.kind if isinstance(source, ModelName) else parse_model_name(str(source)).kind
    else:
        kind = _CLASSES.get(type(source).__name__, "dense")
    return _LOADERS.get(kind, load_encoder)(source)
