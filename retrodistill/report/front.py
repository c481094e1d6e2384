"""Quality against cost: each system a point, the Pareto front a line; below, what serving takes in full."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from html import escape

import numpy as np

from retrodistill.core.errors import UserError
from retrodistill.evaluation.results import Results, System
from retrodistill.report import markup, svg
from retrodistill.report.costs import costs
from retrodistill.report.scatter import Pixels, Point, points_of, scatter


def front(results: Results) -> str:
    """The two figures, nDCG@10 against query latency and against index size, and the table of costs."""
    figures = ""
    if any(system.ndcg10 is not None for system in results.systems):
        by_time = _figure(results, "median query time, ms", lambda system: (system.query_ms or {}).get("p50"))
        by_size = _figure(results, "bytes per document", lambda system: system.bytes_per_document)
        figures = f'{markup.legend(results.systems)}<div class="figures">{by_time}{by_size}</div>'
    content = figures + costs(results)
    return markup.section("front", "Quality against cost" if figures else "Cost", content) if content else ""


def _figure(results: Results, title: str, cost: Callable[[System], float | None]) -> str:
    points = points_of(results.systems, cost)
    shown = {point.system.name for point in points}
    left_out = [system.name for system in results.systems if system.name not in shown]
    missing = f" Not measured: {escape(', '.join(left_out))}." if left_out else ""
    if not points:
        caption = f"nDCG@10 against {title}: nothing to draw.{missing}"
        return f'<figure class="empty"><figcaption>{caption}</figcaption></figure>'
    best = _unbeaten(points)
    picture = scatter(points, title, lambda pixels: [("front", _steps([pixels[at] for at in best]))])
    unbeaten = escape(", ".join(points[at].system.name for at in best))
    caption = f"<b>nDCG@10 against {title}.</b> On the front (better costs more): {unbeaten}.{missing}"
    return f"<figure>{picture}<figcaption>{caption}</figcaption></figure>"


def _unbeaten(points: Sequence[Point]) -> list[int]:
    """Numbers of the points on the front, by cost."""
    kept = pareto_front([point.quality for point in points], [[point.cost] for point in points])
    return sorted(kept, key=lambda at: points[at].cost)


def _steps(points: Pixels) -> Pixels:
    """The corners of the front: it stays level until the next better system, and on to the plot's edge."""
    corners: Pixels = []
    for (left, top), (right, _) in zip(points, [*points[1:], (float(svg.WIDTH - svg.RIGHT), 0.0)], strict=True):
        corners += [(left, top), (right, top)]
    return corners


def pareto_front(qualities: Sequence[float], costs: Sequence[Sequence[float]]) -> list[int]:
    """Numbers of the systems that no other beats, best quality first.

    A system is beaten where another has at least its quality at no higher cost of any kind, and is better in one of
    them. Of systems that are the same in all, each stays.

    Args:
        qualities: (systems,), higher is better.
        costs: (systems, kinds), lower is better: say milliseconds and bytes per document.

    Raises:
        UserError: Not one row of costs per system, or a value that is not finite.
    """
    table = np.array([[-quality, *row] for quality, row in zip(qualities, costs, strict=False)], dtype=np.float64)
    if len(qualities) != len(costs) or not np.isfinite(table).all():
        raise UserError(
            f"{len(qualities)} qualities and {len(costs)} rows of costs; give finite values, one row per system."
        )
    kept = []
    for at, row in enumerate(table):
        beaten = (table <= row).all(axis=1) & (table < row).any(axis=1)
        if not beaten.any():
            kept.append(at)
    return sorted(kept, key=lambda at: (-qualities[at], at))
