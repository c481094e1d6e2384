"""Paths that users give, the folders that are made there, and small files that people wrote."""

from __future__ import annotations

import errno
import os
from pathlib import Path

from retrodistill.core.disk import reason_of
from retrodistill.core.errors import UserError
from retrodistill.core.links import refuse_links_of_others

_MOST_BYTES = 1 << 20  # of a file that a person wrote


def path_of(given: str | os.PathLike[str]) -> Path:
    """The path that a user gave, where ``~`` is a home folder; a `UserError` for one that cannot be used.

    No file has a path that is too long or with a NUL character, and Arrow and FAISS open none that is not UTF-8.
    """
    try:
        path = Path(given).expanduser()
        str(path).encode()
        os.lstat(path)
    except RuntimeError as error:
        raise UserError(f"{given}: there is no such home folder; give the whole path.") from error
    except ValueError as error:
        problem = "is not UTF-8" if isinstance(error, UnicodeError) else "has a NUL character"
        raise UserError(f"the path {str(given)!a} {problem}; rename it.") from error
    except OSError as error:
        if error.errno == errno.ENAMETOOLONG:
            raise UserError(f"{str(given)[:60]}...: a path of {len(str(given))} characters is too long.") from error
    return path


def make_folder(path: str | os.PathLike[str]) -> Path:
    """Create a folder and its parents."""
    folder = path_of(path)
    refuse_links_of_others(folder)
    try:
        folder.mkdir(parents=True, exist_ok=True)
        if not os.access(folder, os.W_OK):
            raise PermissionError(errno.EACCES, os.strerror(errno.EACCES))
    except OSError as error:
        raise UserError(f"cannot write to {folder}: {reason_of(error, folder)}; choose a writable folder.") from error
    return folder


def short_text(path: str | os.PathLike[str]) -> str:
    """The text of a file that a person wrote: settings, a prompt, or a key.

    Raises:
        UserError: It cannot be read, is larger than 1 MiB, or is not UTF-8.
    """
    file = input_file(path_of(path))
    try:
        if file.stat().st_size > _MOST_BYTES:
            raise UserError(f"{path} is larger than {_MOST_BYTES >> 20} MiB; give a file that a person wrote.")
        return file.read_text(encoding="utf-8-sig")
    except (OSError, ValueError) as error:  # a path may hold a NUL character
        reason = reason_of(error, file.parent) if isinstance(error, OSError) else str(error)
        raise UserError(f"cannot read {path}: {reason}.") from error


def input_file(path: Path) -> Path:
    """The path, or a `UserError` for a pipe, socket, or device, which may have no end; a missing one stays."""
    if path.exists() and not path.is_file() and not path.is_dir():
        raise UserError(f"{path} is a pipe, a socket, or a device; give a file.")
    return path
