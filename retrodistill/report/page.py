"""The page: one HTML file without external resources. The text is in templates/page; this module has the data."""

from __future__ import annotations

import base64
import hashlib
import os
import re
from collections import defaultdict
from collections.abc import Callable, Iterator, Mapping, Sequence
from itertools import pairwise
from typing import Any

from retrodistill.core.files import atomic_file
from retrodistill.evaluation.results import ROLES, Example, Results, SystemResult
from retrodistill.report import columns, figures, text
from retrodistill.report.columns import PAGE, Column
from retrodistill.report.headline import answer, comparison_of

_ONE_SIZE = 1.05  # sizes within this factor are one size: two indexes of the same vectors
_CURVES = {"agreement": ("agreement", "first"), "mean_cosine": ("mean cosine", "second")}  # title and CSS class
_TEXT = 300  # characters of a document that are always shown; the rest unfolds
_CONTROL = {code: " " for code in range(32) if chr(code) not in "\n\t"}

Context = dict[str, Any]


def write_page(results: Results, path: str | os.PathLike[str]) -> None:
    """Write report.html atomically.

    Raises:
        UserError: The file cannot be written.
    """
    with atomic_file(path) as temporary:
        # Names of files may contain bytes that are not UTF-8; they become question marks and do not stop the job.
        temporary.write_text(page_text(results), encoding="utf-8", errors="replace", newline="\n")


def page_text(results: Results) -> str:
    """The page as HTML; the same results give the same text."""
    results = text.with_short_names(results)
    script = text.source("page.js")
    sentences = [re.sub(r"\bp ([=<]) ", "p\u00a0\\1\u00a0", sentence) for sentence in answer(results)]
    environment = text.environment(escape=True)
    environment.filters |= {"cut": _cut, "halves": _halves}
    environment.globals |= {"icon": figures.icon, "text": text}
    return environment.get_template("page.html.j2").render(
        results=results,
        answer=sentences,
        sections={name: context for name, make in _SECTIONS.items() if (context := make(results)) is not None},
        roles=[role for role in ROLES if results.with_role(role)],  # type: ignore[arg-type]
        style=text.source("page.css"),
        script=script,
        # Only this script may run, and nothing may be loaded, whatever a document contains.
        script_hash=base64.b64encode(hashlib.sha256(script.encode()).digest()).decode(),
    )


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


def _table(shown: Sequence[Column], rows: Sequence[Any]) -> Context:
    """Columns, and the cells of each row with the exact values to sort by."""
    return {
        "columns": shown,
        "rows": [
            {"row": row, "cells": [(column, column.cell(row), column.value(row)) for column in shown]} for row in rows
        ],
    }


def _systems(results: Results) -> Context:
    shown = columns.columns_of_systems(results, PAGE)
    return {
        **_table(shown, results.systems),
        "is_judged": any(system.ndcg10 is not None for system in results.systems),
        "is_timed": any(system.query_ms is not None for system in results.systems),
        "kept_of": results.yardstick if any(system.retention is not None for system in results.systems) else None,
    }


def _differences(results: Results) -> Context | None:
    rows = results.comparisons
    if not rows:
        return None
    reach = max(abs(value) for row in rows for value in (*row["interval"], row["difference"])) or 1.0
    return {
        **_table(columns.columns_of_comparisons(rows), rows),
        "whiskers": [figures.whisker(row["difference"], row["interval"], reach) for row in rows],
        "several_measures": len({row["measure"] for row in rows}) > 1,
        "is_corrected": len(rows) > 1 and any("p_holm" in row for row in rows),
        "has_power": any(row.get("smallest") is not None for row in rows),
    }


def _front(results: Results) -> Context | None:
    costs = columns.cost_rows(results.systems)
    is_judged = any(system.ndcg10 is not None for system in results.systems)
    if not costs and not is_judged:
        return None
    axes: dict[str, Callable[[SystemResult], float | None]] = {
        "median query time, ms": lambda system: (system.query_ms or {}).get("p50"),
        "bytes per document": lambda system: system.bytes_per_document,
    }
    return {
        "figures": [_front_figure(results, title, cost) for title, cost in axes.items()] if is_judged else [],
        "timings": _table(columns.TIMINGS, columns.timing_rows(costs)),
        "costs": _table(columns.COSTS, costs),
        "threads": sorted({row.record.threads for row in costs}),
    }


def _front_figure(results: Results, title: str, cost: Callable[[SystemResult], float | None]) -> Context:
    points = figures.points_of(results.systems, cost)
    measured = {point.name for point in points}
    picture, best = figures.front_figure(points, title) if points else ("", [])
    missing = [system.name for system in results.systems if system.name not in measured]
    return {"title": title, "picture": picture, "best": best, "missing": missing}


def _training(results: Results) -> Context | None:
    students = [_curves(name, curve) for name, curve in results.curves.items()]
    return {"students": students} if students else None


def _curves(name: str, curve: Mapping[str, list[dict[str, Any]]]) -> Context:
    monitors = curve.get("monitors", [])
    # Monitors run twice at the step where a later stage begins: after one stage and before the next.
    stages = [point["step"] for point, other in pairwise(monitors) if point["step"] == other["step"]]
    losses = _points(curve.get("losses", []), "loss")
    lines = {key: points for key in _CURVES if (points := _points(monitors, key))}
    drawn = {_CURVES[key][1]: points for key, points in lines.items()}
    return {
        "name": name,
        "has_stages": bool(stages),
        "loss": figures.curve_figure({"first": losses}, "loss", stages, smooth=True),
        "loss_ends": _ends(losses),
        "agreement": figures.curve_figure(drawn, "agreement", stages),
        "keys": [(*_CURVES[key], _ends(points)) for key, points in lines.items()],
    }


