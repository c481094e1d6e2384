"""The cache that all recipes share: where it is, and what is made there once."""

from __future__ import annotations

import contextlib
import os
import shutil
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import TypeVar

import numpy as np
import platformdirs

from retrodistill.core.arrays import save_array
from retrodistill.core.checksums import DamagedError, seal, sealed_file
from retrodistill.core.errors import UserError
from retrodistill.core.files import atomic_file, atomic_folder, temporary_folder
from retrodistill.core.locks import lock_file, locked
from retrodistill.core.paths import make_folder, path_of
from retrodistill.core.runtime import log

Value = TypeVar("Value")


def cache_folder() -> Path:
    """The cache that all recipes share: ``RETRODISTILL_CACHE``, or the platform's user cache folder."""
    try:
        given = os.environ.get("RETRODISTILL_CACHE") or platformdirs.user_cache_dir("retrodistill")
        return path_of(Path(given).expanduser())
    except RuntimeError as error:  # a container may run as a user that the system does not know
        raise UserError("this user has no home folder to keep a cache in; set RETRODISTILL_CACHE to one.") from error


@contextlib.contextmanager
def throw_away_cache() -> Iterator[Path]:
    """An empty cache in place of the shared one inside the block, which is deleted afterwards."""
    before = os.environ.get("RETRODISTILL_CACHE")
    with temporary_folder() as folder:
        os.environ["RETRODISTILL_CACHE"] = str(folder)
        try:
            yield folder
        finally:
            if before is None:
                del os.environ["RETRODISTILL_CACHE"]
            else:
                os.environ["RETRODISTILL_CACHE"] = before


def make_once(folder: Path, make: Callable[[Path], None]) -> None:
    """Create a folder with the content that `make` writes, unless it exists; one process at a time.

    Nothing is written and no lock is taken for a folder that exists: its disk may be read-only.
    """
    if folder.exists():
        return
    make_folder(folder.parent)
    with locked(lock_file(folder.with_name(f".{folder.name}.lock"))):
        if not folder.exists():  # another process may have created it while this one waited for the lock
            with atomic_folder(folder) as temporary:
                make(temporary)


def open_once(folder: Path, make: Callable[[Path], None], read: Callable[[], Value]) -> Value:
    """Read a folder of the cache, which `make` writes if it does not exist, or if `read` finds it damaged."""
    make_once(folder, make)
    try:
        return read()
    except DamagedError as error:
        try:
            shutil.rmtree(folder)
        except OSError:
            raise error from None
        log(f"{error} It is made again.", always=True)
    make_once(folder, make)
    return read()


def cached_array(path: Path, make: Callable[[], np.ndarray]) -> np.ndarray:
    """An array in a file, which `make` computes if the file is missing or damaged. The file's name says what it is."""
    owner = path.stem
    try:
        loaded: np.ndarray = np.load(sealed_file(path, owner=owner, advice="it is made again"), allow_pickle=False)
        return loaded
    except FileNotFoundError:
        pass
    except (DamagedError, ValueError, EOFError, MemoryError) as error:
        log(str(error) if isinstance(error, DamagedError) else f"{path} is damaged; it is made again", always=True)
    array = make()
    with atomic_file(path) as temporary:
        save_array(temporary, array)
        seal(temporary, owner=owner)
    return array
