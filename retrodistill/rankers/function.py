"""A Python function as a ranker."""

from __future__ import annotations

import importlib
import sys
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from retrodistill.core.errors import UserError
from retrodistill.core.manifest import Manifest
from retrodistill.data.collection import Collection
from retrodistill.data.texts import Texts
from retrodistill.encoders.names import ModelName
from retrodistill.rankers.cross_encoder import ScoreStore
from retrodistill.rankers.protocol import Ranker, Work, pair_texts
from retrodistill.runs.run import Run

Scorer = Callable[[Sequence[tuple[str, str]]], Any]


class FunctionRanker(Ranker):
    """Scores of a function of (query, document) pairs, kept in a store by the texts of the pair.

    The function takes a list of pairs of texts and returns one number per pair, higher is better; NaN means that it
    has none, and the pair is left out. `version` says when its scores change: the store of another version is not
    used. Recipes and the command line name a ranker in a module as ``function:MODULE:NAME``.
    """

    kind = "function"
    can_score_pairs = True

    def __init__(self, function: Scorer, *, name: str, version: str, root: Path | None = None) -> None:
        if not callable(function) or not name or not version:
            raise UserError("a function ranker needs a function, a name and a version, e.g. version='1'.")
        self.function, self.name, self.version, self.root = function, name, str(version), root

    @classmethod
    def of_name(cls, name: ModelName, store: Path | None) -> FunctionRanker:
        """The ranker that a module on Python's path defines."""
        module, _, attribute = name.name.partition(":")
        if module.partition(".")[0] in sys.stdlib_module_names:  # which a recipe of others could have imported
            raise UserError(f"{name} is in Python's own library, which has no teachers; write function:MODULE:NAME.")
        try:
            found = getattr(importlib.import_module(module), attribute)
        except Exception as error:  # whatever the module does when it is imported
            raise UserError(
                f"cannot load {name} ({type(error).__name__}: {error}); write function:MODULE:NAME, with MODULE on "
                "PYTHONPATH."
            ) from error
        if not isinstance(found, cls):
            raise UserError(
                f"{name} is {type(found).__name__}; decorate the function with @teacher_function(version=...)."
            )
        return cls(found.function, name=str(name), version=found.version, root=store)

    def __call__(self, pairs: Sequence[tuple[str, str]]) -> Any:
        """The function itself."""
        return self.function(pairs)

    def fingerprint(self, collection: Collection) -> str:
        """Digest of name and version."""
        return self._owner.fingerprint

    def score(self, queries: Texts, collection: Collection, pairs: Run) -> Run:
        """The pairs with the function's scores, without those for which it gives NaN."""
        store, texts = self._store(), pair_texts(queries, collection, pairs)
        store.fill(*texts, lambda part: np.asarray(self.function(list(part)), dtype=np.float32))
        return store.scored(pairs, texts)

    def remaining(self, queries: Texts, collection: Collection, pairs: Run) -> Work:
        """Pairs that are not in the store; their time is unknown, since the function is not called."""
        return Work(len(self._store().missing(*pair_texts(queries, collection, pairs))), "pairs", 0.0)

    @property
    def _owner(self) -> Manifest:
        return Manifest("teacher", {"function": self.name}, {"version": self.version}, {"name": self.name})

    def _store(self) -> ScoreStore:
        return ScoreStore(self.name, self._owner, self.root, is_complete=False)


def teacher_function(*, version: str) -> Callable[[Scorer], FunctionRanker]:
    """Make a function of (query, document) pairs a teacher, with a version that changes when its scores do."""

    def decorate(function: Scorer) -> FunctionRanker:
        return FunctionRanker(function, name=f"function:{function.__module__}:{function.__qualname__}", version=version)

    return decorate
