"""Binary codes: the bits of documents, and the map that decodes them, fitted in turn."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import numpy as np

from retrodistill.core.faiss import faiss
from retrodistill.encoders.vectors import Vectors, training_rows
from retrodistill.quantizers.codes import Codes, read_bits, read_vectors

ROUNDS = 12  # of map and bits; on NFCorpus, the error falls by 1% from the ninth round to the twelfth
_SWEEPS = 2  # over the bits in a round
_RIDGE = 1e-3  # of the number of documents
_BLOCK = 16_384  # documents that get bits at once
_SHORTEST = np.float32(1e-6)  # length of a row of the map; those of documents that are all the same have none
_CONDITION = 1e-3  # directions that the map hardly decodes are left out of the mean
_MOST_SWEEPS = 10  # until no bit changes; some four do


def fit_bits(start: Codes, documents: Vectors, rounds: int = ROUNDS) -> Codes:
    """Codes of single bits that decode to vectors close to the documents.

    A document is decoded as ``mean + b A``, with a sign in b for each bit. As in the binary autoencoder of
    Carreira-Perpinan & Raziperchikolaei (2015, arXiv 1501.00756), the map A and the bits are fitted in turn: A by ridge
    regression, and each bit as the sign that leaves the smaller error, given the others. The rows of A are not
    orthogonal, as ITQ's are, so that several bits tell where documents are in a direction in which they differ much:
    the squared error of MiniLM's vectors is a third of ITQ's.

    Args:
        start: ITQ's codes of these documents.
        documents: (n, d) float32. Up to 65,536 of them, drawn evenly, fit the map; all get bits, block by block.
        rounds: Times that the map and the bits are fitted.
    """
    rows = training_rows(len(start.codes), 1)
    sample = read_vectors(documents, rows)
    mean = sample.mean(axis=0)
    sample -= mean
    signs = _signs(start)[rows]
    for _ in range(rounds):
        decoder = _decoder(signs, sample)
        _improve(signs, sample, decoder, _SWEEPS)
    decoder = _decoder(signs, sample)
    codes = np.empty_like(start.codes)
    if len(rows) < len(codes):
        for first in range(0, len(codes), _BLOCK):
            block = slice(first, first + _BLOCK)
            codes[block] = bits_of(read_vectors(documents, block) - mean, decoder)
    codes[rows] = signs > 0  # fitted in all rounds: their error is smaller
    lengths = np.linalg.norm(decoder, axis=1)
    is_used = lengths > _SHORTEST
    rotation = np.where(is_used[:, None], decoder / np.maximum(lengths, _SHORTEST)[:, None], start.rotation)
    middle = np.linalg.lstsq(rotation.T, mean, rcond=_CONDITION)[0].astype(np.float32)  # decodes to the mean
    books = np.stack([middle - lengths, middle + lengths], axis=1)[:, :, None]
    return replace(start, rotation=rotation, codebooks=books, codes=codes)


def add_bits(index: Any, vectors: np.ndarray) -> bool:
    """Add (n, d) float32 vectors to a FAISS index of learned bits, alone or refined; False for any other index.

    They get the bits that fit best. FAISS itself would take each bit for itself, which is right for orthogonal maps.
    """
    is_refined = isinstance(index, faiss.IndexRefine)
    coded: Any = faiss.downcast_index(index.base_index if is_refined else index)
    codes = read_bits(coded)
    if codes is None:
        return False
    low, high = codes.codebooks[:, :, 0].T
    center, decoder = (low + high) / 2 @ codes.rotation, (high - low)[:, None] / 2 * codes.rotation
    inner: Any = faiss.downcast_index(coded.index)
    for first in range(0, len(vectors), _BLOCK):
        block = np.ascontiguousarray(vectors[first : first + _BLOCK], dtype=np.float32)
        inner.add_sa_codes(np.packbits(bits_of(block - center, decoder), axis=1, bitorder="little"))
        if is_refined:
            index.refine_index.add(block)
    coded.ntotal = index.ntotal = inner.ntotal
    return True


def bits_of(vectors: np.ndarray, decoder: np.ndarray) -> np.ndarray:
    """(n, bits) uint8 bits of (n, d) centered vectors, each of which fits best given the others."""
    signs = np.where(vectors @ np.linalg.pinv(decoder) > 0, np.float32(1), np.float32(-1))
    _improve(signs, vectors, decoder, _MOST_SWEEPS)
    return (signs > 0).astype(np.uint8)


def _signs(codes: Codes) -> np.ndarray:
    """(n, bits) float32, 1 where a document has the larger codeword and -1 where it has the smaller one."""
    low, high = codes.codebooks[:, :, 0].T
    return np.where((codes.codes > 0) == (high > low), np.float32(1), np.float32(-1))


def _decoder(signs: np.ndarray, vectors: np.ndarray) -> np.ndarray:
    """(bits, d) float32 by ridge regression of vectors on signs."""
    gram = signs.T @ signs + _RIDGE * len(signs) * np.eye(signs.shape[1], dtype=np.float32)
    fitted: np.ndarray = np.linalg.solve(gram, signs.T @ vectors).astype(np.float32)
    return fitted


def _improve(signs: np.ndarray, vectors: np.ndarray, decoder: np.ndarray, sweeps: int) -> None:
    """Flip, in place, bit by bit, the signs whose flip leaves a smaller error, up to a number of sweeps.

    With the error e of a vector, a flip of bit j changes its square by ``4 (s_j e.a_j + a_j.a_j)``.
    """
    products = decoder @ decoder.T
    alignment = (vectors - signs @ decoder) @ decoder.T  # (n, bits) of errors with rows of the decoder
    for _ in range(sweeps):
        flips = 0
        for bit in range(signs.shape[1]):
            flipped = np.flatnonzero(signs[:, bit] * alignment[:, bit] < -products[bit, bit])
            alignment[flipped] += 2 * signs[flipped, bit, None] * products[bit]
            signs[flipped, bit] *= -1
            flips += len(flipped)
        if not flips:
            return
