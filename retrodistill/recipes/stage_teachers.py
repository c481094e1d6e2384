"""The teachers of stages, and the manifests of the students that stages are made from."""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Any

from retrodistill.core.digests import content_digest
from retrodistill.core.errors import UserError
from retrodistill.core.manifest import Manifest
from retrodistill.data.texts import Texts
from retrodistill.encoders.encoder import Encoder
from retrodistill.encoders.names import content_of
from retrodistill.rankers.ensemble import Ensemble, soft_labels
from retrodistill.rankers.loading import load_ranker
from retrodistill.rankers.protocol import Ranker
from retrodistill.rankers.rewritten import RewrittenRanker
from retrodistill.recipes.settings import Recipe
from retrodistill.recipes.student_settings import StudentSettings, student_state, without_clusters
from retrodistill.students.registry import kind_of
from retrodistill.training.settings import CURRENT_STUDENT, StageSettings, TeacherSettings, is_student
from retrodistill.training.training_data import TrainingData

StudentAfter = Callable[[str, int], Any]  # loads a student of the recipe as it is after that number of its stages


@dataclass(frozen=True)
class StageTeachers:
    """The teachers that stages of a recipe name; each model is loaded once. Nothing here trains a student."""

    recipe: Recipe  # its students may teach each other
    space: Encoder
    bm25: str = "bm25"  # name of the recipe's lexical search
    versions: Mapping[str, Texts] = field(default_factory=dict)  # of queries, which teachers read as well, by name
    loaded: dict[str, Ranker] = field(default_factory=dict, repr=False, compare=False)

    def model(self, name: str) -> Ranker:
        """A model that scores pairs; the document encoder is not loaded again, and ``bm25`` is the recipe's."""
        name = self.bm25 if name == "bm25" else name
        if name not in self.loaded:
            source = self.space if name == self.recipe.document_encoder else name
            self.loaded[name] = load_ranker(source, needs="score")
        return self.loaded[name]

    def load(self, stage: StageSettings) -> None:
        """Load the models that a stage names, so that a wrong name fails before work starts; see `model`."""
        for member in self._named(stage) if stage.has_own_teacher else []:
            if not is_student(member.model):
                self.model(member.model)

    def needs_students(self, stage: StageSettings) -> bool:
        """Whether a student teaches the stage: that teacher exists only once it has been trained."""
        return any(is_student(member.model) for member in stage.teacher)

    def data_of(
        self, stage: StageSettings, data: TrainingData, student_after: StudentAfter | None = None
    ) -> TrainingData:
        """The job's data with the teacher that the stage names, or with labels from the recipe's teacher.

        `student_after` loads students that teach; without it, they raise a `UserError`.
        """
        if not stage.has_own_teacher:
            return data
        named = self._named(stage)
        members = [self._member(member.model, student_after) for member in named]
        members, weights = self.of_versions(members, [member.weight for member in named])
        if stage.labels != "scores":
            teacher: Ranker = soft_labels(members, stage.labels, weights)
        else:
            teacher = members[0] if len(members) == 1 else Ensemble(members, weights, self.recipe.fusion)
        return replace(data, teacher=teacher, labeler=data.teacher if stage.teacher else data.labeler)

    def of_versions(self, members: Sequence[Ranker], weights: Sequence[float]) -> tuple[list[Ranker], list[float]]:
        """The members, each followed by itself on every other version of the queries, with equal weights.

        DiSCo averages the scores of several rewrites in the same way (arXiv 2410.14609). A recorded run has scores by
        query ID, whatever the version, and is not repeated.
        """
        all_members, all_weights = [], []
        for member, weight in zip(members, weights, strict=True):
            versions = {} if member.is_recorded else self.versions
            several = [member, *(RewrittenRanker(member, texts, label) for label, texts in versions.items())]
            all_members += several
            all_weights += [weight / len(several)] * len(several)
        return all_members, all_weights

    def fingerprint(self, stage: StageSettings, data: TrainingData) -> str:
        """Digest of a stage's teacher; of a student, what it is trained from, so it may not exist yet."""
        parts = []
        for member in self._named(stage):
            if is_student(member.model):
                parts.append(self._student_fingerprint(member.model, data))
            else:
                parts.append(self.model(member.model).fingerprint(data.collection))
        return "+".join(parts)

    def inputs(self, stage: StageSettings, data: TrainingData) -> dict[str, str]:
        """Digests of the stage's own teacher and of the student whose weights it starts with, where it names them."""
        named = {"teacher": self.fingerprint(stage, data)} if stage.has_own_teacher else {}
        return named | ({"start": self._student_fingerprint(stage.start, data)} if stage.start else {})

    def _student_fingerprint(self, written: str, data: TrainingData) -> str:
        name, done = student_state(written, self.recipe.students)
        return manifest_after_stage(self.recipe.students[name], data, done, self).fingerprint

    def _named(self, stage: StageSettings) -> list[TeacherSettings]:
        """The stage's teacher, or the recipe's for stages that only turn its scores into labels."""
        return stage.teacher or self.recipe.teacher or [TeacherSettings(model=self.recipe.document_encoder)]

    def _member(self, model: str, student_after: StudentAfter | None) -> Ranker:
        if not is_student(model):
            return self.model(model)
        if student_after is None:
            raise UserError(f"teacher {model!r} is a student that has not been trained yet.")
        name, done = student_state(model, self.recipe.students)
        trained = student_after(name, done).model
        kind = kind_of(trained)
        teacher = kind.wrap(trained, f"{CURRENT_STUDENT}:{name}@{done}", None)
        return kind.ranker(teacher, self.space if self.recipe.students[name].documents == "frozen" else teacher)


