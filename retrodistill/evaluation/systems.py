"""What can be evaluated: model names, index folders, runs, re-rankers, objects; and what decides their results."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from retrodistill.core.errors import UserError
from retrodistill.core.files import digest
from retrodistill.core.manifest import Manifest
from retrodistill.data.collection import Collection
from retrodistill.encoders.contract import TextModel
from retrodistill.evaluation.reranking import Reranker, load_reranker
from retrodistill.evaluation.student_reranking import StudentReranker
from retrodistill.indexes.building import load_index
from retrodistill.rankers.bm25 import BM25
from retrodistill.rankers.dense import DenseTeacher
from retrodistill.rankers.lexical import LexicalTeacher
from retrodistill.rankers.protocol import Teacher
from retrodistill.rankers.recorded import RecordedTeacher
from retrodistill.rankers.retrievers import (
    DenseRetriever,
    LexicalRetriever,
    RecordedRetriever,
    Retriever,
    load_retriever,
)

PLACE = "{collection}"  # in a run's or index' name: stands for the collection that is measured on


@dataclass(frozen=True)
class Candidate:
    """A system that is to be measured.

    Attributes:
        name: The user's word for it.
        retriever: What answers.
        folder: Of the index, where it is one on disk.
        source: What it was loaded from, as text; None for an object.
    """

    name: str
    retriever: Retriever
    folder: Path | None = None
    source: str | None = None

    def fingerprint(self, collection: Collection) -> str | None:
        """Digest of all that decides its results; None where that cannot be said: it is measured every time."""
        if self.folder is not None:
            return digest(Manifest.read(self.folder).fingerprint, _models(self.retriever))
        return _fingerprint(self.retriever, collection)

    @property
    def documents_by(self) -> str:
        """What encodes the documents; empty where nothing is known."""
        if isinstance(self.retriever, LexicalRetriever):
            return "bm25"
        if isinstance(self.retriever, StudentReranker):
            return self.retriever.candidates_by
        space = getattr(self.retriever, "space", None)
        return space.documents_by if space is not None else _name_of(self.retriever, "documents")

    @property
    def queries_by(self) -> str:
        """What encodes the queries; empty where nothing is known."""
        if isinstance(self.retriever, StudentReranker):
            return self.retriever.student.name
        return "bm25" if isinstance(self.retriever, LexicalRetriever) else _name_of(self.retriever, "queries")


def named_systems(systems: Mapping[str, Any] | Sequence[Any] | Any) -> dict[str, Any]:
    """Systems by name, from a mapping, a list of names or objects, or one alone.

    Raises:
        UserError: There is none, or a name stands twice.
    """
    if isinstance(systems, Mapping):
        named = dict(systems)
    else:
        listed = list(systems) if isinstance(systems, (list, tuple)) else [systems]
        names = [str(getattr(system, "name", system)) for system in listed]
        twice = next((name for name in names if names.count(name) > 1), None)
        if twice is not None:
            raise UserError(f"system {twice!r} is given twice; give each once, or a name to each.")
        named = dict(zip(names, listed, strict=True))
    if not named:
        raise UserError("no system to evaluate; give at least one.")
    return named


def load_candidate(name: str, source: Any) -> Candidate:
    """Load a system.

    Args:
        name: What to call it.
        source: An index' folder, ``rerank:TEACHER@SOURCE``, or what `load_retriever` takes.

    Raises:
        UserError: It is none of these, or cannot search.
    """
    if isinstance(source, (str, Path)):
        text = str(source)
        if text.startswith(("rerank:", "rerank@")):
            return Candidate(name, load_reranker(text), source=text)
        if Path(source).is_dir():
            return Candidate(name, load_index(source), Path(source), text)
        return Candidate(name, load_retriever(text), source=text)
    return Candidate(name, load_retriever(source))


def candidates_for(systems: Mapping[str, Any], collection: str, loaded: dict[str, Candidate]) -> list[Candidate]:
    """The systems for one collection; those without ``{collection}`` in their name are loaded once, into `loaded`."""
    found = []
    for name, source in systems.items():
        if isinstance(source, str) and PLACE in source:
            found.append(load_candidate(name, source.replace(PLACE, collection)))
        else:
            if name not in loaded:
                loaded[name] = load_candidate(name, source)
            found.append(loaded[name])
    return found


def searcher(teacher: Teacher) -> Retriever | None:
    """A teacher as a system that searches the corpus; None for one that scores pairs only."""
    if isinstance(teacher, Retriever):
        return teacher
    if isinstance(teacher, LexicalTeacher):
        return LexicalRetriever()
    if isinstance(teacher, DenseTeacher):
        return DenseRetriever(teacher.encoder)
    return RecordedRetriever(teacher.run) if isinstance(teacher, RecordedTeacher) else None


def _fingerprint(retriever: Retriever, collection: Collection) -> str | None:
    if isinstance(retriever, LexicalRetriever):
        return BM25(collection.documents).fingerprint
    if isinstance(retriever, RecordedRetriever):
        return retriever.run.fingerprint
    if isinstance(retriever, (Reranker, StudentReranker)):
        source, student = _fingerprint(retriever.source, collection), getattr(retriever, "student", None)
        judge = student.fingerprint("query") if student else retriever.teacher.fingerprint(collection)  # type: ignore[union-attr]
        return source and digest("rerank", judge, source, retriever.depth)
    if isinstance(retriever, Teacher):
        return digest("retrieve", retriever.fingerprint(collection))
    if hasattr(retriever, "ids"):  # an index in memory: what it holds, nobody has digested
        return None
    models = _models(retriever)
    return digest(type(retriever).__name__, models) if models else None


def _models(retriever: Retriever) -> dict[str, list[str]]:
    """Fingerprints of the models that a retriever holds."""
    return {
        name: [model.fingerprint("document"), model.fingerprint("query")]
        for name, model in sorted(vars(retriever).items())
        if isinstance(model, TextModel)
    }


def _name_of(retriever: Retriever, side: str) -> str:
    model = getattr(retriever, side, None)
    return model.name if isinstance(model, TextModel) else ""
