"""JSON files with a checksum of their content, and one with the checksums of a folder's other files."""

from __future__ import annotations

import json
import os
from pathlib import Path
from typing import Any

from retrodistill.core.checksums import PREFIX, DamagedError, check_files, checksum, files_of
from retrodistill.core.disk import reason_of
from retrodistill.core.errors import UserError
from retrodistill.core.files import atomic_file
from retrodistill.core.paths import input_file, path_of

CHECKSUMS = "checksums.json"  # of the other files of a folder
CHECKSUM = "checksum"  # last key of a JSON object that is written


def write_json(path: str | os.PathLike[str], value: Any) -> None:
    """Write a value as indented JSON, atomically; an object with a checksum of its content. NaN raises ValueError."""
    text = json_object_text(value) if isinstance(value, dict) else json_text(value, indent=2) + "\n"
    with atomic_file(path) as temporary:
        temporary.write_text(text, encoding="utf-8")


def json_object_text(value: dict[str, Any]) -> str:
    """What `write_json` writes of an object."""
    content = {key: part for key, part in json.loads(json_text(value)).items() if key != CHECKSUM}
    return json_text({**content, CHECKSUM: _json_checksum(content)}, indent=2) + "\n"


def json_text(value: Any, encoding: str = "utf-8", indent: int | None = None) -> str:
    """A value as JSON that can be written in an encoding; what that lacks is escaped. NaN raises ValueError."""
    text = json.dumps(value, indent=indent, ensure_ascii=False, allow_nan=False)
    try:
        text.encode(encoding)
    except UnicodeEncodeError:  # also a file name that is not UTF-8, which comes back as it was
        return json.dumps(value, indent=indent, allow_nan=False)
    return text


def read_json(path: str | os.PathLike[str]) -> Any:
    """Read a JSON file; the checksum that `write_json` added is verified and left out."""
    try:
        # editors of Windows add a byte order mark
        content = parse_json(input_file(path_of(path)).read_text(encoding="utf-8-sig"))
    except FileNotFoundError as error:
        raise UserError(f"no file {path}.") from error
    except OSError as error:
        raise UserError(f"cannot read {path}: {reason_of(error, Path(path).parent)}.") from error
    except ValueError as error:
        raise UserError(f"{path} is not JSON ({error}); it may be cut short: delete it and make it again.") from error
    if isinstance(content, dict) and str(content.get(CHECKSUM)).startswith(PREFIX):
        wanted = content.pop(CHECKSUM)
        if wanted != _json_checksum(content):
            advice = f"make it again, or, if you changed it on purpose, delete {CHECKSUM!r} in it"
            raise DamagedError(path, "it is altered (checksum)", advice)
    return content


def _json_checksum(content: Any) -> str:
    return checksum(json.dumps(content).encode())


def parse_json(text: str | bytes) -> Any:
    """The value of a JSON text; whatever is wrong with it, too many digits or levels included, is a ValueError."""
    try:
        return json.loads(text)
    except RecursionError as error:
        raise ValueError("nested too deeply") from error


def write_checksums(folder: Path, *, but: str | None = None) -> None:
    """Write checksums of a folder's files, but of names that begin so, into one more; see `check_checksums`."""
    checksums = files_of(folder)
    write_json(folder / CHECKSUMS, {name: checksums[name] for name in checksums if not (but and name.startswith(but))})


def check_checksums(folder: Path, advice: str) -> None:
    """Check a folder's files, unless it has no checksums, as in earlier versions; as `checksums.check_files`."""
    if (folder / CHECKSUMS).is_file():
        check_files(folder, read_json(folder / CHECKSUMS), advice)
