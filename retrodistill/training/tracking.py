"""Trackers of experiments: losses, monitors, and results of a job as runs of TensorBoard, W&B, MLflow, or Trackio.

A job has one run for each student, over all its stages, and one that has the results of all systems. A job that is
resumed continues its runs. Nothing here changes what is trained.
"""

from __future__ import annotations

import contextlib
import importlib.util
import json
import os
import re
import sys
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextvars import ContextVar
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Protocol

from retrodistill.core.digests import digest
from retrodistill.core.errors import UserError, first_line, unknown
from retrodistill.core.published import holds_key, published_value
from retrodistill.core.runtime import is_main, log

PROJECT = "retrodistill"  # of runs, where the tracker's own variable of the environment does not name another one
_LONGEST = 250  # characters of a parameter that all versions of MLflow take


@dataclass(frozen=True)
class RunInfo:
    """What a tracker is told of a run."""

    name: str  # of the system
    job: str
    folder: Path  # of the job, where trackers keep their files
    config: Mapping[str, Any]  # the recipe: no keys, and no folders of this machine
    key: str  # of the run, for its continuation
    offset: int  # steps of earlier stages
    is_training: bool  # otherwise it gets results, which come after all curves


class TrackerRun(Protocol):
    """A run of one tracker. Values are finite numbers by name, such as ``train/loss``."""

    def log(self, values: Mapping[str, float], step: int) -> None:
        """Log the values of a step."""

    def finish(self) -> None:
        """End the run, or this part of it."""


@dataclass
class _Job:
    trackers: Sequence[str]
    name: str
    folder: Path
    config: Mapping[str, Any]
    failed: set[str] = field(default_factory=set)  # trackers that are not used any more

    def failure(self, tracker: str, error: Exception) -> None:
        self.failed.add(tracker)
        log(f"warning: {tracker} failed ({first_line(error)[:160]}); the job goes on without it", always=True)


@dataclass
class _OpenRun:
    job: _Job
    runs: dict[str, TrackerRun]
    offset: int

    def log(self, values: Mapping[str, float], step: int) -> None:
        for tracker, run in self.runs.items():
            if tracker not in self.job.failed:
                try:
                    run.log(values, self.offset + step)
                except Exception as error:  # of any library: a training of hours does not end with its tracker
                    self.job.failure(tracker, error)

    def finish(self) -> None:
        for tracker, run in self.runs.items():
            try:
                with contextlib.redirect_stdout(sys.stderr):
                    run.finish()
            except Exception as error:
                self.job.failure(tracker, error)


_job: ContextVar[_Job | None] = ContextVar("tracked_job", default=None)
_run: ContextVar[_OpenRun | None] = ContextVar("tracked_run", default=None)


def check_trackers(trackers: Sequence[str]) -> None:
    """Refuse an unknown tracker, one that is not installed, and one that nobody has logged in to."""
    for tracker in trackers:
        if tracker not in TRACKERS:
            raise unknown("tracker", tracker, TRACKERS)
        if importlib.util.find_spec(tracker) is None:
            raise UserError(f"tracking: {tracker} is not installed; pip install {tracker}.")
    if "wandb" in trackers and os.environ.get("WANDB_MODE") not in ("offline", "disabled"):
        import wandb

        if not wandb.api.api_key:
            raise UserError("tracking: nobody is logged in to wandb; run 'wandb login', or set WANDB_MODE=offline.")


@contextlib.contextmanager
def track(trackers: Sequence[str], job: str, folder: Path, config: Mapping[str, Any]) -> Iterator[None]:
    """Within the block, `tracked_run` opens runs of these trackers.

    Args:
        trackers: Names, of `TRACKERS`.
        job: Name of the job, by which its runs are grouped.
        folder: Of the job. TensorBoard's files are in its folder ``tensorboard``, one folder for each run.
        config: What the job was told to do, as JSON values.
    """
    check_trackers(trackers)
    told = _without_keys(published_value(json.loads(json.dumps(config))))
    token = _job.set(_Job(trackers, job, folder.resolve(), told) if trackers and is_main() else None)
    try:
        yield
    finally:
        _job.reset(token)


@contextlib.contextmanager
def tracked_run(name: str, key: str, *, offset: int = 0, is_training: bool = True) -> Iterator[None]:
    """Within the block, `track_values` logs to a run; without trackers, this does nothing.

    Args:
        name: Of the run: a system.
        key: What determines the run, such as the fingerprint of a student; a job that is resumed gives the same.
        offset: Added to steps: those of earlier stages.
        is_training: False for results, which are logged after all curves.
    """
    job = _job.get()
    if job is None:
        yield
        return
    info = RunInfo(name, job.name, job.folder, job.config, digest(str(job.folder), name, key), offset, is_training)
    opened = _OpenRun(job, {}, offset)
    for tracker in job.trackers:
        if tracker not in job.failed:
            try:
                with contextlib.redirect_stdout(sys.stderr):  # some print there, where results of commands are
                    opened.runs[tracker] = TRACKERS[tracker](info)
            except Exception as error:
                job.failure(tracker, error)
    token = _run.set(opened)
    try:
        yield
    finally:
        _run.reset(token)
        opened.finish()


def track_values(group: str, values: Mapping[str, float], step: int) -> None:
    """Log values of a step to the open run, as ``group/name``; those that are not finite are left out."""
    opened = _run.get()
    finite = {f"{group}/{name}": float(value) for name, value in values.items() if abs(value) < float("inf")}
    if opened is not None and finite:
        opened.log(finite, step)


