"""Re-rankers: a teacher that scores the first documents of another system."""

from __future__ import annotations

import re
from collections.abc import Callable
from pathlib import Path
from typing import Any

from retrodistill.core.errors import UserError
from retrodistill.data.collection import Collection
from retrodistill.data.texts import Texts
from retrodistill.encoders.names import KINDS
from retrodistill.evaluation.student_reranking import DEPTH, StudentReranker, first_documents
from retrodistill.indexes.building import load_index
from retrodistill.rankers.cross_encoder import CrossEncoderTeacher
from retrodistill.rankers.loading import load_teacher
from retrodistill.rankers.protocol import Teacher
from retrodistill.rankers.retrievers import Retriever, load_retriever
from retrodistill.runs.run import Run
from retrodistill.students.cross_encoder import CrossEncoderStudent

_FORM = (
    "rerank:TEACHER@SOURCE or rerank@DEPTH:TEACHER@SOURCE, e.g. rerank:cross-encoder:NAME@bm25, where SOURCE is a "
    "model's name, run:FILE or an index' folder"
)


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
        candidates = first_documents(self.source, collection, queries, self.depth)
        return self.teacher.score(collection, queries, candidates).top(k).renamed(self.name)

    def query_fn(self, collection: Collection, k: int) -> Callable[[str], Any]:
        """There is none: teachers keep what they scored, so that asking again would time a look-up.

        Raises:
            UserError: Always.
        """
        raise UserError(f"{self.name} keeps the scores of its pairs, and has no latency here; time its source.")

    def bytes_per_document(self, collection: Collection) -> float | None:
        """The source's."""
        return self.source.bytes_per_document(collection)


def load_reranker(text: str) -> Reranker | StudentReranker:
    """Read ``rerank:TEACHER@SOURCE``, such as ``rerank@50:cross-encoder:NAME@run:FILE``.

    A folder stands for ``cross-encoder:FOLDER``: what students that re-rank are saved as; ``prett:FOLDER`` and
    ``tk:FOLDER`` name them by their own kind.

    Raises:
        UserError: Another form, or a teacher or source that cannot be found.
    """
    # The source begins behind the last @ that a kind of model follows: names of models and files may hold one.
    kinds = "|".join(map(re.escape, KINDS))
    parsed = re.fullmatch(rf"rerank(?:@(\d+))?:(.+)@((?:{kinds})(?::.+)?)", text)
    parts = _of_an_index(text) if parsed is None else parsed.groups()
    if parts is None:
        raise UserError(f"{text!r} is no re-ranker; write {_FORM}.")
    depth, teacher, source = parts
    named = f"cross-encoder:{teacher}" if Path(teacher).expanduser().is_dir() else teacher
    finder: Retriever = load_index(source) if Path(source).expanduser().is_dir() else load_retriever(source)
    judge, first = load_teacher(named), int(depth or DEPTH)
    if isinstance(judge, CrossEncoderTeacher):
        return StudentReranker(CrossEncoderStudent(judge.model, judge.name), finder, first, text)
    return Reranker(judge, finder, first, text)


def _of_an_index(text: str) -> tuple[str | None, str, str] | None:
    """Depth, teacher and source where what stands behind an @ is an index' folder; None where none is."""
    parsed = re.fullmatch(r"rerank(?:@(\d+))?:(.+)", text)
    if parsed is None:
        return None
    depth, rest = parsed.groups()
    splits = [(rest[: at.start()], rest[at.end() :]) for at in re.finditer("@", rest)]
    return next(((depth, *sides) for sides in splits if all(sides) and Path(sides[1]).expanduser().is_dir()), None)
