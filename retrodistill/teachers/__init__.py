"""Teachers: what scores pairs, behind one protocol; ensembles; the score store."""

from retrodistill.teachers.ensemble import Ensemble
from retrodistill.teachers.loading import load_teacher
from retrodistill.teachers.protocol import Teacher, Work
from retrodistill.teachers.scoring import remaining, score

__all__ = ["Ensemble", "Teacher", "Work", "load_teacher", "remaining", "score"]
