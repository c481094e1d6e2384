"""The compression curve: systems whose documents one model encodes, at several sizes."""

from __future__ import annotations

import re
from collections import defaultdict
from collections.abc import Sequence
from html import escape

from retrodistill.evaluation.results import Results, System
from retrodistill.report import markup, words
from retrodistill.report.scatter import Pixels, Point, points_of, scatter

_ALIKE = 1.05  # sizes within this factor are one size: two indexes of the same vectors


def compression(results: Results) -> str:
    """Quality against bytes for each model whose documents stand in indexes of several sizes; else empty."""
    figures = "".join(_figure(model, points) for model, points in _groups(results).items())
    return markup.section("compression", "Compression", figures) if figures else ""


def _groups(results: Results) -> dict[str, list[Point]]:
    by_model: dict[str, list[Point]] = defaultdict(list)
    for point in points_of(results.systems, lambda system: system.bytes_per_document):
        if point.system.documents_by:
            by_model[point.system.documents_by].append(point)
    return {
        model: sorted(points, key=lambda point: point.cost)
        for model, points in by_model.items()
        if max(point.cost for point in points) > _ALIKE * min(point.cost for point in points)
    }


def _figure(model: str, points: list[Point]) -> str:
    whole = max(points, key=lambda point: (point.cost, point.quality))
    picture = scatter(points, "bytes per document", lambda pixels: _joined(points, pixels))
    rows = [_row(point, whole) for point in points]
    name = escape(whole.system.name)
    heads = ["system", "bytes/doc", "smaller", "nDCG@10", f"of {name}"]
    told = (
        f"<b>Documents by {escape(model)}.</b> Bytes are those of all that serving keeps, codebooks and transforms "
        "included, shared among the documents."
    )
    table = markup.table(heads, rows, "Sizes and quality")
    return f'<div class="figures"><figure>{picture}<figcaption>{told}</figcaption></figure><div>{table}</div></div>'


def _row(point: Point, whole: Point) -> str:
    cells = [
        words.size(point.cost),
        f"{whole.cost / point.cost:.3g}×",
        words.measure(point.quality),
        f"{point.quality / whole.quality:.1%}" if whole.quality else words.MISSING,
    ]
    return markup.row(markup.named(point.system), cells, point.system.role)


def _joined(points: Sequence[Point], pixels: Pixels) -> list[tuple[str, Pixels]]:
    """A line through the sizes of each way of compressing: systems whose names differ in their last number alone."""
    families: dict[str, Pixels] = defaultdict(list)
    for point, place in zip(points, pixels, strict=True):
        families[_family(point.system)].append(place)
    return [("family", places) for places in families.values()]


def _family(system: System) -> str:
    return re.sub(r"\d+(?=\D*$)", "#", system.name)
