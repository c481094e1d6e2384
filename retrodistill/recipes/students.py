"""Train a recipe's students: skip what is finished and resume what was stopped."""

from __future__ import annotations

import gc
import shutil
import time
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

from retrodistill.core.errors import UserError
from retrodistill.core.files import atomic_folder, check_replaceable
from retrodistill.core.manifest import Manifest
from retrodistill.core.runtime import barrier, is_main, log, release_freed_memory
from retrodistill.data.pseudo_queries import load_generated
from retrodistill.encoders.contract import STUDENT_MANIFEST, searched_space
from retrodistill.encoders.loading import quiet_libraries
from retrodistill.encoders.modules import save_pretrained
from retrodistill.encoders.remote_code import code_of
from retrodistill.evaluation.results import Role
from retrodistill.recipes.pace import remember_pace
from retrodistill.recipes.stage_teachers import StageTeachers, finished_manifest, manifest_after_stage, space_of
from retrodistill.recipes.student_settings import (
    StudentSettings,
    StudentState,
    TrimSettings,
    prerequisites,
    student_state,
    training_order,
)
from retrodistill.students.registry import (
    AnyStudent,
    as_student,
    kind_of,
    load_student,
    run_stage,
    save_student,
    weights_to_start_from,
)
from retrodistill.training.tracking import tracked_run
from retrodistill.training.trainer import History
from retrodistill.training.training_data import TrainingData

if TYPE_CHECKING:
    from retrodistill.students.small_tables import TablePrecision


@dataclass(frozen=True)
class Distilled:
    """A trained student and the record of its training."""

    name: str  # of the system
    encoder: AnyStudent
    documents: AnyStudent  # encodes the documents that it searches; of a cross-encoder, the student itself
    seconds: float  # of training
    curves: dict[str, list[dict[str, float]]] = field(default_factory=dict)  # of all stages, with steps counted through
    notes: list[str] = field(default_factory=list)  # what a reader of the results should know about it
    held_out: list[str] = field(default_factory=list)  # ids of training queries that no stage was trained on
    role: Role = "student"
    truncate: int | None = None  # leading dimensions that its index keeps; None for the recipe's


def build_student(settings: StudentSettings, data: TrainingData) -> Any:
    """The student before training; a `UserError` if there is no document encoder, or its kind cannot start so."""
    space_of(data)
    return settings.kind.start(settings, data)


def train_students(
    students: Mapping[str, StudentSettings],
    data: TrainingData,
    folders: Mapping[str, Path],
    teachers: StageTeachers | None = None,
    seconds: dict[str, float] | None = None,
) -> dict[str, Distilled]:
    """Train students so that each stage follows all the stages that it needs; the order is logged.

    Finished students are loaded. A stopped job resumes after its last complete stage: the student after each stage is
    kept under the fingerprint of everything that led there, so students also share the stages that they have in common.

    Stages and checkpoints are kept in `work_folder`, which the caller removes when all students of the job are done.
    `seconds` receives the wall-clock seconds of each student, under ``distill NAME``.

    Raises:
        UserError: The settings do not fit the data, or a stage names a teacher or a start and there are no `teachers`.
    """
    stages_of_all = (stage for settings in students.values() for stage in settings.stages)
    if teachers is None and any(stage.has_own_teacher or stage.start for stage in stages_of_all):
        raise UserError("a stage with its own teacher, labels or start needs a recipe; run it with 'retrodistill run'.")
    training = _Training(students, data, folders, teachers)
    pending = training.pending()
    barrier()
    stages = [f"{name}@{number}" for name, number in pending if number]
    if len(stages) > 1:
        log(f"training order: {', '.join(stages)}")
    seconds, distilled = {} if seconds is None else seconds, {}
    for name, number in pending:
        with timed(seconds, f"distill {name}"):
            training.advance(name, number)
            gc.collect()  # models and trainers refer to each other
            release_freed_memory()
    for name in students:
        with timed(seconds, f"distill {name}"):
            distilled[name] = training.finished(name)
    return distilled


def train_student(name: str, settings: StudentSettings, data: TrainingData, folder: Path) -> Distilled:
    """Train one student, or load it if it is finished; see `train_students`."""
    return train_students({name: settings}, data, {name: folder})[name]


