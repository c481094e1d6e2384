"""Distill the students of a recipe: skip what is done, go on where it stopped."""

from __future__ import annotations

import hashlib
import shutil
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

from retrodistill.core.distributed import barrier, is_main
from retrodistill.core.files import atomic_folder, check_replaceable
from retrodistill.core.manifest import Manifest
from retrodistill.core.progress import log
from retrodistill.data.sentences import title_texts
from retrodistill.encoders.contract import STUDENT_MANIFEST
from retrodistill.encoders.encoder import Encoder
from retrodistill.encoders.loading import quiet_libraries
from retrodistill.encoders.sparse import SparseTextEncoder
from retrodistill.recipes.building import build_student, clustered_from_stage, space_of
from retrodistill.recipes.settings import StudentSettings
from retrodistill.recipes.variant_settings import unclustered
from retrodistill.students.hybrid import is_hybrid
from retrodistill.students.kinds import AnyStudent, as_student
from retrodistill.students.saving import disk_errors, load_student, save_student
from retrodistill.students.sparse import sparsity
from retrodistill.training.hybrid import store_vectors
from retrodistill.training.regularizers import SparsityAlarm
from retrodistill.training.settings import StageSettings
from retrodistill.training.stages import run_stage
from retrodistill.training.trainer import History, remove_checkpoints
from retrodistill.training.training_data import TrainingData


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


def train_student(name: str, settings: StudentSettings, data: TrainingData, folder: Path) -> Distilled:
    """Distill one student, or load it where it stands already.

    Args:
        name: The system's name.
        settings: What it is and how it is trained.
        data: Texts, teacher and space.
        folder: Where the student goes. Stages and checkpoints lie in `work_folder`, which the caller removes when all
            students of the job are done.

    Raises:
        UserError: The settings do not fit the data.
    """
    manifest = student_manifest(settings, data)
    check_replaceable(folder, STUDENT_MANIFEST)
    if not manifest.matches(folder, STUDENT_MANIFEST):
        if (folder / STUDENT_MANIFEST).exists():
            log(f"{name}: its settings or what it is made from have changed; it is trained again and replaced")
        barrier()
        _train(name, settings, data, folder)
        barrier()
    with quiet_libraries():
        encoder = load_student(folder)
    about = Manifest.read(folder, STUDENT_MANIFEST).about
    documents = space_of(data) if settings.documents == "frozen" else encoder
    return Distilled(name, encoder, documents, about["seconds"], about["curves"], about.get("notes", []))


def untrained(settings: StudentSettings) -> StudentSettings:
    """The student as it starts."""
    return settings.model_copy(update={"stages": [], "control": None})


def contrastive_twin(settings: StudentSettings) -> StudentSettings:
    """The same student and stages, with list objectives replaced by InfoNCE: training without a teacher's scores."""
    stages = []
    for stage in settings.stages:
        terms = [
            term.model_copy(update={"name": term.objective.control}) if term.objective.reads_scores else term
            for term in stage.objectives
        ]
        stages.append(stage.model_copy(update={"objectives": terms, "selection": None}))
    return settings.model_copy(update={"stages": stages, "control": None})


def student_manifest(settings: StudentSettings, data: TrainingData) -> Manifest:
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
        if stage.has_own_teacher and data.teachers is not None:
            inputs[f"teacher of stage {number}"] = data.teachers.fingerprint(stage, data)
        if stage.needs_labels:
            inputs["labels"] = data.qrels().fingerprint
        by_ensemble = stage.selection is not None and stage.selection.positives == "ensemble"
        if by_ensemble and not stage.teacher and data.labeler is not None:
            inputs["labeler"] = data.labeler.fingerprint(data.collection)
    if data.stored is not None:
        inputs["stored"] = hashlib.blake2b(data.stored.tobytes(), digest_size=8).hexdigest()
    kept = settings.model_dump(mode="json", exclude={"control"})
    return Manifest("student", inputs, {**kept, "seed": data.seed})


