"""What a model card says about the origin of a student, gathered by whoever trained it."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from retrodistill.training.settings import StageSettings

YOURS = "FOLDER/OF/"  # in examples, the place of a folder or file on the reader's machine
_PUBLIC = ("beir/", "ir_datasets:")


@dataclass(frozen=True)
class Teaching:
    """The teacher of a recipe.

    Attributes:
        members: ``(kind:name, weight)`` of each.
        fusion: How several are fused; None for one.
        fingerprint: Of all of them together.
        recorded: Number of pairs of a recorded run; None for a teacher that scores.
    """

    members: Sequence[tuple[str, float]]
    fusion: str | None = None
    fingerprint: str = ""
    recorded: int | None = None

    @property
    def text(self) -> str:
        """``bm25`` or ``0.3 bm25 + 0.7 dense:NAME``."""
        if len(self.members) == 1:
            return self.members[0][0]
        return " + ".join(f"{weight:g} {name}" for name, weight in self.members)


@dataclass(frozen=True)
class Turns:
    """Conversations that replace a collection's queries.

    Attributes:
        path: The file of turns, without folders of this machine; None if they were made by chaining queries.
        history: Number of earlier turns after an utterance, at most; None for all.
        responses: Whether answers are part of the history.
    """

    path: str | None
    history: int | None = None
    responses: bool = True


@dataclass(frozen=True)
class Facts:
    """How a student was made.

    Attributes:
        name: The system's name in results.json.
        kind: Name of its `Kind`, e.g. ``static``.
        start: What it was made from, ``kind:NAME``.
        collection: Name of the training collection.
        documents, queries: Numbers of training documents and queries.
        teaching: The recipe's teacher.
        stages: Settings of each stage.
        changes: What was changed before training, by setting: layers, dimension...
        documents_by: The model that encodes the documents which its queries search; None for itself.
        learned: What each stage recorded (see `retrodistill.training.prepared.learned_from`); may be empty.
        seconds: Wall time of training.
        seed: Of everything that is drawn at random.
        inputs: Fingerprints of the inputs.
        versions, hardware: Of the training.
        notes: What a reader should know.
        base_model: Its start on the Hugging Face hub; None for a folder, or if unknown.
        own_modules: Whether its folder has modules of this package, which sentence-transformers loads on request only.
        sparsity: Mean terms per text and products per pair, of sparse students.
        source: What `load_collection` takes for the collection (see `published`); a placeholder by default.
        turns: The conversations that are its queries; None for ordinary queries.
        rewritten: Whether the teacher got better queries than the student.
    """

    name: str
    kind: str
    start: str
    collection: str
    documents: int
    queries: int
    teaching: Teaching
    stages: Sequence[StageSettings]
    changes: dict[str, Any] = field(default_factory=dict)
    documents_by: str | None = None
    learned: Sequence[dict[str, Any]] = ()
    seconds: float = 0.0
    seed: int = 0
    inputs: dict[str, str] = field(default_factory=dict)
    versions: dict[str, str] = field(default_factory=dict)
    hardware: dict[str, Any] = field(default_factory=dict)
    notes: Sequence[str] = ()
    base_model: str | None = None
    own_modules: bool = False
    sparsity: dict[str, float] | None = None
    source: str = ""
    turns: Turns | None = None
    rewritten: bool = False

    @property
    def loaded_from(self) -> str:
        """What a reader passes to `load_collection`."""
        return self.source or f"{YOURS}{self.collection}"

    @property
    def taught_by(self) -> str:
        """The teachers in the order of the stages: the recipe's, or the stages' own."""
        teachers = [
            Teaching([(without_folders(member.model), member.weight) for member in stage.teacher]).text
            if stage.teacher
            else self.teaching.text
            for stage in self.stages
        ]
        return ", then ".join(dict.fromkeys(teachers)) or self.teaching.text


def without_folders(name: str) -> str:
    """A model's name; for a folder on this machine only its last part, since cards are published."""
    kind, _, place = name.partition(":")
    path = Path(place)
    return f"{kind}:{path.name}" if place and (path.is_absolute() or path.exists()) else name


def published(source: str | Path) -> str:
    """A collection's source as a card may show it: public names unchanged, of a folder only its own name."""
    text = str(source)
    if isinstance(source, str):
        if source == "demo" or source.startswith(_PUBLIC):
            return source
        if source.startswith("hf:"):
            place = Path(source.removeprefix("hf:")).expanduser()
            return f"hf:{YOURS}{place.resolve().name}" if place.is_absolute() or place.exists() else source
    return f"{YOURS}{Path(text).expanduser().resolve().name}"
