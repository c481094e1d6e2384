"""Training curves: the loss, and the agreement with the teacher, of each student."""

from __future__ import annotations

from collections.abc import Sequence
from html import escape
from itertools import pairwise
from typing import Any

from retrodistill.evaluation.results import Results
from retrodistill.report import markup, svg

_MOST_POINTS = 300
_Points = list[tuple[float, float]]
_LINES = {"agreement": "first", "mean_cosine": "second"}
_SAID = {"agreement": "agreement", "mean_cosine": "mean cosine"}


def training(results: Results) -> str:
    """Two figures a student; empty where nothing was recorded."""
    drawn = "".join(_student(name, curve) for name, curve in results.curves.items())
    return markup.section("training", "Training", drawn) if drawn else ""


def _student(name: str, curve: dict[str, list[dict[str, Any]]]) -> str:
    losses = _points(curve.get("losses", []), "loss")
    monitors = {key: _points(curve.get("monitors", []), key) for key in _LINES}
    drawn = {_LINES[key]: points for key, points in monitors.items() if points}
    keys = [
        f'<b class="key {_LINES[key]}">{_SAID[key]}</b> {_ends(points)}' for key, points in monitors.items() if points
    ]
    begins = _begins(curve.get("monitors", []))
    marked = "; dashed: a stage begins" if begins else ""
    loss = _figure({"first": losses}, "loss", f"<b>Loss</b> {_ends(losses)}{marked}", begins, smooth=True)
    agreement = _figure(drawn, "agreement", ("; ".join(keys) or f"<b>Agreement</b> {_ends([])}") + marked, begins)
    return f'<h3>{escape(name)}</h3><div class="figures">{loss}{agreement}</div>'


def _points(rows: Sequence[dict[str, Any]], key: str) -> _Points:
    pairs = ((row["step"], row.get(key)) for row in rows)
    found = [(step, value) for step, value in pairs if step is not None and value is not None]
    return sorted(found, key=lambda point: point[0])  # of two at one step the earlier stays first


def _begins(monitors: Sequence[dict[str, Any]]) -> list[float]:
    """Steps at which a later stage begins: the monitors look there twice, behind the one and before the other."""
    return [one["step"] for one, other in pairwise(monitors) if one["step"] == other["step"]]


def _stages(points: _Points, begins: Sequence[float]) -> list[_Points]:
    """The points stage by stage, since stages differ in objective and held-out texts; none has two at one step."""
    found: list[_Points] = []
    for point in points:
        last = found[-1][-1][0] if found else None
        if last is None or last == point[0] or any(last <= at < point[0] and found[-1][0][0] < at for at in begins):
            found.append([])
        found[-1].append(point)
    return found


def _figure(
    lines: dict[str, _Points], title: str, about: str, begins: Sequence[float] = (), smooth: bool = False
) -> str:
    every = [point for points in lines.values() for point in points]
    if len({step for step, _ in every}) < 2:
        return f'<figure class="empty"><figcaption>{about}</figcaption></figure>'
    x = svg.linear([step for step, _ in every], svg.LEFT, svg.WIDTH - svg.RIGHT, room=0.0)
    y = svg.linear([value for _, value in every], svg.HEIGHT - svg.BOTTOM, svg.TOP)
    parts = [svg.axes(x, y, "step", title)]
    parts += [
        f'<path class="grid" stroke-dasharray="3 3" d="M{x(at):.1f} {svg.TOP}V{svg.HEIGHT - svg.BOTTOM}"/>'
        for at in begins
    ]
    for kind, whole in lines.items():
        for points in _stages(whole, begins):
            placed = [(x(step), y(value)) for step, value in _thin(points)]
            faint = " faint" if smooth and len(placed) >= 60 else ""
            parts.append(_line(placed, kind + faint))
            if faint:
                parts.append(_line(_running_mean(placed), kind))
    return f"<figure>{svg.figure(''.join(parts), title)}<figcaption>{about}</figcaption></figure>"


def _line(points: _Points, kind: str) -> str:
    dots = ""
    if len(points) <= 30:
        dots = "".join(svg.dot(point, kind) for point in points)
    return (f'<path class="line {kind}" d="{svg.path(points)}"/>' if len(points) > 1 else "") + dots


def _ends(points: _Points) -> str:
    if not points:
        return "was not recorded"
    if len(points) == 1:
        return f"{points[0][1]:.3g}, one point, at step {points[0][0]:g}"
    return f"from {points[0][1]:.3g} to {points[-1][1]:.3g}"


def _thin(points: _Points) -> _Points:
    """Mean of each stretch of steps, so that a long training is no heavier a page than a short one."""
    size = -(-len(points) // _MOST_POINTS)
    stretches = [points[at : at + size] for at in range(0, len(points), size)]
    return [_mean(stretch) for stretch in stretches]


def _running_mean(points: _Points) -> _Points:
    reach = max(len(points) // 50, 1)
    return [(x, _mean(points[max(at - reach, 0) : at + reach + 1])[1]) for at, (x, _) in enumerate(points)]


def _mean(points: _Points) -> tuple[float, float]:
    return sum(x for x, _ in points) / len(points), sum(y for _, y in points) / len(points)
