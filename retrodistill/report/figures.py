"""Figures as SVG: deterministic, with real text, and with colors and line styles from templates/page.css."""

from __future__ import annotations

import itertools
import math
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
    """Maps values to pixels.

    Attributes:
        low, high: The ends, low < high; both above 0 if logarithmic.
        start, stop: The pixels of the ends.
        logarithmic: Whether equal distances are equal factors.
    """

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
        """Round values within the ends."""
        return _log_ticks(self.low, self.high) if self.logarithmic else _linear_ticks(self.low, self.high)


def tick_label(value: float) -> str:
    """``0.05``, ``20``, ``5k``, ``2M``."""
    for limit, letter in ((1e9, "G"), (1e6, "M"), (1e3, "k")):
        if abs(value) >= limit:
            return f"{value / limit:.6g}{letter}"
    return f"{value:.6g}" if abs(value) >= 1e-4 or value == 0 else f"{value:.0e}"


@cache
def _macros() -> Any:
    """The macros of templates/page/figures.svg.j2."""
    environment = words.environment(escape=True)
    environment.filters |= {"px": "{:.1f}".format, "tick": tick_label, "path": _path}
    environment.globals.update(width=WIDTH, height=HEIGHT, left=LEFT, right=RIGHT, top=TOP, bottom=BOTTOM)
    return environment.get_template("page/figures.svg.j2").module


def _path(points: Sequence[Place]) -> str:
    return "M" + "L".join(f"{x:.1f} {y:.1f}" for x, y in points)


def icon(role: str) -> Markup:
    """The mark of a role, small enough for a line of text."""
    return _macros().icon(role)


def whisker(difference: float, interval: Sequence[float], reach: float) -> Markup:
    """An interval as a bar with 0 in the middle; `reach` is the value at the right end, the same for all rows."""
    return _macros().whisker(*(90 + value / reach * 85 for value in (*interval, difference)))


# Quality against a cost.


class Point(NamedTuple):
    """A system at its cost (above 0) and its quality (0 to 1)."""

    system: SystemResult
    cost: float
    quality: float

    @property
    def name(self) -> str:
        """The system's name."""
        return self.system.name


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
    Equal systems stay.

    Args:
        qualities: (systems,), higher is better.
        costs: (systems, kinds), lower is better, e.g. milliseconds and bytes per document.

    Raises:
        UserError: Not one row of costs per system, or a value is not finite.
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
    best = sorted(front, key=lambda at: points[at].cost)

    def steps(places: Sequence[Place]) -> list[tuple[str, list[Place]]]:
        """The front is level up to the next better system, and up to the edge of the plot."""
        corners: list[Place] = []
        for (left, top), (right, _) in itertools.pairwise([*(places[at] for at in best), (float(RIGHT), 0.0)]):
            corners += [(left, top), (right, top)]
        return [("front", corners)]

    return _scatter(points, cost_title, steps), [points[at].system.name for at in best]


def sizes_figure(points: Sequence[Point], family: Callable[[SystemResult], str]) -> Markup:
    """Quality against bytes, with a line through the systems of each family."""

    def families(places: Sequence[Place]) -> list[tuple[str, list[Place]]]:
        lines: dict[str, list[Place]] = defaultdict(list)
        for point, place in zip(points, places, strict=True):
            lines[family(point.system)].append(place)
        return [("family", line) for line in lines.values()]

    return _scatter(points, "bytes per document", families)


def _scatter(
    points: Sequence[Point], cost_title: str, lines_of: Callable[[Sequence[Place]], list[tuple[str, list[Place]]]]
) -> Markup:
    """Quality over a logarithmic cost axis, with named marks; `lines_of` returns a CSS class and corners per line."""
    x = _log_scale([point.cost for point in points], LEFT, RIGHT)
    y = _linear_scale([point.quality for point in points], BOTTOM, TOP, margin=0.2)
    places = [(x(point.cost), y(point.quality)) for point in points]
    lines = lines_of(places)
    drawn = [_thin_box(*ends) for _, corners in lines for ends in itertools.pairwise(corners)]
    names = [words.shorten_name(point.name, _NAME_WIDTH) for point in points]
    labels = place_labels(names, places, Box(LEFT + 2, TOP, WIDTH, BOTTOM - 2), drawn)
    marks = [
        (point.system.role, _hover(point.system), place, *_label(label))
        for point, place, label in zip(points, places, labels, strict=True)
    ]
    return _macros().scatter(x, y, cost_title, lines, marks)


