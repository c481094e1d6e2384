"""Every key of a recipe with its values, default and meaning, from the settings classes and their JSON schema."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from functools import cache
from typing import Any, NamedTuple, get_origin

from retrodistill.core.errors import UserError, unknown
from retrodistill.core.settings import Settings, settings_within
from retrodistill.recipes.settings import Recipe

NAME, NUMBER = "NAME", "N"  # in a path: a student's name, and an item of a list, from 0
_BETWEEN = {list: (NUMBER,), dict: (NAME,)}  # what a path has between a key and the keys inside
_WORDS = {"integer": "integer", "number": "number", "string": "text", "boolean": "true or false", "null": "null"}
_BOUNDS = {"minimum": "≥", "exclusiveMinimum": ">", "maximum": "≤", "exclusiveMaximum": "<"}

Path = tuple[str, ...]


@dataclass(frozen=True)
class Key:
    """One key of a recipe."""

    path: Path  # from the recipe's top; ``NAME`` is a student's name, ``N`` an item of a list, from 0
    values: str  # its type and bounds, in words
    options: tuple[str, ...]  # all values of a closed choice; otherwise empty
    needed: bool
    default: Any  # the JSON value; None if it is null, `needed`, or settings with their own keys
    meaning: str


class Section(NamedTuple):
    """The keys of one settings class at one place of a recipe; `about` is the first paragraph of its docstring."""

    path: Path
    settings: type[Settings]
    about: str
    keys: list[Key]


def recipe_schema() -> dict[str, Any]:
    """The JSON schema of recipes, short forms included, with which editors complete and check them."""
    return {"$schema": "https://json-schema.org/draft/2020-12/schema", **Recipe.model_json_schema()}


def recipe_keys(prefix: str = "") -> list[Section]:
    """The keys at and below a prefix, in the order of the settings; all keys without one.

    The prefix is a key's path, with or without names of students and numbers of list items: ``students.stages``,
    ``students.mine.stages.0.training``. The UserError for an unknown key names the nearest.
    """
    start = _full_path(prefix)
    below = [
        section._replace(keys=[key for key in section.keys if key.path[: len(start)] == start])
        for section in _sections(Recipe, ())
    ]
    return [section for section in below if section.keys]


def _sections(settings: type[Settings], path: Path) -> Iterator[Section]:
    schema = _definitions()[settings.__name__]
    keys = [_key(settings, name, (*path, name), schema["properties"][name]) for name in settings.model_fields]
    yield Section(path, settings, " ".join(schema["description"].partition("\n\n")[0].split()), keys)
    for name, field in settings.model_fields.items():
        inner, between = _inside(field.annotation)
        if inner is not None:
            yield from _sections(inner, (*path, name, *between))


@cache
def _definitions() -> dict[str, Any]:
    """The JSON schema of each settings class by its name, without short forms."""
    schema = Recipe.model_json_schema(mode="serialization")
    return {**schema["$defs"], Recipe.__name__: schema}


def _key(settings: type[Settings], name: str, path: Path, schema: dict[str, Any]) -> Key:
    field = settings.model_fields[name]
    default = None if field.is_required() else field.get_default(call_default_factory=True)
    plain = None if isinstance(default, Settings) else list(default) if isinstance(default, tuple) else default
    branches = [each for each in schema.get("anyOf", [schema]) if each.get("type") != "null"]
    options: tuple[str, ...] = ()
    if len(branches) == 1:
        options = (branches[0]["const"],) if "const" in branches[0] else tuple(map(str, branches[0].get("enum", ())))
    return Key(path, _values(schema), options, field.is_required(), plain, " ".join(str(field.description).split()))


def _values(schema: dict[str, Any]) -> str:
    """The values that a JSON schema allows, in words."""
    if "anyOf" in schema:
        return " | ".join(map(_values, schema["anyOf"]))
    if "enum" in schema or "const" in schema:
        return " | ".join(map(str, schema.get("enum", [schema.get("const")])))
    if "prefixItems" in schema:
        return f"list of {len(schema['prefixItems'])} {_plural(schema['prefixItems'][0])}"
    if "items" in schema:
        least = f" (at least {schema['minItems']})" if "minItems" in schema else ""
        return f"list of {_plural(schema['items'])}{least}"
    if "additionalProperties" in schema and "properties" not in schema:
        by = "integer" if "propertyNames" in schema else "name"  # JSON keys are text; for integers there is a pattern
        return f"{_plural(schema['additionalProperties'])} by {by}"
    bounds = [f"{sign} {schema[bound]:g}" for bound, sign in _BOUNDS.items() if bound in schema]
    return f"{_WORDS.get(schema.get('type', ''), 'settings')} {' and '.join(bounds)}".strip()


def _plural(schema: dict[str, Any]) -> str:
    words = _values(schema)
    return words if words in ("settings", "text") or "enum" in schema else f"{words}s"


def _inside(annotation: Any) -> tuple[type[Settings] | None, Path]:
    """The settings class in a type, and what a path has between its key and the keys inside."""
    return settings_within(annotation), _BETWEEN.get(get_origin(annotation), ())


def _full_path(prefix: str) -> Path:
    """The path of a prefix, with `NAME` and `NUMBER` for names and numbers, which it may omit."""
    path: Path = ()
    between: Path = ()
    settings: type[Settings] | None = Recipe
    for part in (part for part in prefix.split(".") if part):
        if settings is not None and part in settings.model_fields:
            path = (*path, *between, part)
            settings, between = _inside(settings.model_fields[part].annotation)
        elif between and (between[0] == NAME or part == NUMBER or part.isdigit()):
            path, between = (*path, between[0]), between[1:]
        elif settings is None:
            raise UserError(f"{'.'.join(path)} has no keys below it; ask for that key.")
        else:
            raise unknown(f"key below {'.'.join(path)}" if path else "key", part, settings.model_fields)
    return path
