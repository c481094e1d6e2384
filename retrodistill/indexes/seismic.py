"""Seismic as postings: approximate search among sparse vectors (SIGIR 2024, arXiv 2404.18812)."""

from __future__ import annotations

import contextlib
import importlib.util
import math
import os
import sys
from collections.abc import Iterator
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np
from scipy.sparse import csr_array

from retrodistill.core.arrays import read_array, save_array
from retrodistill.core.errors import UserError, first_line
from retrodistill.core.files import temporary_folder
from retrodistill.indexes.selected import is_few
from retrodistill.runs.run import TieOrder, top_k

_NAME, _FILE = "seismic", "seismic.index.seismic"  # the library appends ".index.seismic" to the name
_ROWS = "seismic-rows.npy"
_LARGEST_VOCABULARY = 2**16  # terms; above, the library has classes for large vocabularies
_MORE = 2  # times as many documents as are expected to be needed
_LARGEST_WEIGHT = float(np.finfo(np.float16).max)


class SeismicPostings:
    """A Seismic index of documents by row; see the options of its settings in `IndexOptions`.

    For the `query_cut` heaviest terms of a query it visits only blocks of documents whose summary, times `heap_factor`
    (above 0 and up to 1), is not below the k-th score; all terms count in scores. Weights are kept as float16. Blocks
    are clustered at random and the library takes no seed: two builds of the same documents find slightly different
    ones; a saved index does not change. A document's name in the ``SeismicIndex`` is its row. `rows` are (held,) int64,
    ascending, of the documents with at least one term: the library skips the others. `documents` and `terms` are their
    numbers.
    """

    bits = None

    def __init__(
        self, index: Any, rows: np.ndarray, documents: int, terms: int, query_cut: int = 10, heap_factor: float = 0.8
    ) -> None:
        self.index, self.rows, self.documents, self.terms = index, rows, documents, terms
        self.query_cut, self.heap_factor = query_cut, heap_factor
        self._string_type = str(seismic().get_seismic_string())

    @classmethod
    def from_csr(cls, matrix: csr_array, query_cut: int = 10, heap_factor: float = 0.8) -> SeismicPostings:
        """Index (documents, terms) positive weights; at least one, and none beyond float16."""
        if not matrix.nnz or matrix.data.max() > _LARGEST_WEIGHT:
            why = f"a weight is above {_LARGEST_WEIGHT:.0f}, float16's largest" if matrix.nnz else "none has a term"
            raise UserError(f"Seismic cannot index these documents: {why}; choose the backend 'exact'.")
        matrix.sort_indices()
        documents, terms = matrix.shape
        dataset = _class("SeismicDataset", terms)(dim=terms)
        arrays = matrix.indices.astype(np.int64), matrix.data.astype(np.float32), matrix.indptr.astype(np.int64)
        dataset.add_documents_by_id([str(row) for row in range(documents)], *arrays)
        with _silent_stdout():
            index = _class("SeismicIndex", terms).build_from_dataset(dataset)
        return cls(index, np.flatnonzero(np.diff(matrix.indptr)), documents, terms, query_cut, heap_factor)

    @cached_property
    def nbytes(self) -> int:
        """Size of the library's file."""
        with temporary_folder() as folder:
            self.write(folder)
            return (folder / _FILE).stat().st_size

    def matrix(self) -> csr_array:
        """(documents, terms) float32 weights, as the library holds them."""
        return self._weights(np.arange(self.documents))

    def _weights(self, rows: np.ndarray) -> csr_array:
        """(m, terms) float32 weights of (m,) ascending rows."""
        _, places, within = np.intersect1d(self.rows, rows, assume_unique=True, return_indices=True)
        held = [self.index.get(place) for place in places.tolist()]
        counts = np.zeros(len(rows), dtype=np.int64)
        counts[within] = [len(terms) for terms, _ in held]
        none = np.zeros(0)
        terms = np.concatenate([none, *(terms for terms, _ in held)]).astype(np.int64)
        weights = np.concatenate([none, *(weights for _, weights in held)]).astype(np.float32)
        return csr_array((weights, terms, np.concatenate([[0], np.cumsum(counts)])), (len(rows), self.terms))

    def search(
        self,
        terms: np.ndarray,
        weights: np.ndarray,
        k: int,
        ties: TieOrder | None = None,
        among: np.ndarray | None = None,
    ) -> tuple[np.ndarray, np.ndarray]:
        """About the k documents of highest positive score; arguments and results as for `Postings.search`.

        Seismic has no filter. Among few documents the search is exact. Otherwise it finds more and drops those that are
        not wanted; where fewer than k are left, exact search decides. Which documents that tie for the last places are
        found is up to the library: `ties` has no effect.
        """
        if among is None:
            return self._search(terms, weights, k)
        if is_few(len(among), self.documents):
            return self._exact(terms, weights, k, among)
        rows, scores = self._search(
            terms, weights, min(self.documents, math.ceil(_MORE * k * self.documents / len(among)))
        )
        kept = np.isin(rows, among)
        rows, scores = rows[kept][:k], scores[kept][:k]
        return (rows, scores) if len(rows) == k else self._exact(terms, weights, k, among)

    def _exact(
        self, terms: np.ndarray, weights: np.ndarray, k: int, among: np.ndarray
    ) -> tuple[np.ndarray, np.ndarray]:
        query = np.zeros(self.terms, dtype=np.float32)
        query[terms] = weights
        scores = self._weights(among) @ query
        best = top_k(scores, k)
        best = best[scores[best] > 0]
        return among[best], scores[best]

    def _search(self, terms: np.ndarray, weights: np.ndarray, k: int) -> tuple[np.ndarray, np.ndarray]:
        results = self.index.search(
            query_id="",
            query_components=terms.astype(np.int64).astype(self._string_type),
            query_values=weights.astype(np.float32),
            k=k,
            query_cut=self.query_cut,
            heap_factor=self.heap_factor,
        )
        scores = np.array([score for _, score, _ in results], dtype=np.float32)
        rows = np.array([row for _, _, row in results], dtype=np.int64)
        order = np.lexsort((rows, -scores))
        order = order[scores[order] > 0]
        return rows[order], scores[order]

    def write(self, folder: Path) -> None:
        """Write the library's file and the rows."""
        with _silent_stdout():
            self.index.save(str(folder / _NAME))
        save_array(folder / _ROWS, self.rows)

    @classmethod
    def read(cls, folder: Path, documents: int, terms: int, query_cut: int, heap_factor: float) -> SeismicPostings:
        """Read what `write` wrote."""
        try:
            index = _class("SeismicIndex", terms).load(str(folder / _FILE))
        except OSError as error:
            raise UserError(
                f"{folder / _FILE} is undamaged, but the installed Seismic cannot read it "
                f"({first_line(error)[:120]}); build the index again."
            ) from error
        return cls(index, read_array(folder / _ROWS), documents, terms, query_cut, heap_factor)


def seismic() -> Any:
    """The library."""
    if importlib.util.find_spec("seismic") is None:
        raise UserError(
            "the backend 'seismic' needs its package: pip install 'retrodistill[seismic]', or choose the backend "
            "'exact'."
        )
    library = importlib.import_module("seismic")
    if not hasattr(library, "SeismicIndex"):
        raise UserError("package 'seismic' is not Seismic's: pip install 'retrodistill[seismic]' (pyseismic-lsr).")
    return library


def _class(name: str, terms: int) -> Any:
    return getattr(seismic(), f"{name}LV" if terms > _LARGEST_VOCABULARY else name)


@contextlib.contextmanager
def _silent_stdout() -> Iterator[None]:
    """Discard what the library prints below Python: commands write their results to standard output."""
    sys.stdout.flush()
    kept, nowhere = os.dup(1), os.open(os.devnull, os.O_WRONLY)
    os.dup2(nowhere, 1)
    try:
        yield
    finally:
        os.dup2(kept, 1)
        os.close(kept)
        os.close(nowhere)
