"""Train a recipe's students: skip what is finished and resume what was stopped."""

from __future__ import annotations

import shutil
import time
from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

from retrodistill.core.errors import UserError
from retrodistill.core.files import atomic_folder, check_replaceable, disk_errors
from retrodistill.core.manifest import Manifest
from retrodistill.core.runtime import barrier, is_main, log
from retrodistill.encoders.contract import STUDENT_MANIFEST
from retrodistill.encoders.loading import quiet_libraries
from retrodistill.recipes.stage_teachers import StageTeachers, manifest_after_stage, space_of
from retrodistill.recipes.student_settings import StageOfStudent, StudentSettings, needed_by, training_order
from retrodistill.students.registry import (
    AnyStudent,
    Kind,
    as_student,
    kind_of,
    kind_of_settings,
    load_student,
    run_stage,
    save_student,
)
from retrodistill.training.settings import StageSettings
from retrodistill.training.trainer import History, remove_checkpoints
from retrodistill.training.training_data import TrainingData


def kind_of_student(settings: StudentSettings) -> Kind:
    """The kind of a recipe's student."""
    return kind_of_settings(settings.model, settings.lexical_dim)


def build_student(settings: StudentSettings, data: TrainingData) -> Any:
    """The student before training.

    Raises:
        UserError: The job has no document encoder, or the kind refuses what it starts from.
    """
    space_of(data)
    return kind_of_student(settings).start(settings, data)


def clustered_from_stage(model: Any, settings: StudentSettings, stage: int) -> Any:
    """The model as a stage, from 0, finds it: with clusters from the stage on that begins with them."""
    return kind_of_student(settings).at_stage(model, settings, stage)


@dataclass(frozen=True)
class Distilled:
    """A student, and how it came to be.

    Attributes:
        name: The system's name.
        encoder: The student: an `Encoder`, `SparseTextEncoder`, `MultiVectorModel` or `CrossEncoderStudent`.
        documents: Who encodes the documents that it searches; a cross-encoder itself, which encodes none.
        seconds: Training time.
        curves: Losses and monitors of all stages, steps counted through.
        notes: What a reader of the results should know about it.
    """

    name: str
    encoder: AnyStudent
    documents: AnyStudent
    seconds: float
    curves: dict[str, list[dict[str, float]]] = field(default_factory=dict)
    notes: list[str] = field(default_factory=list)


def train_students(
    students: Mapping[str, StudentSettings],
    data: TrainingData,
    folders: Mapping[str, Path],
    teachers: StageTeachers | None = None,
    seconds: dict[str, float] | None = None,
) -> dict[str, Distilled]:
    """Distill students in an order in which each stage follows all the stages that it needs; log that order.

    Students that are finished are loaded. A killed job goes on after its last whole stage: the student after each stage
    is kept under the fingerprint of all that led there, so a control takes over the stages that it shares.

    Args:
        students: By the systems' names.
        data: Texts, teacher and document encoder.
        folders: Where each student goes. Stages and checkpoints lie in `work_folder`, which the caller removes when all
            students of the job are done.
        teachers: Gives stages the teachers that they name.
        seconds: Gets the wall-clock seconds of each student, under ``distill NAME``.

    Raises:
        UserError: The settings do not fit the data, or a stage names a teacher and there are no `teachers`.
    """
    if teachers is None and any(stage.has_own_teacher for one in students.values() for stage in one.stages):
        raise UserError("a stage with a teacher or labels of its own is for recipes; run it by 'retrodistill run'.")
    workshop = _Workshop(students, data, folders, teachers)
    pending = workshop.pending()
    barrier()
    steps = [f"{name}@{behind}" for name, behind in pending if behind]
    if len(steps) > 1:
        log(f"training order: {', '.join(steps)}")
    distilled = {}
    for name, behind in pending:
        started = time.perf_counter()
        workshop.advance(name, behind)
        _count(seconds, name, started)
    for name in students:
        started = time.perf_counter()
        distilled[name] = workshop.finished(name)
        _count(seconds, name, started)
    return distilled


def train_student(name: str, settings: StudentSettings, data: TrainingData, folder: Path) -> Distilled:
    """Distill one student, or load it where it is finished; as `train_students`."""
    return train_students({name: settings}, data, {name: folder})[name]


