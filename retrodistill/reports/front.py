"""Quality against cost: each system a point, the Pareto front a line."""

from __future__ import annotations

import itertools
from collections.abc import Callable, Sequence
from html import escape

from retrodistill.reports import svg, words
from retrodistill.reports.labels import Box, Label, place_labels
from retrodistill.reports.results import Results, System

_NAME_WIDTH = 20


def fronts(results: Results) -> str:
    """The two figures, nDCG@10 against query latency and against index size, as HTML."""
    by_time = _figure(results, "median query time, ms", lambda system: (system.query_ms or {}).get("p50"))
    by_size = _figure(results, "bytes per document", lambda system: system.bytes_per_document)
    return by_time + by_size


def pareto(costs: Sequence[float], qualities: Sequence[float]) -> list[int]:
    """Numbers of the points that no other beats: none is as cheap and better, or cheaper and as good; by cost."""
    best, chosen = float("-inf"), []
    for at in sorted(range(len(costs)), key=lambda number: (costs[number], -qualities[number], number)):
        if qualities[at] > best:
            best = qualities[at]
            chosen.append(at)
    return chosen


def _figure(results: Results, title: str, cost: Callable[[System], float | None]) -> str:
    shown, costs, qualities = [], [], []
    for system in results.systems:
        value = cost(system)
        if value is not None and value > 0 and system.ndcg10 is not None:
            shown.append(system)
            costs.append(value)
            qualities.append(system.ndcg10)
    left_out = [system.name for system in results.systems if system not in shown]
    missing = f" Not measured: {escape(', '.join(left_out))}." if left_out else ""
    if not shown:
        caption = f"nDCG@10 against {title}: nothing to draw.{missing}"
        return f'<figure class="empty"><figcaption>{caption}</figcaption></figure>'
    best = pareto(costs, qualities)
    picture = svg.figure(_picture(shown, costs, qualities, best, title), f"nDCG@10 against {title}")
    unbeaten = escape(", ".join(shown[at].name for at in best))
    caption = f"<b>nDCG@10 against {title}.</b> On the front (better costs more): {unbeaten}.{missing}"
    return f"<figure>{picture}<figcaption>{caption}</figcaption></figure>"


def _picture(
    shown: Sequence[System], costs: Sequence[float], qualities: Sequence[float], best: Sequence[int], title: str
) -> str:
    x = svg.logarithmic(costs, svg.LEFT, svg.WIDTH - svg.RIGHT)
    y = svg.linear(qualities, svg.HEIGHT - svg.BOTTOM, svg.TOP, room=0.2)
    points = [(x(value), y(quality)) for value, quality in zip(costs, qualities, strict=True)]
    corners = _steps([points[at] for at in best])
    lines = [_thin_box(one, other) for one, other in itertools.pairwise(corners)]
    plot = Box(svg.LEFT + 2, svg.TOP, svg.WIDTH, svg.HEIGHT - svg.BOTTOM - 2)
    labels = place_labels([words.shorten_name(system.name, _NAME_WIDTH) for system in shown], points, plot, lines)
    parts = [svg.axes(x, y, title, "nDCG@10"), f'<path class="front" d="{svg.path(corners)}"/>']
    for system, (left, top), label in zip(shown, points, labels, strict=True):
        parts.append(_label(label))
        parts.append(f"<g><title>{escape(_hover(system))}</title>{svg.marker(system.role, left, top)}</g>")
    return "".join(parts)


def _steps(points: Sequence[tuple[float, float]]) -> list[tuple[float, float]]:
    """The corners of the front: it stays level until the next better system, and on to the plot's edge."""
    corners: list[tuple[float, float]] = []
    for (left, top), (right, _) in zip(points, [*points[1:], (float(svg.WIDTH - svg.RIGHT), 0.0)], strict=True):
        corners += [(left, top), (right, top)]
    return corners


def _thin_box(one: tuple[float, float], other: tuple[float, float]) -> Box:
    left, right = sorted((one[0], other[0]))
    top, bottom = sorted((one[1], other[1]))
    return Box(left - 1, top - 1, right + 1, bottom + 1)


def _label(label: Label) -> str:
    box = label.box
    # Anchored on the side of its point, so that a font wider than reckoned grows away from it.
    x = label.point[0]
    anchor, at = (
        ("start", box.left)
        if box.left > x
        else ("end", box.right)
        if box.right < x
        else (
            "middle",
            (box.left + box.right) / 2,
        )
    )
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
