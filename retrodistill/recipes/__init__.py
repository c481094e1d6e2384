"""Recipes: a whole job as typed YAML."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from retrodistill.recipes.loading import load_recipe, parse_recipe, recipe_yaml
from retrodistill.recipes.settings import EvaluationSettings, IndexSettings, Recipe, SplitSettings
from retrodistill.recipes.student_settings import StudentSettings
from retrodistill.training.settings import TeacherSettings

if TYPE_CHECKING:
    from retrodistill.recipes.run import run_recipe

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
]


def __getattr__(name: str) -> Any:
    # Reading a recipe must not import torch and FAISS, which running one needs.
    if name == "run_recipe":
        from retrodistill.recipes.run import run_recipe

        return run_recipe
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
