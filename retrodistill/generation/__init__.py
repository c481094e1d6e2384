"""Queries that a model writes for documents, to train on, and a filter that keeps those that find their document."""

from retrodistill.generation.generating import generate_queries, plan_generation
from retrodistill.generation.round_trip import keep_round_trips
from retrodistill.generation.settings import GenerationSettings

__all__ = ["GenerationSettings", "generate_queries", "keep_round_trips", "plan_generation"]
