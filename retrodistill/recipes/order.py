"""The order of training: students teach each other's stages, so a stage follows all the stages that it needs."""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING

from retrodistill.core.errors import unknown
from retrodistill.training.list_settings import is_student, parse_student
from retrodistill.training.settings import StageSettings

if TYPE_CHECKING:
    from retrodistill.recipes.settings import Recipe, StudentSettings

StageOfStudent = tuple[str, int]  # a student's name, and after how many of its stages
_TEACHING_KINDS = ("static", "dense", "cross-encoder")


def students_of(stage: StageSettings, students: Mapping[str, StudentSettings]) -> list[StageOfStudent]:
    """The students that teach a stage.

    Raises:
        ValueError: There is no such student, it is of a kind that cannot teach, or has not so many stages.
    """
    found = []
    for member in stage.teacher:
        if not is_student(member.model):
            continue
        name, behind = parse_student(member.model)
        if name not in students:
            raise ValueError(f"teacher {member.model!r}: {unknown('student', name, students)}")
        kind, stages = students[name].kind, len(students[name].stages)
        if kind not in _TEACHING_KINDS:
            raise ValueError(f"teacher {member.model!r} is a {kind} student; {', '.join(_TEACHING_KINDS)} ones teach")
        if behind is not None and behind > stages:
            raise ValueError(f"teacher {member.model!r}: {name} has {stages} stages")
        if kind == "cross-encoder" and stage.candidates.depth == "all":
            raise ValueError(
                f"teacher {member.model!r} scores pairs and not a whole corpus; set candidates.depth to a number"
            )
        found.append((name, stages if behind is None else behind))
    return found


def check_teachers(recipe: Recipe) -> None:
    """Refuse teachers that cannot teach where they stand.

    Raises:
        ValueError: A student as the recipe's teacher, as `training_order`, or a selection in which the
            stage's own teacher would say what is right.
    """
    if any(is_student(one.model) for one in (*recipe.teacher, *recipe.ensemble)):
        raise ValueError("a student teaches in a stage, by its teacher key, not as the recipe's teacher")
    training_order(recipe.students)
    for stage in (stage for student in recipe.students.values() for stage in student.stages):
        by_ensemble = stage.selection is not None and stage.selection.positives == "ensemble"
        if by_ensemble and not stage.teacher and not recipe.ensemble:
            raise ValueError(
                "selection.positives: ensemble is right by definition where the stage's own teacher says what is; give "
                "the stage a teacher of its own, or the recipe an ensemble"
            )


def training_order(students: Mapping[str, StudentSettings]) -> list[StageOfStudent]:
    """Every student before its first stage and after each, in an order in which whatever a stage needs precedes it.

    A stage needs the student after its stage before, and the students that teach it.

    Raises:
        ValueError: As `students_of`, or a stage needs a student that needs this stage.
    """
    order: list[StageOfStudent] = []
    placed: set[StageOfStudent] = set()

    def visit(state: StageOfStudent, above: tuple[StageOfStudent, ...]) -> None:
        if state in above:
            circle = " -> ".join(f"{name}@{behind}" for name, behind in (*above[above.index(state) :], state))
            raise ValueError(f"students wait for each other: {circle}; name earlier stages, e.g. student:NAME@1")
        if state in placed:
            return
        for needed in needed_by(state, students):
            visit(needed, (*above, state))
        placed.add(state)
        order.append(state)

    for name, student in students.items():
        visit((name, len(student.stages)), ())
    return order


def needed_by(state: StageOfStudent, students: Mapping[str, StudentSettings]) -> list[StageOfStudent]:
    """What the last stage of a state starts from: the student before that stage, and the students that teach it."""
    name, behind = state
    return [(name, behind - 1), *students_of(students[name].stages[behind - 1], students)] if behind else []
