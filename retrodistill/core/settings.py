"""The base class of all settings, helpers for pydantic fields and validators, and validation with readable errors."""

from __future__ import annotations

import contextlib
import importlib
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any, Self, TypeVar

from pydantic import (
    BaseModel,
    ConfigDict,
    GetCoreSchemaHandler,
    GetJsonSchemaHandler,
    ValidationError,
    model_validator,
)
from pydantic_core import CoreSchema, core_schema

from retrodistill.core.errors import UserError, unknown

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
_BEYOND = 2**63  # the smallest integer that libraries cannot take
_TYPES = ("int", "str", "constrained-int", "constrained-float", "constrained-str")  # pydantic's names
_RENAMED_KIND = ("judgements:", "judgments:")  # in model names, under any key

Valid = TypeVar("Valid", bound="Settings")


class Settings(BaseModel):
    """Base of all settings: frozen, rejects unknown keys; the string below a field is its documentation."""

    model_config = ConfigDict(extra="forbid", frozen=True, allow_inf_nan=False, use_attribute_docstrings=True)

    @model_validator(mode="after")
    def _integers_fit(self) -> Self:
        for name in type(self).model_fields:
            if (largest := _largest(getattr(self, name))) >= _BEYOND:
                raise ValueError(f"{name} holds {largest:.3g}, and integers have 64 bits")
        return self


@dataclass(frozen=True)
class OneOf:
    """A name from a closed list: ``Annotated[str, OneOf("sampler", "retrodistill.candidates.samplers:SAMPLERS")]``.

    Validation rejects other names and the JSON schema lists the valid ones. The list is imported on first use, because
    some registries load torch.
    """

    what: str  # what the name stands for, for the error message
    home: str  # ``module:attribute`` of the list, or of a mapping with the names as keys

    def names(self) -> list[str]:
        """All valid names, in their order."""
        module, _, attribute = self.home.partition(":")
        return list(getattr(importlib.import_module(module), attribute))

    def __get_pydantic_core_schema__(self, source: Any, handler: GetCoreSchemaHandler) -> CoreSchema:
        return core_schema.no_info_after_validator_function(self._checked, handler(source))

    def __get_pydantic_json_schema__(self, schema: CoreSchema, handler: GetJsonSchemaHandler) -> dict[str, Any]:
        return {**handler(schema), "enum": self.names()}

    def _checked(self, name: str) -> str:
        if name not in self.names():
            raise ValueError(str(unknown(self.what, name, self.names())))
        return name


@contextlib.contextmanager
def value_errors() -> Iterator[None]:
    """Inside a validator, turn a `UserError` into the ValueError that pydantic collects."""
    try:
        yield
    except UserError as error:
        raise ValueError(str(error)) from error


def validated(model: type[Valid], content: dict[str, Any], source: str, noun: str = "key", advice: str = "") -> Valid:
    """Settings from a dictionary; `noun` is what errors call a name in it: a recipe's key, or an option.

    The UserError for an unknown key or a value that does not fit begins with `source` and ends with `advice`.
    """
    try:
        return model.model_validate(content)
    except ValidationError as error:
        raise _first_mistake(error, model, source, noun, advice) from error


def _largest(value: Any) -> int:
    """The largest magnitude of an integer in a value."""
    if isinstance(value, dict):
        value = [*value, *value.values()]
    if isinstance(value, (list, tuple)):
        return max(map(_largest, value), default=0)
    return abs(value) if isinstance(value, int) else 0


def settings_within(annotation: Any) -> Any:
    """The settings class in ``X``, ``X | None``, ``list[X]`` or ``dict[str, X]``; None for other types."""
    options = (annotation, *getattr(annotation, "__args__", ()))
    return next((each for each in options if isinstance(each, type) and issubclass(each, Settings)), None)


def _first_mistake(error: ValidationError, model: type[Settings], source: str, noun: str, advice: str) -> UserError:
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
        place = f" It is in {where}{more}." if parents or noun == "key" else ""
        return UserError(f"{source}: {unknown(noun, key, _keys_at(model, parents))}{place}")
    # A value that fits none of several types has an error for each type.
    alternatives = [each["msg"].removeprefix("Value error, ") for each in error.errors() if _place(each) == path]
    message = " or ".join([alternatives[0], *(text.removeprefix("Input should be ") for text in alternatives[1:])])
    is_shown = not isinstance(value, (dict, list)) and first["type"] not in ("missing", "value_error")
    shown = f", not {value!r}" if is_shown else ""
    place = ".".join(path) or ("recipe" if noun == "key" else "settings")
    return UserError(f"{source}: {place}: {message.rstrip('.')}{shown}{more}{advice}.")


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
    is_unknown, last = mistake["type"] == "extra_forbidden", len(mistake["loc"]) - 1  # that key may have any name
    return [
        str(part)
        for place, part in enumerate(mistake["loc"])
        if (is_unknown and place == last) or (part not in _TYPES and "[" not in str(part))
    ]


def _keys_at(model: Any, path: Sequence[str]) -> list[str]:
    """The keys of the settings at a path; names of students and numbers in the path are skipped."""
    for part in path:
        if part in model.model_fields:
            model = settings_within(model.model_fields[part].annotation) or model
    return list(model.model_fields)
