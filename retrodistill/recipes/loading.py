"""Recipes from YAML, with overrides, and back."""

from __future__ import annotations

import os
from collections.abc import Sequence
from importlib import resources
from pathlib import Path
from typing import Any

import yaml

from retrodistill.core.errors import UserError
from retrodistill.recipes.mistakes import validated
from retrodistill.recipes.settings import Recipe


def load_recipe(source: str | os.PathLike[str], overrides: Sequence[str] = ()) -> Recipe:
    """Read a recipe and apply overrides.

    Args:
        source: A YAML file, or the name of a packaged recipe (``demo``).
        overrides: ``key.path=value`` each; the value is YAML. Lists are reached by number: ``stages.0.training...``.

    Raises:
        UserError: Missing file, not YAML, an unknown key (the nearest is named), or a value that does not fit.
    """
    try:
        content = yaml.safe_load(_text_of(source))
    except (yaml.YAMLError, UnicodeDecodeError) as error:
        raise UserError(f"{source} is not YAML: {' '.join(str(error).split())}.") from error
    if not isinstance(content, dict):
        raise UserError(f"{source} holds no recipe: wanted keys such as name, collection, students.")
    for override in overrides:
        _override(content, override)
    return parse_recipe(content, str(source))


def _text_of(source: str | os.PathLike[str]) -> str:
    path = Path(source)
    if path.is_file():
        return path.read_text(encoding="utf-8")
    packaged = resources.files("retrodistill") / "recipes"
    names = sorted(entry.name.removesuffix(".yaml") for entry in packaged.iterdir() if entry.name.endswith(".yaml"))
    if str(source) not in names:
        raise UserError(
            f"no recipe {source}: no such file, and no packaged recipe of that name (there is: {', '.join(names)})."
        )
    return (packaged / f"{source}.yaml").read_text(encoding="utf-8")


def parse_recipe(content: dict[str, Any], source: str = "recipe") -> Recipe:
    """A recipe from its dictionary.

    Raises:
        UserError: An unknown key or a value that does not fit; where it stands is named.
    """
    return validated(Recipe, content, source)


def recipe_yaml(recipe: Recipe) -> str:
    """The resolved recipe, defaults written out."""
    return yaml.safe_dump(recipe.model_dump(mode="json"), sort_keys=False, allow_unicode=True)


def _override(content: Any, override: str) -> None:
    path, equals, text = override.partition("=")
    if not equals or not path:
        raise UserError(f"override {override!r}: wanted key.path=value, e.g. index.factory=SQ8.")
    *parents, last = path.split(".")
    place = content
    for key in parents:
        place = _step(place, key, override)
    try:
        value = yaml.safe_load(text)
    except yaml.YAMLError as error:
        raise UserError(f"override {override!r}: the value is not YAML.") from error
    _step(place, last, override)
    place[int(last) if isinstance(place, list) else last] = value


def _step(place: Any, key: str, override: str) -> Any:
    if isinstance(place, list):
        if not key.isdigit() or int(key) >= len(place):
            raise UserError(f"override {override!r}: {key!r} is no place of a list of {len(place)}.")
        return place[int(key)]
    if not isinstance(place, dict):
        raise UserError(f"override {override!r}: there is nothing below the value before {key!r}.")
    if place.get(key) is None:
        place[key] = {}
    return place[key]
