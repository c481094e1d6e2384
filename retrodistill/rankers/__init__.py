"""Rankers: what scores pairs or searches a corpus, behind one protocol; ensembles; the score store."""

from retrodistill.rankers.ensemble import Ensemble
from retrodistill.rankers.loading import load_ranker
from retrodistill.rankers.protocol import Ranker, Work
from retrodistill.rankers.scoring import remaining, score

__all__ = ["Ensemble", "Ranker", "Work", "load_ranker", "remaining", "score"]
