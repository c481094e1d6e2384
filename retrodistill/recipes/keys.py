"""Every key of a recipe, read off the settings classes and their docstrings."""

from __future__ import annotations

import inspect
import re
import types
from collections.abc import Iterable
from dataclasses import dataclass
from typing import Any, Literal, NamedTuple, Union, get_args, get_origin

from annotated_types import Ge, Gt, Le, Lt, MinLen
from pydantic.fields import FieldInfo

from retrodistill.candidates.budget import BUDGETS
from retrodistill.candidates.samplers import SAMPLERS
from retrodistill.core.errors import UserError, unknown
from retrodistill.objectives.registry import OBJECTIVES, REGULARIZERS
from retrodistill.rankers.labels import LABELS
from retrodistill.recipes.settings import Recipe, StudentSettings
from retrodistill.runs.fusion import METHODS
from retrodistill.students.static import INITIALIZATIONS
from retrodistill.training.settings import (
    CandidateSettings,
    GroupSettings,
    ObjectiveSettings,
    RegularizerSettings,
    Settings,
    StageSettings,
)

NAME, PLACE = "NAME", "N"  # in a path: of a student, and in a list, from 0
CHOICES: dict[tuple[type[Settings], str], tuple[str, ...]] = {
    (Recipe, "fusion"): tuple(METHODS),
    (StudentSettings, "initialize"): tuple(INITIALIZATIONS),
    (StageSettings, "labels"): tuple(LABELS),
    (ObjectiveSettings, "name"): tuple(OBJECTIVES),
    (RegularizerSettings, "name"): tuple(REGULARIZERS),
    (CandidateSettings, "budget_by"): tuple(BUDGETS),
    (GroupSettings, "sampler"): tuple(SAMPLERS),
}  # text whose validator knows a closed list
_WORDS = {int: "integer", float: "number", str: "text", bool: "true or false", type(None): "null"}
_BOUNDS = {Ge: "≥ {0.ge:g}", Gt: "> {0.gt:g}", Le: "≤ {0.le:g}", Lt: "< {0.lt:g}", MinLen: "(at least {0.min_length})"}

Path = tuple[str, ...]


@dataclass(frozen=True)
class Key:
    """One key of a recipe.

    Attributes:
        path: From the recipe's top; ``NAME`` stands for a student's name, ``N`` for a place in a list, from 0.
        values: Its type, with bounds, in words.
        options: Every value of a closed choice, else nothing.
        needed: Whether it has no default.
        default: As JSON has it; None where it is null, or needed, or where settings stand below it.
        meaning: The docstring's words.
    """

    path: Path
    values: str
    options: tuple[str, ...]
    needed: bool
    default: Any
    meaning: str


class Section(NamedTuple):
    """The keys of one settings class where it stands.

    Attributes:
        path: Of the section; empty at the top.
        settings: The class.
        about: The first paragraph of its docstring.
        keys: In their order.
    """

    path: Path
    settings: type[Settings]
    about: str
    keys: list[Key]


def recipe_keys(prefix: str = "") -> list[Section]:
    """The keys at and below a prefix, sections in the order in which the settings name them.

    Args:
        prefix: A key's path, with or without names of students and places in lists: ``students.stages``,
            ``students.mine.stages.0.training``. Empty for all.

    Raises:
        UserError: There is no such key; the nearest is named.
    """
    wanted = _settled(prefix)
    found = []
    for section in _sections(Recipe, ()):
        keys = [key for key in section.keys if key.path[: len(wanted)] == wanted]
        if keys:
            found.append(section._replace(keys=keys))
    return found


def meanings(settings: type[Settings]) -> dict[str, str]:
    """What the docstrings of a settings class and of its bases say of each attribute."""
    found: dict[str, str] = {}
    for one in reversed([one for one in settings.__mro__ if issubclass(one, Settings)]):
        _, _, attributes = (inspect.getdoc(one) or "").partition("Attributes:\n")
        for name, text in re.findall(r"^    (\w+): (.*(?:\n        .*)*)", attributes, re.MULTILINE):
            plain = re.sub(r"`retrodistill\.(?:\w+\.)*(\w+)`", r"`\1`", text.replace("``", "`"))
            found[name] = " ".join(plain.split())
    return found


