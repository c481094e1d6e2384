"""The few pieces of SVG that the figures are made of: scales, ticks, axes, text; deterministic, text as text."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from html import escape

WIDTH, HEIGHT = 380, 270
LEFT, RIGHT, TOP, BOTTOM = 52, 14, 14, 46
# Shapes differ as well as colors, so that a role is told without color: centred on 0, 0.
_SHAPES = {
    "baseline": '<path d="M-5.5 -5.5H5.5V5.5H-5.5Z"/>',
    "teacher": '<path d="M0 -7.5L7 0L0 7.5L-7 0Z"/>',
    "control": '<path d="M0 6L-6.5 -5.5H6.5Z"/>',
    "student": '<circle r="6"/>',
}


@dataclass(frozen=True)
class Scale:
    """A number's place in pixels, linear or logarithmic.

    Attributes:
        low, high: The ends, low < high; above 0 where it is logarithmic.
        start, stop: Their pixels.
        logarithmic: Whether equal steps are equal factors.
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


def linear(values: Sequence[float], start: float, stop: float, room: float = 0.08) -> Scale:
    """A linear scale around the values, with room at both ends."""
    low, high = min(values), max(values)
    margin = (high - low) * room or abs(high) * 0.1 or 1.0
    return Scale(low - margin, high + margin, start, stop)


def logarithmic(values: Sequence[float], start: float, stop: float) -> Scale:
    """A logarithmic scale around values above 0, with room at both ends."""
    low, high = min(values), max(values)
    factor = max((high / low) ** 0.12, 1.6)
    return Scale(low / factor, high * factor, start, stop, logarithmic=True)


def axes(x: Scale, y: Scale, x_title: str, y_title: str) -> str:
    """Grid lines, ticks and titles; the y title stands above the plot's left corner, where it reads level."""
    parts = []
    for value in y.ticks():
        at = y(value)
        parts.append(f'<path class="grid" d="M{LEFT} {at:.1f}H{WIDTH - RIGHT}"/>')
        parts.append(text(LEFT - 7, at + 4.5, number(value), "end", "tick"))
    for value in x.ticks():
        at = x(value)
        parts.append(f'<path class="grid" d="M{at:.1f} {TOP}V{HEIGHT - BOTTOM}"/>')
        parts.append(text(at, HEIGHT - BOTTOM + 18, number(value), "middle", "tick"))
    parts.append(f'<path class="axis" d="M{LEFT} {TOP}V{HEIGHT - BOTTOM}H{WIDTH - RIGHT}"/>')
    parts.append(text((LEFT + WIDTH - RIGHT) / 2, HEIGHT - 8, x_title, "middle", "title"))
    middle = (TOP + HEIGHT - BOTTOM) / 2
    turned = f'<g transform="translate(13 {middle:.1f}) rotate(-90)">{text(0, 0, y_title, "middle", "title")}</g>'
    return "".join([*parts, turned])


def text(x: float, y: float, words: str, anchor: str, kind: str) -> str:
    """A piece of text, escaped."""
    return f'<text class="{kind}" x="{x:.1f}" y="{y:.1f}" text-anchor="{anchor}">{escape(words)}</text>'


def marker(role: str, x: float, y: float) -> str:
    """The shape of a role at a place."""
    return f'<g class="mark {role}" transform="translate({x:.1f} {y:.1f})">{_SHAPES[role]}</g>'


def dot(place: tuple[float, float], kind: str) -> str:
    """A point of a line."""
    return f'<circle class="dot {kind}" cx="{place[0]:.1f}" cy="{place[1]:.1f}" r="3"/>'


def icon(role: str) -> str:
    """The shape of a role as a small picture to stand in a line of text."""
    shape = f'<g class="mark {role}">{_SHAPES[role]}</g>'
    return f'<svg class="icon" viewBox="-9 -9 18 18" width="14" height="14" aria-hidden="true">{shape}</svg>'


def figure(content: str, label: str) -> str:
    """A whole picture with a name for those who do not see it."""
    start = f'<svg viewBox="0 0 {WIDTH} {HEIGHT}" role="img" aria-label="{escape(label)}">'
    return f"{start}{content}</svg>"


def path(points: Sequence[tuple[float, float]]) -> str:
    """The d of a line through pixels."""
    return "M" + "L".join(f"{x:.1f} {y:.1f}" for x, y in points)


def number(value: float) -> str:
    """A tick's label: ``0.05``, ``20``, ``5k``, ``2M``."""
    for limit, letter in ((1e9, "G"), (1e6, "M"), (1e3, "k")):
        if abs(value) >= limit:
            return f"{value / limit:.6g}{letter}"
    return f"{value:.6g}" if abs(value) >= 1e-4 or value == 0 else f"{value:.0e}"


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
