"""Candidates: mining with several retrievers, filters for false negatives, and samplers."""

from retrodistill.candidates.mining import keep_below_margin, keep_below_share, mine

__all__ = ["keep_below_margin", "keep_below_share", "mine"]
