"""What every teacher is: something that scores pairs of a collection, and says who it is."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Protocol, runtime_checkable

import numpy as np

from retrodistill.data.collection import Collection
from retrodistill.data.texts import Texts
from retrodistill.runs.run import Run


@dataclass(frozen=True)
class Work:
    """What is still to be done before a teacher has scored its candidates.

    Attributes:
        items: How many are left.
        unit: What they are: ``pairs`` or ``texts``.
        seconds: How long they will take at the rate measured just now.
    """

    items: int
    unit: str
    seconds: float


@runtime_checkable
class Teacher(Protocol):
    """Scores (query, document) pairs; raw, higher is better."""

    name: str

    def fingerprint(self, collection: Collection) -> str:
        """Digest of all that decides a score, beyond the two texts."""
        ...

    def score(self, collection: Collection, queries: Texts, candidates: Run) -> Run:
        """The candidates with this teacher's raw scores; every pair has one.

        Raises:
            UserError: A pair cannot be scored.
        """
        ...

    def remaining(self, collection: Collection, queries: Texts, candidates: Run) -> Work:
        """What is left to do, and how long it will take."""
        ...


def pair_positions(collection: Collection, queries: Texts, candidates: Run) -> tuple[np.ndarray, np.ndarray]:
    """(rows,) positions of each pair's query in `queries` and document in the corpus.

    Raises:
        UserError: The candidates name unknown ids.
    """
    candidates.require(queries.ids, collection.documents.ids)
    return (
        queries.positions(candidates.query_ids)[candidates.query_codes],
        collection.documents.positions(candidates.document_ids),
    )


def pair_texts(collection: Collection, queries: Texts, candidates: Run) -> tuple[list[str], list[str]]:
    """The texts of each pair, two parallel lists of (rows,); only the texts that are named become Python strings."""
    sides = zip((queries, collection.documents), pair_positions(collection, queries, candidates), strict=True)
    (query_places, query_texts), (document_places, document_texts) = (distinct(rows, texts) for texts, rows in sides)
    return [query_texts[place] for place in query_places], [document_texts[place] for place in document_places]


def distinct(positions: np.ndarray, texts: Texts) -> tuple[np.ndarray, list[str]]:
    """For each of the (n,) positions its place among the distinct ones, and the texts of the distinct ones."""
    chosen, places = np.unique(positions, return_inverse=True)
    return places, texts.select([texts.ids[position] for position in chosen]).texts