def _sections(settings: type[Settings], path: Path) -> Iterable[Section]:
    said = meanings(settings)
    about = " ".join((inspect.getdoc(settings) or "").partition("\n\n")[0].split())
    own = inspect.get_annotations(settings)
    names = sorted(settings.model_fields, key=lambda name: name not in own)  # those of a base come last
    keys = [_key(settings, name, (*path, name), said[name]) for name in names]
    yield Section(path, settings, about, keys)
    for name in names:
        inner, steps = _below(settings.model_fields[name].annotation)
        if inner is not None:
            yield from _sections(inner, (*path, name, *steps))


def _key(settings: type[Settings], name: str, path: Path, meaning: str) -> Key:
    field = settings.model_fields[name]
    options = CHOICES.get((settings, name), ()) or _literals(field.annotation)
    default = None if field.is_required() else field.get_default(call_default_factory=True)
    plain = None if isinstance(default, Settings) else list(default) if isinstance(default, tuple) else default
    return Key(path, _values(field, options), options, field.is_required(), plain, meaning)


def _values(field: FieldInfo, options: tuple[str, ...]) -> str:
    if options:
        words = [*options]
        words += [word for word in _kinds(field.annotation) if word not in ("text", *options)]
        return " | ".join(words)
    words = list(_kinds(field.annotation))
    bounds = [_BOUNDS[type(one)].format(one) for one in field.metadata if type(one) in _BOUNDS]
    return " | ".join([f"{words[0]} {' and '.join(bounds)}".strip(), *words[1:]])


def _kinds(annotation: Any) -> Iterable[str]:
    """The alternatives of a type, in words."""
    origin, inside = get_origin(annotation), get_args(annotation)
    if origin in (Union, types.UnionType):
        for one in inside:
            yield from _kinds(one)
    elif origin is Literal:
        yield from inside
    elif origin is list:
        yield f"list of {_plural(inside[0])}"
    elif origin is tuple:
        yield f"list of {len(inside)} {_plural(inside[0])}"
    elif origin is dict:
        yield f"{_plural(inside[1])} by {'name' if inside[0] is str else _WORDS[inside[0]]}"
    else:
        yield _WORDS.get(annotation, "settings")


def _plural(annotation: Any) -> str:
    word = " or ".join(_kinds(annotation))
    return word if word in ("settings", "text") else f"{word}s"


def _literals(annotation: Any) -> tuple[str, ...]:
    """Values of a type that allows nothing but these, and null perhaps; else nothing."""
    members = get_args(annotation) if get_origin(annotation) in (Union, types.UnionType) else (annotation,)
    named = [one for one in members if one is not type(None)]
    return tuple(get_args(named[0])) if len(named) == 1 and get_origin(named[0]) is Literal else ()


def _below(annotation: Any) -> tuple[type[Settings] | None, Path]:
    """The settings class inside a type, and what stands between: a name, a place in a list, or nothing."""
    if isinstance(annotation, type) and issubclass(annotation, Settings):
        return annotation, ()
    between: dict[Any, Path] = {list: (PLACE,), dict: (NAME,)}
    step = between.get(get_origin(annotation), ())
    for one in get_args(annotation):
        inner, steps = _below(one)
        if inner is not None:
            return inner, (*step, *steps)
    return None, ()


def _settled(prefix: str) -> Path:
    """The path that a prefix means, with `NAME` and `PLACE` where it has names and numbers or leaves them out."""
    path: Path = ()
    steps: Path = ()  # that may stand between the last key and the next
    settings: type[Settings] | None = Recipe
    for part in (part for part in prefix.split(".") if part):
        if settings is not None and part in settings.model_fields:
            path = (*path, *steps, part)
            settings, steps = _below(settings.model_fields[part].annotation)
        elif steps and (steps[0] == NAME or part == PLACE or part.isdigit()):
            path, steps = (*path, steps[0]), steps[1:]
        elif settings is None:
            raise UserError(f"there is no key below {'.'.join(path)}; ask for that one.")
        else:
            raise unknown(f"key below {'.'.join(path)}" if path else "key", part, settings.model_fields)
    return path
