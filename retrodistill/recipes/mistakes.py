"""Settings from dictionaries; what does not fit is told in one line, with its place."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, TypeVar

import pydantic

from retrodistill.core.errors import UserError, unknown
from retrodistill.training.settings import Settings

# Keys of version 0.1.0 and the names that replaced them.
RENAMED = {
    "space": "document_encoder",
    "towers": "train (query_encoder, both_encoders, lexical or head)",
    "lexical": "lexical_dim",
    "initialise": "initialize",
    "regularisers": "regularizers",
    "sharpness": "target_std",
}

Checked = TypeVar("Checked", bound=Settings)


def validated(model: type[Checked], content: dict[str, Any], source: str) -> Checked:
    """Settings of any kind from their dictionary; errors as for `parse_recipe`."""
    try:
        return model.model_validate(content)
    except pydantic.ValidationError as error:
        raise _first_mistake(error, model, source) from error


def _first_mistake(error: pydantic.ValidationError, model: type[Settings], source: str) -> UserError:
    first = error.errors()[0]
    path = _place(first)
    others = len({tuple(_place(one)) for one in error.errors()}) - 1
    more = f" ({others} more)" if others else ""
    if first["type"] == "extra_forbidden":
        *parents, key = path
        known = _keys_at(model, parents)
        if key in RENAMED and RENAMED[key].partition(" ")[0] in known:
            return UserError(f"{source}: {'.'.join(path)} was renamed to {RENAMED[key]}{more}.")
        return UserError(f"{source}: {unknown('key', key, known)} It stands in {'.'.join(parents) or 'top'}{more}.")
    # One value that fits none of several types fails once for each.
    alternatives = [one["msg"].removeprefix("Value error, ") for one in error.errors() if _place(one) == path]
    message = " or ".join([alternatives[0], *(one.removeprefix("Input should be ") for one in alternatives[1:])])
    given = first.get("input")
    shown = (
        "" if isinstance(given, (dict, list)) or first["type"] in ("missing", "value_error") else f", came {given!r}"
    )
    return UserError(f"{source}: {'.'.join(path) or 'recipe'}: {message.rstrip('.')}{shown}{more}.")


def _place(mistake: Any) -> list[str]:
    """Keys and numbers that lead to a mistake, without pydantic's names of the types that it tried."""
    return [str(part) for part in mistake["loc"] if part not in ("int", "str") and "[" not in str(part)]


def _keys_at(model: Any, path: Sequence[str]) -> list[str]:
    """The known keys of the settings that a path of keys leads to; names of students and numbers are passed over."""
    for part in path:
        if part in model.model_fields:
            model = _settings_within(model.model_fields[part].annotation) or model
    return list(model.model_fields)


def _settings_within(annotation: Any) -> Any:
    """The settings class that is ``X``, or stands inside ``list[X]`` or ``dict[str, X]``; else None."""
    options = (annotation, *getattr(annotation, "__args__", ()))
    return next((one for one in options if isinstance(one, type) and issubclass(one, Settings)), None)
