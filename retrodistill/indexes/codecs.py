"""How token vectors are stored: whole, by scalars, by product quantizers, or as residuals to centroids."""

from __future__ import annotations

from pathlib import Path
from typing import Any, Literal

import numpy as np
from pydantic import Field

from retrodistill.core.errors import UserError, unknown
from retrodistill.core.files import read_json, write_json
from retrodistill.encoders.multi_vector import Tokens
from retrodistill.indexes.codec import Codec, unit_rows
from retrodistill.indexes.factory import vectors_to_train
from retrodistill.indexes.parts import quiet_clustering
from retrodistill.indexes.residuals import MOST_CENTROIDS, ResidualCodec, fit_residuals, plaid_centroids
from retrodistill.indexes.token_distillation import DistilledCodec, Lessons, distill_codebooks
from retrodistill.training.settings import Settings

CODECS = ("float32", "float16", "sq8", "pq", "distilled-pq", "residual")
_ABOUT, _FAISS, _ARRAYS = "tokens.codec.json", "tokens.codec.faiss", "tokens.codec.npz"
_FILES = {"sq8": (_FAISS,), "pq": (_FAISS,), "distilled-pq": (_FAISS, _ARRAYS), "residual": (_ARRAYS,)}
_ROTATIONS = 12  # rounds of OPQ: on 65,536 tokens 10 gave less error than FAISS' 50 on 16,384, in the same time


class CodecSettings(Settings):
    """How token vectors are stored.

    Attributes:
        codec: One of `CODECS`.
        bytes: Of a token under ``pq`` and ``distilled-pq``; divides the dimension.
        bits: Of a dimension's residual under ``residual``.
        centroids: Under ``residual``; by default PLAID's rule (arXiv 2205.09707), 16 sqrt(tokens) down to a power of
            two, as far as the sample carries it.
        sample: Documents whose tokens the codec is fitted on; by default 1,000, and 5,000 for ``distilled-pq``, which
            learns from the order of documents and wants some that are near each other.
        seed: Of the sample and of k-means.
    """

    codec: Literal["float32", "float16", "sq8", "pq", "distilled-pq", "residual"] = "float16"
    bytes: int = Field(default=16, ge=1)
    bits: Literal[1, 2, 4] = 2
    centroids: int | None = Field(default=None, ge=1, le=MOST_CENTROIDS)
    sample: int | None = Field(default=None, ge=1)
    seed: int = 0

    @property
    def sampled(self) -> int:
        """Documents of the sample."""
        return self.sample or (5000 if self.codec == "distilled-pq" else 1000)


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


class FaissCodec(Codec):
    """The codes of a trained FAISS quantizer: SQ8, or PQ behind a rotation.

    Args:
        index: The quantizer; it need hold no vectors.
        kind: ``sq8`` or ``pq``.
        unit: Give decoded vectors length 1.
    """

    def __init__(self, index: Any, kind: str, *, unit: bool) -> None:
        self.index, self.kind, self.unit = index, kind, unit
        self.dimension, self.bytes_per_vector = int(index.d), int(index.sa_code_size())

    def encode(self, vectors: np.ndarray) -> np.ndarray:
        """See `Codec.encode`."""
        return self.index.sa_encode(np.ascontiguousarray(vectors, dtype=np.float32))

    def decode(self, codes: np.ndarray) -> np.ndarray:
        """See `Codec.decode`."""
        vectors = self.index.sa_decode(np.ascontiguousarray(codes))
        return unit_rows(vectors) if self.unit else vectors


def check_codec(settings: CodecSettings, dimension: int) -> None:
    """Refuse settings that do not fit vectors of a dimension, before any is made.

    Raises:
        UserError: The bytes of a product quantizer do not divide the dimension.
    """
    if settings.codec in ("pq", "distilled-pq") and dimension % settings.bytes:
        fitting = [width for width in range(1, dimension + 1) if dimension % width == 0]
        raise UserError(
            f"codec {settings.codec!r} of {settings.bytes} bytes: token vectors of {dimension} dimensions are cut into "
            f"equal parts; choose bytes from {', '.join(map(str, fitting))}."
        )


