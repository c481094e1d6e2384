"""What can be evaluated: model names, index folders, runs, re-rankers, objects; and what decides their results."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from retrodistill.core.errors import UserError
from retrodistill.data.collection import Collection
from retrodistill.rankers.loading import load_ranker
from retrodistill.rankers.protocol import Ranker

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
    retriever: Ranker
    folder: Path | None = None
    source: str | None = None

    def fingerprint(self, collection: Collection) -> str | None:
        """Digest of all that decides its results; None where that cannot be said: it is measured every time."""
        return self.retriever.fingerprint(collection) or None

    @property
    def documents_by(self) -> str:
        """What encodes the documents; empty where it is unknown."""
        return self.retriever.documents_by

    @property
    def queries_by(self) -> str:
        """What encodes the queries; empty where it is unknown."""
        return self.retriever.queries_by


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
        source: An index' folder, ``rerank:TEACHER@SOURCE``, or what `load_ranker` takes.

    Raises:
        UserError: It is none of these, or cannot search.
    """
    folder = Path(source) if isinstance(source, (str, Path)) and Path(source).is_dir() else None
    text = str(source) if isinstance(source, (str, Path)) else None
    return Candidate(name, load_ranker(source, needs="search"), folder, text)


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
