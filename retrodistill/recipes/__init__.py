"""Recipes: a whole job as YAML, typed."""

from retrodistill.recipes.loading import load_recipe, parse_recipe, recipe_yaml
from retrodistill.recipes.mistakes import validated
from retrodistill.recipes.run import run_recipe
from retrodistill.recipes.settings import (
    EvaluationSettings,
    IndexSettings,
    Recipe,
    SplitSettings,
    StudentSettings,
    TeacherSettings,
)

__all__ = [
    "EvaluationSettings",
    "IndexSettings",
    "Recipe",
    "SplitSettings",
    "StudentSettings",
    "TeacherSettings",
    "load_recipe",
    "parse_recipe",
    "recipe_yaml",
    "run_recipe",
    "validated",
]
