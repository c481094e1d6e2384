"""Figures as SVG: deterministic, with real text, and with the colors and line styles of the page's style sheets."""

from __future__ import annotations

import itertools
import math
import re
from collections import defaultdict
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from functools import cache
from typing import Any, NamedTuple

import numpy as np
from markupsafe import Markup
from rich.cells import cell_len

from retrodistill.core.errors import UserError
from retrodistill.evaluation.results import Bin, SystemResult
from retrodistill.report import text as words

WIDTH, HEIGHT = 380, 270
LEFT, RIGHT, TOP, BOTTOM = 52, WIDTH - 14, 14, HEIGHT - 46  # of the plot within the picture
_NAME_WIDTH = 20  # characters of a name next to a mark
_MOST_POINTS = 300  # of a line; longer lines are averaged, so that a long training does not enlarge the page
_LINE, _LETTER, _RADIUS = 16.0, 7.4, 8.0  # pixels: line height, mean character width at 13px, mark with margin

Place = tuple[float, float]


@dataclass(frozen=True)
class Scale:
    """Maps values to pixels: `low` to `start`, and `high` to `stop`; both above 0 if logarithmic; `low` < `high`."""

    low: float
    high: float
    start: float
    stop: float
    logarithmic: bool = False

    def __call__(self, value: float) -> float:
        """The pixel of a value."""
        low, high = self.low, self.high
        if self.logarithmic:
            value, low, high = math.log10(value), math.log10(low), math.log10(high)
        return self.start + (value - low) / (high - low) * (self.stop - self.start)

    def ticks(self) -> list[float]:
        """Round values within the ends: about five, or up to seven if logarithmic."""
        low, high = self.low, self.high
        if self.logarithmic:
            powers = range(math.floor(math.log10(low)), math.ceil(math.log10(high)) + 1)
            for factors in ((1, 2, 5), (1, 3), (1,)):
                ticks = [
                    value for power in powers for factor in factors if low <= (value := factor * 10.0**power) <= high
                ]
                if len(ticks) <= 7:
                    break
            return ticks[:: math.ceil(len(ticks) / 7)] if ticks else []
        rough = (high - low) / 5
        unit = 10.0 ** math.floor(math.log10(rough))
        step = min((factor * unit for factor in (1, 2, 5, 10)), key=lambda size: abs(size - rough))
        return [round(at * step, 12) for at in range(math.ceil(low / step - 1e-9), math.floor(high / step + 1e-9) + 1)]


def tick_label(value: float) -> str:
    """``0.05``, ``20``, ``5k``, ``2M``."""
    for limit, letter in ((1e9, "G"), (1e6, "M"), (1e3, "k")):
        if abs(value) >= limit:
            return f"{value / limit:.6g}{letter}"
    return f"{value:.6g}" if abs(value) >= 1e-4 or value == 0 else f"{value:.0e}"


@cache
def macros() -> Any:
    """The macros of templates/page/figures.svg.j2."""
    environment = words.environment(escape=True)
    environment.filters |= {
        "px": "{:.1f}".format,
        "tick": tick_label,
        "path": lambda points: "M" + "L".join(f"{x:.1f} {y:.1f}" for x, y in points),
    }
    environment.globals.update(width=WIDTH, height=HEIGHT, left=LEFT, right=RIGHT, top=TOP, bottom=BOTTOM)
    return environment.get_template("page/figures.svg.j2").module


# Quality against a cost.


class Point(NamedTuple):
    """A system at its cost (above 0) and its quality (0 to 1)."""

    system: SystemResult
    cost: float
    quality: float


def points_of(systems: Iterable[SystemResult], cost: Callable[[SystemResult], float | None]) -> list[Point]:
    """The systems whose cost and nDCG@10 were measured, in order."""
    return [
        Point(system, value, system.ndcg10)
        for system in systems
        if (value := cost(system)) is not None and value > 0 and system.ndcg10 is not None
    ]


def pareto_front(qualities: Sequence[float], costs: Sequence[Sequence[float]]) -> list[int]:
    """Positions of the systems that no other dominates, best quality first.

    A system is dominated if another one is at least as good in quality and in every cost, and better in one of them.
    Equal systems stay. The shapes are (systems,) and (systems, kinds of cost): e.g. milliseconds, bytes per document.
    Other shapes, and values that are not finite, are a UserError.
    """
    table = np.array([[-quality, *row] for quality, row in zip(qualities, costs, strict=False)], dtype=np.float64)
    if len(qualities) != len(costs) or not np.isfinite(table).all():
        raise UserError(
            f"{len(qualities)} qualities and {len(costs)} rows of costs; give finite values, one row per system."
        )
    kept = [at for at, row in enumerate(table) if not ((table <= row).all(1) & (table < row).any(1)).any()]
    return sorted(kept, key=lambda at: (-qualities[at], at))