def _points(rows: Sequence[Mapping[str, Any]], key: str) -> list[figures.Place]:
    points = [(row["step"], row[key]) for row in rows if row.get(key) is not None]
    return sorted(points, key=lambda point: point[0])  # stable: the order of two points at one step is kept


def _ends(points: Sequence[figures.Place]) -> str:
    if not points:
        return "was not recorded"
    if len(points) == 1:
        return f"{points[0][1]:.3g}, one point, at step {points[0][0]:g}"
    return f"from {points[0][1]:.3g} to {points[-1][1]:.3g}"


def _agreement(results: Results) -> Context | None:
    rows = columns.agreement_rows(results.systems)
    if not rows:
        return None
    bins = [(results.system(row.name), row.record.calibration) for row in rows]
    return {
        **_table(columns.with_values(columns.AGREEMENT, rows), rows),
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
    several = {
        model: sorted(points, key=lambda point: point.cost)
        for model, points in by_model.items()
        if max(point.cost for point in points) > _ONE_SIZE * min(point.cost for point in points)
    }
    return {"models": [_sizes(model, points) for model, points in several.items()]} if several else None


def _sizes(model: str, points: Sequence[figures.Point]) -> Context:
    whole = max(points, key=lambda point: (point.cost, point.quality))
    shown = [
        Column("bytes/doc", lambda point: point.cost, text.thousands),
        Column("smaller", lambda point: whole.cost / point.cost, lambda factor: f"{factor:.3g}×"),
        Column("nDCG@10", lambda point: point.quality, text.measure),
        Column(
            f"of {whole.name}",
            lambda point: point.quality / whole.quality if whole.quality else None,
            text.percent,
        ),
    ]
    return {"name": model, "picture": figures.sizes_figure(points, _family), **_table(shown, points)}


def _family(system: SystemResult) -> str:
    """Systems whose names differ only in the last number use the same kind of compression."""
    return re.sub(r"\d+(?=\D*$)", "#", system.name)


def _queries(results: Results) -> Context | None:
    """Queries won and lost, and evenly spaced queries, with both rankings."""
    shown = [*results.won, *results.lost, *results.examples]
    if not shown:
        return None
    sides = results.sides or ["teacher", "student"]
    counts = comparison_of(results, sides[1], sides[0]) or {}
    groups = {
        "won": (f"Won: {sides[1]} above {sides[0]}", results.won, counts.get("wins")),
        "lost": (f"Lost: {sides[1]} below {sides[0]}", results.lost, counts.get("losses")),
        "drawn": ("Evenly spaced, not hand-picked", results.examples, None),
    }
    return {
        "sides": sides,
        "total": len(shown),
        "is_judged": any(example.relevant for example in shown),
        "groups": [
            {
                "name": name,
                "title": title,
                "total": total if total is not None and total > len(examples) else None,
                "examples": [(example, *_outcome(example, sides)) for example in examples],
            }
            for name, (title, examples, total) in groups.items()
            if examples
        ],
    }


def _outcome(example: Example, sides: Sequence[str]) -> tuple[str, str]:
    """``won``, ``lost``, ``same``, or empty, and the line below the query that explains it."""
    first, second = example.teacher_value, example.student_value
    if first is not None and second is not None:
        outcome = "won" if second - first > 1e-9 else "lost" if first - second > 1e-9 else "same"
        change = f"{text.measure(first)} → {text.measure(second)}"
        return outcome, f"nDCG@10 {change} ({text.signed(second - first)})"
    if not example.relevant:
        shared = {hit.document_id for hit in example.teacher} & {hit.document_id for hit in example.student}
        most = max(len(example.teacher), len(example.student))
        return "", f"{len(shared)} of {most} of the documents shown are the same"
    ranks = [text.first_relevant(hits) for hits in (example.teacher, example.student)]
    places = [f"{text.shorten_name(name, 32)} {rank or text.MISSING}" for name, rank in zip(sides, ranks, strict=True)]
    teacher, student = (rank or float("inf") for rank in ranks)
    outcome = "same" if teacher == student else "won" if student < teacher else "lost"
    return outcome, f"first relevant: {', '.join(places)}"


def _provenance(results: Results) -> Context:
    about: Context = {"collection": results.collection, "split": results.split, "queries": results.queries}
    about |= {} if results.seed is None else {"seed": results.seed}
    groups = {
        "Data": about,
        "Made from": results.provenance,
        "Hardware": results.hardware,
        "Versions": results.versions,
    }
    seconds = results.seconds
    # The parts of a training stage are listed too; the total must not count them twice.
    parts = {f"train {stage.removeprefix('distill ')}" for stage in seconds if stage.startswith("distill ")}
    most = max(seconds.values(), default=0.0) or 1.0
    return {
        "groups": {title: list(_flat(group)) for title, group in groups.items() if group},
        "seconds": [(stage, spent, 100 * spent / most) for stage, spent in seconds.items()],
        "total": sum(spent for stage, spent in seconds.items() if stage not in parts),
    }


def _flat(group: Mapping[str, Any], above: str = "") -> Iterator[tuple[str, str]]:
    """Names and values, nested names joined by dots."""
    for name, value in group.items():
        if isinstance(value, Mapping):
            yield from _flat(value, f"{above}{name}.")
        elif isinstance(value, list | tuple):
            yield f"{above}{name}", ", ".join(str(item) for item in value) or text.MISSING
        else:
            yield f"{above}{name}", text.MISSING if value is None else str(value)


# By name of the template; sections without content are omitted.
_SECTIONS: dict[str, Callable[[Results], Context | None]] = {
    "systems": _systems,
    "differences": _differences,
    "front": _front,
    "training": _training,
    "agreement": _agreement,
    "compression": _compression,
    "queries": _queries,
    "provenance": _provenance,
}
