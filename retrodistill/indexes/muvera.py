"""MUVERA: fixed-dimensional encodings, whose inner product approximates MaxSim (arXiv 2405.19504).

For each of R repetitions, SimHash divides the space into B = 2^k_sim partitions by the signs of k_sim random
directions. In each partition, a query's encoding holds the sum of its tokens and a document's encoding the mean of its
own, because the nearest document token of a query token is most likely in the same partition:

    <F(Q), F(D)> = 1/R sum_r sum_b < sum_{q in b} S_r q , mean_{p in b} S_r p >   ~   sum_q max_p <q, p>

S_r is a (d_proj, d) matrix of random signs over sqrt(d_proj), or the identity if d_proj is None. A partition without a
document token takes the token whose signs differ least from it, so that every query token meets a document token.
"""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
from pydantic import Field

from retrodistill.core.errors import UserError
from retrodistill.core.faiss import read_faiss, write_faiss
from retrodistill.core.settings import Settings
from retrodistill.encoders.multi_vector import Tokens, blocks_of
from retrodistill.indexes.factory import build_faiss, empty_index, file_bytes, set_parameters
from retrodistill.indexes.selected import search_among
from retrodistill.indexes.tokens import CODES_FILE, TokenStore

FAISS_FILE = "muvera.faiss"
_BLOCK = 65536  # tokens that are encoded at once
_TRAINING_ENCODINGS = 20_000  # of a FAISS factory, at most


class MuveraSettings(Settings):
    """Fixed-dimensional encodings and the FAISS index that finds candidates by them."""

    repetitions: int = Field(default=20, ge=1)
    """Number of repetitions; more approximate MaxSim better."""
    k_sim: int = Field(default=4, ge=0, le=10)
    """Each repetition has 2^k_sim partitions."""
    d_proj: int | None = Field(default=16, ge=1)
    """Number of dimensions that tokens are projected to within a partition; null keeps all."""
    final: int | None = Field(default=None, ge=1)
    """Number of dimensions that the whole encoding is reduced to by a count sketch; null keeps all."""
    factory: str = "SQ8"
    """FAISS factory of the index of encodings."""
    parameters: str | None = None
    """FAISS search parameters, such as `nprobe=16`."""
    candidates: int = Field(default=200, ge=1)
    """Number of documents per query that exact MaxSim ranks, at least the k of the search."""
    seed: int = 0
    """Seed of the random directions, signs and sketches."""


class Muvera:
    """Encodes token vectors of this dimension as one vector per text; the same seed gives the same encodings."""

    def __init__(self, settings: MuveraSettings, dimension: int) -> None:
        from scipy.sparse import csr_array

        self.settings = settings
        random = np.random.default_rng(settings.seed)
        repetitions, bits = settings.repetitions, settings.k_sim
        self._planes = random.standard_normal((repetitions, dimension, bits)).astype(np.float32)
        self._signs = None
        if settings.d_proj is not None:
            signs = random.integers(0, 2, (repetitions, dimension, settings.d_proj)).astype(np.float32) * 2 - 1
            self._signs = signs / np.sqrt(settings.d_proj)
        self._partitions = 2**bits
        self._width = repetitions * self._partitions * (settings.d_proj or dimension)
        self._sketch = None  # count sketch: adds each dimension to a random one of `final`, with a random sign
        if settings.final is not None:
            places = np.arange(self._width), random.integers(0, settings.final, self._width)
            flips = random.integers(0, 2, self._width).astype(np.float32) * 2 - 1
            self._sketch = csr_array((flips, places), shape=(self._width, settings.final))
        differing = np.arange(self._partitions)[:, None] ^ np.arange(self._partitions)
        self._differing = sum(((differing >> bit) & 1 for bit in range(bits)), np.zeros_like(differing))  # (B, B)

    @property
    def dimension(self) -> int:
        """Width of an encoding: repetitions x 2^k_sim x d_proj, or `final`."""
        return self.settings.final or self._width

    def queries(self, tokens: Tokens) -> np.ndarray:
        """(n, dimension) float32 encodings of queries: sums per partition, zero in partitions without a token."""
        return self._encode(tokens, document=False)

    def documents(self, tokens: Tokens) -> np.ndarray:
        """(n, dimension) float32 encodings of documents: means per partition, each of at least one token."""
        return self._encode(tokens, document=True)

    def partitions(self, vectors: np.ndarray) -> np.ndarray:
        """(n, repetitions) int64 partition of each (d,) vector: bit i is set if direction i has a positive sign."""
        bits = np.einsum("nd,rdk->nrk", vectors, self._planes, optimize=True) > 0
        return bits @ (1 << np.arange(self.settings.k_sim, dtype=np.int64))

    def _encode(self, tokens: Tokens, *, document: bool) -> np.ndarray:
        encodings = np.zeros((len(tokens), self.dimension), dtype=np.float32)
        for start, stop in blocks_of(tokens.bounds, _BLOCK):
            block = tokens.slice(start, stop)
            codes = self.partitions(block.vectors)
            repetitions = range(self.settings.repetitions)
            pooled = [self._pool(block, codes[:, number], number, document=document) for number in repetitions]
            whole = np.concatenate(pooled, axis=1) / np.sqrt(self.settings.repetitions)
            encodings[start:stop] = whole if self._sketch is None else whole @ self._sketch
        return encodings

    def _pool(self, tokens: Tokens, codes: np.ndarray, repetition: int, *, document: bool) -> np.ndarray:
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
        """(n B,) int64: for each text and partition the token whose signs differ least; of equals the first."""
        keys = self._differing[codes] * len(codes) + np.arange(len(codes))[:, None]  # (tokens, B): ties by place
        return (np.minimum.reduceat(keys, tokens.bounds[:-1], axis=0) % len(codes)).ravel()