def front_figure(points: Sequence[Point], cost_title: str) -> tuple[Markup, list[str]]:
    """Quality against cost with the Pareto front as a line, and the names on the front by rising cost."""
    front = pareto_front([point.quality for point in points], [[point.cost] for point in points])
    best = sorted((points[at] for at in front), key=lambda point: point.cost)
    # The front is level up to the next better system, and up to the edge of the plot.
    ends = [*(point.cost for point in best[1:]), math.inf]
    corners = [(cost, point.quality) for point, end in zip(best, ends, strict=True) for cost in (point.cost, end)]
    return _scatter(points, cost_title, [("front", corners)]), [point.system.name for point in best]


def sizes_figure(points: Sequence[Point]) -> Markup:
    """Quality against bytes; a line joins systems whose names differ only in the last number: one compression."""
    lines: dict[str, list[Place]] = defaultdict(list)
    for point in points:
        lines[re.sub(r"\d+(?=\D*$)", "#", point.system.name)].append((point.cost, point.quality))
    return _scatter(points, "bytes per document", [("family", line) for line in lines.values()])


def _scatter(points: Sequence[Point], cost_title: str, lines: Sequence[tuple[str, list[Place]]]) -> Markup:
    """Quality over a logarithmic cost axis, with named marks; a line is a CSS class and its costs and qualities."""
    x = _scale([point.cost for point in points], LEFT, RIGHT, logarithmic=True)
    y = _scale([point.quality for point in points], BOTTOM, TOP, margin=0.2)
    places = [(x(point.cost), y(point.quality)) for point in points]
    drawn = [(kind, [(x(min(cost, x.high)), y(quality)) for cost, quality in line]) for kind, line in lines]
    thin = []
    for start, stop in (ends for _, corners in drawn for ends in itertools.pairwise(corners)):
        (left, right), (top, bottom) = sorted((start[0], stop[0])), sorted((start[1], stop[1]))
        thin.append(Box(left - 1, top - 1, right + 1, bottom + 1))
    names = [words.shorten_name(point.system.name, _NAME_WIDTH) for point in points]
    boxes = place_labels(names, places, Box(LEFT + 2, TOP, WIDTH, BOTTOM - 2), thin)
    marks = [
        (point.system, place, name, *_anchored(place, box))
        for point, place, name, box in zip(points, places, names, boxes, strict=True)
    ]
    return macros().scatter(x, y, cost_title, drawn, marks)


# Lines over steps or scores.


def curve_figure(lines: dict[str, list[Place]], title: str, stages: Sequence[float], smooth: bool = False) -> Markup:
    """Training curves, by CSS class: (step, value) in order of steps; empty with fewer than two steps.

    A line breaks where a later stage begins, at the steps `stages`, because stages differ in objective and held-out
    texts. If `smooth`, a long line is drawn faintly under its running mean.
    """
    points = [point for line in lines.values() for point in line]
    if len({step for step, _ in points}) < 2:
        return Markup()
    x = _scale([step for step, _ in points], LEFT, RIGHT, margin=0.0)
    y = _scale([value for _, value in points], BOTTOM, TOP)
    drawn: list[tuple[str, list[Place]]] = []
    for kind, line in lines.items():
        for piece in _by_stage(line, stages):
            size = math.ceil(len(piece) / _MOST_POINTS)
            means = [_mean(piece[at : at + size]) for at in range(0, len(piece), size)]
            placed = [(x(step), y(value)) for step, value in means]
            if smooth and len(placed) >= 60:
                drawn += [(f"{kind} faint", placed), (kind, _running_mean(placed))]
            else:
                drawn.append((kind, placed))
    return macros().curves(x, y, title, stages, drawn)


def calibration_figure(bins: Sequence[Bin], system: SystemResult) -> Markup:
    """The teacher's mean score over the system's, with a band between the teacher's quartiles."""
    bins = sorted(bins, key=lambda group: group.student)
    x = _scale([group.student for group in bins], LEFT, RIGHT, margin=0.03)
    y = _scale([end for group in bins for end in (group.low, group.high)], BOTTOM, TOP)
    upper = [(x(group.student), y(group.high)) for group in bins]
    lower = [(x(group.student), y(group.low)) for group in reversed(bins)]
    mean = [(x(group.student), y(group.teacher)) for group in bins]
    return macros().calibration(x, y, system.name, system.role, [*upper, *lower], mean)


def _by_stage(points: Sequence[Place], stages: Sequence[float]) -> list[list[Place]]:
    pieces: list[list[Place]] = []
    for point in points:
        last = pieces[-1][-1][0] if pieces else None
        if last is None or last == point[0] or any(last <= at < point[0] and pieces[-1][0][0] < at for at in stages):
            pieces.append([])
        pieces[-1].append(point)
    return pieces