def untrained_control(settings: StudentSettings) -> StudentSettings:
    """The student as it starts."""
    return settings.model_copy(update={"stages": [], "control": None})


def contrastive_control(settings: StudentSettings) -> StudentSettings:
    """The same student and stages, with list objectives replaced by InfoNCE: training without a teacher's scores."""
    stages = []
    for stage in settings.stages:
        terms = [
            term.model_copy(update={"name": term.objective.control}) if term.objective.reads_scores else term
            for term in stage.objectives
        ]
        stages.append(stage.model_copy(update={"objectives": terms, "selection": None}))
    return settings.model_copy(update={"stages": stages, "control": None})


class _Workshop:
    """The students of a job in training.

    Args:
        students: By name.
        data: Of the job.
        folders: Where finished students go.
        teachers: Of the stages.
    """

    def __init__(
        self,
        students: Mapping[str, StudentSettings],
        data: TrainingData,
        folders: Mapping[str, Path],
        teachers: StageTeachers | None,
    ) -> None:
        self._students, self._data, self._folders, self._teachers = students, data, folders, teachers
        self._manifests = {
            (name, behind): manifest_after_stage(settings, data, behind, teachers)
            for name, settings in students.items()
            for behind in range(len(settings.stages) + 1)
        }
        self._models: dict[str, tuple[int, Any, dict[str, Any]]] = {}  # of students between two of their stages

    def pending(self) -> list[StageOfStudent]:
        """The stages to train, in order; after 0 stages stands a student that is only built and saved."""
        order = training_order(self._students)
        needed = {(name, len(settings.stages)) for name, settings in self._students.items() if not self._done(name)}
        unfinished = set(needed)
        for state in reversed(order):
            if state in needed and not self._saved(state):
                needed |= set(needed_by(state, self._students))
        trained = {state for state in needed if state[1] and not self._saved(state)}
        return [state for state in order if state in trained | unfinished]

    def advance(self, name: str, behind: int) -> None:
        """Train a stage, where another student that shares it has not done so; save the student after its last."""
        settings = self._students[name]
        model, about = self._before(name, behind)
        if behind and self._models.get(name, (0,))[0] != behind:
            model, about = self._trained(name, behind, model, about)
        if behind < len(settings.stages):
            self._models[name] = (behind, model, about)
            return
        self._models.pop(name, None)
        if is_main():
            # A student that encodes its own documents searches its own space, whatever that becomes on disk.
            aligned = {"query_space": space_of(self._data).document_space} if settings.documents == "frozen" else {}
            kind = kind_of(model)
            described, notes = kind.describe(as_student(model), self._data)
            noted = {"notes": [*about.get("notes", []), *notes]} if described else {}
            about = {**about, **aligned, **described, **noted}
            saved = save_student(model, replace(self._manifests[name, behind], about=about), self._folders[name])
            if kind.is_dense:  # a hybrid's document vectors come from its stored dense halves
                kind.store_documents(saved, self._data.collection.documents.texts)
        barrier()

    def finished(self, name: str) -> Distilled:
        """A finished student, from its folder."""
        folder = self._folders[name]
        with quiet_libraries():
            encoder = load_student(folder)
        about = Manifest.read(folder, STUDENT_MANIFEST).about
        documents = space_of(self._data) if self._students[name].documents == "frozen" else encoder
        return Distilled(name, encoder, documents, about["seconds"], about["curves"], about.get("notes", []))

    def _before(self, name: str, behind: int) -> tuple[Any, dict[str, Any]]:
        """The model that a stage starts from and its record; after the stage where that is kept."""
        if self._kept(name, behind):
            kept = self._work(name, behind)
            with quiet_libraries():
                model, about = load_student(kept).model, Manifest.read(kept, STUDENT_MANIFEST).about
            self._models[name] = (behind, model, about)
            return model, about
        held, model, about = self._models.get(name, (-1, None, {}))
        if held == behind - 1 and model is not None:
            return model, about
        if behind > 1:
            return self._before(name, behind - 1)
        model = build_student(self._students[name], self._data)
        return model, {"seconds": 0.0, "steps": 0, "curves": {"losses": [], "monitors": []}}

    def _trained(self, name: str, behind: int, model: Any, about: dict[str, Any]) -> tuple[Any, dict[str, Any]]:
        settings = self._students[name]
        stage, work = settings.stages[behind - 1], self._work(name, behind)
        what = f"{name}, stage {behind} of {len(settings.stages)}"
        model = clustered_from_stage(model, settings, behind - 1)
        data = self._data
        if self._teachers is not None:
            data = self._teachers.data_of(stage, data, self._student_after)
        data = replace(data, own_documents=settings.documents == "student")
        log(f"{what}: {_described(stage)}")
        checkpoints = work.with_name(f"{work.name}-checkpoints")
        about = _grown(about, run_stage(model, stage, data, checkpoints, what))
        if is_main():
            _keep(model, self._manifests[name, behind], about, work)
            remove_checkpoints(checkpoints)
        barrier()
        return model, about

    def _student_after(self, name: str, behind: int) -> AnyStudent:
        """A student after its first stages, from its folder or from what is kept; built anew before its first."""
        place = self._folders[name]
        if not self._manifests[name, behind].matches(place, STUDENT_MANIFEST):
            place = self._work(name, behind)
            if not behind and not self._kept(name, behind):
                return as_student(build_student(self._students[name], self._data))
        with quiet_libraries():
            return load_student(place)

    def _done(self, name: str) -> bool:
        manifest = self._manifests[name, len(self._students[name].stages)]
        folder = check_replaceable(self._folders[name], STUDENT_MANIFEST)
        if manifest.matches(folder, STUDENT_MANIFEST):
            return True
        if (folder / STUDENT_MANIFEST).exists():
            log(f"{name}: its settings or what it is made from have changed; it is trained again and replaced")
        return False

    def _saved(self, state: StageOfStudent) -> bool:
        """Whether the student after some stages can be loaded: it is kept, or finished."""
        name, behind = state
        finished = behind == len(self._students[name].stages)
        return self._kept(name, behind) or (
            finished and self._manifests[state].matches(self._folders[name], STUDENT_MANIFEST)
        )

    def _kept(self, name: str, behind: int) -> bool:
        return bool(behind) and self._manifests[name, behind].matches(self._work(name, behind), STUDENT_MANIFEST)

    def _work(self, name: str, behind: int) -> Path:
        return work_folder(self._data) / self._manifests[name, behind].fingerprint