def _without_keys(value: Any) -> Any:
    if isinstance(value, dict):
        return {name: _without_keys(item) for name, item in value.items()}
    if isinstance(value, list):
        return [_without_keys(item) for item in value]
    return "[key]" if isinstance(value, str) and holds_key(value) else value


def _flat(config: Mapping[str, Any], prefix: str = "") -> dict[str, str]:
    """Settings by dotted name, as texts; lists are JSON."""
    flat: dict[str, str] = {}
    for name, value in config.items():
        if isinstance(value, Mapping):
            flat |= _flat(value, f"{prefix}{name}.")
        else:
            flat[f"{prefix}{name}"] = value if isinstance(value, str) else json.dumps(value)
    return flat


class TensorBoardRun:
    """A run of TensorBoard: event files in ``tensorboard/NAME-KEY`` of the job's folder."""

    def __init__(self, info: RunInfo) -> None:
        self._info = info
        self._writer: Any = None
        self._folder = info.folder / "tensorboard" / f"{info.name}-{info.key[:6]}"

    def log(self, values: Mapping[str, float], step: int) -> None:
        """See `TrackerRun`."""
        writer = self._opened(step)
        for name, value in values.items():
            writer.add_scalar(name, value, step)
        writer.flush()

    def finish(self) -> None:
        """See `TrackerRun`."""
        if self._writer is not None:
            self._writer.close()

    def _opened(self, step: int) -> Any:
        if self._writer is None:
            from torch.utils.tensorboard import SummaryWriter

            is_new = not self._folder.exists()
            # what was logged after the checkpoint that a training resumes from is logged once more
            is_resumed = self._info.is_training and not is_new
            purged = max(step, self._info.offset + 1) if is_resumed else None
            self._writer = SummaryWriter(str(self._folder), purge_step=purged)
            if is_new:
                text = json.dumps(self._info.config, indent=2, ensure_ascii=False)
                self._writer.add_text("config", "".join(f"    {line}\n" for line in text.splitlines()), 0)
        return self._writer


class WandbRun:
    """A run of Weights & Biases, in the project of ``WANDB_PROJECT``, grouped by job."""

    def __init__(self, info: RunInfo) -> None:
        import wandb

        self._run = wandb.init(
            project=os.environ.get("WANDB_PROJECT", PROJECT),
            id=info.key,
            name=info.name,
            group=info.job,
            job_type="training" if info.is_training else "results",
            tags=[PROJECT],
            config=dict(info.config),
            resume="allow",
            dir=str(info.folder),
            settings=wandb.Settings(silent=True, console="off"),
        )
        # steps of its own must grow, and a training that resumes goes back to its checkpoint
        self._run.define_metric("step")
        self._run.define_metric("*", step_metric="step")

    def log(self, values: Mapping[str, float], step: int) -> None:
        """See `TrackerRun`."""
        self._run.log({**values, "step": step})

    def finish(self) -> None:
        """See `TrackerRun`."""
        self._run.finish()


class MlflowRun:
    """A run of MLflow, in the experiment of ``MLFLOW_EXPERIMENT_NAME`` on the server of ``MLFLOW_TRACKING_URI``."""

    def __init__(self, info: RunInfo) -> None:
        from mlflow import MlflowClient
        from mlflow.entities import Param

        self._client = MlflowClient()
        name, tag = os.environ.get("MLFLOW_EXPERIMENT_NAME", PROJECT), f"{PROJECT}.run"
        experiment = self._client.get_experiment_by_name(name)
        place = experiment.experiment_id if experiment is not None else self._client.create_experiment(name)
        found = self._client.search_runs([place], f"tags.`{tag}` = '{info.key}'", max_results=1)
        if found:
            self._id = found[0].info.run_id
            self._client.update_run(self._id, status="RUNNING")
            return
        tags = {tag: info.key, f"{PROJECT}.job": info.job}
        self._id = self._client.create_run(place, tags=tags, run_name=info.name).info.run_id
        params = [Param(key, value) for key, value in _flat(info.config).items() if len(value) <= _LONGEST]
        for start in range(0, len(params), 100):  # more are refused
            self._client.log_batch(self._id, params=params[start : start + 100])

    def log(self, values: Mapping[str, float], step: int) -> None:
        """See `TrackerRun`."""
        from mlflow.entities import Metric

        now = int(time.time() * 1000)
        named = {re.sub(r"[^\w./: -]", "_", name): value for name, value in values.items()}
        self._client.log_batch(self._id, metrics=[Metric(name, value, now, step) for name, value in named.items()])

    def finish(self) -> None:
        """See `TrackerRun`."""
        self._client.set_terminated(self._id, "FINISHED")


class TrackioRun:
    """A run of Trackio, in the project of ``TRACKIO_PROJECT``, grouped by job."""

    def __init__(self, info: RunInfo) -> None:
        import trackio

        project = os.environ.get("TRACKIO_PROJECT", PROJECT)
        # it continues a run by its name
        name = f"{info.job}/{info.name}-{info.key[:6]}"
        options = {"embed": False, "auto_log_gpu": False, "auto_log_cpu": False}
        self._run = trackio.init(project, name, info.job, config=dict(info.config), resume="allow", **options)

    def log(self, values: Mapping[str, float], step: int) -> None:
        """See `TrackerRun`."""
        self._run.log(dict(values), step)

    def finish(self) -> None:
        """See `TrackerRun`."""
        import trackio

        trackio.finish()


TRACKERS: dict[str, Callable[[RunInfo], TrackerRun]] = {
    "tensorboard": TensorBoardRun,
    "wandb": WandbRun,
    "mlflow": MlflowRun,
    "trackio": TrackioRun,
}
