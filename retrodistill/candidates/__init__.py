"""Candidates: mining by several retrievers, filters against false negatives, samplers."""

from retrodistill.candidates.mining import keep_below_margin, keep_below_share, mine

__all__ = ["keep_below_margin", "keep_below_share", "mine"]