def _running_mean(points: Sequence[Place]) -> list[Place]:
    reach = max(len(points) // 50, 1)
    return [(x, _mean(points[max(at - reach, 0) : at + reach + 1])[1]) for at, (x, _) in enumerate(points)]


def _mean(points: Sequence[Place]) -> Place:
    return sum(x for x, _ in points) / len(points), sum(y for _, y in points) / len(points)


def _scale(
    values: Sequence[float], start: float, stop: float, margin: float = 0.08, logarithmic: bool = False
) -> Scale:
    low, high = min(values), max(values)
    if logarithmic:
        factor = max((high / low) ** 0.12, 1.6)
        return Scale(low / factor, high * factor, start, stop, logarithmic=True)
    room = (high - low) * margin or abs(high) * 0.1 or 1.0
    return Scale(low - room, high + room, start, stop)


# Names next to points, placed inside the plot so that they do not cover each other or the points.


class Box(NamedTuple):
    """A rectangle in pixels."""

    left: float
    top: float
    right: float
    bottom: float

    def overlap(self, other: Box) -> float:
        """Area that two rectangles share."""
        width = min(self.right, other.right) - max(self.left, other.left)
        height = min(self.bottom, other.bottom) - max(self.top, other.top)
        return max(width, 0.0) * max(height, 0.0)

    @property
    def area(self) -> float:
        """Width times height."""
        return (self.right - self.left) * (self.bottom - self.top)


# Direction from the point, shift to the side in half widths, and cost of the place: right is best.
_SIDES: tuple[tuple[int, int, float, float], ...] = (
    (1, 0, 0, 0), (-1, 0, 0, 1), (0, -1, 0, 2), (0, 1, 0, 3), (0, -1, 0.7, 4), (0, -1, -0.7, 4.5), (0, 1, 0.7, 5),
    (0, 1, -0.7, 5.5), (1, -1, 0, 6), (-1, -1, 0, 6.5), (1, 1, 0, 7), (-1, 1, 0, 7.5),
)  # fmt: skip


def place_labels(names: Sequence[str], points: Sequence[Place], plot: Box, lines: Sequence[Box] = ()) -> list[Box]:
    """Place each name at a free spot near its point: greedily in several orders, and the cheapest one is kept.

    The names stay within the plot, and avoid the lines (thin rectangles) if there is room.
    """

    def cost_of(box: Box, taken: Sequence[Box]) -> float:
        covered = box.area - box.overlap(plot) + sum(box.overlap(other) for other in taken)
        return 10.0 * covered + 9.0 * sum(box.overlap(line) > 0 for line in lines)

    def greedy(order: Sequence[int]) -> tuple[float, list[Box]]:
        taken = [Box(x - _RADIUS, y - _RADIUS, x + _RADIUS, y + _RADIUS) for x, y in points]
        placed: dict[int, Box] = {}
        total = 0.0
        for at in order:
            spots = _spots(points[at], cell_len(names[at]) * _LETTER)
            cost, best = min((cost + cost_of(box, taken), spot) for spot, (box, cost) in enumerate(spots))
            placed[at] = spots[best][0]
            taken.append(placed[at])
            total += cost
        return total, [placed[at] for at in range(len(names))]

    crowd = [sum(1 / (1 + math.dist(point, other)) for other in points) for point in points]
    keys = [crowd, [x for x, _ in points], [y for _, y in points]]
    rising = [sorted(range(len(names)), key=key.__getitem__) for key in keys]
    tries = map(greedy, rising + [order[::-1] for order in rising])
    return min(tries, key=lambda placed: placed[0])[1]


def _spots(point: Place, width: float) -> list[tuple[Box, float]]:
    """Rectangles around a point with their costs."""
    spots = []
    for away in (0.0, 10.0, 20.0, 30.0, 45.0, 65.0, 90.0):
        gap = _RADIUS + 2 + away
        for right, down, slide, cost in _SIDES:
            x = point[0] + right * (gap + width / 2) + slide * width / 2
            y = point[1] + down * (gap + _LINE / 2)
            spots.append((Box(x - width / 2, y - _LINE / 2, x + width / 2, y + _LINE / 2), cost + away))
    return spots


def _anchored(point: Place, box: Box) -> tuple[str, Place, list[Place]]:
    """The anchor and place of a name, and a line to its point if it is too far away."""
    x, y = point
    # Anchored on the side of its point, so that a font wider than assumed grows away from it.
    anchor, at = "middle", (box.left + box.right) / 2
    if box.left > x:
        anchor, at = "start", box.left
    elif box.right < x:
        anchor, at = "end", box.right
    near = (min(max(x, box.left), box.right), min(max(y, box.top), box.bottom))
    return anchor, (at, box.bottom - 4), [point, near] if math.dist(near, point) > _RADIUS + 5 else []
