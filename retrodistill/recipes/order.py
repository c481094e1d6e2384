"""Students as teachers of each other's stages: who must stand where before a stage can begin."""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING

from retrodistill.core.errors import unknown
from retrodistill.training.list_settings import is_student, parse_student
from retrodistill.training.settings import StageSettings

if TYPE_CHECKING:
    from retrodistill.recipes.settings import Recipe, StudentSettings

StageOfStudent = tuple[str, int]  # a student's name, and how many stages it has behind it
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
        ValueError: A student as the recipe's teacher, as `check_students_as_teachers`, or a selection in which the
            stage's own teacher would say what is right.
    """
    if any(is_student(one.model) for one in (*recipe.teacher, *recipe.ensemble)):
        raise ValueError("a student teaches in a stage, by its teacher key, not as the recipe's teacher")
    check_students_as_teachers(recipe.students)
    for stage in (stage for student in recipe.students.values() for stage in student.stages):
        by_ensemble = stage.selection is not None and stage.selection.positives == "ensemble"
        if by_ensemble and not stage.teacher and not recipe.ensemble:
            raise ValueError(
                "selection.positives: ensemble is right by definition where the stage's own teacher says what is; give "
                "the stage a teacher of its own, or the recipe an ensemble"
            )


def check_students_as_teachers(students: Mapping[str, StudentSettings]) -> None:
    """Refuse stages that wait for each other.

    Raises:
        ValueError: As `students_of`, or a stage needs a student that needs this stage.
    """
    done: set[StageOfStudent] = set()

    def visit(standing: StageOfStudent, above: tuple[StageOfStudent, ...]) -> None:
        if standing in above:
            circle = " -> ".join(f"{name}@{behind}" for name, behind in (*above[above.index(standing) :], standing))
            raise ValueError(f"students wait for each other: {circle}; name earlier stages, e.g. student:NAME@1")
        if standing in done:
            return
        name, behind = standing
        if behind:
            stage = students[name].stages[behind - 1]
            for needed in ((name, behind - 1), *students_of(stage, students)):
                visit(needed, (*above, standing))
        done.add(standing)

    for name, student in students.items():
        visit((name, len(student.stages)), ())