def _hover(system: SystemResult) -> str:
    facts = [f"nDCG@10 {words.measure(system.ndcg10)}"]
    if system.query_ms is not None:
        facts.append(f"{words.milliseconds(system.query_ms['p50'])} ms")
    if system.bytes_per_document is not None:
        facts.append(f"{words.thousands(system.bytes_per_document)} bytes per document")
    return f"{system.name} ({system.role}): {', '.join(facts)}"


# Lines over steps or scores.


def curve_figure(lines: dict[str, list[Place]], title: str, stages: Sequence[float], smooth: bool = False) -> Markup:
    """Training curves; empty with fewer than two steps.

    Args:
        lines: By CSS class, (step, value) in order of steps. A line breaks where a stage begins, because stages differ
            in objective and held-out texts.
        title: Title of the value axis.
        stages: Steps at which later stages begin.
        smooth: Whether a long line is drawn faintly under its running mean.
    """
    points = [point for line in lines.values() for point in line]
    if len({step for step, _ in points}) < 2:
        return Markup()
    x = _linear_scale([step for step, _ in points], LEFT, RIGHT, margin=0.0)
    y = _linear_scale([value for _, value in points], BOTTOM, TOP)
    drawn: list[tuple[str, list[Place]]] = []
    for kind, line in lines.items():
        for piece in _by_stage(line, stages):
            placed = [(x(step), y(value)) for step, value in _thinned(piece)]
            if smooth and len(placed) >= 60:
                drawn += [(f"{kind} faint", placed), (kind, _running_mean(placed))]
            else:
                drawn.append((kind, placed))
    return _macros().curves(x, y, title, stages, drawn)


def calibration_figure(bins: Sequence[Bin], system: SystemResult) -> Markup:
    """The teacher's mean score over the system's, with a band between the teacher's quartiles."""
    bins = sorted(bins, key=lambda group: group.student)
    x = _linear_scale([group.student for group in bins], LEFT, RIGHT, margin=0.03)
    y = _linear_scale([end for group in bins for end in (group.low, group.high)], BOTTOM, TOP)
    upper = [(x(group.student), y(group.high)) for group in bins]
    lower = [(x(group.student), y(group.low)) for group in reversed(bins)]
    mean = [(x(group.student), y(group.teacher)) for group in bins]
    return _macros().calibration(x, y, system.name, system.role, [*upper, *lower], mean)


def _by_stage(points: Sequence[Place], stages: Sequence[float]) -> list[list[Place]]:
    pieces: list[list[Place]] = []
    for point in points:
        last = pieces[-1][-1][0] if pieces else None
        if last is None or last == point[0] or any(last <= at < point[0] and pieces[-1][0][0] < at for at in stages):
            pieces.append([])
        pieces[-1].append(point)
    return pieces


