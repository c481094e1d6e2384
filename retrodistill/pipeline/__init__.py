"""Run a recipe: collection, candidates, teacher scores, students, indexes, measures, report."""

from retrodistill.pipeline.run import run_recipe

__all__ = ["run_recipe"]
