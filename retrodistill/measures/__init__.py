"""Measures: ranking, agreement with the teacher, latency and cost, significance."""

from retrodistill.measures.agreement import kendall, overlap, rank_agreement, ranking_overlap, score_bins
from retrodistill.measures.cost import pareto_front
from retrodistill.measures.latency import query_latency, staged_latency
from retrodistill.measures.ranking import BEIR_MEASURES, DEFAULT_MEASURES, evaluate_run, means
from retrodistill.measures.significance import compare_paired, holm, outcomes, smallest_difference

__all__ = [
    "BEIR_MEASURES",
    "DEFAULT_MEASURES",
    "compare_paired",
    "evaluate_run",
    "holm",
    "kendall",
    "means",
    "outcomes",
    "overlap",
    "pareto_front",
    "query_latency",
    "rank_agreement",
    "ranking_overlap",
    "score_bins",
    "smallest_difference",
    "staged_latency",
]
