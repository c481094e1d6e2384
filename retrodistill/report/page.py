"""The page: one HTML file without external resources. The text is in templates/page; this module has the data."""

from __future__ import annotations

import base64
import hashlib
import os
import re
from collections import defaultdict
from collections.abc import Callable, Iterator, Mapping, Sequence
from functools import cache
from itertools import pairwise
from typing import Any

from jinja2 import Template

from retrodistill.core.files import atomic_file
from retrodistill.evaluation.results import ROLES, Example, Results, SystemResult
from retrodistill.report import columns, figures, text
from retrodistill.report.columns import PAGE, Column
from retrodistill.report.headline import answer, comparison_of

_ONE_SIZE = 1.05  # sizes within this factor are one size: two indexes of the same vectors
_FAR = 2  # times the height of the other points: further away, a curve's start is not drawn
_TEXT = 300  # characters of a document that are always shown; the rest unfolds
_CONTROL = {code: " " for code in range(32) if chr(code) not in "\n\t"}

Context = dict[str, Any]


def write_page(results: Results, path: str | os.PathLike[str]) -> None:
    """Write report.html atomically; a UserError if the file cannot be written."""
    with atomic_file(path) as temporary:
        # Names of files may contain bytes that are not UTF-8; they become question marks and do not stop the job.
        temporary.write_text(page_text(results), encoding="utf-8", errors="replace", newline="\n")


def page_text(results: Results) -> str:
    """The page as HTML; the same results give the same text."""
    results = text.with_short_names(results)
    script = text.source("page.js")
    sentences = [re.sub(r"\bp ([=<]) ", "p\u00a0\\1\u00a0", sentence) for sentence in answer(results)]
    return _template().render(
        results=results,
        answer=sentences,
        sections={name: context for name, make in _SECTIONS.items() if (context := make(results)) is not None},
        roles=[role for role in ROLES if results.with_role(role)],  # type: ignore[arg-type]
        style=text.source("colors.css") + text.source("page.css"),
        script=script,
        # Only this script may run, and nothing may be loaded, whatever a document contains.
        script_hash=base64.b64encode(hashlib.sha256(script.encode()).digest()).decode(),
    )


@cache  # compiling it takes longer than filling it in
def _template() -> Template:
    environment = text.environment(escape=True)
    environment.filters |= {"cut": _cut, "halves": _halves}
    environment.globals |= {"icon": figures.macros().icon, "whisker": figures.macros().whisker, "text": text}
    return environment.get_template("page.html.j2")


def _cut(value: str, length: int) -> str:
    """The beginning of a text; control characters become spaces."""
    return (value if len(value) <= length else f"{value[: length - 1]}…").translate(_CONTROL)


