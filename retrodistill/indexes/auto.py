"""The factory for ``auto``: from the size of the corpus, the bytes and the recall that are wanted."""

from __future__ import annotations

import math
from dataclasses import dataclass
from itertools import pairwise
from typing import NamedTuple

from retrodistill.core.errors import UserError

_GRAPH_FROM = 20_000  # documents; below, a scan takes under a millisecond or two
_LISTS_FROM = 100_000  # documents, where links do not fit
_GRAPH_TO = 500_000  # documents; beyond, building the graph takes longer than training and filling lists
_LINKS = 272  # bytes of HNSW32's links per document
_CROWDED = 0.93  # what coarse codes keep of their recall where documents have near neighbors
_PER_WORD = 39  # vectors per codeword or list that k-means asks for


@dataclass(frozen=True)
class Choice:
    """A factory and why.

    Attributes:
        factory: A FAISS factory string that can be trained on the corpus.
        parameters: Search parameters to begin with; None where it has none. `FaissIndex.tune` finds better ones.
        reason: One sentence, to print.
        bytes_per_document: Of codes and links; codebooks, rotation and centroids, which do not grow, and 8 bytes of
            label in inverted lists come on top.
        fixed_bytes: Of codebooks and rotation. OPQ is no choice where they make the index larger than exact vectors.
        recall: Share of exact search's ten best that it keeps, as measured (see `choose_factory`).
    """

    factory: str
    parameters: str | None
    reason: str
    bytes_per_document: float
    recall: float
    fixed_bytes: int = 0


class _Code(NamedTuple):
    """How a vector is stored."""

    prefix: str
    name: str
    size: float
    recall: float
    fixed: int = 0


def choose_factory(
    documents: int, dimension: int, *, bytes_per_document: float | None = None, recall: float | None = None
) -> Choice:
    """Choose a FAISS factory.

    How vectors are stored: without a wish ``Flat`` below 20,000 documents and ``SQ8`` from there; with a recall only,
    the fewest bytes that keep it; with bytes, what keeps most within them (and the reason says so where that is less
    than the recall that is wanted). Scalar codes down to d/2 bytes; below that OPQ where it can be trained (256 and d
    vectors at least) and its codebooks do not outweigh what it saves, else RaBitQ, which needs neither.

    How they are found: by a scan below 20,000 documents; by a graph (HNSW) from 20,000 to 500,000 where its 272 bytes
    per document fit and codes are scalar; by inverted lists from 100,000 otherwise, some 4 sqrt(n) of them and an
    eighth of them visited, a quarter for a recall above .95. A scan too where neither keeps the recall that is wanted.

    Recall is what MiniLM vectors (384 dimensions) kept, rounded down: scans on SciFact and NFCorpus (see
    ``evaluation/faiss_kinds.py``), graphs on 26,000 and 123,000 perturbed copies of both, lists of scalar codes on the
    123,000 only. Lists of OPQ are an estimate. Real documents are harder to find by lists than copies: an eighth of 64
    lists kept .89 on SciFact and .80 on NFCorpus. So tune: `FaissIndex.tune` measures and sets.

    Args:
        documents: How many there are.
        dimension: Width of their vectors.
        bytes_per_document: At most so many, of codes and links; None for no limit.
        recall: Share of exact search's ten best that is wanted, above 0 and up to 1; None for no wish.

    Raises:
        UserError: No documents, a recall outside 0 to 1, or bytes that no code fits in.
    """
    if documents < 1 or dimension < 1:
        raise UserError(f"{documents} documents of {dimension} dimensions; an index needs one or more of each.")
    if recall is not None and not 0 < recall <= 1:
        raise UserError(f"recall={recall:g}: choose a share above 0 and up to 1, e.g. 0.95.")
    codes = _codes(documents, dimension)
    fitting = [code for code in codes if bytes_per_document is None or code.size <= bytes_per_document]
    if not fitting:
        raise UserError(
            f"{bytes_per_document:g} bytes per document: the smallest code for {documents} vectors of {dimension} "
            f"dimensions has {codes[-1].size:g}; allow more bytes."
        )
    options = [_found(code, documents, dimension, bytes_per_document, recall) for code in fitting]
    if recall is not None:
        kept = [option for option in options if option.recall >= recall]
        kept = kept or [option for option in map(_scan, fitting) if option.recall >= recall]
        best = min(kept, key=lambda one: one.bytes_per_document) if kept else max(options, key=lambda one: one.recall)
    elif bytes_per_document is not None:
        best = max(options, key=lambda one: one.recall)
    else:
        best = options[0] if documents < _GRAPH_FROM else next(one for one in options if "SQ8" in one.factory)
    reason = _reason(best, documents, bytes_per_document, recall)
    return Choice(best.factory, best.parameters, reason, best.bytes_per_document, best.recall, best.fixed)


