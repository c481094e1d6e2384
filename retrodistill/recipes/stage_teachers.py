"""Teachers that stages name: models, their soft labels, and students of the same recipe behind one of their stages."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path

from retrodistill.encoders.encoder import Encoder
from retrodistill.rankers.cross_encoder import CrossEncoderRanker
from retrodistill.rankers.dense import DenseRanker
from retrodistill.rankers.ensemble import Ensemble
from retrodistill.rankers.labels import soft_labels
from retrodistill.rankers.loading import load_ranker
from retrodistill.rankers.protocol import Ranker
from retrodistill.recipes.settings import StudentSettings, TeacherSettings
from retrodistill.recipes.students import manifest_after_stage, student_after_stage
from retrodistill.students.cross_encoder import CrossEncoderStudent
from retrodistill.training.list_settings import CURRENT_STUDENT, is_student, parse_student
from retrodistill.training.settings import StageSettings
from retrodistill.training.training_data import TrainingData


@dataclass(frozen=True)
class NamedTeachers:
    """Teachers of the stages of a recipe; each model is loaded once.

    Attributes:
        members: The recipe's teacher, for stages that only map its scores to labels; empty where the space's model
            teaches.
        fusion: How several are fused.
        space: The space's encoder, under `space_name`.
        space_name: Its name in the recipe.
        students: The recipe's students, who may teach each other.
        out: The job's folder, where finished students lie.
        loaded: Models by name, those of the recipe's teacher among them.
    """

    members: list[TeacherSettings]
    fusion: str
    space: Encoder
    space_name: str
    students: Mapping[str, StudentSettings]
    out: Path
    loaded: dict[str, Ranker] = field(default_factory=dict, repr=False, compare=False)

    def load(self, stage: StageSettings) -> None:
        """Load the stage's models, so that a wrong name fails before work starts.

        Raises:
            UserError: A model that is not to be found.
        """
        for one in self._named(stage) if stage.has_own_teacher else []:
            if not is_student(one.model):
                self._model(one.model)

    def needs_students(self, stage: StageSettings) -> bool:
        """Whether a student teaches the stage, which is known once that one is trained."""
        return any(is_student(one.model) for one in stage.teacher)

    def teacher(self, stage: StageSettings, data: TrainingData) -> Ranker:
        """The stage's teacher; a student that is to teach is trained as far as that, where it is not.

        Args:
            stage: Which names it, or wants labels of the recipe's.
            data: Of the job, for training students.

        Raises:
            UserError: A model is not to be found, or a student cannot be trained.
        """
        named = self._named(stage)
        members = [self._member(one.model, data) for one in named]
        weights = [one.weight for one in named]
        if stage.labels != "scores":
            return soft_labels(members, stage.labels, weights)
        return members[0] if len(members) == 1 else Ensemble(members, weights, self.fusion)

    def fingerprint(self, stage: StageSettings, data: TrainingData) -> str:
        """Digests of the members: of a student, of what it will be made from."""
        parts = []
        for one in self._named(stage):
            if is_student(one.model):
                name, behind = self._standing(one.model)
                parts.append(manifest_after_stage(self.students[name], data, behind).fingerprint)
            else:
                parts.append(self._model(one.model).fingerprint(data.collection))
        return "+".join(parts)

    def _named(self, stage: StageSettings) -> list[TeacherSettings]:
        return stage.teacher or self.members or [TeacherSettings(model=self.space_name)]

    def _member(self, model: str, data: TrainingData) -> Ranker:
        if not is_student(model):
            return self._model(model)
        name, behind = self._standing(model)
        settings = self.students[name]
        student = student_after_stage(name, settings, data, behind, self.out / "students" / name)
        called = f"{CURRENT_STUDENT}:{name}@{behind}"
        if isinstance(student, CrossEncoderStudent):
            return CrossEncoderRanker(student.model, called)
        encoder = Encoder(student.model, called)
        return DenseRanker(self.space if settings.documents == "frozen" else encoder, encoder, checked=False)

    def _model(self, model: str) -> Ranker:
        if model not in self.loaded:
            self.loaded[model] = load_ranker(self.space if model == self.space_name else model, needs="score")
        return self.loaded[model]

    def _standing(self, model: str) -> tuple[str, int]:
        name, behind = parse_student(model)
        return name, len(self.students[name].stages) if behind is None else behind
