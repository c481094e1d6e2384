"""Locks that processes and threads share: of a file, and of an output folder."""

from __future__ import annotations

import contextlib
import os
from collections.abc import Iterator
from pathlib import Path

import filelock

from retrodistill.core.disk import reason_of
from retrodistill.core.errors import UserError
from retrodistill.core.files import NO_LOCKS, remove_leftovers
from retrodistill.core.paths import make_folder, path_of
from retrodistill.core.runtime import is_main, log

_WAIT_SECONDS = 1.0  # before a log line says that another process has a lock


def lock_file(path: str | os.PathLike[str]) -> filelock.BaseFileLock:
    """A lock for `locked`, which a thread that has it may take again; its file is made for it and stays."""
    # In place of locks that the file system lacks, filelock makes files, which stay when their process is killed.
    return filelock.FileLock(path_of(path), fallback_to_soft=False)


@contextlib.contextmanager
def locked(lock: filelock.BaseFileLock, *, wait: bool = True) -> Iterator[None]:
    """Have a lock inside the block, in which one thread of one process is at a time.

    The system releases the lock of a process that dies. A log line says that this one waits for another process.

    Raises:
        UserError: The file cannot be written, or its file system has no locks.
        filelock.Timeout: Another one has it, and `wait` is not set.
    """
    folder = Path(lock.lock_file).parent
    try:
        try:
            lock.acquire(timeout=_WAIT_SECONDS if wait else 0)
        except filelock.Timeout:
            if not wait:
                raise
            log(f"waiting for another process that is writing to {folder}")
            lock.acquire()
    except filelock.Timeout:
        raise
    except OSError as error:
        advice = "choose a writable folder"
        if error.errno in NO_LOCKS:
            advice = "its file system has no locks: choose a local disk (for the cache, set RETRODISTILL_CACHE)"
        raise UserError(f"cannot lock {lock.lock_file}: {reason_of(error, folder)}; {advice}.") from error
    try:
        yield
    finally:
        lock.release()


@contextlib.contextmanager
def exclusive(path: str | os.PathLike[str]) -> Iterator[None]:
    """Lock a folder, or raise a UserError if another run holds it; under torchrun only the main process locks."""
    if not is_main():
        yield
        return
    place = path_of(path)
    folder = make_folder(place.parent)
    with contextlib.ExitStack() as stack:
        try:
            stack.enter_context(locked(lock_file(place), wait=False))
        except filelock.Timeout as error:
            message = f"another run is working in {folder}; wait for it or choose another output folder."
            raise UserError(message) from error
        remove_leftovers(folder)
        yield
