"""Rankers: what scores pairs or searches a corpus, behind one protocol; ensembles; the score store."""

from retrodistill.rankers.ensemble import Ensemble
from retrodistill.rankers.loading import load_teacher
from retrodistill.rankers.protocol import Teacher, Work
from retrodistill.rankers.retrievers import Retriever, load_retriever
from retrodistill.rankers.scoring import remaining, score

__all__ = ["Ensemble", "Retriever", "Teacher", "Work", "load_retriever", "load_teacher", "remaining", "score"]
