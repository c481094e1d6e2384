"""Token vectors as the number of a centroid and a few bits of residual per dimension (ColBERTv2, arXiv 2112.01488)."""

from __future__ import annotations

from typing import Any

import numpy as np

from retrodistill.core.errors import UserError
from retrodistill.indexes.codec import Codec, unit_rows

MOST_CENTROIDS = 2**16  # their numbers take two bytes
_PER_CENTROID = 32  # token vectors that a centroid is fitted on, at least
_ROUNDS = 6  # of k-means


class ResidualCodec(Codec):
    """The number of the nearest centroid and each dimension's residual to it by a few bits (ColBERTv2, 2112.01488).

    A residual's bits say between which quantiles of its dimension it lies; it is decoded as the mean of the fitted
    residuals there.

    Args:
        centroids: (K, d) float32.
        cutoffs: (2^bits - 1, d) float32, ascending.
        values: (2^bits, d) float32 that a bucket is decoded as.
        unit: Give decoded vectors length 1.
    """

    kind = "residual"

    def __init__(self, centroids: np.ndarray, cutoffs: np.ndarray, values: np.ndarray, *, unit: bool) -> None:
        import faiss

        self.centroids, self.cutoffs, self.values, self.unit = centroids, cutoffs, values, unit
        self.bits = len(values).bit_length() - 1
        self.dimension = centroids.shape[1]
        self._width = -(-self.dimension * self.bits // 8)  # bytes of the residuals
        self.bytes_per_vector = 2 + self._width
        self._nearest = faiss.IndexFlatL2(self.dimension)
        self._nearest.add(centroids)
        self._residuals = _bucket_decoder(values, self._width)

    def arrays(self) -> dict[str, np.ndarray]:
        """See `Codec.arrays`."""
        return {"centroids": self.centroids, "cutoffs": self.cutoffs, "values": self.values}

    def encode(self, vectors: np.ndarray) -> np.ndarray:
        """See `Codec.encode`."""
        vectors = np.ascontiguousarray(vectors, dtype=np.float32)
        if not len(vectors):
            return np.zeros((0, self.bytes_per_vector), dtype=np.uint8)
        nearest = self._nearest.search(vectors, 1)[1][:, 0]
        residuals = vectors - self.centroids[nearest]
        per_byte = 8 // self.bits
        buckets = np.zeros((len(vectors), self._width * per_byte), dtype=np.uint8)
        for cutoff in self.cutoffs:
            buckets[:, : self.dimension] += residuals > cutoff
        places = (np.arange(per_byte) * self.bits).astype(np.uint8)
        packed = np.bitwise_or.reduce(buckets.reshape(len(vectors), self._width, per_byte) << places, axis=2)
        return np.concatenate([nearest.astype("<u2")[:, None].view(np.uint8), packed], axis=1)

    def decode(self, codes: np.ndarray) -> np.ndarray:
        """See `Codec.decode`."""
        nearest = np.ascontiguousarray(codes[:, :2]).view("<u2")[:, 0]
        vectors = self._residuals.decode(np.ascontiguousarray(codes[:, 2:]))[:, : self.dimension]
        vectors = vectors + self.centroids[nearest]
        return unit_rows(vectors) if self.unit else vectors


def fit_residuals(vectors: np.ndarray, centroids: int, bits: int, seed: int, *, unit: bool) -> ResidualCodec:
    """Fit centroids by k-means, then each dimension's buckets on the residuals.

    Args:
        vectors: (n, d) float32.
        centroids: How many, at most n.
        bits: Per dimension: 1, 2 or 4.
        seed: Of k-means.
        unit: Whether the vectors have length 1; centroids and decoded vectors then have it too.

    Raises:
        UserError: More centroids than vectors.
    """
    import faiss

    if len(vectors) < centroids:
        raise UserError(
            f"{centroids} centroids are fitted on at least as many token vectors, there are {len(vectors)}; "
            "choose fewer or leave 'centroids' out."
        )
    means = faiss.Kmeans(
        vectors.shape[1],
        centroids,
        niter=_ROUNDS,
        seed=seed,
        spherical=unit,
        min_points_per_centroid=1,
        max_points_per_centroid=2 * _PER_CENTROID,
    )
    means.train(vectors)
    found = np.ascontiguousarray(means.centroids, dtype=np.float32)
    residuals = vectors - found[means.index.search(vectors, 1)[1][:, 0]]
    levels = 2**bits
    cutoffs = np.quantile(residuals, np.arange(1, levels) / levels, axis=0).astype(np.float32)
    buckets = sum((residuals > cutoff).astype(np.int8) for cutoff in cutoffs)
    values = np.zeros((levels, vectors.shape[1]), dtype=np.float32)
    for level in range(levels):
        inside = buckets == level
        values[level] = (residuals * inside).sum(axis=0) / np.maximum(inside.sum(axis=0), 1)
    return ResidualCodec(found, cutoffs, values, unit=unit)


def plaid_centroids(total: int, sample: int) -> int:
    """PLAID's number of centroids for so many vectors (arXiv 2205.09707), as far as the sample carries it."""
    most = min(int(16 * np.sqrt(total)), sample // _PER_CENTROID, MOST_CENTROIDS)
    return 2 ** int(np.log2(max(most, 1)))


def _bucket_decoder(values: np.ndarray, width: int) -> Any:
    """Packed buckets are the codes of a product quantizer whose codebooks list all combinations in a byte."""
    import faiss

    levels, dimension = values.shape
    bits = levels.bit_length() - 1
    per_byte = 8 // bits
    padded = np.zeros((levels, width * per_byte), dtype=np.float32)
    padded[:, :dimension] = values
    held = (np.arange(256)[:, None] >> (np.arange(per_byte) * bits)) & (levels - 1)  # (256, per_byte)
    books = padded.reshape(levels, width, per_byte)[held[None], np.arange(width)[:, None, None], np.arange(per_byte)]
    decoder = faiss.ProductQuantizer(width * per_byte, width, 8)
    faiss.copy_array_to_vector(np.ascontiguousarray(books, dtype=np.float32).ravel(), decoder.centroids)
    return decoder
