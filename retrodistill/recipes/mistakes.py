"""Settings from dictionaries; what does not fit is reported in one line, with its place."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, TypeVar

import pydantic

from retrodistill.core.errors import UserError, unknown
from retrodistill.core.settings import Settings

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
