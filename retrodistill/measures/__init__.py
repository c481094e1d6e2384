"""Measures: ranking, agreement with the teacher, latency, significance."""

from retrodistill.measures.agreement import overlap, rank_agreement
from retrodistill.measures.latency import query_latency
from retrodistill.measures.ranking import evaluate_run, means
from retrodistill.measures.significance import compare_paired

__all__ = ["compare_paired", "evaluate_run", "means", "overlap", "query_latency", "rank_agreement"]
