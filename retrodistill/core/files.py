"""Files that are whole or absent: write to a temporary name, then rename; and digests of what they hold."""

from __future__ import annotations

import contextlib
import hashlib
import json
import os
import shutil
import uuid
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import filelock
import platformdirs

from retrodistill.core.errors import UserError
from retrodistill.core.runtime import is_main


def cache_folder() -> Path:
    """Folder shared by all recipes: ``RETRODISTILL_CACHE``, or the platform's user cache folder."""
    return Path(os.environ.get("RETRODISTILL_CACHE") or platformdirs.user_cache_dir("retrodistill"))


def make_folder(path: str | os.PathLike[str]) -> Path:
    """Create a folder and its parents.

    Raises:
        UserError: It cannot be created or is not writable.
    """
    folder = Path(path)
    try:
        folder.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise UserError(f"cannot write to {folder}: {_reason(error)}; choose a writable folder.") from error
    if not os.access(folder, os.W_OK):
        raise UserError(f"cannot write to {folder}: permission denied; choose a writable folder.")
    return folder


@contextlib.contextmanager
def atomic_file(path: str | os.PathLike[str]) -> Iterator[Path]:
    """Yield a temporary path beside `path`; on success it is renamed to `path`, on failure removed.

    Raises:
        UserError: The disk is full or the folder is not writable.
    """
    target = Path(path)
    make_folder(target.parent)
    temporary = target.with_name(f".{target.name}.{uuid.uuid4().hex[:8]}.part")
    try:
        yield temporary
        _sync(temporary)
        os.replace(temporary, target)
    except OSError as error:
        raise _not_written(target, error) from error
    finally:
        with contextlib.suppress(OSError):
            temporary.unlink(missing_ok=True)


@contextlib.contextmanager
def atomic_folder(path: str | os.PathLike[str]) -> Iterator[Path]:
    """Yield a temporary folder beside `path`; on success it takes the place of `path`, on failure it is removed.

    Raises:
        UserError: The disk is full or the folder is not writable.
    """
    target = Path(path)
    make_folder(target.parent)
    if target.exists() and not target.is_dir():
        raise UserError(f"cannot write {target}: a file has that name; choose another folder.")
    temporary = target.with_name(f".{target.name}.{uuid.uuid4().hex[:8]}.part")
    try:
        temporary.mkdir()
        yield temporary
        _take_place(temporary, target)
    except OSError as error:
        raise _not_written(target, error) from error
    finally:
        shutil.rmtree(temporary, ignore_errors=True)


def check_replaceable(path: str | os.PathLike[str], mark: str) -> Path:
    """Check that a folder may be written or replaced: it is absent, empty, or an older artifact of the same kind.

    Args:
        path: The folder.
        mark: Name of a file that only such an artifact holds.

    Raises:
        UserError: Another kind of artifact is there and would be lost.
    """
    folder = Path(path)
    folder = folder if folder.name else folder.resolve()  # "." has no name to put a temporary folder beside
    if folder.is_dir():
        if any(folder.iterdir()) and not (folder / mark).is_file():
            raise UserError(f"{folder} holds other files (no {mark} among them), which would be lost; choose another.")
    elif folder.exists() or folder.is_symlink():
        raise UserError(f"{folder} is not a folder; choose another path.")
    make_folder(folder.parent)
    return folder


@contextlib.contextmanager
def exclusive(path: str | os.PathLike[str]) -> Iterator[None]:
    """Hold a lock file while working in a folder; the main process of several does it for all.

    Raises:
        UserError: Another process holds it.
    """
    if not is_main():
        yield
        return
    make_folder(Path(path).parent)
    lock = filelock.FileLock(path)
    try:
        lock.acquire(timeout=0)
    except filelock.Timeout as error:
        raise UserError(
            f"another run is working in {Path(path).parent}; wait for it or choose another output folder."
        ) from error
    try:
        yield
    finally:
        lock.release()


@contextlib.contextmanager
def disk_errors() -> Iterator[None]:
    """Raise what a full disk makes torch and safetensors raise as the OSError that it is."""
    from safetensors import SafetensorError

    try:
        yield
    except (SafetensorError, RuntimeError) as error:
        if not is_disk_error(error):
            raise
        raise OSError(str(error).strip().splitlines()[0]) from error


def is_disk_error(error: BaseException) -> bool:
    """Whether a library's error is about writing: they put the system's words into their own classes."""
    words = ("No space left", "os error", "PytorchStreamWriter", "inline_container", "File too large", "quota")
    return isinstance(error, OSError) or any(word in str(error) for word in words)


def write_json(path: str | os.PathLike[str], value: Any) -> None:
    """Write a value as indented JSON, atomically; NaN is refused."""
    text = json.dumps(value, indent=2, ensure_ascii=False, allow_nan=False)
    with atomic_file(path) as temporary:
        temporary.write_text(text + "\n", encoding="utf-8")


def read_json(path: str | os.PathLike[str]) -> Any:
    """Read a JSON file.

    Raises:
        UserError: It is missing, cannot be read or is not JSON.
    """
    try:
        return json.loads(Path(path).read_text(encoding="utf-8"))
    except FileNotFoundError as error:
        raise UserError(f"no file {path}.") from error
    except OSError as error:
        raise UserError(f"cannot read {path}: {_reason(error)}.") from error
    except (UnicodeDecodeError, json.JSONDecodeError) as error:
        raise UserError(f"{path} is not JSON ({error}); it may be cut short: delete it and make it again.") from error


def digest(*parts: object) -> str:
    """Fingerprint of any JSON-like values, 16 hexadecimal digits; dictionaries count by content, not order."""
    text = json.dumps(parts, sort_keys=True, ensure_ascii=False, default=str)
    return hashlib.blake2b(text.encode(), digest_size=8).hexdigest()


def file_digest(path: str | os.PathLike[str], algorithm: str = "blake2b") -> str:
    """Hexadecimal digest of a file's bytes, read in pieces."""
    with Path(path).open("rb") as file:
        return hashlib.file_digest(file, algorithm).hexdigest()


def _sync(path: Path) -> None:
    if path.is_file():
        with path.open("rb") as file:
            os.fsync(file.fileno())


def _take_place(temporary: Path, target: Path) -> None:
    """Move a folder to a path that may exist; the old one is restored if that fails."""
    if not target.exists():
        os.replace(temporary, target)
        return
    old = temporary.with_suffix(".old")
    os.replace(target, old)
    try:
        os.replace(temporary, target)
    except OSError:
        os.replace(old, target)
        raise
    shutil.rmtree(old, ignore_errors=True)


def _not_written(target: Path, error: OSError) -> UserError:
    return UserError(f"cannot write {target}: {_reason(error)}; nothing half-written was left there.")


def _reason(error: OSError) -> str:
    reason = (error.strerror or str(error) or type(error).__name__).splitlines()[0]
    return reason[:1].lower() + reason[1:]
