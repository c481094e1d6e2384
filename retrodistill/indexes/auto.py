"""The factory for ``auto``: chosen from the size of the corpus, the bytes per document, and the recall."""

from __future__ import annotations

import math
from dataclasses import dataclass, replace
from itertools import pairwise
from typing import NamedTuple

from retrodistill.core.errors import UserError

_GRAPH_FROM = 20_000  # documents; below, a scan takes a millisecond or two
_LISTS_FROM = 100_000  # documents, if the links of a graph do not fit
_GRAPH_TO = 500_000  # documents; above, building a graph takes longer than training and filling lists
_LINK_BYTES = 272  # of HNSW32 per document
_CROWDED = 0.93  # share of their recall that coarse codes keep among near neighbors
_PER_LIST = 39  # vectors per list that k-means asks for


@dataclass(frozen=True)
class Choice:
    """A factory and the reason for it.

    Attributes:
        factory: A FAISS factory string that can be trained on the corpus.
        parameters: Search parameters to begin with; None if it has none. `FaissIndex.tune` finds better ones.
        reason: One sentence for the log.
        bytes_per_document: Of codes and links. Codebooks, rotation and centroids, which do not grow, and 8 bytes per
            label in inverted lists come on top.
        recall: Share of exact search's ten best that it keeps, as measured (see `choose_factory`).
        fixed_bytes: Of codebooks, rotation and centroids. OPQ is not used if they make the index larger than exact
            vectors.
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

    Codes: without bytes and recall, ``Flat`` below 20,000 documents and ``SQ8`` from there. With a recall only, the
    fewest bytes that keep it. With bytes, the code that keeps most within them; the reason says so if that is less than
    `recall`. Codes are scalar down to d/2 bytes. Below that, OPQ if it can be trained (on at least 256 and d vectors)
    and its codebooks are smaller than what it saves, otherwise RaBitQ, which needs neither.

    Search: a scan below 20,000 documents. A graph (HNSW) from 20,000 to 500,000 if its 272 bytes per document fit and
    codes are scalar. Otherwise inverted lists from 100,000, about 4 sqrt(n) of which an eighth are visited, or a
    quarter for a recall above .95. A scan if neither keeps `recall`.

    Recall is what MiniLM vectors (384 dimensions) kept, rounded down: scans on SciFact and NFCorpus (see
    ``evaluation/faiss_kinds.py``), graphs on 26,000 and 123,000 perturbed copies of both, lists of scalar codes on the
    123,000 only. Lists of OPQ are an estimate. Real documents are harder to find by lists than copies: an eighth of 64
    lists kept .89 on SciFact and .80 on NFCorpus. So tune: `FaissIndex.tune` measures and sets.

    Args:
        documents: Number of documents.
        dimension: Width of their vectors.
        bytes_per_document: Limit for codes and links; None for no limit.
        recall: Target share of exact search's ten best, above 0 and up to 1; None for none.

    Raises:
        UserError: There are no documents, the recall is not between 0 and 1, or no code fits the bytes.
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
    choices = [_search(code, documents, dimension, bytes_per_document, recall) for code in fitting]
    if recall is not None:
        kept = [choice for choice in choices if choice.recall >= recall]
        kept = kept or [choice for choice in map(_scan, fitting) if choice.recall >= recall]
        smallest = min(kept, key=lambda choice: choice.bytes_per_document, default=None)
        best = smallest or max(choices, key=lambda choice: choice.recall)
    elif bytes_per_document is not None:
        best = max(choices, key=lambda choice: choice.recall)
    else:
        code = "Flat" if documents < _GRAPH_FROM else "SQ8"
        best = next(choice for choice in choices if code in choice.factory)
    return replace(best, reason=_reason(best, documents, bytes_per_document, recall))


def _codes(documents: int, dimension: int) -> list[_Code]:
    """Ways to store a vector, from most to fewest bytes."""
    crowd = _CROWDED if documents >= _GRAPH_FROM else 1.0
    exact = 4 * dimension
    codes = [
        _Code("", "Flat", exact, 1.0),
        _Code("", "SQfp16", 2 * dimension, 0.999),
        _Code("", "SQ8", dimension, 0.985),
        _Code("", "SQ6", math.ceil(0.75 * dimension), 0.96),
        _Code("", "SQ4", math.ceil(0.5 * dimension), round(0.92 * crowd, 3)),
    ]
    fixed = exact * (dimension + 256)  # OPQ's rotation, and codebooks of 256 codewords
    if documents < max(256, dimension) or fixed >= exact * documents:
        rabitq2 = _Code("", "RaBitQ2", math.ceil(dimension / 4) + 20, 0.8)
        return [*codes, rabitq2, _Code("", "RaBitQ", math.ceil(dimension / 8) + 8, 0.65)]
    for parts in range(dimension // 4, 0, -1):
        if dimension % parts == 0 and fixed + parts * documents < exact * documents:
            recall = round(crowd * _product_recall(parts / dimension), 3)
            codes.append(_Code(f"OPQ{parts},", f"PQ{parts}", parts, recall, fixed))
    return codes


def _product_recall(bytes_per_dimension: float) -> float:
    """Recall@10 of OPQ, interpolated between measured points."""
    points = [(0.0, 0.0), (1 / 24, 0.55), (1 / 12, 0.68), (1 / 8, 0.75), (1 / 4, 0.85)]
    for (left, low), (right, high) in pairwise(points):
        if bytes_per_dimension <= right:
            return round(low + (high - low) * (bytes_per_dimension - left) / (right - left), 3)
    return points[-1][1]


def _search(code: _Code, documents: int, dimension: int, most: float | None, recall: float | None) -> Choice:
    """A code with the kind of search that suits the size of the corpus; the reason is only that kind so far."""
    is_exact = recall is not None and recall > 0.99
    fits = most is None or code.size + _LINK_BYTES <= most
    if documents < _GRAPH_FROM or is_exact:
        return _scan(code)
    if documents <= _GRAPH_TO and fits and not code.prefix:
        graph = "HNSW32" if code.name == "Flat" else f"HNSW32,{code.name}"
        kept = round((0.98 if documents < _LISTS_FROM else 0.96) * code.recall, 3)
        return Choice(graph, "efSearch=128", "a graph", code.size + _LINK_BYTES, kept)
    if documents < _LISTS_FROM:
        return _scan(code)
    lists = 2 ** round(math.log2(4 * math.sqrt(documents)))
    lists = min(lists, 2 ** int(math.log2(documents / _PER_LIST)))
    share, kept = (4, 0.98) if recall is not None and recall > 0.95 else (8, 0.95)
    factory, parameters = f"{code.prefix}IVF{lists},{code.name}", f"nprobe={max(1, lists // share)}"
    fixed = code.fixed + 4 * lists * dimension
    return Choice(factory, parameters, f"{lists} inverted lists", code.size, round(kept * code.recall, 3), fixed)


def _scan(code: _Code) -> Choice:
    return Choice(code.prefix + code.name, None, "a scan", code.size, code.recall, code.fixed)


def _reason(choice: Choice, documents: int, most: float | None, recall: float | None) -> str:
    wishes = [f"{documents:,} documents"]
    wishes += [f"at most {most:g} bytes each"] if most is not None else []
    wishes += [f"recall@10 of {recall:g}"] if recall is not None else []
    codebooks = f" and {choice.fixed_bytes / 1e6:,.1f} MB of codebooks" if choice.fixed_bytes else ""
    share = f"about {choice.recall:.2f}" if choice.recall < 1 else "all"
    is_short = recall is not None and choice.recall < recall
    return (
        f"auto: {choice.factory} for {', '.join(wishes)}: {choice.reason}, {choice.bytes_per_document:,.0f} bytes a "
        f"document{codebooks}, keeps {share} of exact search's ten best"
        + ("; no kind within these bytes keeps the recall." if is_short else ".")
    )
