"""What an inverted index keeps of sparse weights: its settings, and the postings that they ask for."""

from __future__ import annotations

from pathlib import Path
from typing import Any, Literal

import numpy as np
from pydantic import Field, field_validator, model_validator
from scipy.sparse import csr_array

from retrodistill.indexes.seismic import SeismicPostings
from retrodistill.rankers.postings import Postings
from retrodistill.training.settings import Settings

_FLOAT, _DROPPED_BITS = 32, (4, 16)  # 4 and 16: of version 0.1.0; neither was better than 8 (evaluation/README.md)
_OF_EXACT, _OF_SEISMIC = {"bits"}, {"query_cut", "heap_factor"}


class InvertedSettings(Settings):
    """How sparse documents are indexed.

    Attributes:
        backend: ``exact``, or ``seismic``: approximate, for corpora of many hundred thousand documents.
        bits: Bits of an impact: 8, in steps of its term's own, or 32 (None) for exact float32 weights. ``exact`` only.
        prune: Keep so many terms of largest weight per document; None for all.
        query_cut: So many of a query's heaviest terms choose what Seismic visits.
        heap_factor: Above 0 up to 1; a block of documents that promises less than the k-th score over this is skipped
            by Seismic: lower is faster and finds less.
    """

    backend: Literal["exact", "seismic"] = "exact"
    bits: Literal[8] | None = 8
    prune: int | None = Field(default=None, ge=1)
    query_cut: int = Field(default=10, ge=1)
    heap_factor: float = Field(default=0.8, gt=0, le=1)

    @field_validator("bits", mode="before")
    @classmethod
    def _bits_that_are_kept(cls, bits: Any) -> Any:
        if bits in _DROPPED_BITS:
            raise ValueError(f"{bits}-bit impacts were dropped; take 8 (the default) or 32 for exact weights")
        return None if bits == _FLOAT else bits

    @model_validator(mode="after")
    def _each_to_its_backend(self) -> InvertedSettings:
        strange = self.model_fields_set & (_OF_EXACT if self.backend == "seismic" else _OF_SEISMIC)
        if strange:
            raise ValueError(f"{sorted(strange)[0]} is not a setting of the backend {self.backend!r}; leave it out")
        return self

    def kept(self) -> dict[str, Any]:
        """The settings that count for the backend, as JSON values."""
        return self.model_dump(exclude=_OF_EXACT if self.backend == "seismic" else _OF_SEISMIC)


def make_postings(
    matrix: csr_array, settings: InvertedSettings, scales: np.ndarray | None = None
) -> Postings | SeismicPostings:
    """Postings of (documents, terms) weights; `scales` as in `Postings.from_csr`."""
    if settings.backend == "seismic":
        return SeismicPostings.from_csr(matrix, settings.query_cut, settings.heap_factor)
    return Postings.from_csr(matrix, settings.bits, scales)


def read_postings(
    folder: Path, documents: int, terms: int, settings: InvertedSettings, *, memory_map: bool = False
) -> Postings | SeismicPostings:
    """Read postings that were written; `memory_map` leaves exact ones on disk."""
    if settings.backend == "seismic":
        return SeismicPostings.read(folder, documents, terms, settings.query_cut, settings.heap_factor)
    return Postings.read(folder, documents, settings.bits, memory_map=memory_map)


def strongest(matrix: csr_array, most: int | None) -> csr_array:
    """Rows cut to their `most` largest weights, equal ones by term; None leaves them as they are."""
    counts = np.diff(matrix.indptr)
    if most is None or counts.max(initial=0) <= most:
        return matrix
    rows = np.repeat(np.arange(matrix.shape[0]), counts)
    order = np.lexsort((matrix.indices, -matrix.data, rows))
    rank = np.arange(matrix.nnz) - np.repeat(matrix.indptr[:-1], counts)  # within its row, in that order
    kept = np.sort(order[rank < most])
    bounds = np.concatenate([[0], np.cumsum(np.minimum(counts, most))])
    return csr_array((matrix.data[kept], matrix.indices[kept], bounds), shape=matrix.shape)
