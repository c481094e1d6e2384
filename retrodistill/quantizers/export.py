"""Learned parts written back into a plain FAISS index."""

from __future__ import annotations

from typing import Any

import numpy as np

from retrodistill.quantizers.start import Codes


def to_faiss(codes: Codes) -> Any:
    """Build the index that holds these parts and codes; any FAISS program loads it, no code of ours is needed.

    Documents keep the codes they have here, whether or not FAISS would have chosen them; documents added later get the
    nearest codewords (and with lists, the list of highest inner product).

    Returns:
        ``IndexPQ`` or ``IndexIVFPQ``, inside an ``IndexPreTransform`` where there is a rotation; inner product.
    """
    import faiss

    subspaces, width = codes.codes.shape[1], codes.rotation.shape[0]
    inner: Any
    if codes.centroids is None:
        inner = faiss.IndexPQ(width, subspaces, codes.bits, faiss.METRIC_INNER_PRODUCT)
    else:
        coarse: Any = faiss.IndexFlatIP(width)
        coarse.add(_float32(codes.centroids))
        inner = faiss.IndexIVFPQ(coarse, width, len(codes.centroids), subspaces, codes.bits, faiss.METRIC_INNER_PRODUCT)
        coarse.this.disown()
        inner.own_fields = True
    faiss.copy_array_to_vector(_float32(codes.codebooks).ravel(), inner.pq.centroids)
    inner.is_trained = True
    _fill(inner, codes)
    if not codes.rotated:
        return inner
    rotation: Any = faiss.LinearTransform(codes.rotation.shape[1], width, False)
    faiss.copy_array_to_vector(_float32(codes.rotation).ravel(), rotation.A)
    rotation.is_trained = True
    rotation.set_is_orthonormal()
    index = faiss.IndexPreTransform(rotation, inner)
    rotation.this.disown()
    inner.this.disown()
    index.own_fields = True
    return index


def _fill(inner: Any, codes: Codes) -> None:
    """Put the documents in, as the standalone codes of FAISS: the list's number, then the packed codewords."""
    import faiss

    packed = faiss.pack_bitstrings(codes.codes.astype(np.int32), codes.bits)
    if codes.lists is not None:
        size = inner.coarse_code_size()
        numbers = codes.lists.astype("<i8").view(np.uint8).reshape(-1, 8)[:, :size]
        packed = np.concatenate([numbers, packed], axis=1)
    packed = np.ascontiguousarray(packed)
    inner.add_sa_codes(packed)


def _float32(values: np.ndarray) -> np.ndarray:
    return np.ascontiguousarray(values, dtype=np.float32)
