"""Evaluation: any ranker on any collection, by BEIR's rules; measures, comparison, agreement with a teacher, cost."""

from retrodistill.evaluation.benchmark import Benchmark, benchmark
from retrodistill.evaluation.comparing import Comparison, compare
from retrodistill.evaluation.cost import CostConfig, query_latency, staged_latency
from retrodistill.evaluation.evaluating import Evaluation, EvaluationConfig, evaluate
from retrodistill.evaluation.lengths import LengthCost, choose_length, measure_lengths
from retrodistill.evaluation.measures import BEIR_MEASURES, DEFAULT_MEASURES, evaluate_run, means
from retrodistill.evaluation.significance import compare_paired, holm, outcomes, smallest_difference

__all__ = [
    "BEIR_MEASURES",
    "DEFAULT_MEASURES",
    "Benchmark",
    "Comparison",
    "CostConfig",
    "Evaluation",
    "EvaluationConfig",
    "LengthCost",
    "benchmark",
    "choose_length",
    "compare",
    "compare_paired",
    "evaluate",
    "evaluate_run",
    "holm",
    "means",
    "measure_lengths",
    "outcomes",
    "query_latency",
    "smallest_difference",
    "staged_latency",
]
