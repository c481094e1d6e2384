"""The order of training: students teach each other's stages, so a stage follows all the stages that it needs."""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING

from retrodistill.core.errors import unknown
from retrodistill.students.registry import all_kinds, kind_of_settings
from retrodistill.training.settings import StageSettings, is_student, parse_student

if TYPE_CHECKING:
    from retrodistill.recipes.settings import Recipe, StudentSettings

StageOfStudent = tuple[str, int]  # a student's name, and after how many of its stages


def students_of(stage: StageSettings, students: Mapping[str, StudentSettings]) -> list[StageOfStudent]:
    """The students that teach a stage.

    Raises:
        ValueError: There is no such student, its kind cannot teach, or it has fewer stages.
    """
    teachers = []
    for member in stage.teacher:
        if not is_student(member.model):
            continue
        name, after = parse_student(member.model)
        if name not in students:
            raise ValueError(f"teacher {member.model!r}: {unknown('student', name, students)}")
        kind, stages = kind_of_settings(students[name].model, students[name].lexical_dim), len(students[name].stages)
        if not kind.can_teach:
            teaching = ", ".join(other.name for other in all_kinds() if other.can_teach and other.written)
            raise ValueError(f"teacher {member.model!r} is a {kind.name} student; students that can teach: {teaching}")
        if after is not None and after > stages:
            raise ValueError(f"teacher {member.model!r}: {name} has {stages} stages")
        if not kind.can_search and stage.candidates.depth == "all":
            raise ValueError(
                f"teacher {member.model!r} scores pairs and not a whole corpus; set candidates.depth to a number"
            )
        teachers.append((name, stages if after is None else after))
    return teachers


def check_teachers(recipe: Recipe) -> None:
    """Refuse teachers that cannot teach in their place.

    Raises:
        ValueError: As `training_order`; a student is the recipe's teacher; or a selection takes as right what the
            stage's own teacher ranks first.
    """
    if any(is_student(one.model) for one in (*recipe.teacher, *recipe.ensemble)):
        raise ValueError("a student cannot be the recipe's teacher; name it in a stage's teacher")
    training_order(recipe.students)
    for stage in (stage for student in recipe.students.values() for stage in student.stages):
        by_ensemble = stage.selection is not None and stage.selection.positives == "ensemble"
        if by_ensemble and not stage.teacher and not recipe.ensemble:
            raise ValueError(
                "selection.positives: ensemble needs a judge besides the stage's own teacher; give the stage another "
                "teacher, or the recipe an ensemble"
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
