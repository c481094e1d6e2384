"""Recipes: a whole job as YAML, typed.

Names are imported on first use: reading a recipe does not import what runs it.
"""

from __future__ import annotations

import importlib
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from retrodistill.recipes.loading import load_recipe, parse_recipe, recipe_yaml, validated
    from retrodistill.recipes.run import run_recipe
    from retrodistill.recipes.settings import (
        EvaluationSettings,
        IndexSettings,
        Recipe,
        SplitSettings,
    )
    from retrodistill.recipes.student_settings import StudentSettings
    from retrodistill.training.settings import TeacherSettings

_HOMES = {
    "EvaluationSettings": "settings",
    "IndexSettings": "settings",
    "Recipe": "settings",
    "SplitSettings": "settings",
    "StudentSettings": "student_settings",
    "TeacherSettings": "settings",
    "load_recipe": "loading",
    "parse_recipe": "loading",
    "recipe_yaml": "loading",
    "run_recipe": "run",
    "validated": "loading",
}

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


def __getattr__(name: str) -> Any:
    if name not in _HOMES:
        raise AttributeError(f"module 'retrodistill.recipes' has no attribute {name!r}")
    return getattr(importlib.import_module(f"retrodistill.recipes.{_HOMES[name]}"), name)
