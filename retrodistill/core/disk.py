"""What a disk or a limit of the system refuses, reported in one line, whichever library was writing."""

from __future__ import annotations

import contextlib
import errno
import os
import tempfile
from collections.abc import Iterator
from pathlib import Path

from retrodistill.core.errors import UserError

# Error codes that no program can prevent, with the words of the system.
REFUSALS = {
    code: os.strerror(code)
    for name in (
        *("ENOSPC", "EDQUOT", "EFBIG", "EROFS", "EACCES", "EPERM", "EMFILE", "ENFILE", "EIO"),
        *("ENXIO", "ENODEV", "ENOTDIR", "ENAMETOOLONG", "ESTALE", "ETIMEDOUT", "EBUSY"),
    )
    if (code := getattr(errno, name, None)) is not None
}
# How Rust's libraries (safetensors, tokenizers), torch, FAISS, and SQLite word a failed write.
_WORDS = (
    *("os error", "PytorchStreamWriter", "inline_container", "iostream error", "write error in", "for writing"),
    *("database or disk is full", "disk I/O error", "unable to open database", "readonly database"),
)
_PROBED = 1 << 16  # bytes that are written to ask the system


@contextlib.contextmanager
def writing(place: str | os.PathLike[str]) -> Iterator[None]:
    """Turn a failed write of a file or folder into a UserError that names it and what the system refused."""
    try:
        yield
    except UserError:
        raise
    except Exception as error:
        if not (isinstance(error, OSError) or is_refusal(error)):
            raise
        reason = reason_of(error, Path(place))
        raise UserError(f"cannot write {place}: {reason}; nothing half-written was left there.") from error


def is_refusal(error: BaseException) -> bool:
    """Whether an exception of any class says that a disk or a limit of the system refused something."""
    code = getattr(error, "errno", None)
    return code in REFUSALS if code else any(words in str(error) for words in (*_WORDS, *REFUSALS.values()))


def reason_of(error: BaseException, place: Path) -> str:
    """What the system refused, in one line; where the library that wrote does not say it, the system is asked again."""
    message = str(error).strip() or type(error).__name__
    code = getattr(error, "errno", None)
    said = os.strerror(code) if code else next((words for words in REFUSALS.values() if words in message), None)
    if said is None:
        try:
            with tempfile.TemporaryFile(dir=place if place.is_dir() else place.parent) as probe:
                probe.write(bytes(_PROBED))
        except OSError as refusal:
            said = refusal.strerror
    reason = (said or message).splitlines()[0]
    return reason[:1].lower() + reason[1:]
