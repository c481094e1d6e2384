"""Exact search among sparse vectors: for each term, the documents that have it and their impacts."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import numpy as np
from scipy.sparse import csc_array, csr_array

from retrodistill.core.arrays import read_array, save_array
from retrodistill.core.errors import UserError, sample_of
from retrodistill.runs.run import TieOrder, ties_among, top_k

_LEVELS = 2**8 - 1  # of an 8-bit impact
_GROUP = 2**22  # postings that are added at once, and copied for it
_PARTS = ("bounds", "rows", "impacts", "scales")


@dataclass(frozen=True, eq=False)
class Postings:
    """Impacts by term, exact or in 8 bits: steps of the term's largest weight / 255, at least one step."""

    bounds: np.ndarray  # (terms + 1,) unsigned; postings of term t are ``bounds[t]:bounds[t + 1]``
    rows: np.ndarray  # (postings,) unsigned; documents, ascending within a term
    impacts: np.ndarray  # (postings,) float32 weights, or uint8 codes
    scales: np.ndarray  # (terms,) float32 weight of one step; empty for exact weights
    documents: int  # including those without terms
    bits: Literal[8] | None = None  # of a code; None for exact weights

    @classmethod
    def from_csr(cls, matrix: csr_array, bits: Literal[8] | None = None, scales: np.ndarray | None = None) -> Postings:
        """Postings of (documents, terms) positive weights; zeros are not stored.

        `scales` are (terms,) minimum weights of one step, such as those of postings that grow: codes of terms that do
        not exceed their scale stay the same.
        """
        columns = csc_array(matrix, dtype=np.float32)
        columns.eliminate_zeros()
        columns.sort_indices()
        bounds = columns.indptr.astype(_unsigned(columns.nnz))
        rows = columns.indices.astype(_unsigned(matrix.shape[0]))
        if bits is None:
            return cls(bounds, rows, columns.data, np.zeros(0, dtype=np.float32), matrix.shape[0])
        steps = np.zeros(matrix.shape[1], dtype=np.float32) if scales is None else scales.astype(np.float32)
        used = np.flatnonzero(np.diff(columns.indptr))  # reduceat gives wrong results for empty terms
        if len(used):
            largest = np.maximum.reduceat(columns.data, columns.indptr[used])
            steps[used] = np.maximum(steps[used], largest / np.float32(_LEVELS))
        per_posting = np.repeat(np.maximum(steps, np.finfo(np.float32).tiny), np.diff(columns.indptr))
        codes = np.clip(np.rint(columns.data / per_posting), 1, _LEVELS).astype(np.uint8)
        return cls(bounds, rows, codes, steps, matrix.shape[0], bits)

    @property
    def terms(self) -> int:
        """Size of the vocabulary."""
        return len(self.bounds) - 1

    @property
    def nbytes(self) -> int:
        """Bytes of all arrays, as stored."""
        return sum(getattr(self, part).nbytes for part in _PARTS)

    def matrix(self) -> csr_array:
        """(documents, terms) float32 weights, decoded."""
        weights = np.asarray(self.impacts).astype(np.float32, copy=False)
        bounds = np.asarray(self.bounds).astype(np.int64)
        if self.bits is not None:
            weights = weights * np.repeat(self.scales, np.diff(bounds))
        shape = (self.documents, self.terms)
        return csr_array(csc_array((weights, np.asarray(self.rows).astype(np.int64), bounds), shape=shape))

    def scores(self, terms: np.ndarray, weights: np.ndarray) -> np.ndarray:
        """(documents,) float32 inner products with a query of (m,) distinct integer terms and (m,) float32 weights."""
        terms, weights = np.asarray(terms), np.asarray(weights, dtype=np.float32)
        first, last = self.bounds[terms].astype(np.int64), self.bounds[terms + 1].astype(np.int64)
        steps = weights if self.bits is None else weights * self.scales[terms]
        scores = np.zeros(self.documents, dtype=np.float32)
        ends = np.cumsum(last - first)
        for group in np.split(np.arange(len(terms)), np.flatnonzero(np.diff(ends // _GROUP)) + 1):
            # SciPy adds a column at a time without the copies that indexing with rows makes.
            parts = [slice(0), *map(slice, first[group].tolist(), last[group].tolist())]  # a query may have no term
            rows = np.concatenate([self.rows[part] for part in parts]).astype(np.int32, copy=False)
            impacts = np.concatenate([self.impacts[part] for part in parts])
            pointers = np.concatenate([[0], np.cumsum(last[group] - first[group])]).astype(np.int32)
            scores += csc_array((impacts, rows, pointers), shape=(self.documents, len(group))) @ steps[group]
        return scores

    def search(
        self,
        terms: np.ndarray,
        weights: np.ndarray,
        k: int,
        ties: TieOrder | None = None,
        among: np.ndarray | None = None,
    ) -> tuple[np.ndarray, np.ndarray]:
        """The k documents of highest positive score, or fewer, among all or ascending rows.

        Arguments as for `scores`, and `ties`, of rows, as for `top_k`.

        Returns:
            rows (found,) int64 and scores (found,) float32, best first, ties by row.
        """
        scores = self.scores(terms, weights)
        scores = scores if among is None else scores[among]
        best = top_k(scores, k, ties if among is None else ties_among(among, ties))
        best = best[scores[best] > 0]
        return best if among is None else among[best], scores[best]

    def write(self, folder: Path) -> None:
        """Write one ``.npy`` file per array."""
        for part in _PARTS:
            save_array(folder / f"postings-{part}.npy", getattr(self, part))

    @classmethod
    def read(cls, folder: Path, documents: int, bits: Literal[8] | None, *, memory_map: bool = False) -> Postings:
        """Read the files of `write`; `memory_map` leaves the arrays on disk."""
        files = [folder / f"postings-{part}.npy" for part in _PARTS]
        arrays = (read_array(file, memory_map=memory_map) for file in files)
        # As plain arrays: slices of a memmap are several times slower.
        bounds, rows, impacts, scales = map(np.asarray, arrays)
        return cls(bounds, rows, impacts, scales, documents, bits)


def search_rows(
    postings: Any, queries: csr_array, k: int, ties: TieOrder | None = None, among: np.ndarray | None = None
) -> tuple[np.ndarray, np.ndarray]:
    """Search postings (of any class with their `search`) with each row of (q, terms) queries.

    Returns:
        rows (q, k) int64, padded with -1, and scores (q, k) float32, best first.
    """
    rows = np.full((queries.shape[0], k), -1, dtype=np.int64)
    scores = np.zeros((queries.shape[0], k), dtype=np.float32)
    for query in range(queries.shape[0]):
        own = slice(queries.indptr[query], queries.indptr[query + 1])
        best, values = postings.search(queries.indices[own], queries.data[own], k, ties, among)
        rows[query, : len(best)], scores[query, : len(best)] = best, values
    return rows, scores


def check_weights(matrix: csr_array, ids: Sequence[str], source: str, *, negative: bool = False) -> None:
    """Reject weights that are NaN, infinite or, unless `negative` is set, negative; the error names the first ids."""
    bad = ~np.isfinite(matrix.data)
    if not negative:
        bad |= matrix.data < 0
    if bad.any():
        rows = np.unique(np.repeat(np.arange(matrix.shape[0]), np.diff(matrix.indptr))[bad])
        kinds = "NaN or infinite" if negative else "NaN, infinite or negative"
        raise UserError(
            f"{source}: {len(rows)} vectors hold weights that are {kinds} ({sample_of(ids[row] for row in rows)}); "
            "encode these again or leave them out."
        )


def _unsigned(largest: int) -> Any:
    """The narrowest unsigned type for 0 to `largest`, at least 16 bits: 8 would save nothing that matters."""
    return np.min_scalar_type(max(largest, 256))
