"""Distil the students of a recipe: skip what is done, go on where it stopped."""

from __future__ import annotations

import shutil
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

from retrodistill.distributed import barrier, is_main, main_first
from retrodistill.errors import UserError
from retrodistill.files import atomic_folder, check_replaceable
from retrodistill.manifest import Manifest
from retrodistill.models.encoder import STUDENT_MANIFEST, Encoder
from retrodistill.models.loading import quiet_libraries
from retrodistill.objectives.registry import LIST_OBJECTIVES
from retrodistill.progress import say
from retrodistill.recipe import StudentSettings
from retrodistill.students.dense import dense_student
from retrodistill.students.hybrid import hybrid_student, is_hybrid
from retrodistill.students.saving import disk_errors, load_student, save_student
from retrodistill.students.static import static_student
from retrodistill.training.lexical import store_vectors
from retrodistill.training.material import Material
from retrodistill.training.settings import StageSettings
from retrodistill.training.stages import run_stage
from retrodistill.training.trainer import remove_checkpoints

if TYPE_CHECKING:
    from sentence_transformers import SentenceTransformer


@dataclass(frozen=True)
class Distilled:
    """A student, and how it came to be.

    Attributes:
        name: The system's name.
        encoder: The student.
        documents: Who encodes the documents that it searches.
        seconds: Training time.
        curves: Losses and monitors of all stages, steps counted through.
    """

    name: str
    encoder: Encoder
    documents: Encoder
    seconds: float
    curves: dict[str, list[dict[str, float]]] = field(default_factory=dict)


def distil(name: str, settings: StudentSettings, material: Material, folder: Path) -> Distilled:
    """Distil one student, or load it where it stands already.

    Args:
        name: The system's name.
        settings: What it is and how it is trained.
        material: Texts, teacher and space.
        folder: Where the student goes; checkpoints lie beside it until it is done.

    Raises:
        UserError: The settings do not fit the material.
    """
    manifest = student_manifest(settings, material)
    check_replaceable(folder, STUDENT_MANIFEST)
    if not manifest.matches(folder, STUDENT_MANIFEST):
        barrier()
        _train(name, settings, material, manifest, folder)
        barrier()
    with quiet_libraries():
        encoder = load_student(folder)
    about = Manifest.read(folder, STUDENT_MANIFEST).about
    documents = _space(material) if settings.documents == "space" else encoder
    return Distilled(name, encoder, documents, about["seconds"], about["curves"])


def untrained(settings: StudentSettings) -> StudentSettings:
    """The student as it starts."""
    return settings.model_copy(update={"stages": [], "control": None})


def contrastive_twin(settings: StudentSettings) -> StudentSettings:
    """The same student and stages, with list objectives replaced by InfoNCE: training without a teacher's scores."""
    stages = []
    for stage in settings.stages:
        terms = [
            term.model_copy(update={"name": "contrastive"}) if term.name in LIST_OBJECTIVES else term
            for term in stage.objectives
        ]
        stages.append(stage.model_copy(update={"objectives": terms}))
    return settings.model_copy(update={"stages": stages, "control": None})


def student_manifest(settings: StudentSettings, material: Material) -> Manifest:
    """What a student is made from; its control counts as a student of its own."""
    inputs = {
        "corpus": material.collection.documents.fingerprint,
        "queries": material.queries.fingerprint,
        "teacher": material.teacher.fingerprint(material.collection),
        "space": _space(material).document_space,
    }
    kept = settings.model_dump(mode="json", exclude={"control"})
    return Manifest("student", inputs, {**kept, "seed": material.seed})


def _space(material: Material) -> Encoder:
    if material.space is None:
        raise UserError("no space is given; name the dense model whose documents are searched.")
    return material.space


def _train(name: str, settings: StudentSettings, material: Material, manifest: Manifest, folder: Path) -> None:
    work = folder.parent / f".{folder.name}.training"
    model, done, about = _start(settings, material, manifest, work)
    for number, stage in enumerate(settings.stages):
        if number < done:
            continue
        what = f"{name}, stage {number + 1} of {len(settings.stages)}"
        say(f"{what}: {_described(stage)}")
        place = work / f"checkpoints-{number}"
        history = run_stage(model, stage, _material_for(settings, material), place, what)
        offset = about["steps"]
        about["seconds"] += history.seconds
        about["steps"] += history.steps
        for curve, entries in (("losses", history.losses), ("monitors", history.monitors)):
            about["curves"][curve] += [{**entry, "step": entry["step"] + offset} for entry in entries]
        if is_main():
            _keep(model, manifest, {**about, "stages_done": number + 1}, work / "model")
            remove_checkpoints(place)
        barrier()
    if is_main():
        # A student that encodes its own documents searches its own space, whatever that becomes on disk.
        aligned = {"query_space": _space(material).document_space} if settings.documents == "space" else {}
        saved = save_student(model, replace(manifest, about={**about, **aligned}), folder)
        if is_hybrid(saved.model):
            store_vectors(saved, material.collection.documents.texts, "document")
        shutil.rmtree(work, ignore_errors=True)


def _start(
    settings: StudentSettings, material: Material, manifest: Manifest, work: Path
) -> tuple[SentenceTransformer, int, dict[str, Any]]:
    """The model, how many stages it has behind it, and their record; from the work folder if it is of this job."""
    kept = work / "model"
    if manifest.matches(kept, STUDENT_MANIFEST):
        about = Manifest.read(kept, STUDENT_MANIFEST).about
        with quiet_libraries():
            return load_student(kept).model, about["stages_done"], about
    with main_first():
        if is_main() and _owner(work) != manifest.fingerprint:
            shutil.rmtree(work, ignore_errors=True)
            work.mkdir(parents=True)
            (work / "owner").write_text(manifest.fingerprint)
    model = build_student(settings, material)
    return model, 0, {"seconds": 0.0, "steps": 0, "curves": {"losses": [], "monitors": []}}


def _owner(work: Path) -> str | None:
    """Whose checkpoints lie in a work folder: those of other settings must not be resumed."""
    path = work / "owner"
    return path.read_text() if path.exists() else None


def build_student(settings: StudentSettings, material: Material) -> SentenceTransformer:
    """The student before training."""
    space = _space(material)
    if settings.model == "static":
        return static_student(space, material.collection.documents, initialise=settings.initialise, seed=material.seed)
    dimension = space.dimension if settings.dimension == "space" else settings.dimension
    model = dense_student(
        settings.model.partition(":")[2],
        layers=settings.layers,
        dimension=dimension,
        max_length=settings.max_length,
        seed=material.seed,
    )
    if settings.lexical:
        return hybrid_student(model, settings.lexical, material.collection.documents, seed=material.seed)
    return model


def _material_for(settings: StudentSettings, material: Material) -> Material:
    """A student that encodes its own documents searches its own space."""
    return replace(material, own_documents=settings.documents == "student")


def _keep(model: SentenceTransformer, manifest: Manifest, about: dict[str, Any], place: Path) -> None:
    with atomic_folder(place) as temporary, disk_errors():
        model.save_pretrained(str(temporary), create_model_card=False)
        replace(manifest, about=about).write(temporary, STUDENT_MANIFEST)


def _described(stage: StageSettings) -> str:
    terms = " + ".join(f"{term.weight:g} {term.name}" if term.weight != 1 else term.name for term in stage.objectives)
    towers = {"query": "query tower", "both": "both towers", "lexical": "lexical half"}[stage.towers]
    return f"{terms}, {towers}"