def _count(seconds: dict[str, float] | None, name: str, started: float) -> None:
    if seconds is not None:
        key = f"distill {name}"
        seconds[key] = seconds.get(key, 0.0) + time.perf_counter() - started


def work_folder(data: TrainingData) -> Path:
    """Where stages and checkpoints of a job's students lie until all of them are done."""
    return data.folder / ".training"


def remove_work(data: TrainingData) -> None:
    """Delete what was kept on the way to a job's students."""
    shutil.rmtree(work_folder(data), ignore_errors=True)


def _grown(about: dict[str, Any], history: History) -> dict[str, Any]:
    """The record with one more stage, steps counted through."""
    added = {"losses": history.losses, "monitors": history.monitors}
    curves = {
        curve: [*about["curves"][curve], *({**entry, "step": entry["step"] + about["steps"]} for entry in entries)]
        for curve, entries in added.items()
    }
    return {
        "seconds": about["seconds"] + history.seconds,
        "steps": about["steps"] + history.steps,
        "curves": curves,
        "notes": [*about.get("notes", []), *history.notes],
        "stages": [*about.get("stages", []), history.learned],
    }


def _keep(model: Any, manifest: Manifest, about: dict[str, Any], place: Path) -> None:
    with atomic_folder(place) as temporary, disk_errors(), quiet_libraries():
        model.save_pretrained(str(temporary), create_model_card=False)
        replace(manifest, about=about).write(temporary, STUDENT_MANIFEST)


def _described(stage: StageSettings) -> str:
    terms = " + ".join(f"{term.weight:g} {term.name}" if term.weight != 1 else term.name for term in stage.objectives)
    trained = {
        "query_encoder": "query encoder",
        "both_encoders": "both encoders",
        "lexical": "lexical half",
        "head": "head",
    }
    return f"{terms}, {trained[stage.train]}"
