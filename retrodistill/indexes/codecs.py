"""How token vectors are stored: whole (float32, float16), or as residuals to centroids."""

from __future__ import annotations

from abc import ABC, abstractmethod
from pathlib import Path
from typing import Any, Literal

import numpy as np
from pydantic import Field, field_validator

from retrodistill.core.arrays import read_arrays
from retrodistill.core.errors import UserError, unknown
from retrodistill.core.faiss import faiss
from retrodistill.core.json_files import read_json, write_json
from retrodistill.core.settings import Settings
from retrodistill.encoders.multi_vector import Tokens
from retrodistill.encoders.vectors import to_float16

CODECS = ("float32", "float16", "residual")
CodecName = Literal["float32", "float16", "residual"]
# Codecs of version 0.1.0, each with one that keeps more in about the same bytes (evaluation/multi_vector).
DROPPED = {
    "sq8": "residual with bits 4",
    "pq": "residual with bits 1 or 2",
    "distilled-pq": "residual with bits 1 or 2",
}
_ABOUT, _ARRAYS = "tokens.codec.json", "tokens.codec.npz"
_MOST_CENTROIDS = 2**16  # a centroid's number takes two bytes
_PER_CENTROID = 32  # token vectors of the sample per centroid, at least
_ROUNDS = 6  # of k-means
_UNIT_TOLERANCE = 1e-3


def refuse_dropped(codec: Any) -> Any:
    """The codec's name, unless that codec was dropped."""
    if isinstance(codec, str) and codec in DROPPED:
        raise ValueError(f"codec {codec!r} was dropped; use {DROPPED[codec]}")
    return codec


class CodecSettings(Settings):
    """How token vectors are stored: see `IndexOptions`.

    `bits`, `centroids` and `sample` are of ``residual`` (ColBERTv2). PLAID's rule (arXiv 2205.09707) is 16 sqrt(tokens)
    centroids, rounded down to a power of two, within what the sample supports. `seed` is of sample and k-means.
    """

    codec: CodecName = "float16"
    bits: Literal[1, 2, 4] = 2
    centroids: int | None = Field(default=None, ge=1, le=_MOST_CENTROIDS)
    sample: int = Field(default=1000, ge=1)
    seed: int = 0

    _not_dropped = field_validator("codec", mode="before")(refuse_dropped)


class Codec(ABC):
    """Turns (n, d) float32 vectors into (n, bytes) uint8 codes and back. A code depends on its vector alone."""

    kind: str  # its name in settings
    dimension: int
    bytes_per_vector: int
    arrays: dict[str, np.ndarray]  # the fitted ones
    keeps_rounded: bool = False  # a store keeps vectors of 8-bit numbers beside the codes, which are scanned faster
    unit: bool = False  # decoded vectors are normalized, as the vectors that it was fitted on were

    @abstractmethod
    def encode(self, vectors: np.ndarray) -> np.ndarray:
        """(n, bytes) uint8 codes of (n, d) float32 vectors."""

    @abstractmethod
    def decode(self, codes: np.ndarray) -> np.ndarray:
        """(n, d) float32 vectors, as exact as the codec keeps them."""

    @property
    def own_bytes(self) -> int:
        """Size of the fitted arrays."""
        return sum(array.nbytes for array in self.arrays.values())


class PlainCodec(Codec):
    """The numbers themselves, in four or two bytes each."""

    def __init__(self, dimension: int, kind: str) -> None:
        self.dimension, self.kind, self.arrays = dimension, kind, {}
        self._type = np.dtype({"float32": "<f4", "float16": "<f2"}[kind])
        self.bytes_per_vector = dimension * self._type.itemsize
        self.keeps_rounded = kind == "float32"

    def encode(self, vectors: np.ndarray) -> np.ndarray:
        """See `Codec.encode`."""
        numbers = np.array(vectors, dtype=np.float32, order="C")  # a copy: later changes of `vectors` are not ours
        if self.kind == "float16":
            numbers = to_float16(numbers, "token vectors")
        return numbers.view(np.uint8).reshape(len(vectors), -1)

    def decode(self, codes: np.ndarray) -> np.ndarray:
        """See `Codec.decode`."""
        import torch

        numbers = np.ascontiguousarray(codes).view(self._type)
        if self.kind == "float32":
            return numbers
        return torch.from_numpy(numbers).float().numpy()  # NumPy takes 30 times as long


