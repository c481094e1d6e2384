"""Model cards of a job's students: what is known of each, gathered from its manifest and from the results."""

from __future__ import annotations

import re
from collections.abc import Iterable
from pathlib import Path
from typing import Any, NamedTuple

from retrodistill.core.files import read_json
from retrodistill.core.manifest import Manifest
from retrodistill.encoders.contract import STUDENT_MANIFEST
from retrodistill.encoders.loading import quiet_libraries
from retrodistill.evaluation.results import Results, System
from retrodistill.rankers.ensemble import Ensemble
from retrodistill.rankers.protocol import Ranker
from retrodistill.recipes.conversation_settings import ConversationSettings
from retrodistill.recipes.job import Job
from retrodistill.recipes.questions import MADE
from retrodistill.recipes.settings import StudentSettings
from retrodistill.recipes.students import Distilled
from retrodistill.report.card import write_card
from retrodistill.report.facts import YOURS, Facts, Teaching, Turns, published, without_folders
from retrodistill.students.hybrid import is_hybrid
from retrodistill.students.kinds import AnyStudent
from retrodistill.students.saving import load_student
from retrodistill.training.training_data import TrainingData

_TOLD = ("model", "documents", "stages", "control")  # in their own places on the card


def write_cards(job: Job, students: Iterable[Distilled], results: Results) -> None:
    """Write a card into the folder of every student of a job that was measured.

    Args:
        job: The job.
        students: Those that are loaded; others are loaded from their folders.
        results: Of the job.

    Raises:
        UserError: A folder is not writable.
    """
    loaded = {made.name: made.encoder for made in students}
    for system in results.with_role("student"):
        folder = job.out / "students" / system.name
        if _is_student(folder) and not _is_spaces(system, job):
            encoder, asked = loaded.get(system.name), job.recipe.conversations
            source = Source(job.recipe.collection, asked)
            write_student_card(folder, system.name, job.training_data, results, encoder, source=source)


def _is_student(folder: Path) -> bool:
    """Whether it holds a student that stages trained, and no query map of a learned index, which has no such card."""
    return (folder / STUDENT_MANIFEST).exists() and "stages" in Manifest.read(folder, STUDENT_MANIFEST).settings


def _is_spaces(system: System, job: Job) -> bool:
    """Whether the space's own queries were kept, since the trained ones were no better: nothing of it was measured."""
    return system.queries_by == job.space.name


class Source(NamedTuple):
    """Where the texts of a training come from, as the user wrote it: a collection's name or folder, conversations."""

    collection: str | Path
    conversations: ConversationSettings | None = None


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
        folder: Where it lies, with its manifest.
        name: The system's name.
        data: What it was made from.
        results: Where it was measured; None where it was not.
        encoder: The student, if it is loaded.
        source: Where its collection comes from; None where nobody knows, as of one that was made in memory.

    Raises:
        UserError: The folder is no student's, or not writable.
    """
    with quiet_libraries():
        student = encoder or load_student(folder)
    write_card(student.model, facts_of(folder, name, data, student, source), folder, results)


def facts_of(folder: Path, name: str, data: TrainingData, student: AnyStudent, source: Source | None = None) -> Facts:
    """What is known of a student: from its manifest, and from what it was made from."""
    manifest, written = Manifest.read(folder, STUDENT_MANIFEST), read_json(folder / STUDENT_MANIFEST)
    settings = StudentSettings.model_validate({key: value for key, value in manifest.settings.items() if key != "seed"})
    about, teacher, collection = manifest.about, data.teacher, data.collection
    learned = about.get("stages", [])
    start = settings.model
    if start == "static" and data.space is not None:
        start = data.space.name
    aligned = settings.documents == "frozen" and data.space is not None
    return Facts(
        name=name,
        kind="hybrid" if settings.kind == "dense" and is_hybrid(student.model) else settings.kind,  # type: ignore[arg-type]
        start=without_folders(start),
        changes=_changes(settings),
        documents_by=without_folders(data.space.name) if aligned and data.space is not None else None,
        collection=collection.name,
        documents=len(collection.documents),
        queries=len(data.queries),
        teaching=_teaching(teacher, manifest.inputs.get("teacher", "")),
        stages=settings.stages,
        learned=[{**one, "sources": [without_folders(name) for name in one.get("sources", [])]} for one in learned],
        seconds=about.get("seconds", 0.0),
        seed=int(manifest.settings.get("seed", 0)),
        inputs=manifest.inputs,
        versions=written.get("versions", {}),
        hardware=written.get("hardware", {}),
        notes=about.get("notes", []),
        base_model=hub_name(start),
        own_modules=_has_own_modules(folder),
        sparsity=about.get("sparsity"),
        source="" if source is None else published(source.collection),
        turns=None if source is None or source.conversations is None else _turns(source.conversations),
        rewritten=data.rewrites is not None,
    )


def _turns(asked: ConversationSettings) -> Turns:
    path = None if asked.path == MADE else f"{YOURS}{Path(asked.path).name}"
    return Turns(path, asked.history, asked.responses)


def _teaching(teacher: Ranker, fingerprint: str) -> Teaching:
    if isinstance(teacher, Ensemble):
        names = [without_folders(member.name) for member in teacher.members]
        return Teaching(list(zip(names, teacher.weights, strict=True)), teacher.method, fingerprint)
    recorded = len(teacher.run) if teacher.run is not None else None
    return Teaching([(without_folders(teacher.name), 1.0)], None, fingerprint, recorded)


def _changes(settings: StudentSettings) -> dict[str, Any]:
    """What the recipe says otherwise than its defaults."""
    fields = StudentSettings.model_fields
    usual = {name: fields[name].get_default(call_default_factory=True) for name in fields if name not in _TOLD}
    said = {name: getattr(settings, name) for name, default in usual.items() if getattr(settings, name) != default}
    return {name.replace("_", " "): value for name, value in said.items()}


def hub_name(name: str) -> str | None:
    """The model's name on the Hugging Face hub; None for a folder or file."""
    kind, _, place = name.partition(":")
    if kind in ("vectors", "run", "bm25") or Path(place).exists() or not re.fullmatch(r"[\w.-]+(/[\w.-]+)?", place):
        return None
    return place if "/" in place else f"sentence-transformers/{place}"


def _has_own_modules(folder: Path) -> bool:
    path = folder / "modules.json"
    listed = read_json(path) if path.exists() else []
    return any(not str(one.get("type")).startswith("sentence_transformers.") for one in listed)
