"""Settings of a stage's lists: which models propose and score candidates, and which queries are trained on."""

from __future__ import annotations

from typing import Annotated, Any, Literal

from pydantic import BeforeValidator, Field, field_validator, model_validator

from retrodistill.core.settings import OneOf, Settings, value_errors
from retrodistill.encoders.names import check_can_search, parse_model_name

CURRENT_STUDENT = "student"  # among the sources of candidates; with a name, among the teachers


class TeacherSettings(Settings):
    """One member of a teacher."""

    model: str
    """`kind:name`. A stage also takes `student:NAME`, another student of the recipe after its last stage;
    `student:NAME@2` after its second stage; `student:NAME@0` before its first."""
    weight: float = Field(default=1.0, ge=0)
    """Weight in the fusion."""

    @field_validator("model")
    @classmethod
    def _parses(cls, model: str) -> str:
        if is_student(model):
            parse_student(model)
            return model
        with value_errors():
            return str(parse_model_name(model))


def is_student(model: str) -> bool:
    """Whether a teacher's name is that of a student of the recipe: ``student:NAME``."""
    return model.startswith(f"{CURRENT_STUDENT}:")


def parse_student(name: str) -> tuple[str, int | None]:
    """The student of ``student:NAME`` or ``student:NAME@2``, and after how many of its stages; None for all.

    Raises:
        ValueError: Neither of the two forms.
    """
    student, at, stages = name.partition(":")[2].rpartition("@") if "@" in name else (name.partition(":")[2], "", "")
    if not student or (at and not stages.isdigit()):
        raise ValueError(f"{name!r}: write student:NAME, or student:NAME@2 for that student after its second stage")
    return student, int(stages) if at else None


def _members(given: Any) -> Any:
    """Members of a teacher from their short forms: one for a list of one, a name for its settings."""
    members = [given] if isinstance(given, (str, dict)) else given or []
    if not isinstance(members, (list, tuple)):
        return members  # pydantic says what is wanted
    return [{"model": member} if isinstance(member, str) else member for member in members]


Teachers = Annotated[
    list[TeacherSettings],
    BeforeValidator(_members, json_schema_input_type=str | TeacherSettings | list[str | TeacherSettings] | None),
]


class CandidateSettings(Settings):
    """The candidates that the teacher scores."""

    sources: list[str] | None = None
    """Retrievers that propose candidates; by default bm25 and the dense teachers, or the recorded run. `student` is the
    student in training, as it is at the start of the stage."""
    depth: int | Literal["all"] = 100
    """Documents per query and source, or `all` for the whole corpus (for teachers that score it at no cost)."""
    random: int = Field(default=0, ge=0)
    """Random documents of the corpus added for each query. A recorded run has no scores for them: they count as the
    lowest of its list."""
    budget: int | str | None = None
    """Limit on the pairs that the teacher scores: a number, or a share such as `25%`. They are chosen by the z-scores
    of the sources that score every pair cheaply (bm25, dense). Pairs that a stage would hide are not scored."""
    budget_by: Annotated[str, OneOf("way to spend a budget", "retrodistill.candidates.budget:BUDGETS")] = "robust"
    """How the pairs of the budget are chosen: `robust`, or `random` as its control."""

    @field_validator("budget")
    @classmethod
    def _is_budget(cls, budget: int | str | None) -> int | str | None:
        from retrodistill.candidates.budget import pairs_within

        if budget is not None:
            with value_errors():
                pairs_within(budget, 100)
        return budget

    @model_validator(mode="after")
    def _budget_of_lists(self) -> CandidateSettings:
        if self.budget is not None and self.depth == "all":
            raise ValueError("a budget is for pairs of lists: set candidates.depth to a number, not 'all'")
        return self

    @field_validator("sources")
    @classmethod
    def _can_search(cls, sources: list[str] | None) -> list[str] | None:
        for source in sources or []:
            if source != CURRENT_STUDENT:
                with value_errors():
                    check_can_search(parse_model_name(source))
        return sources

    @field_validator("depth")
    @classmethod
    def _positive(cls, depth: int | str) -> int | str:
        if depth != "all" and int(depth) < 1:
            raise ValueError("depth is at least 1, or 'all'")
        return depth


class SelectionSettings(Settings):
    """The queries that a stage trains on: the teacher gets them right, the student does not (PROD, WWW 2023)."""

    by: Literal["prod"] = "prod"
    """The rule of selection."""
    ranks: tuple[int, int] = (2, 15)
    """The student ranks its best positive within these two ranks, inclusive; the teacher ranks it first."""
    positives: Literal["labels", "ensemble"] = "labels"
    """What counts as right: `labels` of the training split, or what the `ensemble` ranks first (the recipe's teacher
    where the stage names another, else the recipe's ensemble)."""

    @field_validator("ranks")
    @classmethod
    def _is_range(cls, ranks: tuple[int, int]) -> tuple[int, int]:
        if not 2 <= ranks[0] <= ranks[1]:
            raise ValueError("ranks are a first, at least 2, and a last that is not below it, e.g. [2, 15]")
        return ranks