class _Option(NamedTuple):
    factory: str
    parameters: str | None
    bytes_per_document: float
    recall: float
    how: str
    fixed: int = 0


def _codes(documents: int, dimension: int) -> list[_Code]:
    """Ways to store a vector, most bytes first."""
    crowd = _CROWDED if documents >= _GRAPH_FROM else 1.0
    codes = [
        _Code("", "Flat", 4 * dimension, 1.0),
        _Code("", "SQfp16", 2 * dimension, 0.999),
        _Code("", "SQ8", dimension, 0.985),
        _Code("", "SQ6", math.ceil(0.75 * dimension), 0.96),
        _Code("", "SQ4", math.ceil(0.5 * dimension), round(0.92 * crowd, 3)),
    ]
    fixed = 4 * dimension * (dimension + 256)  # OPQ's rotation, and codebooks of 256 codewords
    if documents >= max(256, dimension) and fixed < 4 * dimension * documents:
        parts = [part for part in range(dimension // 4, 0, -1) if dimension % part == 0]
        codes += [
            _Code(f"OPQ{part},", f"PQ{part}", part, round(crowd * _product_recall(part / dimension), 3), fixed)
            for part in parts
            if fixed + part * documents < 4 * dimension * documents
        ]
    else:
        codes += [
            _Code("", "RaBitQ2", math.ceil(dimension / 4) + 20, 0.8),
            _Code("", "RaBitQ", math.ceil(dimension / 8) + 8, 0.65),
        ]
    return codes


def _product_recall(bytes_per_dimension: float) -> float:
    """Recall@10 of OPQ, between the measured points."""
    points = [(0.0, 0.0), (1 / 24, 0.55), (1 / 12, 0.68), (1 / 8, 0.75), (1 / 4, 0.85)]
    for (left, low), (right, high) in pairwise(points):
        if bytes_per_dimension <= right:
            return round(low + (high - low) * (bytes_per_dimension - left) / (right - left), 3)
    return points[-1][1]


def _found(code: _Code, documents: int, dimension: int, most: float | None, recall: float | None) -> _Option:
    """A code with the way of finding it that the corpus' size asks for."""
    scan = _scan(code)
    exact = recall is not None and recall > 0.99
    if documents < _GRAPH_FROM or exact:
        return scan
    links_fit = most is None or code.size + _LINKS <= most
    if documents <= _GRAPH_TO and links_fit and not code.prefix:
        graph = "HNSW32" if code.name == "Flat" else f"HNSW32,{code.name}"
        kept = 0.98 if documents < _LISTS_FROM else 0.96
        return _Option(graph, "efSearch=128", code.size + _LINKS, round(kept * code.recall, 3), "a graph")
    if documents < _LISTS_FROM:
        return scan
    lists = 2 ** round(math.log2(4 * math.sqrt(documents)))
    lists = min(lists, 2 ** int(math.log2(documents / _PER_WORD)))
    share, kept = (4, 0.98) if recall is not None and recall > 0.95 else (8, 0.95)
    return _Option(
        f"{code.prefix}IVF{lists},{code.name}",
        f"nprobe={max(1, lists // share)}",
        code.size,
        round(kept * code.recall, 3),
        f"{lists} inverted lists",
        code.fixed + 4 * lists * dimension,
    )


def _scan(code: _Code) -> _Option:
    return _Option(code.prefix + code.name, None, code.size, code.recall, "a scan", code.fixed)


def _reason(option: _Option, documents: int, most: float | None, recall: float | None) -> str:
    wishes = [f"{documents:,} documents"]
    wishes += [f"at most {most:g} bytes each"] if most is not None else []
    wishes += [f"recall@10 of {recall:g}"] if recall is not None else []
    short = recall is not None and option.recall < recall
    besides = f" and {option.fixed / 1e6:,.1f} MB of codebooks" if option.fixed else ""
    share = f"some {option.recall:.2f}" if option.recall < 1 else "all"
    return (
        f"auto: {option.factory} for {', '.join(wishes)}: {option.how}, {option.bytes_per_document:,.0f} bytes a "
        f"document{besides}, keeps {share} of exact search's ten best"
        + ("; no kind within these bytes keeps what is wanted." if short else ".")
    )
