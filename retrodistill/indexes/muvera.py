"""MUVERA: fixed-dimensional encodings, whose inner product approximates MaxSim (arXiv 2405.19504).

For each of R repetitions, SimHash cuts the space into B = 2^k_sim partitions by the signs of k_sim random directions. A
query's encoding holds the sum of its tokens in each partition, a document's the mean of its own, since a query token
most likely falls where its nearest document token does:

    <F(Q), F(D)> = 1/R sum_r sum_b < sum_{q in b} S_r q , mean_{p in b} S_r p >   ~   sum_q max_p <q, p>

S_r is a (d_proj, d) matrix of random signs over sqrt(d_proj) (the identity where d_proj is None). A partition without a
token of the document takes the token whose signs differ least from it, so that no query token meets a zero.
"""

from __future__ import annotations

import numpy as np
from pydantic import Field

from retrodistill.encoders.maxsim import blocks_of
from retrodistill.encoders.multi_vector import Tokens
from retrodistill.training.settings import Settings

_BLOCK = 65536  # tokens that are encoded at once


class MuveraSettings(Settings):
    """Fixed-dimensional encodings and the FAISS index that proposes candidates by them.

    Attributes:
        repetitions: R; more of them approximate better.
        k_sim: Partitions of a repetition are 2^k_sim.
        d_proj: Dimensions that a token is projected to within a partition; None keeps all of them.
        final: Dimensions that the whole encoding is sketched to (count sketch); None leaves it as it is.
        factory: The FAISS factory of the encodings.
        parameters: FAISS search parameters, e.g. ``nprobe=16``.
        candidates: Documents of a query that exact MaxSim ranks; at least the k asked for.
        seed: Of all random directions, signs and sketches.
    """

    repetitions: int = Field(default=20, ge=1)
    k_sim: int = Field(default=4, ge=0, le=10)
    d_proj: int | None = Field(default=16, ge=1)
    final: int | None = Field(default=None, ge=1)
    factory: str = "SQ8"
    parameters: str | None = None
    candidates: int = Field(default=200, ge=1)
    seed: int = 0


class Muvera:
    """Encodes ragged token vectors as one vector per text; the same seed gives the same encodings.

    Args:
        settings: Repetitions, partitions, projections and seed.
        dimension: Width d of a token vector.
    """

    def __init__(self, settings: MuveraSettings, dimension: int) -> None:
        self.settings, self.tokens = settings, dimension
        random = np.random.default_rng(settings.seed)
        repetitions, bits = settings.repetitions, settings.k_sim
        self._planes = random.standard_normal((repetitions, dimension, bits)).astype(np.float32)
        self._signs = None
        if settings.d_proj is not None:
            signs = random.integers(0, 2, (repetitions, dimension, settings.d_proj)).astype(np.float32) * 2 - 1
            self._signs = signs / np.sqrt(settings.d_proj)
        self._partitions = 2**bits
        self._width = repetitions * self._partitions * (settings.d_proj or dimension)
        if settings.final is not None:
            self._bucket = random.integers(0, settings.final, self._width)
            self._flip = random.integers(0, 2, self._width).astype(np.float32) * 2 - 1
        differing = np.arange(self._partitions)[:, None] ^ np.arange(self._partitions)
        self._differing = sum(((differing >> bit) & 1 for bit in range(bits)), np.zeros_like(differing))  # (B, B)

    @property
    def dimension(self) -> int:
        """Width of an encoding: repetitions x 2^k_sim x d_proj, or `final`."""
        return self.settings.final or self._width

    def queries(self, tokens: Tokens) -> np.ndarray:
        """(n, dimension) float32 encodings of queries: sums per partition, zero where a partition has no token."""
        return self._encoded(tokens, document=False)

    def documents(self, tokens: Tokens) -> np.ndarray:
        """(n, dimension) float32 encodings of documents: means per partition, each with at least one token."""
        return self._encoded(tokens, document=True)

    def partitions(self, vectors: np.ndarray) -> np.ndarray:
        """(n, repetitions) int64 partition of each (d,) vector: bit i is set where direction i has a positive sign."""
        bits = np.einsum("nd,rdk->nrk", vectors, self._planes, optimize=True) > 0
        return bits @ (1 << np.arange(self.settings.k_sim, dtype=np.int64))

    def _encoded(self, tokens: Tokens, *, document: bool) -> np.ndarray:
        found = np.zeros((len(tokens), self.dimension), dtype=np.float32)
        for start, stop in blocks_of(tokens.bounds, _BLOCK):
            part = tokens.slice(start, stop)
            codes = self.partitions(part.vectors)
            inner = [
                self._pooled(part, codes[:, number], number, document=document)
                for number in range(self.settings.repetitions)
            ]
            whole = np.concatenate(inner, axis=1) / np.sqrt(self.settings.repetitions)
            found[start:stop] = self._sketched(whole)
        return found

    def _pooled(self, tokens: Tokens, codes: np.ndarray, repetition: int, *, document: bool) -> np.ndarray:
        """(n, B d_proj) sums or means per partition of one repetition."""
        from scipy.sparse import csr_array

        vectors = tokens.vectors if self._signs is None else tokens.vectors @ self._signs[repetition]
        texts = np.repeat(np.arange(len(tokens)), tokens.lengths)
        cells = texts * self._partitions + codes
        shape = (len(tokens) * self._partitions, len(cells))
        member = csr_array((np.ones(len(cells), dtype=np.float32), (cells, np.arange(len(cells)))), shape=shape)
        pooled = member @ vectors
        if document:
            count = np.bincount(cells, minlength=shape[0])
            pooled /= np.maximum(count, 1)[:, None]
            empty = np.flatnonzero(count == 0)
            pooled[empty] = vectors[self._nearest(tokens, codes)[empty]]
        return pooled.reshape(len(tokens), -1)

    def _nearest(self, tokens: Tokens, codes: np.ndarray) -> np.ndarray:
        """(n B,) int64 for each text and partition the token whose signs differ least, the first of equals."""
        keys = self._differing[codes] * len(codes) + np.arange(len(codes))[:, None]  # (tokens, B): ties by place
        return (np.minimum.reduceat(keys, tokens.bounds[:-1], axis=0) % len(codes)).ravel()

    def _sketched(self, whole: np.ndarray) -> np.ndarray:
        """Count sketch: each dimension is added to a random one of `final`, with a random sign."""
        if self.settings.final is None:
            return whole
        from scipy.sparse import csr_array

        sketch = csr_array(
            (self._flip, (np.arange(self._width), self._bucket)), shape=(self._width, self.settings.final)
        )
        return whole @ sketch
