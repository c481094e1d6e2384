"""What trackers get of a job besides training: its settings and the results of its systems."""

from __future__ import annotations

import contextlib
from collections.abc import Mapping

from retrodistill.core.digests import digest
from retrodistill.core.manifest import Manifest
from retrodistill.encoders.contract import STUDENT_MANIFEST
from retrodistill.evaluation.results import Results, SystemResult
from retrodistill.recipes.job import Job
from retrodistill.recipes.reporting import Curves
from retrodistill.training.tracking import track, track_values, tracked_run

_ALL = "results"  # name of the run with the results of all systems


def tracked_job(job: Job) -> contextlib.AbstractContextManager[None]:
    """The block in which the trackers of a recipe get what is trained and measured."""
    recipe = job.recipe
    return track(recipe.tracking, recipe.name, job.out, recipe.model_dump(mode="json", exclude={"tracking"}))


def track_results(job: Job, results: Results, curves: Curves) -> None:
    """Log the results of each system with curves to its own run, and those of all systems to one more."""
    for system in results.systems:
        if system.name in curves:
            _track_system(job, system, curves[system.name])
    with tracked_run(_ALL, _ALL, is_training=False):
        for system in results.systems:
            track_values(system.name, _values(system), 0)


def _track_system(job: Job, system: SystemResult, curves: Mapping[str, list[dict[str, float]]]) -> None:
    folder = job.out / "students" / system.name
    student = Manifest.read(folder, STUDENT_MANIFEST) if (folder / STUDENT_MANIFEST).is_file() else None
    if student is not None and "stages" in student.settings:
        key = student.fingerprint  # under which its curves were logged while it was trained
    else:
        key = digest(curves)
        with tracked_run(system.name, key):
            for entry in curves["losses"]:
                track_values("train", _without_step(entry), int(entry["step"]))
            for entry in curves["monitors"]:
                track_values("held_out", _without_step(entry), int(entry["step"]))
    with tracked_run(system.name, key, is_training=False):
        last = max((int(entry["step"]) for entry in curves["losses"]), default=0)
        track_values("results", _values(system), last)


def _without_step(entry: Mapping[str, float]) -> dict[str, float]:
    return {name: value for name, value in entry.items() if name != "step"}


def _values(system: SystemResult) -> dict[str, float]:
    """The numbers of a row of the table, by their names in results.json."""
    row = system.model_dump(mode="json", by_alias=True)
    latency = {f"query_ms/{name}": value for name, value in (row.get("query_ms") or {}).items()}
    named = {**row, **row.get("measures", {}), **latency}
    return {name: value for name, value in named.items() if isinstance(value, float | int)}
