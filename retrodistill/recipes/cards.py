"""Model cards of students: facts from the manifest and the training data, measurements from the results."""

from __future__ import annotations

import re
from collections.abc import Iterable
from pathlib import Path
from typing import Any, NamedTuple

from retrodistill.core.files import read_json
from retrodistill.core.manifest import Manifest
from retrodistill.encoders.contract import STUDENT_MANIFEST
from retrodistill.encoders.loading import quiet_libraries
from retrodistill.evaluation.results import Results
from retrodistill.recipes.job import MADE, Job
from retrodistill.recipes.settings import ConversationSettings
from retrodistill.recipes.student_settings import StudentSettings
from retrodistill.recipes.students import Distilled
from retrodistill.report.card import YOURS, Facts, Teaching, Turns, published, without_folders, write_card
from retrodistill.students.registry import AnyStudent, kind_of, load_student
from retrodistill.training.training_data import TrainingData

_SHOWN_ELSEWHERE = ("model", "documents", "stages", "control")  # settings that have their own place in the card


class Source(NamedTuple):
    """Where the training texts come from, as the user wrote it: a collection's name or folder, and conversations."""

    collection: str | Path
    conversations: ConversationSettings | None = None


def write_cards(job: Job, students: Iterable[Distilled], results: Results) -> None:
    """Write a card into the folder of every measured student; those that are not in `students` are loaded."""
    encoders = {student.name: student.encoder for student in students}
    source = Source(job.recipe.collection, job.recipe.conversations)
    for system in results.with_role("student"):
        folder = job.out / "students" / system.name
        # Where training did not help, the document encoder's own queries were kept and measured instead.
        if not (folder / STUDENT_MANIFEST).exists() or system.queries_by == job.space.name:
            continue
        # The query map of a learned index has no stages and gets no card.
        if "stages" in Manifest.read(folder, STUDENT_MANIFEST).settings:
            encoder = encoders.get(system.name)
            write_student_card(folder, system.name, job.training_data, results, encoder, source=source)


def write_student_card(
    folder: Path,
    name: str,
    data: TrainingData,
    results: Results | None = None,
    encoder: AnyStudent | None = None,
    *,
    source: Source | None = None,
) -> None:
    """Write the card of one student.

    Args:
        folder: The student's folder, with its manifest.
        name: The system's name.
        data: What the student was trained on.
        results: Its measurements; None if it was not measured.
        encoder: The student, if it is loaded.
        source: Where its collection comes from; None for a collection that was made in memory.

    Raises:
        UserError: The folder does not hold a student, or is not writable.
    """
    with quiet_libraries():
        student = encoder or load_student(folder)
    write_card(student.model, _facts(folder, name, data, student.model, source or Source("")), folder, results)


def _facts(folder: Path, name: str, data: TrainingData, model: Any, source: Source) -> Facts:
    manifest, written = Manifest.read(folder, STUDENT_MANIFEST), read_json(folder / STUDENT_MANIFEST)
    settings = StudentSettings.model_validate({key: value for key, value in manifest.settings.items() if key != "seed"})
    about, teacher = manifest.about, data.teacher
    start, documents_by = settings.model, None
    if data.space is not None:
        start = data.space.name if start == "static" else start
        documents_by = without_folders(data.space.name) if settings.documents == "frozen" else None
    return Facts(
        name=name,
        kind=kind_of(model).name,
        start=without_folders(start),
        changes=_changes(settings),
        documents_by=documents_by,
        collection=data.collection.name,
        documents=len(data.collection.documents),
        queries=len(data.queries),
        teaching=Teaching(
            [
                (without_folders(member.name), weight)
                for member, weight in zip(teacher.members, teacher.weights, strict=True)
            ],
            teacher.method,
            manifest.inputs.get("teacher", ""),
            None if teacher.run is None else len(teacher.run),
        ),
        stages=settings.stages,
        learned=[
            {**stage, "sources": [without_folders(name) for name in stage.get("sources", [])]}
            for stage in about.get("stages", [])
        ],
        seconds=about.get("seconds", 0.0),
        seed=int(manifest.settings.get("seed", 0)),
        inputs=manifest.inputs,
        versions=written.get("versions", {}),
        hardware=written.get("hardware", {}),
        notes=about.get("notes", []),
        base_model=hub_name(start),
        own_modules=_has_own_modules(folder),
        sparsity=about.get("sparsity"),
        source=published(source.collection) if source.collection else "",
        turns=_turns(source.conversations),
        rewritten=data.rewrites is not None,
    )


def _turns(settings: ConversationSettings | None) -> Turns | None:
    if settings is None:
        return None
    path = None if settings.path == MADE else f"{YOURS}{Path(settings.path).name}"
    return Turns(path, settings.history, settings.responses)


def _changes(settings: StudentSettings) -> dict[str, Any]:
    """The settings that differ from their defaults, by their names in words."""
    changes = {}
    for name, field in StudentSettings.model_fields.items():
        value = getattr(settings, name)
        if name not in _SHOWN_ELSEWHERE and value != field.get_default(call_default_factory=True):
            changes[name.replace("_", " ")] = value
    return changes


def hub_name(name: str) -> str | None:
    """The model's name on the Hugging Face hub; None for a folder or file."""
    kind, _, place = name.partition(":")
    if kind in ("vectors", "run", "bm25") or Path(place).exists() or not re.fullmatch(r"[\w.-]+(/[\w.-]+)?", place):
        return None
    return place if "/" in place else f"sentence-transformers/{place}"


def _has_own_modules(folder: Path) -> bool:
    path = folder / "modules.json"
    modules = read_json(path) if path.exists() else []
    return any(not str(module.get("type")).startswith("sentence_transformers.") for module in modules)
