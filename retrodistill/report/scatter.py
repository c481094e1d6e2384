"""Quality over a cost, on a logarithmic axis: each system a labeled mark, lines between some of them."""

from __future__ import annotations

import itertools
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from html import escape

from retrodistill.evaluation.results import System
from retrodistill.report import svg, words
from retrodistill.report.labels import Box, Label, place_labels

_NAME_WIDTH = 20
Pixels = list[tuple[float, float]]


@dataclass(frozen=True)
class Point:
    """A system at its cost (above 0) and its quality (0 to 1)."""

    system: System
    cost: float
    quality: float


def points_of(systems: Sequence[System], cost: Callable[[System], float | None]) -> list[Point]:
    """The systems whose cost and nDCG@10 were measured, in order."""
    found = []
    for system in systems:
        value = cost(system)
        if value is not None and value > 0 and system.ndcg10 is not None:
            found.append(Point(system, value, system.ndcg10))
    return found


def scatter(points: Sequence[Point], title: str, joined: Callable[[Pixels], list[tuple[str, Pixels]]]) -> str:
    """The picture, with a name beside each mark.

    Args:
        points: At least one.
        title: Of the cost axis.
        joined: From the pixels of the points to lines: each a CSS class and its corners.
    """
    x = svg.logarithmic([point.cost for point in points], svg.LEFT, svg.WIDTH - svg.RIGHT)
    y = svg.linear([point.quality for point in points], svg.HEIGHT - svg.BOTTOM, svg.TOP, room=0.2)
    placed = [(x(point.cost), y(point.quality)) for point in points]
    lines = joined(placed)
    pieces = [_thin_box(one, other) for _, corners in lines for one, other in itertools.pairwise(corners)]
    plot = Box(svg.LEFT + 2, svg.TOP, svg.WIDTH, svg.HEIGHT - svg.BOTTOM - 2)
    names = [words.shorten_name(point.system.name, _NAME_WIDTH) for point in points]
    parts = [svg.axes(x, y, title, "nDCG@10")]
    parts += [f'<path class="{kind}" d="{svg.path(corners)}"/>' for kind, corners in lines if len(corners) > 1]
    for point, (left, top), label in zip(points, placed, place_labels(names, placed, plot, pieces), strict=True):
        parts.append(_label(label))
        parts.append(f"<g><title>{escape(_hover(point.system))}</title>{svg.marker(point.system.role, left, top)}</g>")
    return svg.figure("".join(parts), f"nDCG@10 against {title}")


def _thin_box(one: tuple[float, float], other: tuple[float, float]) -> Box:
    left, right = sorted((one[0], other[0]))
    top, bottom = sorted((one[1], other[1]))
    return Box(left - 1, top - 1, right + 1, bottom + 1)


def _label(label: Label) -> str:
    box, x = label.box, label.point[0]
    # Anchored on the side of its point, so that a font wider than reckoned grows away from it.
    anchor, at = "middle", (box.left + box.right) / 2
    if box.left > x:
        anchor, at = "start", box.left
    elif box.right < x:
        anchor, at = "end", box.right
    name = svg.text(at, box.bottom - 4, label.name, anchor, "label")
    if label.leader is None:
        return name
    return f'<path class="leader" d="{svg.path([label.point, label.leader])}"/>{name}'


def _hover(system: System) -> str:
    told = [f"nDCG@10 {words.measure(system.ndcg10)}"]
    if system.query_ms is not None:
        told.append(f"{words.milliseconds(system.query_ms['p50'])} ms")
    if system.bytes_per_document is not None:
        told.append(f"{words.size(system.bytes_per_document)} bytes per document")
    return f"{system.name} ({system.role}): {', '.join(told)}"
