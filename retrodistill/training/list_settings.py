"""Settings of a stage's lists: who proposes, who scores, and which queries are trained on."""

from __future__ import annotations

from typing import Any, Literal

from pydantic import Field, field_validator, model_validator

from retrodistill.core.settings import Settings

CURRENT_STUDENT = "student"  # among the sources of candidates; with a name, among the teachers


class TeacherSettings(Settings):
    """One member of a teacher.

    Attributes:
        model: ``kind:name``. In a stage also ``student:NAME``, another student of the recipe behind its last stage, or
            ``student:NAME@2`` behind its second, ``student:NAME@0`` before its first.
        weight: In the fusion.
    """

    model: str
    weight: float = Field(default=1.0, ge=0)

    @field_validator("model")
    @classmethod
    def _parses(cls, model: str) -> str:
        from retrodistill.core.errors import UserError
        from retrodistill.encoders.names import parse_model_name

        if is_student(model):
            parse_student(model)
            return model
        try:
            return str(parse_model_name(model))
        except UserError as error:
            raise ValueError(str(error)) from error


def is_student(model: str) -> bool:
    """Whether a teacher's name is that of a student of the recipe: ``student:NAME``."""
    return model.startswith(f"{CURRENT_STUDENT}:")


def parse_student(name: str) -> tuple[str, int | None]:
    """The student of ``student:NAME`` or ``student:NAME@2`` and the stages that it has behind it; None for all.

    Raises:
        ValueError: Neither of the two.
    """
    student, at, behind = name.partition(":")[2].rpartition("@") if "@" in name else (name.partition(":")[2], "", "")
    if not student or (at and not behind.isdigit()):
        raise ValueError(f"{name!r}: write student:NAME, or student:NAME@2 for that student behind its second stage")
    return student, int(behind) if at else None


class CandidateSettings(Settings):
    """Whom the teacher scores.

    Attributes:
        sources: Retrievers that propose; by default bm25 and the dense teachers, or the recorded run. ``student`` is
            the student in training, as it stands at the stage's start.
        depth: Documents per query and source, or ``all`` for the whole corpus (teachers that score it at no cost).
        random: So many documents of the corpus drawn for each query besides. A recorded run has no scores for them:
            they count as the lowest of its list.
        budget: The teacher scores only so many of the pairs, a number or a share such as ``25%``, chosen by the
            z-scores of those sources that score every pair cheaply (bm25, dense); pairs that a stage would hide are
            not bought.
        budget_by: One of `retrodistill.candidates.budget.BUDGETS`: ``robust``, or ``random`` as its control.
    """

    sources: list[str] | None = None
    depth: int | Literal["all"] = 100
    random: int = Field(default=0, ge=0)
    budget: int | str | None = None
    budget_by: str = "robust"

    @field_validator("budget")
    @classmethod
    def _is_budget(cls, budget: int | str | None) -> int | str | None:
        from retrodistill.candidates.budget import pairs_within
        from retrodistill.core.errors import UserError

        try:
            if budget is not None:
                pairs_within(budget, 100)
        except UserError as error:
            raise ValueError(str(error)) from error
        return budget

    @field_validator("budget_by")
    @classmethod
    def _is_way(cls, name: str) -> str:
        from retrodistill.candidates.budget import BUDGETS
        from retrodistill.core.errors import unknown

        if name not in BUDGETS:
            raise ValueError(str(unknown("way to spend a budget", name, BUDGETS)))
        return name

    @model_validator(mode="after")
    def _budget_of_lists(self) -> CandidateSettings:
        if self.budget is not None and self.depth == "all":
            raise ValueError("a budget buys pairs of lists: set candidates.depth to a number, not 'all'")
        return self

    @field_validator("sources")
    @classmethod
    def _can_search(cls, sources: list[str] | None) -> list[str] | None:
        from retrodistill.core.errors import UserError
        from retrodistill.encoders.names import check_can_search, parse_model_name

        for source in sources or []:
            try:
                if source != CURRENT_STUDENT:
                    check_can_search(parse_model_name(source))
            except UserError as error:
                raise ValueError(str(error)) from error
        return sources

    @field_validator("depth")
    @classmethod
    def _positive(cls, depth: int | str) -> int | str:
        if depth != "all" and int(depth) < 1:
            raise ValueError("depth is at least 1, or 'all'")
        return depth


class SelectionSettings(Settings):
    """Which queries a stage trains on: those on which the teacher is right and the student wrong (PROD, WWW 2023).

    Attributes:
        by: ``prod``.
        ranks: The student ranks its best positive from the first to the second of these, the teacher first of all.
        positives: Who says what is right: the training split's ``labels``, or what the ``ensemble`` ranks first (the
            recipe's teacher where the stage names another, else the recipe's ensemble).
    """

    by: Literal["prod"] = "prod"
    ranks: tuple[int, int] = (2, 15)
    positives: Literal["labels", "ensemble"] = "labels"

    @field_validator("ranks")
    @classmethod
    def _is_range(cls, ranks: tuple[int, int]) -> tuple[int, int]:
        if not 2 <= ranks[0] <= ranks[1]:
            raise ValueError("ranks are a first, at least 2, and a last that is not below it, e.g. [2, 15]")
        return ranks


def teacher_members(given: Any) -> Any:
    """Members of a teacher from their short forms: one for a list of one, a name for its settings."""
    members = [given] if isinstance(given, (str, dict)) else given or []
    if not isinstance(members, (list, tuple)):
        return members  # pydantic says what is wanted
    return [{"model": member} if isinstance(member, str) else member for member in members]
