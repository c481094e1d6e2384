"""Seismic behind the postings' interface: approximate search among sparse vectors (SIGIR 2024, arXiv 2404.18812)."""

from __future__ import annotations

import contextlib
import importlib.util
import os
import sys
import tempfile
from collections.abc import Iterator
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np
from scipy.sparse import csr_array

from retrodistill.core.errors import UserError

_FILE, _SUFFIX = "seismic", ".index.seismic"  # the library appends the suffix
_ROWS = "seismic-rows.npy"
_NARROW = 2**16  # terms; more need the library's class for large vocabularies
_LARGEST = float(np.finfo(np.float16).max)


class SeismicPostings:
    """A Seismic index of documents by row.

    It visits, for the query's heaviest terms, only those blocks of documents whose summary promises enough; the
    documents' weights are kept as float16. Blocks are clustered at random, without a seed to give: two builds of the
    same documents find slightly different ones; a saved index stays as it is.

    Args:
        index: The filled ``SeismicIndex``; its documents are named by their rows.
        rows: (held,) int64 rows of the documents that hold a term, ascending: the library skips others.
        documents: Number of documents.
        terms: Number of terms of the vocabulary.
        query_cut: So many of a query's heaviest terms choose the lists to visit; all its terms count in the score.
        heap_factor: Above 0 up to 1; a block is skipped if its summary times this is below the k-th score. Lower is
            faster.
    """

    bits = None

    def __init__(
        self, index: Any, rows: np.ndarray, documents: int, terms: int, query_cut: int = 10, heap_factor: float = 0.8
    ) -> None:
        self.index, self.rows, self.documents, self.terms = index, rows, documents, terms
        self.query_cut, self.heap_factor = query_cut, heap_factor

    @classmethod
    def from_csr(cls, matrix: csr_array, query_cut: int = 10, heap_factor: float = 0.8) -> SeismicPostings:
        """Index (documents, terms) positive weights.

        Raises:
            UserError: The library is not installed, no document has a term, or a weight is beyond float16.
        """
        library = seismic()
        if not matrix.nnz or matrix.data.max() > _LARGEST:
            why = f"a weight is above {_LARGEST:.0f}, float16's largest" if matrix.nnz else "none has a term"
            raise UserError(f"Seismic cannot index these documents: {why}; choose the backend 'exact'.")
        matrix.sort_indices()
        wide = matrix.shape[1] > _NARROW
        dataset = (library.SeismicDatasetLV if wide else library.SeismicDataset)(dim=matrix.shape[1])
        arrays = matrix.indices.astype(np.int64), matrix.data.astype(np.float32), matrix.indptr.astype(np.int64)
        dataset.add_documents_by_id([str(row) for row in range(matrix.shape[0])], *arrays)
        with _silence():
            index = (library.SeismicIndexLV if wide else library.SeismicIndex).build_from_dataset(dataset)
        held = np.flatnonzero(np.diff(matrix.indptr))
        return cls(index, held, matrix.shape[0], matrix.shape[1], query_cut, heap_factor)

    @cached_property
    def nbytes(self) -> int:
        """Bytes of the library's file."""
        with tempfile.TemporaryDirectory() as folder:
            self.write(Path(folder))
            return (Path(folder) / (_FILE + _SUFFIX)).stat().st_size

    def matrix(self) -> csr_array:
        """(documents, terms) float32 weights, as the library holds them."""
        held = [self.index.get(place) for place in range(len(self.rows))]
        counts = np.zeros(self.documents, dtype=np.int64)
        counts[self.rows] = [len(terms) for terms, _ in held]
        terms = np.concatenate([np.asarray(terms, dtype=np.int64) for terms, _ in held])
        weights = np.concatenate([np.asarray(weights, dtype=np.float32) for _, weights in held])
        return csr_array((weights, terms, np.concatenate([[0], np.cumsum(counts)])), (self.documents, self.terms))

    def search(self, terms: np.ndarray, weights: np.ndarray, k: int) -> tuple[np.ndarray, np.ndarray]:
        """About the k documents of highest positive score; arguments and results as `Postings.search`."""
        found = self.index.search(
            query_id="",
            query_components=terms.astype(np.int64).astype(self._text),
            query_values=weights.astype(np.float32),
            k=k,
            query_cut=self.query_cut,
            heap_factor=self.heap_factor,
        )
        scores = np.array([score for _, score, _ in found], dtype=np.float32)
        rows = np.array([row for _, _, row in found], dtype=np.int64)
        order = np.lexsort((rows, -scores))
        order = order[scores[order] > 0]
        return rows[order], scores[order]

    def write(self, folder: Path) -> None:
        """Write the library's file and the rows."""
        with _silence():
            self.index.save(str(folder / _FILE))
        np.save(folder / _ROWS, self.rows, allow_pickle=False)

    @classmethod
    def read(cls, folder: Path, documents: int, terms: int, query_cut: int, heap_factor: float) -> SeismicPostings:
        """Read what `write` wrote.

        Raises:
            UserError: The library is not installed, or another version of it cannot read the file.
        """
        library = seismic()
        wide = terms > _NARROW
        try:
            index = (library.SeismicIndexLV if wide else library.SeismicIndex).load(str(folder / (_FILE + _SUFFIX)))
        except OSError as error:
            raise UserError(
                f"{folder / (_FILE + _SUFFIX)} is whole but not readable by the Seismic that is installed "
                f"({str(error).splitlines()[0][:120]}); build the index again."
            ) from error
        rows = np.load(folder / _ROWS, allow_pickle=False)
        return cls(index, rows, documents, terms, query_cut, heap_factor)

    @cached_property
    def _text(self) -> str:
        return str(seismic().get_seismic_string())


def seismic() -> Any:
    """The library.

    Raises:
        UserError: It is not installed.
    """
    if importlib.util.find_spec("seismic") is None:
        raise UserError(
            "the backend 'seismic' needs its package: pip install 'retrodistill[seismic]', or choose the backend "
            "'exact'."
        )
    import seismic as library

    if not hasattr(library, "SeismicIndex"):
        raise UserError("package 'seismic' is not Seismic's: pip install 'retrodistill[seismic]' (pyseismic-lsr).")
    return library


@contextlib.contextmanager
def _silence() -> Iterator[None]:
    """Keep what the library prints from its own language out of standard output, which commands answer on."""
    sys.stdout.flush()
    kept, nowhere = os.dup(1), os.open(os.devnull, os.O_WRONLY)
    os.dup2(nowhere, 1)
    try:
        yield
    finally:
        os.dup2(kept, 1)
        os.close(kept)
        os.close(nowhere)
