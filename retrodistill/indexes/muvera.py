"""MUVERA: fixed-dimensional encodings, whose inner product approximates MaxSim (arXiv 2405.19504).

For each of R repetitions, SimHash cuts the space into B = 2^k_sim partitions by the signs of k_sim random directions. A
query's encoding holds the sum of its tokens in each partition, a document's the mean of its own, since a query token
most likely falls where its nearest document token does:

    <F(Q), F(D)> = 1/R sum_r sum_b < sum_{q in b} S_r q , mean_{p in b} S_r p >   ~   sum_q max_p <q, p>

S_r is a (d_proj, d) matrix of random signs over sqrt(d_proj) (the identity where d_proj is None). A partition without a
token of the document takes the token whose signs differ least from it, so that no query token meets a zero.
"""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
from pydantic import Field

from retrodistill.core.errors import UserError
from retrodistill.encoders.multi_vector import Tokens, blocks_of
from retrodistill.indexes.factory import build_faiss, empty_index, set_parameters
from retrodistill.indexes.tokens import CODES_FILE, TokenStore
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


FAISS_FILE = "muvera.faiss"
_TRAINED_ON = 20_000  # encodings, at most


class CandidateIndex:
    """Proposes the documents whose encoding has the highest inner product with the query's.

    Args:
        muvera: Makes the encodings.
        index: The filled FAISS index of encodings.
        labels: (n,) int64, ascending: by what the FAISS index names the documents that are left.

    Raises:
        UserError: The FAISS index does not know the settings' search parameters.
    """

    def __init__(self, muvera: Muvera, index: Any, labels: np.ndarray) -> None:
        self.muvera, self.index, self.labels = muvera, index, labels
        if muvera.settings.parameters is not None:
            set_parameters(index, muvera.settings.parameters)

    @classmethod
    def build(cls, settings: MuveraSettings, store: TokenStore) -> CandidateIndex:
        """Encode the documents of a store, as its codec keeps them, block by block.

        Raises:
            UserError: A factory that does not parse, or that cannot be trained on so few documents.
        """
        muvera = Muvera(settings, store.codec.dimension)
        index = empty_index(settings.factory, muvera.dimension, len(store))
        if not index.is_trained:
            rows = np.linspace(0, len(store) - 1, min(len(store), _TRAINED_ON)).astype(np.int64)
            trained = build_faiss(settings.factory, muvera.documents(store.gather(rows)))
            trained.reset()
            index = trained
        for _, tokens in store.blocks():
            index.add(muvera.documents(tokens))
        return cls(muvera, index, np.arange(len(store)))

    def __len__(self) -> int:
        return len(self.labels)

    @property
    def nbytes(self) -> int:
        """Size of the FAISS index as a file."""
        import faiss

        return len(faiss.serialize_index(self.index))

    def candidates(self, queries: Tokens, k: int) -> Iterator[np.ndarray]:
        """Rows of the documents proposed for each query: the settings' number, or k where that is more."""
        wanted = max(self.muvera.settings.candidates, k)
        removed = self.index.ntotal - len(self)
        labels = self.index.search(self.muvera.queries(queries), min(wanted + removed, self.index.ntotal))[1]
        for found in labels:
            rows = np.minimum(np.searchsorted(self.labels, found), len(self) - 1)
            yield rows[self.labels[rows] == found][:wanted]  # neither FAISS's -1 nor a removed document

    def add(self, tokens: Tokens) -> None:
        """Encode the next documents."""
        first = self.index.ntotal
        self.index.add(self.muvera.documents(tokens))
        self.labels = np.concatenate([self.labels, np.arange(first, self.index.ntotal)])

    def forget(self, gone: np.ndarray) -> None:
        """Propose the documents of a (n,) mask no more."""
        self.labels = self.labels[~gone]

    def save(self, folder: Path) -> None:
        """Write the FAISS file."""
        import faiss

        faiss.write_index(self.index, str(folder / FAISS_FILE))

    @classmethod
    def load(cls, settings: MuveraSettings, dimension: int, folder: Path, labels: np.ndarray) -> CandidateIndex:
        """Read the FAISS file that lies beside a token store.

        Raises:
            UserError: It is missing, or holds encodings of other tokens or settings.
        """
        import faiss

        if not (folder / FAISS_FILE).is_file():
            raise UserError(f"no file {folder / FAISS_FILE}: build the index again.")
        muvera = Muvera(settings, dimension)
        index = faiss.read_index(str(folder / FAISS_FILE))
        if index.d != muvera.dimension or (len(labels) and labels[-1] >= index.ntotal):
            raise UserError(
                f"{folder / FAISS_FILE} holds {index.ntotal} encodings of {index.d} dimensions, {CODES_FILE} and the "
                f"settings ask for {len(labels)} of {muvera.dimension}; they do not belong together: build it again."
            )
        return cls(muvera, index, labels)
