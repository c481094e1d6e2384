"""Search of a FAISS index among some of its documents.

The result is that of an exhaustive search from which all other documents are removed. FAISS skips documents by a
selector in flat, scalar, RaBitQ, HNSW and most IVF kinds. The others (product and additive quantizers, fast scan) are
searched deeper until enough of the documents are found.

Graphs, inverted lists, and refined indexes approximate. Among few documents (`is_few`) they are searched exhaustively:
all lists, or the graph's or the refining vectors. Among many, they visit as many more lists or nodes as there are fewer
documents, so that they compare a query with as many wanted documents as without a filter; queries that still lack some
are searched exhaustively.
"""

from __future__ import annotations

import math
from typing import Any

import numpy as np

from retrodistill.core.faiss import faiss

_FEW, _SHARE = 10_000, 0.05  # documents, and their share: exhaustive search takes milliseconds
_RESULTS = 2**22  # of a block of queries that is searched deeper; 12 bytes each
_MORE = 2  # times as many documents as are expected to be needed
_ADDITIVE = ("ResidualQuantizer", "LocalSearchQuantizer")
_SELECTING = ("IndexFlat", "IndexFlatIP", "IndexScalarQuantizer", "IndexRaBitQ")


def is_few(wanted: int, documents: int) -> bool:
    """Whether so few of the documents are wanted that an approximate index is searched exhaustively."""
    return wanted <= max(_FEW, _SHARE * documents)


def search_among(index: Any, queries: np.ndarray, k: int, labels: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Search as ``index.search``, but only among (m,) ascending labels.

    Args:
        index: A filled FAISS index.
        queries: (q, d) float32, contiguous.
        k: Results per query, up to m.
        labels: Of the documents that may be found.

    Returns:
        scores (q, k) float32 and labels (q, k) int64, best first; -1 where fewer were found.
    """
    mask = np.zeros(int(labels[-1]) + 1, dtype=bool)
    mask[labels] = True
    exhaustive = is_few(len(labels), index.ntotal)
    wanted = _Wanted(mask, len(labels) / index.ntotal, exhaustive)
    scores, found = wanted.search(index, queries, k)
    lacking = np.flatnonzero((found < 0).any(axis=1))
    if not exhaustive and len(lacking):
        everywhere = _Wanted(mask, wanted.share, exhaustive=True)
        scores[lacking], found[lacking] = everywhere.search(index, np.ascontiguousarray(queries[lacking]), k)
    return scores, found


class _Wanted:
    """The documents that may be found, as a (largest label + 1,) mask, and their share of all."""

    def __init__(self, mask: np.ndarray, share: float, exhaustive: bool) -> None:
        self.mask, self.share, self.exhaustive = mask, share, exhaustive
        self._selector = faiss.IDSelectorBitmap(np.packbits(mask, bitorder="little"))

    def search(self, index: Any, queries: np.ndarray, k: int) -> tuple[np.ndarray, np.ndarray]:
        """As `search_among`, without a second search for what is lacking."""
        index = faiss.downcast_index(index)
        if self.exhaustive and isinstance(index, faiss.IndexPreTransform):
            for place in range(index.chain.size()):
                queries = faiss.downcast_VectorTransform(index.chain.at(place)).apply(queries)
            return self.search(index.index, queries, k)
        if self.exhaustive and isinstance(index, faiss.IndexRefine):
            return self.search(index.refine_index, queries, k)
        if self.exhaustive and isinstance(index, faiss.IndexHNSW):
            return self.search(index.storage, queries, k)
        parameters = self._parameters(index)
        if parameters is None:
            return self._search_deeper(index, queries, k)
        return index.search(queries, k, params=parameters)

    def _parameters(self, index: Any) -> Any:
        """Search parameters with the selector; None for a kind that has none."""
        index = faiss.downcast_index(index)
        name = type(index).__name__
        if isinstance(index, faiss.IndexPreTransform):
            inner = self._parameters(index.index)
            return inner and faiss.SearchParametersPreTransform(index_params=inner)
        if isinstance(index, faiss.IndexRefine):
            inner = self._parameters(index.base_index)
            return inner and faiss.IndexRefineSearchParameters(k_factor=index.k_factor, base_index_params=inner)
        if isinstance(index, faiss.IndexHNSW):
            visited = min(index.ntotal, self._scaled(index.hnsw.efSearch))
            return faiss.SearchParametersHNSW(sel=self._selector, efSearch=visited)
        if isinstance(index, faiss.IndexIVF):
            has_selector = not name.endswith("PQFastScan") and not any(codes in name for codes in _ADDITIVE)
            return faiss.SearchParametersIVF(sel=self._selector, nprobe=self._lists(index)) if has_selector else None
        return faiss.SearchParameters(sel=self._selector) if name in _SELECTING else None

    def _lists(self, index: Any) -> int:
        return int(index.nlist if self.exhaustive else min(index.nlist, self._scaled(index.nprobe)))

    def _scaled(self, visited: int) -> int:
        return math.ceil(visited / self.share)

    def _search_deeper(self, index: Any, queries: np.ndarray, k: int) -> tuple[np.ndarray, np.ndarray]:
        """Search for more and more documents until k of the wanted ones are found, or all."""
        if not isinstance(index, faiss.IndexIVF):
            return self._deepen(index, queries, k)
        before, index.nprobe = index.nprobe, self._lists(index)  # not every kind takes it as a search parameter
        try:
            return self._deepen(index, queries, k)
        finally:
            index.nprobe = before

    def _deepen(self, index: Any, queries: np.ndarray, k: int) -> tuple[np.ndarray, np.ndarray]:
        scores = np.zeros((len(queries), k), dtype=np.float32)
        found = np.full((len(queries), k), -1, dtype=np.int64)
        open_, depth = np.arange(len(queries)), min(index.ntotal, math.ceil(_MORE * k / self.share))
        while len(open_):
            still_open = []
            block = max(1, _RESULTS // depth)
            for start in range(0, len(open_), block):
                rows = open_[start : start + block]
                values, labels = index.search(np.ascontiguousarray(queries[rows]), depth)
                inside = np.minimum(labels, len(self.mask) - 1)
                passes = (labels >= 0) & (labels == inside) & self.mask[inside]
                rank = np.cumsum(passes, axis=1)
                query, place = np.nonzero(passes & (rank <= k))
                target = rows[query], rank[query, place] - 1
                scores[target], found[target] = values[query, place], labels[query, place]
                is_over = (rank[:, -1] >= k) | (labels[:, -1] < 0) | (depth == index.ntotal)
                still_open.append(rows[~is_over])
            open_, depth = np.concatenate(still_open), min(index.ntotal, 2 * depth)
        return scores, found
