"""Teachers that stages name (models, soft labels, students of the recipe), and manifests of what they make."""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field, replace
from typing import Any

from retrodistill.core.errors import UserError
from retrodistill.core.manifest import Manifest
from retrodistill.encoders.encoder import Encoder
from retrodistill.rankers.ensemble import Ensemble, soft_labels
from retrodistill.rankers.loading import load_ranker
from retrodistill.rankers.protocol import Ranker
from retrodistill.recipes.student_settings import StudentSettings, without_clusters
from retrodistill.students.registry import kind_of
from retrodistill.training.settings import CURRENT_STUDENT, StageSettings, TeacherSettings, is_student, parse_student
from retrodistill.training.training_data import TrainingData

StudentAfter = Callable[[str, int], Any]  # gives a student of the recipe after so many of its stages


@dataclass(frozen=True)
class StageTeachers:
    """Teachers of the stages of a recipe; each model is loaded once. Nothing here trains a student.

    Attributes:
        members: The recipe's teacher, for stages that only map its scores to labels; empty where the document encoder
            teaches.
        fusion: How several are fused.
        space: The document encoder, under `space_name`.
        space_name: Its name in the recipe.
        students: The recipe's students, who may teach each other.
        loaded: Models by name, those of the recipe's teacher among them.
    """

    members: list[TeacherSettings]
    fusion: str
    space: Encoder
    space_name: str
    students: Mapping[str, StudentSettings]
    loaded: dict[str, Ranker] = field(default_factory=dict, repr=False, compare=False)

    def load(self, stage: StageSettings) -> None:
        """Load the stage's models, so that a wrong name fails before work starts.

        Raises:
            UserError: A model that is not to be found.
        """
        for member in self._named(stage) if stage.has_own_teacher else []:
            if not is_student(member.model):
                self._model(member.model)

    def needs_students(self, stage: StageSettings) -> bool:
        """Whether a student teaches the stage, which is known once that one is trained."""
        return any(is_student(member.model) for member in stage.teacher)

    def data_of(
        self, stage: StageSettings, data: TrainingData, student_after: StudentAfter | None = None
    ) -> TrainingData:
        """The data of a stage: with the teacher that it names in the place of the job's.

        Args:
            stage: Names its teacher, or wants labels of the recipe's.
            data: Of the job.
            student_after: Gives the students that teach; unused where none does.

        Raises:
            UserError: A student teaches, and nothing gives it.
        """
        if not stage.has_own_teacher:
            return data
        named = self._named(stage)
        members = [self._member(member.model, student_after) for member in named]
        weights = [member.weight for member in named]
        if stage.labels != "scores":
            teacher: Ranker = soft_labels(members, stage.labels, weights)
        else:
            teacher = members[0] if len(members) == 1 else Ensemble(members, weights, self.fusion)
        return replace(data, teacher=teacher, labeler=data.teacher if stage.teacher else data.labeler)

    def fingerprint(self, stage: StageSettings, data: TrainingData) -> str:
        """Digests of the members: of a student, of what it will be made from."""
        parts = []
        for member in self._named(stage):
            if is_student(member.model):
                name, behind = self._state(member.model)
                parts.append(manifest_after_stage(self.students[name], data, behind, self).fingerprint)
            else:
                parts.append(self._model(member.model).fingerprint(data.collection))
        return "+".join(parts)

    def _named(self, stage: StageSettings) -> list[TeacherSettings]:
        return stage.teacher or self.members or [TeacherSettings(model=self.space_name)]

    def _member(self, model: str, student_after: StudentAfter | None) -> Ranker:
        if not is_student(model):
            return self._model(model)
        name, behind = self._state(model)
        if student_after is None:
            raise UserError(f"teacher {model!r} is known when that student is trained, not before.")
        student, called = student_after(name, behind), f"{CURRENT_STUDENT}:{name}@{behind}"
        kind = kind_of(student.model)
        teacher = kind.wrap(student.model, called, None)
        return kind.ranker(teacher, self.space if self.students[name].documents == "frozen" else teacher)

    def _model(self, model: str) -> Ranker:
        if model not in self.loaded:
            self.loaded[model] = load_ranker(self.space if model == self.space_name else model, needs="score")
        return self.loaded[model]

    def _state(self, model: str) -> tuple[str, int]:
        name, behind = parse_student(model)
        return name, len(self.students[name].stages) if behind is None else behind


def space_of(data: TrainingData) -> Encoder:
    """The space of a job.

    Raises:
        UserError: It has none.
    """
    if data.space is None:
        raise UserError("no space is given; name the dense model whose documents are searched.")
    return data.space


def student_manifest(settings: StudentSettings, data: TrainingData, teachers: StageTeachers | None = None) -> Manifest:
    """What a student is made from; its control counts as a student of its own."""
    inputs = {
        "corpus": data.collection.documents.fingerprint,
        "queries": data.queries.fingerprint,
        "teacher": data.teacher.fingerprint(data.collection),
        "space": space_of(data).fingerprint("document"),
    }
    if data.rewrites is not None:
        inputs["rewrites"] = data.teacher_queries(data.queries).fingerprint
    for number, stage in enumerate(settings.stages, start=1):
        if stage.has_own_teacher and teachers is not None:
            inputs[f"teacher of stage {number}"] = teachers.fingerprint(stage, data)
        if stage.needs_labels:
            inputs["labels"] = data.qrels().fingerprint
        by_ensemble = stage.selection is not None and stage.selection.positives == "ensemble"
        if by_ensemble and not stage.teacher and data.labeler is not None:
            inputs["labeler"] = data.labeler.fingerprint(data.collection)
    if data.stored is not None:
        inputs["stored"] = hashlib.blake2b(data.stored.tobytes(), digest_size=8).hexdigest()
    kept = settings.model_dump(mode="json", exclude={"control"})
    return Manifest("student", inputs, {**kept, "seed": data.seed})


def manifest_after_stage(
    settings: StudentSettings, data: TrainingData, stages: int, teachers: StageTeachers | None = None
) -> Manifest:
    """The manifest of a student after its first stages; before clusters it is that of the unclustered student."""
    plain = settings.stages and settings.clustered_from > 1 and stages < settings.clustered_from
    whole = without_clusters(settings) if plain else settings
    return student_manifest(whole.model_copy(update={"stages": settings.stages[:stages]}), data, teachers)