def _halves(value: str) -> tuple[str, str]:
    """The beginning of a document, and the rest, which unfolds; cut between words if there are any."""
    if len(value) <= _TEXT:
        return value, ""
    space = value.rfind(" ", _TEXT * 3 // 4, _TEXT)
    at = space if space > 0 else _TEXT
    return value[:at], value[at:]


def _differences(results: Results) -> Context | None:
    rows = results.comparisons
    if not rows:
        return None
    return {
        "columns": columns.columns_of_comparisons(rows),
        "reach": max(abs(value) for row in rows for value in (*row["interval"], row["difference"])) or 1.0,
    }


def _front(results: Results) -> Context | None:
    costs, plots = columns.cost_rows(results.systems), []
    axes: dict[str, Callable[[SystemResult], float | None]] = {
        "median query time, ms": lambda system: (system.query_ms or {}).get("p50"),
        "bytes per document": lambda system: system.bytes_per_document,
    }
    is_judged = any(system.ndcg10 is not None for system in results.systems)
    for title, cost in axes.items() if is_judged else ():
        points = figures.points_of(results.systems, cost)
        picture, best = figures.front_figure(points, title) if points else ("", [])
        measured = {point.system.name for point in points}
        missing = [system.name for system in results.systems if system.name not in measured]
        plots.append({"title": title, "picture": picture, "best": best, "missing": missing})
    if not costs and not plots:
        return None
    return {
        "figures": plots,
        "timings": {"columns": columns.TIMINGS, "rows": columns.timing_rows(costs)},
        "costs": {"columns": columns.columns_of_costs(costs), "rows": costs},
        "threads": sorted({row.record.threads for row in costs}),
    }


def _training(results: Results) -> Context | None:
    students = [_curves(name, curve) for name, curve in results.curves.items()]
    return {"students": students} if students else None


def _curves(name: str, curve: Mapping[str, list[dict[str, Any]]]) -> Context:
    monitors = curve.get("monitors", [])
    # Monitors run twice at the step where a later stage begins: after one stage and before the next.
    stages = [point["step"] for point, other in pairwise(monitors) if point["step"] == other["step"]]
    losses, cosines = _points(curve.get("losses", []), "loss"), _points(monitors, "mean_cosine")
    agreement, quality = _points(monitors, "agreement"), _points(monitors, "ndcg@10")
    lines = {kind: points for kind, points in {"first": agreement, "second": quality}.items() if points}
    drawn = _without_far_starts(lines)
    title = "agreement and nDCG@10" if quality else "agreement"
    return {
        "name": name,
        "has_stages": bool(stages),
        "loss": figures.curve_figure({"first": losses}, "loss", stages, smooth=True),
        "losses": losses,
        "ranking": figures.curve_figure(drawn, title, stages),
        "is_cut": drawn != lines,
        "agreement": agreement,
        "quality": quality,
        "best": max(quality, key=lambda point: point[1], default=None),
        "cosine": figures.curve_figure({"first": cosines}, "mean cosine", stages),
        "cosines": cosines,
    }


def _without_far_starts(lines: Mapping[str, list[figures.Place]]) -> dict[str, list[figures.Place]]:
    """The lines without starts so far from all other points that nothing else would be seen."""
    others = [value for points in lines.values() for _, value in points[1:]]
    low, high = min(others, default=0.0), max(others, default=0.0)
    reach = _FAR * (high - low)
    return {
        kind: points[1:] if len(points) > 3 and not low - reach <= points[0][1] <= high + reach else points
        for kind, points in lines.items()
    }


def _points(rows: Sequence[Mapping[str, Any]], key: str) -> list[figures.Place]:
    points = [(row["step"], row[key]) for row in rows if row.get(key) is not None]
    return sorted(points, key=lambda point: point[0])  # stable: the order of two points at one step is kept


def _agreement(results: Results) -> Context | None:
    rows = columns.agreement_rows(results.systems)
    if not rows:
        return None
    bins = [(results.system(row.name), row.record.calibration) for row in rows]
    return {
        "columns": columns.with_values(columns.AGREEMENT, rows),
        "rows": rows,
        "teachers": list(dict.fromkeys(row.record.teacher for row in rows)),
        "is_judged": any(row.record.ceiling is not None or row.record.reached is not None for row in rows),
        "plots": [
            (system, figures.calibration_figure(groups, system), sum(group.pairs for group in groups))
            for system, groups in bins
            if len(groups) > 1
        ],
    }


def _compression(results: Results) -> Context | None:
    """Models whose documents are indexed at several sizes."""
    by_model: dict[str, list[figures.Point]] = defaultdict(list)
    for point in figures.points_of(results.systems, lambda system: system.bytes_per_document):
        if point.system.documents_by:
            by_model[point.system.documents_by].append(point)
    models = [
        _sizes(model, sorted(points, key=lambda point: point.cost))
        for model, points in by_model.items()
        if max(point.cost for point in points) > _ONE_SIZE * min(point.cost for point in points)
    ]
    return {"models": models} if models else None


def _sizes(model: str, points: Sequence[figures.Point]) -> Context:
    whole = max(points, key=lambda point: (point.cost, point.quality))

    def share(point: figures.Point) -> float | None:
        return point.quality / whole.quality if whole.quality else None

    shown = [
        Column("bytes/doc", lambda point: point.cost, text.thousands),
        Column("smaller", lambda point: whole.cost / point.cost, lambda factor: f"{factor:.3g}×"),
        Column("nDCG@10", lambda point: point.quality, text.measure),
        Column(f"of {whole.system.name}", share, text.percent),
    ]
    return {"name": model, "picture": figures.sizes_figure(points), "columns": shown, "rows": points}


def _queries(results: Results) -> Context | None:
    """Queries won and lost, and evenly spaced queries, with both rankings."""
    groups = {"won": results.won, "lost": results.lost, "drawn": results.examples}
    shown = [example for examples in groups.values() for example in examples]
    if not shown:
        return None
    sides = results.sides or ["teacher", "student"]
    counts = comparison_of(results, sides[1], sides[0]) or {}
    totals = {"won": counts.get("wins"), "lost": counts.get("losses")}
    return {
        "sides": sides,
        "total": len(shown),
        "is_judged": any(example.relevant for example in shown),
        "groups": [
            (name, totals.get(name) or 0, [(example, *_outcome(example, sides)) for example in examples])
            for name, examples in groups.items()
            if examples
        ],
    }


def _outcome(example: Example, sides: Sequence[str]) -> tuple[str, str]:
    """``won``, ``lost``, ``same``, or empty, and the line below the query that explains it."""
    first, second = example.teacher_value, example.student_value
    if first is not None and second is not None:
        gain = second - first
        change = f"{text.measure(first)} → {text.measure(second)}"
        return _result(gain), f"nDCG@10 {change} ({text.signed(gain)})"
    if not example.relevant:
        shared = {hit.document_id for hit in example.teacher} & {hit.document_id for hit in example.student}
        most = max(len(example.teacher), len(example.student))
        return "", f"{len(shared)} of {most} of the documents shown are the same"
    ranks = [
        next((rank for rank, hit in enumerate(hits, 1) if hit.relevant), None)
        for hits in (example.teacher, example.student)
    ]
    places = [f"{text.shorten_name(name, 32)} {rank or text.MISSING}" for name, rank in zip(sides, ranks, strict=True)]
    teacher, student = (1 / rank if rank else 0.0 for rank in ranks)
    return _result(student - teacher), f"first relevant: {', '.join(places)}"


def _result(gain: float) -> str:
    return "won" if gain > 1e-9 else "lost" if gain < -1e-9 else "same"


def _provenance(results: Results) -> Context:
    about: Context = {"collection": results.collection, "split": results.split, "queries": results.queries}
    about |= {} if results.seed is None else {"seed": results.seed}
    groups = {
        "Data": about,
        "Made from": results.provenance,
        "Hardware": results.hardware,
        "Versions": results.versions,
        "Spent on APIs": results.spending,
    }
    # The parts of a training stage are listed too; the total must not count them twice.
    parts = {f"train {stage.removeprefix('distill ')}" for stage in results.seconds if stage.startswith("distill ")}
    return {
        "groups": {title: list(_flat(group)) for title, group in groups.items() if group},
        "most": max(results.seconds.values(), default=0.0) or 1.0,
        "total": sum(spent for stage, spent in results.seconds.items() if stage not in parts),
    }


def _flat(group: Mapping[str, Any], above: str = "") -> Iterator[tuple[str, str]]:
    """Names and values, nested names joined by dots."""
    for name, value in group.items():
        if isinstance(value, Mapping):
            yield from _flat(value, f"{above}{name}.")
        else:
            parts = value if isinstance(value, list | tuple) else [] if value is None else [value]
            yield f"{above}{name}", ", ".join(map(str, parts)) if parts else text.MISSING


# By name of the template; sections without content are omitted.
_SECTIONS: dict[str, Callable[[Results], Context | None]] = {
    "systems": lambda results: {"columns": columns.columns_of_systems(results, PAGE)},
    "differences": _differences,
    "front": _front,
    "training": _training,
    "agreement": _agreement,
    "compression": _compression,
    "queries": _queries,
    "provenance": _provenance,
}
