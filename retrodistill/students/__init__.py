"""Students: dense, static, sparse, multi-vector and cross-encoders; how they start, are saved and loaded."""

from retrodistill.students.cross_encoder import cross_encoder_student
from retrodistill.students.dense import dense_student
from retrodistill.students.multi_vector import multi_vector_student
from retrodistill.students.registry import load_student, save_student
from retrodistill.students.sparse import sparse_student
from retrodistill.students.static import static_student

__all__ = [
    "cross_encoder_student",
    "dense_student",
    "load_student",
    "multi_vector_student",
    "save_student",
    "sparse_student",
    "static_student",
]
