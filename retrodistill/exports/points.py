"""Documents and queries in Qdrant's words."""

from __future__ import annotations

from typing import Any, Literal

import numpy as np
from scipy.sparse import csr_array

from retrodistill.core.errors import UserError, unknown
from retrodistill.encoders.contract import EmbeddingSpace
from retrodistill.encoders.multi_vector import Tokens
from retrodistill.exports.connection import library
from retrodistill.exports.records import KINDS, Kind, Vectors

Quantization = Literal["scalar", "product", "binary"]
QUANTIZATIONS = ("scalar", "product", "binary")


def vectors_of(kind: Kind, vectors: Vectors) -> list[Any]:
    """Each row as Qdrant takes it; None for one without any entry or token, which Qdrant does not hold."""
    if isinstance(vectors, Tokens):
        return [vectors[text].tolist() or None for text in range(len(vectors))]
    if isinstance(vectors, np.ndarray):
        return vectors.tolist()
    models = library().models
    found: list[Any] = []
    for row in range(vectors.shape[0]):
        held = slice(vectors.indptr[row], vectors.indptr[row + 1])
        entries = models.SparseVector(indices=vectors.indices[held].tolist(), values=vectors.data[held].tolist())
        found.append(entries if entries.indices else None)
    return found


def distance_between(kind: Kind, stored: Any, vectors: Vectors) -> float:
    """Largest difference between a vector that Qdrant holds and the one row that it should be; inf for another shape.

    Args:
        kind: Of the vectors.
        stored: What Qdrant returned; None for no vector.
        vectors: One document, as the source has it.
    """
    wanted = vectors_of(kind, vectors)[0]
    if stored is None or wanted is None:
        return 0.0 if stored is None and wanted is None else float("inf")
    if kind == "sparse":
        width = (1, 1 + max([*stored.indices, *wanted.indices]))
        stored, wanted = (
            csr_array((one.values, ([0] * len(one.indices), one.indices)), shape=width) for one in (stored, wanted)
        )
        return float(np.abs((stored - wanted).data).max(initial=0.0))
    left, right = np.asarray(stored, dtype=np.float64), np.asarray(wanted, dtype=np.float64)
    return float(np.abs(left - right).max(initial=0.0)) if left.shape == right.shape else float("inf")


def collection_config(kind: Kind, space: EmbeddingSpace, quantization: Quantization | None) -> dict[str, Any]:
    """Arguments of `QdrantClient.create_collection` that say what a vector is; the vector's name is its kind.

    Unit vectors are compared by cosine, so that clients which give other queries see cosines; all else by inner
    product. MaxSim is Qdrant's multivector comparator over inner products.

    Raises:
        UserError: An unknown kind or quantization, or a quantization of sparse vectors, which Qdrant has none for.
    """
    models = library().models
    if kind not in KINDS:
        raise unknown("kind of vectors", kind, KINDS)
    if kind == "sparse":
        if quantization is not None:
            raise UserError(f"quantization {quantization!r}: Qdrant quantizes no sparse vectors; leave it out.")
        return {"vectors_config": {}, "sparse_vectors_config": {kind: models.SparseVectorParams()}}
    unit = kind == "dense" and space.norm == "unit"
    parameters = models.VectorParams(
        size=space.dimension,
        distance=models.Distance.COSINE if unit else models.Distance.DOT,
        quantization_config=_quantization(quantization),
        multivector_config=(
            models.MultiVectorConfig(comparator=models.MultiVectorComparator.MAX_SIM)
            if kind == "multi-vector"
            else None
        ),
    )
    return {"vectors_config": {kind: parameters}}


def search_parameters() -> Any:
    """Of a search among codes: twice as many documents as wanted are found by them, and ranked by their vectors."""
    models = library().models
    return models.SearchParams(quantization=models.QuantizationSearchParams(rescore=True, oversampling=2.0))


def _quantization(name: str | None) -> Any:
    """One byte a number, one byte for four float32 numbers' worth (x16), or one bit a number; codes stay in memory."""
    models = library().models
    if name is None:
        return None
    if name == "scalar":
        scalar = models.ScalarQuantizationConfig(type=models.ScalarType.INT8, quantile=0.99, always_ram=True)
        return models.ScalarQuantization(scalar=scalar)
    if name == "product":
        product = models.ProductQuantizationConfig(compression=models.CompressionRatio.X16, always_ram=True)
        return models.ProductQuantization(product=product)
    if name == "binary":
        return models.BinaryQuantization(binary=models.BinaryQuantizationConfig(always_ram=True))
    raise unknown("quantization", name, QUANTIZATIONS)
