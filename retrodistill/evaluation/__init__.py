"""Evaluation: any system on any collections, by BEIR's rules; comparison, agreement with a teacher, cost."""

from retrodistill.evaluation.benchmark import Benchmark, benchmark
from retrodistill.evaluation.comparing import Comparison, compare
from retrodistill.evaluation.evaluating import Evaluation, Wanted, evaluate

__all__ = ["Benchmark", "Comparison", "Evaluation", "Wanted", "benchmark", "compare", "evaluate"]
