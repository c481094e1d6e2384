"""Rankers score pairs or search a corpus through one protocol. Also ensembles and the score store."""

from retrodistill.rankers.ensemble import Ensemble
from retrodistill.rankers.function import FunctionRanker, teacher_function
from retrodistill.rankers.loading import load_ranker
from retrodistill.rankers.protocol import Ranker, Work
from retrodistill.rankers.scoring import remaining, score

__all__ = ["Ensemble", "FunctionRanker", "Ranker", "Work", "load_ranker", "remaining", "score", "teacher_function"]
