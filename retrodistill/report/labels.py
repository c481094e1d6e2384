"""Names beside points, placed so that they cover neither each other nor the points, nor leave the plot."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

from rich.cells import cell_len

_LINE = 16.0
_LETTER = 7.4
_RADIUS = 8.0
_FAR = 30.0


@dataclass(frozen=True)
class Box:
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


@dataclass(frozen=True)
class Label:
    """Where a name stands: its rectangle, and whether a line must lead from it to its point."""

    name: str
    point: tuple[float, float]
    box: Box

    @property
    def leader(self) -> tuple[float, float] | None:
        """The corner or edge nearest to the point, where the name is too far to be read as its own."""
        x, y = self.point
        near = (min(max(x, self.box.left), self.box.right), min(max(y, self.box.top), self.box.bottom))
        return near if math.dist(near, self.point) > _RADIUS + 5 else None


def place_labels(
    names: Sequence[str], points: Sequence[tuple[float, float]], plot: Box, lines: Sequence[Box] = ()
) -> list[Label]:
    """Place each name at a free spot near its point.

    Greedy in several orders, of which the one that costs least is kept; the same input gives the same places.

    Args:
        names: What to write.
        points: Where its marker is drawn, one per name.
        plot: The rectangle to stay in.
        lines: Thin rectangles of drawn lines, to be avoided where there is room.
    """
    marks = [Box(x - _RADIUS, y - _RADIUS, x + _RADIUS, y + _RADIUS) for x, y in points]
    crowd = [sum(1 / (1 + math.dist(one, other)) for other in points) for one in points]
    keys = [crowd, [x for x, _ in points], [y for _, y in points]]
    rising = [sorted(range(len(names)), key=key.__getitem__) for key in keys]
    orders = rising + [order[::-1] for order in rising]
    tries = [_place_in_order(order, names, points, plot, (marks, lines)) for order in orders]
    return min(tries, key=lambda placed: placed[0])[1]


def _place_in_order(
    order: Sequence[int],
    names: Sequence[str],
    points: Sequence[tuple[float, float]],
    plot: Box,
    drawn: tuple[Sequence[Box], Sequence[Box]],
) -> tuple[float, list[Label]]:
    marks, lines = drawn
    placed: dict[int, Label] = {}
    total = 0.0
    for at in order:
        taken = [*marks, *(label.box for label in placed.values())]
        spots = _spots(points[at], cell_len(names[at]) * _LETTER)
        costs = [cost + _penalty(box, taken, plot, lines) for box, cost in spots]
        best = min(range(len(spots)), key=costs.__getitem__)
        placed[at] = Label(names[at], points[at], spots[best][0])
        total += costs[best]
    return total, [placed[at] for at in range(len(names))]


def _penalty(box: Box, taken: Sequence[Box], plot: Box, lines: Sequence[Box]) -> float:
    outside = box.area - box.overlap(plot)
    covered = sum(box.overlap(other) for other in taken)
    crossed = sum(box.overlap(line) > 0 for line in lines)
    return 10.0 * outside + 10.0 * covered + 9.0 * crossed


def _spots(point: tuple[float, float], width: float) -> list[tuple[Box, float]]:
    """Rectangles around a point with what each costs: right is best, then left, above, below, and farther."""
    x, y = point
    spots = []
    for away in (0.0, 10.0, 20.0, _FAR, 45.0, 65.0, 90.0):
        gap = _RADIUS + 2 + away
        for side, slide, cost in _SIDES:
            centre_x = x + side[0] * (gap + width / 2) + slide * width / 2
            centre_y = y + side[1] * (gap + _LINE / 2)
            box = Box(centre_x - width / 2, centre_y - _LINE / 2, centre_x + width / 2, centre_y + _LINE / 2)
            spots.append((box, cost + away))
    return spots


# Direction from the point, how far to slide sideways in half widths, and what the place costs.
_SIDES: tuple[tuple[tuple[int, int], float, float], ...] = (
    ((1, 0), 0.0, 0.0),
    ((-1, 0), 0.0, 1.0),
    ((0, -1), 0.0, 2.0),
    ((0, 1), 0.0, 3.0),
    ((0, -1), 0.7, 4.0),
    ((0, -1), -0.7, 4.5),
    ((0, 1), 0.7, 5.0),
    ((0, 1), -0.7, 5.5),
    ((1, -1), 0.0, 6.0),
    ((-1, -1), 0.0, 6.5),
    ((1, 1), 0.0, 7.0),
    ((-1, 1), 0.0, 7.5),
)