def _train(name: str, settings: StudentSettings, data: TrainingData, folder: Path) -> None:
    """Train stage by stage; what stands behind a stage is kept under the fingerprint of all that led there.

    So a killed job goes on behind its last whole stage, and a control takes over the stages it shares.
    """
    model, about, way = _trained(name, settings, data, len(settings.stages))
    if is_main():
        # A student that encodes its own documents searches its own space, whatever that becomes on disk.
        aligned = {"query_space": space_of(data).document_space} if settings.documents == "frozen" else {}
        about = {**about, **aligned, **_sparsity(model, about, data)}
        saved = save_student(model, replace(way, about=about), folder)
        if isinstance(saved, Encoder) and is_hybrid(saved.model):
            store_vectors(saved, data.collection.documents.texts, "document")


def _trained(
    name: str, settings: StudentSettings, data: TrainingData, stages: int
) -> tuple[Any, dict[str, Any], Manifest]:
    """The model behind its first stages, their record, and its manifest."""
    work = work_folder(data)
    ways = [manifest_after_stage(settings, data, number) for number in range(stages + 1)]
    model, done, about = _start(settings, data, ways, work)
    for number, stage in enumerate(settings.stages[done:stages], start=done):
        what = f"{name}, stage {number + 1} of {len(settings.stages)}"
        model = clustered_from_stage(model, settings, number)
        taught = data.with_stage_teacher(stage)  # which may train another student first
        log(f"{what}: {_described(stage)}")
        place = work / f"{ways[number + 1].fingerprint}-checkpoints"
        about = _grown(about, run_stage(model, stage, _data_for(settings, taught), place, what))
        if is_main():
            _keep(model, ways[number + 1], about, work / ways[number + 1].fingerprint)
            remove_checkpoints(place)
        barrier()
    return model, about, ways[-1]


def student_after_stage(
    name: str, settings: StudentSettings, data: TrainingData, stages: int, folder: Path
) -> AnyStudent:
    """A student behind its first stages, trained as far as that where it is not.

    Args:
        name: The system's name.
        settings: What it is.
        data: Of the job.
        stages: How many stages it is to have behind it; 0 for the student as it starts.
        folder: Where the finished student lies, if it does.
    """
    if manifest_after_stage(settings, data, stages).matches(folder, STUDENT_MANIFEST):
        with quiet_libraries():
            return load_student(folder)
    return as_student(_trained(name, settings, data, stages)[0])


def _sparsity(model: Any, about: dict[str, Any], data: TrainingData) -> dict[str, Any]:
    """Terms per text and FLOPS of a sparse student, for its manifest; an alarm where it is empty or dense."""
    student = as_student(model)
    if not isinstance(student, SparseTextEncoder):
        return {}
    documents = data.collection.documents
    queries = data.queries if len(data.queries) else title_texts(data.collection)
    measured = sparsity(student, documents, queries)
    alarm = SparsityAlarm()
    alarm([round(measured["terms"])], student.dimension, final=True)
    return {"sparsity": measured, "notes": [*about.get("notes", []), *alarm.notes]}


def work_folder(data: TrainingData) -> Path:
    """Where stages and checkpoints of a job's students lie until all of them are done."""
    return data.folder / ".training"


def remove_work(data: TrainingData) -> None:
    """Delete what was kept on the way to a job's students."""
    shutil.rmtree(work_folder(data), ignore_errors=True)


def manifest_after_stage(settings: StudentSettings, data: TrainingData, stages: int) -> Manifest:
    """The manifest of a student behind its first stages; before clusters it is that of the unclustered student."""
    plain = settings.stages and settings.clustered_from > 1 and stages < settings.clustered_from
    whole = unclustered(settings) if plain else settings
    return student_manifest(whole.model_copy(update={"stages": settings.stages[:stages]}), data)


def _start(
    settings: StudentSettings, data: TrainingData, ways: list[Manifest], work: Path
) -> tuple[Any, int, dict[str, Any]]:
    """The model behind the last stage that is kept, how many stages that is, and their record."""
    for done in range(len(ways) - 1, 0, -1):
        kept = work / ways[done].fingerprint
        if ways[done].matches(kept, STUDENT_MANIFEST):
            with quiet_libraries():
                return load_student(kept).model, done, Manifest.read(kept, STUDENT_MANIFEST).about
    model = build_student(settings, data)
    return model, 0, {"seconds": 0.0, "steps": 0, "curves": {"losses": [], "monitors": []}}


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


def _data_for(settings: StudentSettings, data: TrainingData) -> TrainingData:
    """A student that encodes its own documents searches its own space."""
    return replace(data, own_documents=settings.documents == "student")


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
