"""Students: dense and static encoders, how they start and how they are saved."""

from retrodistill.students.dense import dense_student
from retrodistill.students.saving import load_student, save_student
from retrodistill.students.static import static_student

__all__ = ["dense_student", "load_student", "save_student", "static_student"]