def _thinned(points: Sequence[Place]) -> list[Place]:
    size = -(-len(points) // _MOST_POINTS)
    return [_mean(points[at : at + size]) for at in range(0, len(points), size)]


def _running_mean(points: Sequence[Place]) -> list[Place]:
    reach = max(len(points) // 50, 1)
    return [(x, _mean(points[max(at - reach, 0) : at + reach + 1])[1]) for at, (x, _) in enumerate(points)]


def _mean(points: Sequence[Place]) -> Place:
    return sum(x for x, _ in points) / len(points), sum(y for _, y in points) / len(points)


# Scales.


def _linear_scale(values: Sequence[float], start: float, stop: float, margin: float = 0.08) -> Scale:
    low, high = min(values), max(values)
    room = (high - low) * margin or abs(high) * 0.1 or 1.0
    return Scale(low - room, high + room, start, stop)


def _log_scale(values: Sequence[float], start: float, stop: float) -> Scale:
    low, high = min(values), max(values)
    factor = max((high / low) ** 0.12, 1.6)
    return Scale(low / factor, high * factor, start, stop, logarithmic=True)


def _linear_ticks(low: float, high: float, wanted: int = 5) -> list[float]:
    rough = (high - low) / wanted
    unit = 10.0 ** math.floor(math.log10(rough))
    step = min((factor * unit for factor in (1, 2, 5, 10)), key=lambda size: abs(size - rough))
    first, last = math.ceil(low / step - 1e-9), math.floor(high / step + 1e-9)
    return [round(at * step, 12) for at in range(first, last + 1)]


def _log_ticks(low: float, high: float, most: int = 7) -> list[float]:
    powers = range(math.floor(math.log10(low)), math.ceil(math.log10(high)) + 1)
    for factors in ((1, 2, 5), (1, 3), (1,)):
        ticks = [factor * 10.0**power for power in powers for factor in factors if low <= factor * 10.0**power <= high]
        if len(ticks) <= most:
            return ticks
    return ticks[:: math.ceil(len(ticks) / most)]


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


class Label(NamedTuple):
    """A name with its point and its rectangle."""

    name: str
    point: Place
    box: Box


# Direction from the point, shift to the side in half widths, and cost of the place: right is best.
_SIDES: tuple[tuple[int, int, float, float], ...] = (
    (1, 0, 0, 0), (-1, 0, 0, 1), (0, -1, 0, 2), (0, 1, 0, 3), (0, -1, 0.7, 4), (0, -1, -0.7, 4.5), (0, 1, 0.7, 5),
    (0, 1, -0.7, 5.5), (1, -1, 0, 6), (-1, -1, 0, 6.5), (1, 1, 0, 7), (-1, 1, 0, 7.5),
)  # fmt: skip


def place_labels(names: Sequence[str], points: Sequence[Place], plot: Box, lines: Sequence[Box] = ()) -> list[Label]:
    """Place each name at a free spot near its point: greedily in several orders, and the cheapest one is kept.

    Args:
        names: Texts to place.
        points: Centers of the marks, one per name.
        plot: The rectangle to stay in.
        lines: Thin rectangles around lines, avoided if there is room.
    """
    crowd = [sum(1 / (1 + math.dist(point, other)) for other in points) for point in points]
    keys = [crowd, [x for x, _ in points], [y for _, y in points]]
    rising = [sorted(range(len(names)), key=key.__getitem__) for key in keys]
    tries = [_greedy(order, names, points, plot, lines) for order in rising + [order[::-1] for order in rising]]
    return min(tries, key=lambda placed: placed[0])[1]


def _greedy(
    order: Sequence[int], names: Sequence[str], points: Sequence[Place], plot: Box, lines: Sequence[Box]
) -> tuple[float, list[Label]]:
    """The total cost of placing the names in this order, and the labels."""
    taken = [Box(x - _RADIUS, y - _RADIUS, x + _RADIUS, y + _RADIUS) for x, y in points]
    placed: dict[int, Label] = {}
    total = 0.0
    for at in order:
        spots = _spots(points[at], cell_len(names[at]) * _LETTER)
        cost, best = min((cost + _penalty(box, taken, plot, lines), spot) for spot, (box, cost) in enumerate(spots))
        placed[at] = Label(names[at], points[at], spots[best][0])
        taken.append(spots[best][0])
        total += cost
    return total, [placed[at] for at in range(len(names))]


def _penalty(box: Box, taken: Sequence[Box], plot: Box, lines: Sequence[Box]) -> float:
    covered = box.area - box.overlap(plot) + sum(box.overlap(other) for other in taken)
    return 10.0 * covered + 9.0 * sum(box.overlap(line) > 0 for line in lines)


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


def _thin_box(start: Place, stop: Place) -> Box:
    (left, right), (top, bottom) = sorted((start[0], stop[0])), sorted((start[1], stop[1]))
    return Box(left - 1, top - 1, right + 1, bottom + 1)


def _label(label: Label) -> tuple[str, str, Place, list[Place]]:
    """The name, its anchor and place, and a line to its point if it is too far away."""
    box, (x, y) = label.box, label.point
    # Anchored on the side of its point, so that a font wider than assumed grows away from it.
    anchor, at = "middle", (box.left + box.right) / 2
    if box.left > x:
        anchor, at = "start", box.left
    elif box.right < x:
        anchor, at = "end", box.right
    near = (min(max(x, box.left), box.right), min(max(y, box.top), box.bottom))
    leader = [label.point, near] if math.dist(near, label.point) > _RADIUS + 5 else []
    return label.name, anchor, (at, box.bottom - 4), leader
