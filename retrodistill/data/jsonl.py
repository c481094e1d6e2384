"""Readers of text files: lines and JSON objects with line numbers."""

from __future__ import annotations

import gzip
import json
import zlib
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

from retrodistill.core.errors import UserError, unknown

_BOM = b"\xef\xbb\xbf"


def read_lines(path: Path) -> Iterator[tuple[int, str]]:
    """Lines that are not blank, with their number from 1; ``.gz`` files are unpacked.

    Lines end at line feeds alone, because texts may hold other breaks. A byte order mark is dropped: it would become
    part of the first id.

    Raises:
        UserError: The file cannot be read, is not UTF-8 or is not a whole gzip file; the message names the line.
    """
    number = 0
    try:
        with gzip.open(path, "rb") if path.suffix == ".gz" else path.open("rb") as file:
            for number, raw in enumerate(file, start=1):
                line = raw.removeprefix(_BOM) if number == 1 else raw
                if line.strip():
                    yield number, line.decode("utf-8").rstrip("\r\n")
    except UnicodeDecodeError as error:
        raise UserError(
            f"{path}, line {number}: not UTF-8 (byte 0x{error.object[error.start]:02x} at {error.start}); "
            "convert the file to UTF-8."
        ) from error
    except (EOFError, gzip.BadGzipFile, zlib.error) as error:
        raise UserError(f"{path}, after line {number}: not a whole gzip file ({error}); fetch it again.") from error
    except OSError as error:
        raise UserError(f"cannot read {path}: {error.strerror or error}.") from error


def read_objects(path: Path, wanted: str) -> Iterator[tuple[int, dict[str, Any]]]:
    """The JSON objects of a file, one a line, with the line's number from 1.

    Args:
        path: The file.
        wanted: What a line should be, for messages, e.g. ``{"_id": ..., "text": ...}``.

    Raises:
        UserError: As `read_lines`, or a line is not a JSON object.
    """
    for number, line in read_lines(path):
        try:
            record = json.loads(line)
        except (json.JSONDecodeError, RecursionError) as error:
            raise UserError(f"{path}, line {number}: not JSON ({error}); wanted {wanted}.") from error
        if not isinstance(record, dict):
            kind = type(record).__name__
            raise UserError(f"{path}, line {number}: a JSON {kind}, not an object; wanted {wanted}.")
        yield number, record


def read_records(
    path: Path, what: str, required: Sequence[str], optional: Sequence[str] = ()
) -> Iterator[tuple[int, dict[str, Any]]]:
    """Objects with known keys and the number of their line, from 1.

    Args:
        path: The file.
        what: Noun for an object in messages.
        required: Keys that each has, not null.
        optional: Keys that it may have.

    Raises:
        UserError: As `read_objects`; or the file has no object, or one lacks a key or has an unknown one.
    """
    keys, is_empty = [*required, *optional], True
    for number, record in read_objects(path, f"one JSON object per {what}"):
        is_empty, where = False, f"{path}, line {number}"
        for key in record:
            if key not in keys:
                raise UserError(f"{where}: {unknown('key', key, keys)}")
        for key in required:
            if record.get(key) is None:
                raise UserError(f"{where}: no {key!r}; every {what} has {', '.join(required)}.")
        yield number, record
    if is_empty:
        raise UserError(f"{path} has no lines; wanted one JSON object per {what}, with {', '.join(required)}.")