class ResidualCodec(Codec):
    """The number of the nearest centroid, and a few bits of residual per dimension (ColBERTv2, arXiv 2112.01488).

    The bits say between which quantiles of its dimension, (2^bits - 1, d) `cutoffs` in ascending order, a residual
    lies. It is decoded by (2^bits, d) `values`, the mean of the fitted residuals in that bucket. All are float32, as
    are the (K, d) `centroids`.
    """

    kind = "residual"

    def __init__(self, centroids: np.ndarray, cutoffs: np.ndarray, values: np.ndarray, *, unit: bool) -> None:
        self.centroids, self.cutoffs, self.values, self.unit = centroids, cutoffs, values, unit
        self.arrays = {"centroids": centroids, "cutoffs": cutoffs, "values": values}
        self.bits = len(values).bit_length() - 1
        self.dimension = centroids.shape[1]
        self._width = -(-self.dimension * self.bits // 8)  # bytes of the residuals
        self.bytes_per_vector = 2 + self._width
        self._nearest = faiss.IndexFlatL2(self.dimension)
        self._nearest.add(centroids)
        self._residuals = _bucket_decoder(values, self._width)

    def encode(self, vectors: np.ndarray) -> np.ndarray:
        """See `Codec.encode`."""
        vectors = np.ascontiguousarray(vectors, dtype=np.float32)
        nearest = self._nearest.search(vectors, 1)[1][:, 0]
        residuals = vectors - self.centroids[nearest]
        per_byte = 8 // self.bits
        buckets = np.zeros((len(vectors), self._width * per_byte), dtype=np.uint8)
        for cutoff in self.cutoffs:
            buckets[:, : self.dimension] += residuals > cutoff
        shifts = (np.arange(per_byte) * self.bits).astype(np.uint8)
        packed = np.bitwise_or.reduce(buckets.reshape(len(vectors), self._width, per_byte) << shifts, axis=2)
        return np.concatenate([nearest.astype("<u2")[:, None].view(np.uint8), packed], axis=1)

    def decode(self, codes: np.ndarray) -> np.ndarray:
        """See `Codec.decode`."""
        import torch

        nearest = np.ascontiguousarray(codes[:, :2]).view("<u2")[:, 0].astype(np.int64)
        if (largest := int(nearest.max(initial=0))) >= len(self.centroids):
            problem = f"token codes name centroid {largest} of {len(self.centroids)}"
            raise UserError(f"{problem}: the file of codes is damaged or was altered; build the index again.")
        residuals = self._residuals.decode(np.ascontiguousarray(codes[:, 2:]))[:, : self.dimension]
        vectors = torch.from_numpy(residuals).add_(torch.from_numpy(self.centroids)[torch.from_numpy(nearest)])
        if self.unit:  # a length of zero only if the vector is zero
            vectors /= torch.linalg.vector_norm(vectors, dim=1, keepdim=True).clamp_(min=1e-30)
        return vectors.numpy()


def fit_codec(settings: CodecSettings, sample: Tokens, total: int | None = None) -> Codec:
    """Fit a codec on token vectors; `total` vectors (by default those of the sample) will be encoded."""
    if settings.codec != "residual":
        return PlainCodec(sample.dimension, settings.codec)
    vectors = np.ascontiguousarray(sample.vectors, dtype=np.float32)
    unit = bool(np.allclose(np.linalg.norm(vectors, axis=1), 1.0, atol=_UNIT_TOLERANCE))
    centroids = settings.centroids or _plaid_centroids(total or len(vectors), len(vectors))
    if len(vectors) < centroids:
        raise UserError(
            f"{centroids} centroids need at least as many token vectors, there are {len(vectors)}; choose fewer or "
            "leave 'centroids' out."
        )
    # Centroids by k-means, then the buckets of each dimension on the residuals.
    kmeans = faiss.Kmeans(
        vectors.shape[1],
        centroids,
        niter=_ROUNDS,
        seed=settings.seed,
        spherical=unit,
        min_points_per_centroid=1,
        max_points_per_centroid=2 * _PER_CENTROID,
    )
    kmeans.train(vectors)
    means = np.ascontiguousarray(kmeans.centroids, dtype=np.float32)
    residuals = vectors - means[kmeans.index.search(vectors, 1)[1][:, 0]]
    levels = 2**settings.bits
    cutoffs = np.quantile(residuals, np.arange(1, levels) / levels, axis=0).astype(np.float32)
    buckets = sum((residuals > cutoff).astype(np.int8) for cutoff in cutoffs)
    values = np.zeros((levels, vectors.shape[1]), dtype=np.float32)
    for level in range(levels):
        inside = buckets == level
        values[level] = (residuals * inside).sum(axis=0) / np.maximum(inside.sum(axis=0), 1)
    return ResidualCodec(means, cutoffs, values, unit=unit)


def load_codec(folder: Path) -> Codec:
    """Read the codec of a folder."""
    about = read_json(folder / _ABOUT)
    kind = about.get("codec")
    if kind in DROPPED:
        raise UserError(f"{folder}: codec {kind!r} was dropped; build the index again with {DROPPED[kind]}.")
    if kind not in CODECS:
        raise unknown("codec", kind, CODECS)
    if kind != "residual":
        return PlainCodec(int(about["dimension"]), kind)
    if not (folder / _ARRAYS).is_file():
        raise UserError(f"no file {folder / _ARRAYS}, which decodes the token vectors; build the index again.")
    arrays = read_arrays(folder / _ARRAYS)
    return ResidualCodec(arrays["centroids"], arrays["cutoffs"], arrays["values"], unit=about["unit"])


def save_codec(codec: Codec, folder: Path) -> None:
    """Write a codec into a folder."""
    write_json(folder / _ABOUT, {"codec": codec.kind, "dimension": codec.dimension, "unit": codec.unit})
    if codec.arrays:
        np.savez(folder / _ARRAYS, allow_pickle=False, **codec.arrays)


def _plaid_centroids(total: int, sample: int) -> int:
    """PLAID's number of centroids (arXiv 2205.09707) for `total` vectors, within what the sample supports."""
    most = min(int(16 * np.sqrt(total)), sample // _PER_CENTROID, _MOST_CENTROIDS)
    return 2 ** int(np.log2(max(most, 1)))


def _bucket_decoder(values: np.ndarray, width: int) -> Any:
    """A product quantizer that decodes packed buckets: its codebooks list all combinations in a byte."""
    levels, dimension = values.shape
    bits = levels.bit_length() - 1
    per_byte = 8 // bits
    padded = np.zeros((levels, width * per_byte), dtype=np.float32)
    padded[:, :dimension] = values
    buckets = (np.arange(256)[:, None] >> (np.arange(per_byte) * bits)) & (levels - 1)  # (256, per_byte)
    books = padded.reshape(levels, width, per_byte)[buckets[None], np.arange(width)[:, None, None], np.arange(per_byte)]
    decoder = faiss.ProductQuantizer(width * per_byte, width, 8)
    faiss.copy_array_to_vector(np.ascontiguousarray(books, dtype=np.float32).ravel(), decoder.centroids)
    return decoder
