"""Candidates: mining by several retrievers, filters against false negatives, samplers."""

from retrodistill.candidates.filters import keep_below_margin, keep_below_share
from retrodistill.candidates.mining import mine

__all__ = ["keep_below_margin", "keep_below_share", "mine"]