class _Training:
    """The students of a job in training. A state is a student's name and how many of its stages are done."""

    def __init__(
        self,
        students: Mapping[str, StudentSettings],
        data: TrainingData,
        folders: Mapping[str, Path],
        teachers: StageTeachers | None,
    ) -> None:
        self._students, self._data, self._folders, self._teachers = students, data, folders, teachers
        self._manifests = {
            (name, done): manifest_after_stage(settings, data, done, teachers)
            for name, settings in students.items()
            for done in range(len(settings.stages) + 1)
        }
        self._finished = {name: finished_manifest(settings, data, teachers) for name, settings in students.items()}
        self._models: dict[str, tuple[int, Any, dict[str, Any]]] = {}  # of students between two of their stages

    def pending(self) -> list[StudentState]:
        """The stages to train, in order; after 0 stages, a student that is only built and saved."""
        order = training_order(self._students)
        names = [name for name in self._students if not self._is_finished(name)]
        unfinished = {(name, len(self._students[name].stages)) for name in names}
        needed = set(unfinished)
        for state in reversed(order):
            if state in needed and not self.is_saved(state):
                needed |= set(prerequisites(state, self._students))
        trained = {state for state in needed if state[1] and not self.is_saved(state)}
        return [state for state in order if state in trained | unfinished]

    def advance(self, name: str, number: int) -> None:
        """Train a stage, unless it is shared and already trained; save the student after its last stage."""
        done, model, record = self._closest(name, number)
        if done != number:
            model, record = self._train(name, number, model, record)
        if number < len(self._students[name].stages):
            self._models[name] = (number, model, record)
            return
        self._models.pop(name, None)
        if is_main():
            self._save(name, model, record)
        barrier()

    def finished(self, name: str) -> Distilled:
        """A finished student, loaded from its folder."""
        folder = self._folders[name]
        encoder = load_student(folder)
        record = Manifest.read(folder, STUDENT_MANIFEST).about
        documents = space_of(self._data) if self._students[name].documents == "frozen" else encoder
        notes, held_out = record.get("notes", []), record.get("held_out", [])  # earlier versions have none
        return Distilled(name, encoder, documents, record["seconds"], record["curves"], notes, held_out)

    def is_saved(self, state: StudentState) -> bool:
        """Whether the student can be loaded in this state: it is kept, or finished."""
        name, done = state
        is_last = done == len(self._students[name].stages)
        is_finished = is_last and self._finished[name].matches(self._folders[name], STUDENT_MANIFEST)
        return is_finished or self._is_kept(name, done)

    def student_after(self, name: str, done: int) -> AnyStudent:
        """A student after its first stages, from its folder or its kept stage; before the first it is built again."""
        folder = self._folders[name]
        manifest = self._finished[name] if done == len(self._students[name].stages) else self._manifests[name, done]
        if not manifest.matches(folder, STUDENT_MANIFEST):
            if not done:
                return as_student(build_student(self._students[name], self._data))
            folder = self._work(name, done)
        return load_student(folder)

    def _closest(self, name: str, number: int) -> tuple[int, Any, dict[str, Any]]:
        """The student after this stage, if that is kept, or before it: how many stages are done, model and record."""
        for done in range(number, 0, -1):
            if name in self._models and self._models[name][0] == done:
                return self._models[name]
            if self._is_kept(name, done):
                folder = self._work(name, done)
                return done, load_student(folder).model, Manifest.read(folder, STUDENT_MANIFEST).about
        record = {"seconds": 0.0, "steps": 0, "curves": {"losses": [], "monitors": []}}
        return 0, build_student(self._students[name], self._data), record

    def _train(self, name: str, number: int, model: Any, record: dict[str, Any]) -> tuple[Any, dict[str, Any]]:
        settings, work = self._students[name], self._work(name, number)
        stage, title = settings.stages[number - 1], f"{name}, stage {number} of {len(settings.stages)}"
        model = settings.kind.at_stage(model, settings, number - 1)
        if stage.start is not None:
            giver = self.student_after(*student_state(stage.start, self._students)).model
            weights = weights_to_start_from(model, giver, stage.start)
            settings.kind.transformer(model).load_state_dict(weights, strict=False)  # type: ignore[misc]
        learned = dict(enumerate(record.get("stages", []), start=1))  # old versions kept no scores, or no stages
        files = (learned.get(earlier, {}).get("scores") for earlier in settings.bought_before(number))
        bought = tuple(file for file in files if file is not None)
        data = replace(self._data, own_documents=settings.documents == "student", bought=bought)
        if self._teachers is not None:
            data = self._teachers.data_of(stage, data, self.student_after)
        terms = [f"{term.weight:g} {term.name}" if term.weight != 1 else term.name for term in stage.objectives]
        part = "lexical half" if stage.train == "lexical" else stage.train.replace("_", " ")
        log(f"{title}: {' + '.join(terms)}, {part}{f', from {stage.start}' if stage.start else ''}")
        checkpoints = work.with_name(f"{work.name}-checkpoints")
        with tracked_run(name, self._finished[name].fingerprint, offset=record["steps"]):
            history = run_stage(model, stage, data, checkpoints, title)
        record = _extended(record, history)
        if is_main():
            remember_pace(settings, stage, data, history)
            manifest = replace(self._manifests[name, number], about=record)
            with atomic_folder(work) as temporary, quiet_libraries():
                save_pretrained(model, temporary)
                manifest.with_files(temporary).write(temporary, STUDENT_MANIFEST)
            shutil.rmtree(checkpoints, ignore_errors=True)
        barrier()
        return model, record

    def _save(self, name: str, model: Any, record: dict[str, Any]) -> None:
        settings = self._students[name]
        precision: TablePrecision = "float32"
        if settings.trim is not None:
            model, precision, record = _trimmed(name, model, settings, self._data, record)
        kind = kind_of(model)
        if settings.documents == "frozen":
            # A student that encodes its own documents searches its own space, which is known only once it is saved.
            record |= searched_space(space_of(self._data))
        if code := code_of(model):
            record = {**record, "code": code}
        described, notes = kind.describe(as_student(model), self._data)
        if described:
            record = {**record, **described, "notes": [*record.get("notes", []), *notes]}
        saved = save_student(model, replace(self._finished[name], about=record), self._folders[name], precision)
        if kind.is_dense:  # a hybrid's document vectors come from its stored dense halves
            kind.store_documents(saved, self._data.collection.documents.column)

    def _is_finished(self, name: str) -> bool:
        manifest = self._finished[name]
        folder = check_replaceable(self._folders[name], STUDENT_MANIFEST)
        if manifest.matches(folder, STUDENT_MANIFEST):
            return True
        if (folder / STUDENT_MANIFEST).exists():
            log(f"{name}: its settings or inputs have changed; training it again")
        return False

    def _is_kept(self, name: str, done: int) -> bool:
        return bool(done) and self._manifests[name, done].matches(self._work(name, done), STUDENT_MANIFEST)

    def _work(self, name: str, done: int) -> Path:
        return work_folder(self._data) / self._manifests[name, done].fingerprint


