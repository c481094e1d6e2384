"""Objectives that see the embeddings of one text by teacher and student."""

from __future__ import annotations

from torch import Tensor

from retrodistill.errors import UserError
from retrodistill.objectives.masks import at_least_float32


def leaf(student: Tensor, teacher: Tensor) -> Tensor:
    """LEAF: squared distance between the student's and the teacher's embedding of the same text (arXiv 2509.12539).

    ``mean_b sum_d (y - y^)^2``: summed over dimensions, averaged over the batch. (Averaging over dimensions too would
    divide the gradient by the width.)

    Args:
        student: (batch, d) student embeddings.
        teacher: (batch, d) teacher embeddings, unit vectors for cosine teachers.

    Returns:
        Scalar float32; between unit vectors 2 - 2 cos, from 0 to 4.

    Raises:
        UserError: Shapes that differ: the student's projection must lead to the teacher's width.
    """
    if student.shape != teacher.shape:
        raise UserError(
            f"student embeddings of shape {tuple(student.shape)}, teacher's {tuple(teacher.shape)}; give the student a "
            "projection to the teacher's width (dimension: teacher)."
        )
    return ((at_least_float32(student) - at_least_float32(teacher)) ** 2).sum(dim=1).mean()
