"""JSON Lines with known keys: one object a line, each with the place where it stood."""

from __future__ import annotations

import json
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

from retrodistill.core.errors import UserError, unknown


def read_objects(
    path: Path, what: str, required: Sequence[str], optional: Sequence[str] = ()
) -> Iterator[tuple[int, dict[str, Any]]]:
    """The objects of a file and their lines, numbered from 1; blank lines are passed over.

    Args:
        path: The file.
        what: What an object is, in a word for messages.
        required: Keys that each has, not null.
        optional: Keys that it may have.

    Raises:
        UserError: The file cannot be read or has no object, or a line is none, lacks a key or has an unknown one; the
            message names the line.
    """
    keys, empty = [*required, *optional], True
    for place, line in _lines(path):
        empty, where = False, f"{path}, line {place}"
        try:
            record = json.loads(line)
        except (json.JSONDecodeError, RecursionError) as error:
            raise UserError(f"{where}: not JSON ({error}); wanted one object a {what}.") from error
        if not isinstance(record, dict):
            raise UserError(f"{where}: a JSON {type(record).__name__}, not an object; wanted one object a {what}.")
        for key in record:
            if key not in keys:
                raise UserError(f"{where}: {unknown('key', key, keys)}")
        for key in required:
            if record.get(key) is None:
                raise UserError(f"{where}: no {key!r}; every {what} has {', '.join(required)}.")
        yield place, record
    if empty:
        raise UserError(f"{path} has no lines; wanted one JSON object a {what}, with {', '.join(required)}.")


def _lines(path: Path) -> Iterator[tuple[int, str]]:
    """Lines that are not blank; split at line feeds alone, as texts may hold other breaks."""
    place = 0
    try:
        with path.open("rb") as file:
            for place, raw in enumerate(file, start=1):
                if raw.strip():
                    yield place, raw.decode("utf-8-sig" if place == 1 else "utf-8")
    except UnicodeDecodeError as error:
        raise UserError(f"{path}, line {place}: not UTF-8 ({error.reason}); convert the file to UTF-8.") from error
    except OSError as error:
        raise UserError(f"cannot read {path}: {error.strerror or error}.") from error