def space_of(data: TrainingData) -> Encoder:
    """The document encoder of a job; a `UserError` if there is none."""
    if data.space is None:
        raise UserError("training needs a document encoder; name a dense model.")
    return data.space


def student_manifest(settings: StudentSettings, data: TrainingData, teachers: StageTeachers | None = None) -> Manifest:
    """What a student is made from; its control has a manifest of its own."""
    inputs = {
        "corpus": data.collection.documents.fingerprint,
        "queries": data.queries.fingerprint,
        "teacher": data.teacher.fingerprint(data.collection),
        "space": space_of(data).fingerprint("document"),
    }
    inputs |= _optional_inputs(data)
    for number, stage in enumerate(settings.stages, start=1):
        if teachers is not None:
            inputs |= {f"{what} of stage {number}": made for what, made in teachers.inputs(stage, data).items()}
            inputs |= {f"queries as {name}": texts.fingerprint for name, texts in teachers.versions.items()}
        if stage.needs_labels:
            inputs["labels"] = data.qrels().fingerprint
        if stage.reads_labels and stage.is_contrastive:  # before, they were; such students are trained again
            inputs["other relevant documents"] = "are no negatives"
        if stage.judges_by_ensemble and not stage.teacher and data.labeler is not None:
            inputs["labeler"] = data.labeler.fingerprint(data.collection)
    # What is named by its place may change there.
    named = [settings.model, *(source for stage in settings.stages for source in stage.candidates.sources or ())]
    contents = {f"content of {name}": content_of(name) for name in named if not is_student(name)}
    inputs |= {name: content for name, content in contents.items() if content is not None}
    # Without keys that students made before them do not have, so that they stay valid.
    unset = {number: {"start"} for number, stage in enumerate(settings.stages) if stage.start is None}
    kept = settings.model_dump(mode="json", exclude={"control": True, "trim": True, "stages": unset})
    for number, stage in enumerate(settings.stages):
        if stage.texts.generated is not None:  # its content counts, wherever it is
            kept["stages"][number]["texts"]["generated"] = content_digest(stage.texts.generated)
    if settings.head is None and (settings.kind.can_search or "head" not in settings.kind.options):
        kept["head"] = "splade"  # as every kind had it before re-rankers could choose
    return Manifest("student", inputs, {**kept, "seed": data.seed})


def _optional_inputs(data: TrainingData) -> dict[str, str]:
    """What some jobs have; the manifests of others do not name it."""
    inputs = {}
    if data.excluded is not None:
        inputs["excluded"] = data.excluded.fingerprint
    if data.rewrites is not None:
        inputs["rewrites"] = data.teacher_queries(data.queries).fingerprint
    if data.parallel is not None:
        inputs["parallel"] = data.parallel.fingerprint
    if data.bm25 != "bm25":
        inputs["bm25"] = data.bm25
    if data.stored is not None:
        inputs["stored"] = hashlib.blake2b(data.stored.tobytes(), digest_size=8).hexdigest()
    return inputs


def finished_manifest(settings: StudentSettings, data: TrainingData, teachers: StageTeachers | None = None) -> Manifest:
    """The manifest of a student's folder: that after its last stage, and how the student was trimmed then."""
    manifest = manifest_after_stage(settings, data, len(settings.stages), teachers)
    if settings.trim is None:
        return manifest
    return replace(manifest, settings={**manifest.settings, "trim": settings.trim.model_dump(mode="json")})


def manifest_after_stage(
    settings: StudentSettings, data: TrainingData, stages: int, teachers: StageTeachers | None = None
) -> Manifest:
    """The manifest of a student after its first stages; before clusters, that of the student without clusters."""
    if settings.stages and settings.clustered_from > 1 and stages < settings.clustered_from:
        settings = without_clusters(settings)
    return student_manifest(settings.model_copy(update={"stages": settings.stages[:stages]}), data, teachers)