class CandidateIndex:
    """Finds the documents whose encoding has the highest inner product with that of the query.

    `labels` are (n,) int64, ascending: those in the filled FAISS `index` of the documents that were not removed.
    """

    def __init__(self, muvera: Muvera, index: Any, labels: np.ndarray) -> None:
        self.muvera, self.index, self.labels = muvera, index, labels
        if muvera.settings.parameters is not None:
            set_parameters(index, muvera.settings.parameters)

    @classmethod
    def build(cls, settings: MuveraSettings, store: TokenStore) -> CandidateIndex:
        """Encode the documents of a store block by block, as its codec decodes them."""
        muvera = Muvera(settings, store.codec.dimension)
        index = empty_index(settings.factory, muvera.dimension, len(store))
        if not index.is_trained:
            rows = np.linspace(0, len(store) - 1, min(len(store), _TRAINING_ENCODINGS)).astype(np.int64)
            index = build_faiss(settings.factory, muvera.documents(store.gather(rows)))
            index.reset()
        for _, tokens in store.blocks():
            index.add(muvera.documents(tokens))
        return cls(muvera, index, np.arange(len(store)))

    def __len__(self) -> int:
        return len(self.labels)

    @property
    def nbytes(self) -> int:
        """Size of the FAISS index as a file."""
        return file_bytes(self.index)

    def candidates(self, queries: Tokens, k: int, among: np.ndarray | None = None) -> Iterator[np.ndarray]:
        """Rows of each query's candidates, among all or ascending rows: as many as the settings say, or k if more."""
        number = max(self.muvera.settings.candidates, k)
        if among is not None:
            yield from self._candidates_among(queries, number, among)
            return
        removed = self.index.ntotal - len(self)
        labels = self.index.search(self.muvera.queries(queries), min(number + removed, self.index.ntotal))[1]
        for best in labels:
            rows = np.minimum(np.searchsorted(self.labels, best), len(self) - 1)
            yield rows[self.labels[rows] == best][:number]  # drops -1 of FAISS and removed documents

    def _candidates_among(self, queries: Tokens, number: int, among: np.ndarray) -> Iterator[np.ndarray]:
        if len(among) <= number:
            yield from (among for _ in range(len(queries)))
            return
        for best in search_among(self.index, self.muvera.queries(queries), number, self.labels[among])[1]:
            yield np.searchsorted(self.labels, best[best >= 0])

    def add(self, tokens: Tokens) -> None:
        """Encode new documents."""
        first = self.index.ntotal
        self.index.add(self.muvera.documents(tokens))
        self.labels = np.concatenate([self.labels, np.arange(first, self.index.ntotal)])

    def remove(self, removed: np.ndarray) -> None:
        """Skip the documents of a (n,) mask. Their encodings stay, since not every FAISS kind can remove them."""
        self.labels = self.labels[~removed]

    def save(self, folder: Path) -> None:
        """Write the FAISS file."""
        write_faiss(self.index, folder / FAISS_FILE)

    @classmethod
    def load(cls, settings: MuveraSettings, dimension: int, folder: Path, labels: np.ndarray) -> CandidateIndex:
        """Read the FAISS file of a folder."""
        if not (folder / FAISS_FILE).is_file():
            raise UserError(f"no file {folder / FAISS_FILE}; build the index again.")
        muvera, index = Muvera(settings, dimension), read_faiss(folder / FAISS_FILE)
        if index.d != muvera.dimension or (len(labels) and labels[-1] >= index.ntotal):
            raise UserError(
                f"{folder / FAISS_FILE} holds {index.ntotal} encodings of {index.d} dimensions, {CODES_FILE} and the "
                f"settings need {len(labels)} of {muvera.dimension}; they do not belong together: build it again."
            )
        return cls(muvera, index, labels)
