"""Token tables of a few megabytes: fewer dimensions with a map back to the documents' width, and rows in int8.

Both are ordinary modules and files of sentence-transformers: the map is a `Dense`, and int8 rows with their scales are
the form of model2vec's quantized tables, which `StaticEmbedding` reads and multiplies when it loads.
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any, Literal

import numpy as np
import torch
from safetensors.torch import load_file, save_file
from sentence_transformers import SentenceTransformer
from sentence_transformers.base.modules import Dense
from sentence_transformers.sentence_transformer.modules import StaticEmbedding

from retrodistill.core.errors import UserError
from retrodistill.data.texts import spread
from retrodistill.encoders.contract import Role
from retrodistill.encoders.encoder import Encoder
from retrodistill.encoders.modules import with_modules

TablePrecision = Literal["float32", "int8"]
_LARGEST_CODE = 127
_FITTED = 50_000  # texts of each role whose vectors choose the dimensions


def reduce_dimension(
    model: SentenceTransformer,
    dimension: float,
    documents: Sequence[str],
    queries: Sequence[str],
    name: str = "this model",
) -> SentenceTransformer:
    """A token table of fewer dimensions, then a linear map to its width: vectors stay in their space.

    The dimensions are the principal ones of the vectors of texts, of which documents and queries count alike. They keep
    more of a ranking than those of the rows, however these are weighted. Nothing is subtracted first, so that a text
    without tokens keeps its vector of zeros: the first dimension takes the mean's place.

    Args:
        model: `StaticEmbedding`, then at most `Normalize`.
        dimension: Number of dimensions, less than the table's; or the share of the vectors' squared length that they
            keep, between 0 and 1.
        documents: Texts to fit to, of which at most 50,000 are read.
        queries: The same. One of both may be empty.
        name: Of the model, in errors.

    Raises:
        UserError: The model has other modules, or not that many dimensions.
    """
    table: Any
    table, *others = model
    if type(table).__name__ != "StaticEmbedding" or {type(module).__name__ for module in others} - {"Normalize"}:
        raise UserError(f"{name} is not a plain token table, whose dimension could be reduced; leave dimension out.")
    width = table.embedding.weight.shape[1]
    if dimension >= width:
        raise UserError(f"dimension={dimension}: the table of {name} has {width}; choose 1 to {width - 1}.")
    values, directions = np.linalg.eigh(_moment(model, documents, "document") + _moment(model, queries, "query"))
    values, directions = values[::-1].clip(min=0), directions[:, ::-1]
    if dimension < 1:
        kept = np.cumsum(values) / max(float(values.sum()), np.finfo(np.float64).tiny)
        dimension = min(int(np.searchsorted(kept, dimension)) + 1, width - 1)
    few = int(dimension)
    basis = torch.from_numpy(directions[:, :few].astype(np.float32))
    rows = table.embedding.weight.detach().cpu() @ basis
    back = Dense(few, width, bias=False, activation_function=torch.nn.Identity(), init_weight=basis)
    reduced: SentenceTransformer = with_modules(
        model, [StaticEmbedding(table.tokenizer, embedding_weights=rows), back, *others]
    )
    return reduced


def _moment(model: SentenceTransformer, texts: Sequence[str], role: Role) -> np.ndarray:
    """(d, d) mean outer product of the vectors of texts; 0 without texts."""
    some = spread(texts, _FITTED)
    vectors = Encoder(model, "table").encode(some, role).astype(np.float64)
    return vectors.T @ vectors / max(len(some), 1)


def quantized(rows: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """(n, d) int8 codes, and (n,) float32 scales by which they are multiplied: each row's largest number is ±127."""
    scales = np.abs(rows).max(axis=1).astype(np.float32) / _LARGEST_CODE
    codes = np.rint(rows / np.where(scales > 0, scales, 1)[:, None])
    return codes.astype(np.int8), scales


def store_rows(folder: Path) -> None:
    """Rewrite the token table in a saved model's folder in int8; it loads as float32.

    The keys are model2vec's: ``embeddings``, and ``weights`` by which rows are multiplied. Versions of the library that
    do not know ``weights``, before 6.2, refuse int8 rows. They would read rows in float16, which are not offered.
    """
    for file in folder.glob("*StaticEmbedding/model.safetensors"):
        codes, scales = (torch.from_numpy(part) for part in quantized(load_file(file)["embedding.weight"].numpy()))
        save_file({"embeddings": codes, "weights": scales}, file)
