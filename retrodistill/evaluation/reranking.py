"""Re-rankers: a teacher that scores the first documents of another system."""

from __future__ import annotations

import re
from collections.abc import Callable
from typing import Any

from retrodistill.collections.collection import Collection
from retrodistill.collections.texts import Texts
from retrodistill.errors import UserError
from retrodistill.models.names import KINDS
from retrodistill.models.retrievers import Retriever, load_retriever
from retrodistill.runs.run import Run
from retrodistill.teachers.loading import load_teacher
from retrodistill.teachers.protocol import Teacher

DEPTH = 100
_FORM = "rerank:TEACHER@SOURCE or rerank@DEPTH:TEACHER@SOURCE, e.g. rerank:cross-encoder:NAME@bm25"


class Reranker:
    """Orders the first `depth` documents of a source by a teacher's scores; those behind them are dropped.

    Args:
        teacher: Scores pairs.
        source: Finds the candidates: a retriever, or a recorded run.
        depth: Candidates per query.
        name: What its runs are called.

    Raises:
        UserError: A depth below 1.
    """

    def __init__(self, teacher: Teacher, source: Retriever, depth: int = DEPTH, name: str | None = None) -> None:
        if depth < 1:
            raise UserError(f"re-ranking of the top {depth}; give at least 1.")
        self.teacher, self.source, self.depth = teacher, source, depth
        self.name = name or f"rerank@{depth}:{teacher.name}@{source.name}"

    def retrieve(self, collection: Collection, queries: Texts, k: int) -> Run:
        """The candidates in the teacher's order, at most `depth` a query."""
        # One more, and none that is its own query: such a one is left out of the results, and would cost a place.
        found = self.source.retrieve(collection, queries, min(self.depth + 1, len(collection.documents)))
        candidates = found.without({query: query for query in queries.ids}).top(self.depth)
        return self.teacher.score(collection, queries, candidates).top(k).renamed(self.name)

    def responder(self, collection: Collection, k: int) -> Callable[[str], Any]:
        """There is none: teachers keep what they scored, so that asking again would time a look-up.

        Raises:
            UserError: Always.
        """
        raise UserError(f"{self.name} keeps the scores of its pairs, and has no latency here; time its source.")

    def bytes_per_document(self, collection: Collection) -> float | None:
        """The source's."""
        return self.source.bytes_per_document(collection)


def load_reranker(text: str) -> Reranker:
    """Read ``rerank:TEACHER@SOURCE``, such as ``rerank@50:cross-encoder:NAME@run:FILE``.

    Raises:
        UserError: Another form, or a teacher or source that cannot be found.
    """
    # The source begins behind the last @ that a kind of model follows: names of models and files may hold one.
    kinds = "|".join(map(re.escape, KINDS))
    parsed = re.fullmatch(rf"rerank(?:@(\d+))?:(.+)@((?:{kinds})(?::.+)?)", text)
    if parsed is None:
        raise UserError(f"{text!r} is no re-ranker; write {_FORM}.")
    depth, teacher, source = parsed.groups()
    return Reranker(load_teacher(teacher), load_retriever(source), int(depth or DEPTH), text)
