"""How token vectors are stored: whole (float32, float16), or as residuals to centroids."""

from __future__ import annotations

from pathlib import Path
from typing import Any, Literal

import numpy as np
from pydantic import Field, field_validator

from retrodistill.core.errors import UserError, unknown
from retrodistill.core.files import read_json, write_json
from retrodistill.encoders.multi_vector import Tokens
from retrodistill.indexes.codec import Codec
from retrodistill.indexes.residuals import MOST_CENTROIDS, ResidualCodec, fit_residuals, plaid_centroids
from retrodistill.training.settings import Settings

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
