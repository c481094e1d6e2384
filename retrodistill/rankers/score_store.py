"""The score store: pair scores of one teacher, kept permanently and computed once."""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence
from pathlib import Path

import numpy as np
import pyarrow as pa

from retrodistill.core.errors import UserError
from retrodistill.core.files import cache_folder
from retrodistill.core.manifest import Manifest
from retrodistill.core.runtime import bar
from retrodistill.core.stores import KeyIndex, PartStore, slug, text_keys

PairScorer = Callable[[Sequence[tuple[str, str]]], np.ndarray]
_PART = 256  # pairs per part: the most work that a kill can lose
_PROBE = 32


class ScoreStore:
    """Raw float32 scores of one teacher, keyed by the texts of query and document, in Parquet parts.

    Args:
        name: The teacher's name, for the folder.
        owner: The teacher's manifest (weights, prompt, maximum length, dtype, activation).
        root: Folder of stores; the shared cache by default. Inside the cache each version of a teacher has its own
            folder; in a folder of yours a store of another version is refused.

    Raises:
        UserError: The folder belongs to another teacher or cannot be written.
    """

    def __init__(self, name: str, owner: Manifest, root: Path | None = None) -> None:
        folder = root / slug(name) if root else cache_folder() / "scores" / f"{slug(name)}-{owner.fingerprint}"
        self.name = name
        self._store = PartStore(folder, owner, ".parquet")
        self._load()

    def missing(self, queries: Sequence[str], documents: Sequence[str]) -> np.ndarray:
        """Places of the distinct pairs that have no score yet, in order; pairs are given as parallel texts."""
        keys = _pair_keys(queries, documents)
        absent = self._index.find(keys) < 0
        _, first = np.unique(keys, return_index=True)
        return np.sort(first[absent[first]])

    def fill(self, queries: Sequence[str], documents: Sequence[str], score: PairScorer) -> None:
        """Score what is missing, longest pairs first, a part at a time; safe to kill and to run twice at once.

        Raises:
            UserError: The teacher gives a score that is not finite, or not one per pair.
        """
        if not len(self.missing(queries, documents)):
            return
        with self._store.computing(_pair_keys(queries, documents)):
            self._load()  # another process may have added parts meanwhile
            todo = self.missing(queries, documents)
            todo = todo[np.argsort([-len(queries[place]) - len(documents[place]) for place in todo], kind="stable")]
            with bar(len(todo), f"scoring ({self.name})", "pairs") as progress:
                for start in range(0, len(todo), _PART):
                    pairs = [(queries[place], documents[place]) for place in todo[start : start + _PART]]
                    self._store.append(_part(pairs, self._checked(pairs, score(pairs))))
                    progress.update(len(pairs))
            self._store.compact()
        self._load()

    def gather(self, queries: Sequence[str], documents: Sequence[str]) -> np.ndarray:
        """(pairs,) float32 raw scores.

        Raises:
            UserError: A pair has no score.
        """
        rows = self._index.find(_pair_keys(queries, documents))
        if (rows < 0).any():
            raise UserError(f"{int((rows < 0).sum())} pairs are not in the store of {self.name}; score them first.")
        return self._scores[rows]

    def seconds(self, queries: Sequence[str], documents: Sequence[str], score: PairScorer) -> tuple[int, float]:
        """How many pairs are still to score, and the seconds this takes at the rate measured on up to 32 of them."""
        todo = self.missing(queries, documents)
        if not len(todo):
            return 0, 0.0
        places = todo[np.linspace(0, len(todo) - 1, min(_PROBE, len(todo)), dtype=int)]
        probe = [(queries[place], documents[place]) for place in places]
        start = time.perf_counter()
        score(probe)
        return len(todo), len(todo) * (time.perf_counter() - start) / len(probe)

    def _checked(self, pairs: Sequence[tuple[str, str]], scores: np.ndarray) -> np.ndarray:
        with np.errstate(over="ignore"):  # values beyond float32 become infinite and are rejected below
            values = np.asarray(scores, dtype=np.float32)
        if values.shape != (len(pairs),):
            raise UserError(
                f"teacher {self.name} gave scores of shape {values.shape} for {len(pairs)} pairs; one each."
            )
        if not np.isfinite(values).all():
            query, document = pairs[int(np.flatnonzero(~np.isfinite(values))[0])]
            raise UserError(
                f"teacher {self.name} gave a score that is not finite for {query[:40]!r} and "
                f"{document[:40]!r}; nothing of this batch was kept."
            )
        return values

    def _load(self) -> None:
        tables = self._store.parts()
        columns = {
            column: np.concatenate([table[column].to_numpy() for table in tables] or [np.zeros(0, dtype=kind)])
            for column, kind in (("query", np.uint64), ("document", np.uint64), ("score", np.float32))
        }
        self._scores = columns["score"]
        self._index = KeyIndex(_joined(columns["query"], columns["document"]))


def _pair_keys(queries: Sequence[str], documents: Sequence[str]) -> np.ndarray:
    return _joined(_keys_once(queries), _keys_once(documents))


def _keys_once(texts: Sequence[str]) -> np.ndarray:
    """Keys of texts many of which stand often: each distinct one is digested once."""
    distinct = list(dict.fromkeys(texts))
    place = {text: row for row, text in enumerate(distinct)}
    rows = np.fromiter((place[text] for text in texts), dtype=np.int64, count=len(texts))
    return text_keys(distinct)[rows] if distinct else np.zeros(0, dtype=np.uint64)


def _joined(queries: np.ndarray, documents: np.ndarray) -> np.ndarray:
    """(pairs,) records of two uint64 keys: one sortable value per pair."""
    joined = np.empty(len(queries), dtype=[("query", "<u8"), ("document", "<u8")])
    joined["query"], joined["document"] = queries, documents
    return joined


def _part(pairs: Sequence[tuple[str, str]], scores: np.ndarray) -> pa.Table:
    queries, documents = zip(*pairs, strict=True)
    return pa.table(
        {"query": pa.array(text_keys(queries)), "document": pa.array(text_keys(documents)), "score": pa.array(scores)}
    )
