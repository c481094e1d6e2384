"""Model cards of students: facts from the manifest and the training data, measurements from the results."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from pathlib import Path

from retrodistill.core.json_files import read_json
from retrodistill.core.manifest import Manifest
from retrodistill.encoders.contract import STUDENT_MANIFEST
from retrodistill.encoders.names import hub_name
from retrodistill.evaluation.results import Results
from retrodistill.recipes.job import MADE, Job
from retrodistill.recipes.settings import ConversationSettings
from retrodistill.recipes.student_settings import StudentSettings
from retrodistill.recipes.students import Distilled
from retrodistill.report.card import YOURS, Facts, Teaching, Turns, published, without_folders, write_card
from retrodistill.students.registry import AnyStudent, kind_of, load_student
from retrodistill.training.training_data import TrainingData

_SHOWN_ELSEWHERE = {"model", "documents", "stages", "control"}  # settings that have their own place in the card


def write_cards(job: Job, students: Iterable[Distilled], results: Results) -> None:
    """Write a card into the folder of every measured student; those that are not in `students` are loaded."""
    encoders = {student.name: student.encoder for student in students}
    for system in results.with_role("student"):
        folder = job.out / "students" / system.name
        # Where training did not help, the document encoder's own queries were kept and measured instead.
        if not (folder / STUDENT_MANIFEST).exists() or system.queries_by == job.space.name:
            continue
        # The query map of a learned index has no stages and gets no card.
        if "stages" in Manifest.read(folder, STUDENT_MANIFEST).settings:
            encoder = encoders.get(system.name)
            recipe, data = job.recipe, job.training_data
            write_student_card(folder, system.name, data, results, encoder, recipe.collection, recipe.conversations)


def write_student_card(
    folder: Path,
    name: str,
    data: TrainingData,
    results: Results | None = None,
    encoder: AnyStudent | None = None,
    collection: str | Path | None = None,
    conversations: ConversationSettings | None = None,
) -> None:
    """Write the card of one student, which is loaded unless it is given as `encoder`.

    Without `results`, it was not measured. `collection` and `conversations` say where the training texts come from, as
    the user wrote it; None for a collection that was made in memory. A folder that does not hold a student, or is not
    writable, is a UserError.
    """
    model = (encoder or load_student(folder)).model
    manifest, written = Manifest.read(folder, STUDENT_MANIFEST), read_json(folder / STUDENT_MANIFEST)
    settings = StudentSettings.model_validate({key: value for key, value in manifest.settings.items() if key != "seed"})
    about, teacher = manifest.about, data.teacher
    members = zip(teacher.members, teacher.weights, strict=True)
    named = [(without_folders(member.name), weight) for member, weight in members]
    recorded = None if teacher.run is None else len(teacher.run)
    start = data.space.name if data.space is not None and settings.model == "static" else settings.model
    documents_by = data.space.name if data.space is not None and settings.documents == "frozen" else None
    modules = read_json(folder / "modules.json") if (folder / "modules.json").exists() else []
    learned = about.get("stages", [])
    changes = settings.model_dump(exclude=_SHOWN_ELSEWHERE, exclude_defaults=True)
    turns, parents = None, data.collection.parents
    if conversations is not None:
        path = None if conversations.path == MADE else f"{YOURS}{Path(conversations.path).name}"
        turns = Turns(path, conversations.history, conversations.responses)
    rewritten: Sequence[str] = [] if data.rewrites is None else ["rewrites"]
    if conversations is not None and conversations.teacher != ["raw"]:
        rewritten = conversations.teacher
    facts = Facts(
        name=name,
        kind=kind_of(model).name,
        start=without_folders(start),
        changes={key.replace("_", " "): value for key, value in changes.items()},
        documents_by=without_folders(documents_by) if documents_by else None,
        collection=data.collection.name,
        documents=len(data.collection.whole.documents),
        queries=len(data.queries),
        teaching=Teaching(named, teacher.method, manifest.inputs.get("teacher", ""), recorded),
        stages=settings.stages,
        learned=[{**stage, "sources": list(map(without_folders, stage.get("sources", [])))} for stage in learned],
        seconds=about.get("seconds", 0.0),
        seed=int(manifest.settings.get("seed", 0)),
        inputs=manifest.inputs,
        versions=written.get("versions", {}),
        hardware=written.get("hardware", {}),
        notes=about.get("notes", []),
        base_model=hub_name(start),
        own_modules=any(not str(module.get("type")).startswith("sentence_transformers.") for module in modules)
        or "code" in about,
        sparsity=about.get("sparsity"),
        passages=None if parents is None else f"{parents.settings.words},{parents.settings.overlap}",
        source=published(collection) if collection else "",
        turns=turns,
        rewritten=rewritten,
        bm25=data.bm25,
    )
    write_card(model, facts, folder, results)