def fit_codec(
    settings: CodecSettings, sample: Tokens, total: int | None = None, lessons: Lessons | None = None
) -> Codec:
    """Fit a codec on token vectors.

    Args:
        settings: Which, and how fine.
        sample: Token vectors of some of the documents.
        total: How many vectors will be encoded; as many as the sample by default. Only PLAID's rule reads it.
        lessons: Queries that ``distilled-pq`` learns from.

    Raises:
        UserError: Too few vectors to fit it on, or no queries for ``distilled-pq``.
    """
    check_codec(settings, sample.dimension)
    vectors = np.ascontiguousarray(sample.vectors, dtype=np.float32)
    unit = bool(np.allclose(np.linalg.norm(vectors, axis=1), 1.0, atol=1e-3))
    if settings.codec in ("float32", "float16"):
        return PlainCodec(sample.dimension, settings.codec)
    if settings.codec == "sq8":
        return FaissCodec(_trained("SQ8", vectors), "sq8", unit=False)
    if settings.codec == "residual":
        centroids = settings.centroids or plaid_centroids(total or len(vectors), len(vectors))
        return fit_residuals(vectors, centroids, settings.bits, settings.seed, unit=unit)
    quantizer = _trained(f"OPQ{settings.bytes},PQ{settings.bytes}np", vectors)
    if settings.codec == "pq":
        return FaissCodec(quantizer, "pq", unit=unit)
    if lessons is None:
        raise UserError("codec 'distilled-pq' learns from queries; give some, or choose 'pq', which needs none.")
    return distill_codebooks(quantizer, sample, lessons, settings.seed, unit=unit)


def load_codec(folder: Path) -> Codec:
    """Read the codec of a folder.

    Raises:
        UserError: A file is missing or does not belong to the others.
    """
    about = read_json(folder / _ABOUT)
    kind = about.get("codec")
    if kind not in CODECS:
        raise unknown("codec", kind, CODECS)
    for name in _FILES.get(kind, ()):
        if not (folder / name).is_file():
            raise UserError(f"no file {folder / name}, without which the token vectors cannot be read; build again.")
    if kind in ("float32", "float16"):
        return PlainCodec(int(about["dimension"]), kind)
    if kind == "residual":
        with np.load(folder / _ARRAYS) as arrays:
            return ResidualCodec(arrays["centroids"], arrays["cutoffs"], arrays["values"], unit=about["unit"])
    import faiss

    index = faiss.read_index(str(folder / _FAISS))
    if kind == "distilled-pq":
        with np.load(folder / _ARRAYS) as arrays:
            return DistilledCodec(index, arrays["transform"], arrays["codebooks"], unit=about["unit"])
    return FaissCodec(index, kind, unit=about["unit"])


def save_codec(codec: Codec, folder: Path) -> None:
    """Write a codec into a folder."""
    write_json(folder / _ABOUT, {"codec": codec.kind, "dimension": codec.dimension, "unit": codec.unit})
    if codec.arrays():
        np.savez(folder / _ARRAYS, allow_pickle=False, **codec.arrays())
    if codec.index is not None:
        import faiss

        faiss.write_index(codec.index, str(folder / _FAISS))


def _trained(factory: str, sample: np.ndarray) -> Any:
    import faiss

    wanted = vectors_to_train(factory.removesuffix("np"), sample.shape[1])  # np: codes need no polysemous order
    if len(sample) < wanted:
        raise UserError(
            f"a codec of {factory!r} is fitted on at least {wanted} token vectors, there are {len(sample)}; choose "
            "'sq8' or 'float16'."
        )
    index: Any = faiss.index_factory(sample.shape[1], factory)
    if factory.startswith("OPQ"):
        rotation: Any = faiss.downcast_VectorTransform(index.chain.at(0))
        rotation.niter = _ROTATIONS
    with quiet_clustering(index):
        index.train(sample)
    return index
