"""Recipes: a whole job as YAML, typed."""

from retrodistill.recipe.loading import load_recipe, parse_recipe, recipe_yaml
from retrodistill.recipe.mistakes import validated
from retrodistill.recipe.settings import (
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
    "validated",
]
