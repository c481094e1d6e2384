"""What a model card says of a student's origin, gathered by whoever trained it."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from retrodistill.training.settings import StageSettings

YOURS = "FOLDER/OF/"  # stands in examples for wherever a reader has the folder or file that is named behind it
_PUBLIC = ("beir/", "ir_datasets:")


@dataclass(frozen=True)
class Teaching:
    """Who taught.

    Attributes:
        members: ``(kind:name, weight)`` of each.
        fusion: How several are fused; None for one.
        fingerprint: Of all of them together.
        recorded: Pairs of a recorded run; None for a teacher that scores.
    """

    members: Sequence[tuple[str, float]]
    fusion: str | None = None
    fingerprint: str = ""
    recorded: int | None = None

    @property
    def text(self) -> str:
        """In a few words: ``bm25`` or ``0.3 bm25 + 0.7 dense:NAME``."""
        if len(self.members) == 1:
            return self.members[0][0]
        return " + ".join(f"{weight:g} {name}" for name, weight in self.members)


@dataclass(frozen=True)
class Turns:
    """Conversations that were asked in the place of a collection's queries.

    Attributes:
        path: The file of turns, without folders of this machine; None where they were chained out of the queries.
        history: At most so many earlier turns stand behind an utterance; None for all.
        responses: Whether answers are part of the history.
    """

    path: str | None
    history: int | None = None
    responses: bool = True


@dataclass(frozen=True)
class Facts:
    """How a student came to be.

    Attributes:
        name: The system's name in results.json.
        kind: static, dense, hybrid, sparse, multi-vector, cross-encoder, prett or tk.
        start: What it was made from, ``kind:NAME``.
        changes: What was changed before training, by setting: layers, dimension...
        documents_by: The model that encodes the documents which its queries search; None for itself.
        collection: Name of what it was trained on.
        documents, queries: How many of them the collection has for training.
        teaching: Who taught it.
        stages: Its training.
        learned: Of each stage, what was recorded: see `retrodistill.training.prepared.learned_from`; may be empty.
        seconds: Wall time of training.
        seed: Of everything that draws.
        inputs: Fingerprints of what went in.
        versions, hardware: Of the training.
        notes: What a reader should know.
        base_model: Its start on the Hugging Face hub; None where that is a folder or unknown.
        own_modules: It has modules of this package in its folder, which sentence-transformers loads only on request.
        sparsity: Mean terms of a text and products of a pair, of sparse students.
        source: What `load_collection` takes for the collection, see `published`; a placeholder of its name by default.
        turns: Conversations that are its queries; None for queries that stand for themselves.
        rewritten: Teachers were asked better queries than the student.
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
        """What a reader gives to `load_collection`."""
        return self.source or f"{YOURS}{self.collection}"

    @property
    def taught_by(self) -> str:
        """Who taught, in the order of the stages: the recipe's teacher, or the stages' own."""
        told = [
            Teaching([(without_folders(one.model), one.weight) for one in stage.teacher]).text
            if stage.teacher
            else self.teaching.text
            for stage in self.stages
        ]
        return ", then ".join(dict.fromkeys(told)) or self.teaching.text


def without_folders(name: str) -> str:
    """A model's name; of a folder on this machine the last part, since a card is published."""
    kind, _, place = name.partition(":")
    path = Path(place)
    return f"{kind}:{path.name}" if place and (path.is_absolute() or path.exists()) else name


def published(source: str | Path) -> str:
    """A collection's source as a card may show it: public names as they are, of a folder its own name alone."""
    text = str(source)
    if isinstance(source, str):
        if source == "demo" or source.startswith(_PUBLIC):
            return source
        if source.startswith("hf:"):
            place = Path(source.removeprefix("hf:")).expanduser()
            return f"hf:{YOURS}{place.resolve().name}" if place.is_absolute() or place.exists() else source
    return f"{YOURS}{Path(text).expanduser().resolve().name}"