@contextmanager
def timed(seconds: dict[str, float], step: str) -> Iterator[None]:
    """Add the wall-clock seconds of the block to those of a step."""
    started = time.perf_counter()
    yield
    seconds[step] = seconds.get(step, 0.0) + time.perf_counter() - started


def work_folder(data: TrainingData) -> Path:
    """The folder of a job's kept stages and checkpoints, until all students are done."""
    return data.folder / ".training"


def _trimmed(
    name: str, model: Any, settings: StudentSettings, data: TrainingData, record: dict[str, Any]
) -> tuple[Any, TablePrecision, dict[str, Any]]:
    """A trained student cut as its settings say, the precision of its table on disk, and the record of both."""
    from retrodistill.students.trimming import trim_model

    trim = settings.trim or TrimSettings()
    queries = data.queries if data.parallel is None else data.queries + data.parallel.texts
    for file in dict.fromkeys(stage.texts.generated for stage in settings.stages):
        queries = queries if file is None else queries + load_generated(file, data.collection)
    options = trim.model_dump(include={"min_count", "dimension"})
    trimmed = trim_model(model, data.collection.documents.column, queries.column, **options, name=name)
    log(f"{name}: trimmed to {trimmed.tokens} of {trimmed.before} tokens")
    return trimmed.model, trim.precision, {**record, "trimmed": trimmed.about}


def _extended(record: dict[str, Any], history: History) -> dict[str, Any]:
    """The record with one more stage, with steps counted through."""
    known = record.get("held_out", []) if record.get("stages") else history.held_out
    curves = {
        curve: [*earlier, *({**entry, "step": entry["step"] + record["steps"]} for entry in getattr(history, curve))]
        for curve, earlier in record["curves"].items()
    }
    return {
        "seconds": record["seconds"] + history.seconds,
        "steps": record["steps"] + history.steps,
        "curves": curves,
        "notes": [*record.get("notes", []), *history.notes],
        "held_out": [query for query in known if query in set(history.held_out)],
        "stages": [*record.get("stages", []), history.learned],
    }
