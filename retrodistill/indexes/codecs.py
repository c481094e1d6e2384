"""How token vectors are stored: whole (float32, float16), or as residuals to centroids."""

from __future__ import annotations

from abc import ABC, abstractmethod
from pathlib import Path
from typing import Any, Literal

import numpy as np
from pydantic import Field, field_validator

from retrodistill.core.errors import UserError, unknown
from retrodistill.core.files import read_json, write_json
from retrodistill.encoders.multi_vector import Tokens
from retrodistill.training.settings import Settings


class Codec(ABC):
    """Turns (n, d) float32 vectors into (n, bytes) uint8 codes and back; the same code for a vector in any company.

    Attributes:
        kind: Its name in settings.
        dimension: d.
        bytes_per_vector: Width of a code.
        unit: Whether decoded vectors are given length 1, as the vectors had that it was fitted on.
    """

    kind: str
    dimension: int
    bytes_per_vector: int
    unit: bool = False

    @abstractmethod
    def encode(self, vectors: np.ndarray) -> np.ndarray:
        """(n, bytes) uint8 codes of (n, d) float32 vectors."""

    @abstractmethod
    def decode(self, codes: np.ndarray) -> np.ndarray:
        """(n, d) float32 vectors, as near as the codec keeps them."""

    def arrays(self) -> dict[str, np.ndarray]:
        """What was fitted."""
        return {}

    @property
    def own_bytes(self) -> int:
        """Bytes of all that was fitted."""
        return sum(array.nbytes for array in self.arrays().values())


def unit_rows(vectors: np.ndarray) -> np.ndarray:
    """(n, d) vectors at length 1; zeros stay."""
    lengths = np.linalg.norm(vectors, axis=1, keepdims=True)
    return vectors / np.where(lengths > 0, lengths, 1.0)


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


CODECS = ("float32", "float16", "residual")
CodecName = Literal["float32", "float16", "residual"]
# Codecs of version 0.1.0, each with the one that keeps more in about the same bytes (evaluation/multi_vector).
DROPPED = {
    "sq8": "residual with bits 4",
    "pq": "residual with bits 1 or 2",
    "distilled-pq": "residual with bits 1 or 2",
}
_ABOUT, _ARRAYS = "tokens.codec.json", "tokens.codec.npz"
_FILES = {"residual": (_ARRAYS,)}


def refuse_dropped(codec: Any) -> Any:
    """The codec's name, unless it is one that was dropped.

    Raises:
        ValueError: Says what to take instead.
    """
    if isinstance(codec, str) and codec in DROPPED:
        raise ValueError(f"codec {codec!r} was dropped; take {DROPPED[codec]}")
    return codec


class CodecSettings(Settings):
    """How token vectors are stored.

    Attributes:
        codec: ``float32``, ``float16``, or ``residual`` (ColBERTv2): a centroid and a few bits per dimension.
        bits: Bits per dimension of a residual.
        centroids: Number of centroids of ``residual``; by default PLAID's rule (arXiv 2205.09707), 16 sqrt(tokens)
            down to a power of two, as far as the sample carries it.
        sample: Number of documents whose tokens the codec is fitted on.
        seed: Seed of the sample and of k-means.
    """

    codec: CodecName = "float16"
    bits: Literal[1, 2, 4] = 2
    centroids: int | None = Field(default=None, ge=1, le=MOST_CENTROIDS)
    sample: int = Field(default=1000, ge=1)
    seed: int = 0

    _not_dropped = field_validator("codec", mode="before")(refuse_dropped)


class PlainCodec(Codec):
    """The numbers themselves, in four or two bytes each."""

    def __init__(self, dimension: int, kind: str) -> None:
        self.dimension, self.kind = dimension, kind
        self._type = np.dtype({"float32": "<f4", "float16": "<f2"}[kind])
        self.bytes_per_vector = dimension * self._type.itemsize

    def encode(self, vectors: np.ndarray) -> np.ndarray:
        """See `Codec.encode`."""
        return np.ascontiguousarray(vectors, dtype=self._type).view(np.uint8).reshape(len(vectors), -1)

    def decode(self, codes: np.ndarray) -> np.ndarray:
        """See `Codec.decode`."""
        return np.ascontiguousarray(codes).view(self._type).astype(np.float32)


def fit_codec(settings: CodecSettings, sample: Tokens, total: int | None = None) -> Codec:
    """Fit a codec on token vectors.

    Args:
        settings: Which codec, and how fine.
        sample: Token vectors of some of the documents.
        total: Number of vectors that will be encoded; that of the sample by default. Only PLAID's rule reads it.

    Raises:
        UserError: Too few vectors to fit it on.
    """
    if settings.codec != "residual":
        return PlainCodec(sample.dimension, settings.codec)
    vectors = np.ascontiguousarray(sample.vectors, dtype=np.float32)
    unit = bool(np.allclose(np.linalg.norm(vectors, axis=1), 1.0, atol=1e-3))
    centroids = settings.centroids or plaid_centroids(total or len(vectors), len(vectors))
    return fit_residuals(vectors, centroids, settings.bits, settings.seed, unit=unit)


def load_codec(folder: Path) -> Codec:
    """Read the codec of a folder.

    Raises:
        UserError: A file is missing or does not belong to the others, or a codec that was dropped.
    """
    about = read_json(folder / _ABOUT)
    kind = about.get("codec")
    if kind in DROPPED:
        raise UserError(f"{folder}: codec {kind!r} was dropped; build the index again with {DROPPED[kind]}.")
    if kind not in CODECS:
        raise unknown("codec", kind, CODECS)
    for name in _FILES.get(kind, ()):
        if not (folder / name).is_file():
            raise UserError(f"no file {folder / name}, without which the token vectors cannot be read; build again.")
    if kind != "residual":
        return PlainCodec(int(about["dimension"]), kind)
    with np.load(folder / _ARRAYS) as arrays:
        return ResidualCodec(arrays["centroids"], arrays["cutoffs"], arrays["values"], unit=about["unit"])


def save_codec(codec: Codec, folder: Path) -> None:
    """Write a codec into a folder."""
    write_json(folder / _ABOUT, {"codec": codec.kind, "dimension": codec.dimension, "unit": codec.unit})
    if codec.arrays():
        np.savez(folder / _ARRAYS, allow_pickle=False, **codec.arrays())
