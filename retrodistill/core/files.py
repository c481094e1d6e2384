"""Atomic writes: a file or folder is complete or absent. Temporary names, and what killed processes left there."""

from __future__ import annotations

import contextlib
import ctypes
import errno
import glob
import os
import shutil
import stat
import tempfile
import time
import uuid
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import TypeVar

from retrodistill.core.disk import writing
from retrodistill.core.errors import UserError
from retrodistill.core.links import refuse_links_of_others
from retrodistill.core.paths import make_folder, path_of
from retrodistill.core.runtime import of_libc

try:
    import fcntl
except ModuleNotFoundError:  # Windows
    fcntl = None  # type: ignore[assignment]

Value = TypeVar("Value")

_MARK, _ENDING, _OLD = ".retrodistill-", ".part", ".old"  # of temporary names; the last one of a folder being replaced
_SYNCED = 8  # files whose way to the disk is waited for at once
_AT_FDCWD, _RENAME_EXCHANGE = -100, 2  # of renameat2(2)
_NO_EXCHANGE = (errno.EINVAL, errno.ENOSYS, errno.ENOTSUP)  # of a kernel or a file system that cannot swap names
NO_LOCKS = (errno.ENOLCK, errno.ENOSYS, errno.ENOTSUP, errno.EBADF)  # the last one of folders on NFS
_NO_WAIT = getattr(os, "O_NONBLOCK", 0)  # for the other end of a pipe
# What code raises that meets a value of a file of another type or size than it was written with.
_ALTERED = (LookupError, TypeError, ValueError, AttributeError, ArithmeticError, AssertionError, EOFError, UserError)
_READS = 10  # of a folder that is replaced during each of them
_BETWEEN_SECONDS = 1.0  # that a folder may be absent between the two renames of a writer


@contextlib.contextmanager
def temporary_folder() -> Iterator[Path]:
    """A new folder among the system's temporary files, which is deleted afterwards.

    Those of killed processes are deleted before.
    """
    place = Path(tempfile.gettempdir())
    for left in place.glob(f"{_MARK}*{_ENDING}"):
        _remove_unlocked(left)
    folder, lock = _locked_folder(place)
    try:
        yield folder
    finally:
        _remove(folder)
        if lock is not None:
            os.close(lock)


def _locked_folder(place: Path) -> tuple[Path, int | None]:
    """A new folder, and the descriptor that has its lock: None where the file system has no locks."""
    while True:
        folder = Path(tempfile.mkdtemp(_ENDING, _MARK, place))
        try:
            return folder, _lock(folder, os.O_RDONLY)
        except OSError as error:
            if error.errno in NO_LOCKS:
                return folder, None
            if error.errno not in (errno.ENOENT, errno.EWOULDBLOCK):  # another process took it for one that was left
                raise


@contextlib.contextmanager
def atomic_file(path: str | os.PathLike[str]) -> Iterator[Path]:
    """Yield a temporary path next to `path`; it is renamed to `path` on success and removed on failure.

    A symbolic link stays one: what it points to is replaced.
    """
    target = _behind_link(path)
    with contextlib.suppress(OSError):
        mode = target.stat().st_mode  # asked once: another process may remove or rename it between two questions
        if not stat.S_ISREG(mode):
            kind = "a folder" if stat.S_ISDIR(mode) else "a device or a pipe"
            raise UserError(f"cannot write {target}: it is {kind}; choose another file.")
    with _temporary(target, is_folder=False) as temporary:
        yield temporary
        if not temporary.stat().st_mtime:
            raise FileNotFoundError(errno.ENOENT, os.strerror(errno.ENOENT), str(target))
        _sync(temporary)
        os.replace(temporary, target)


@contextlib.contextmanager
def atomic_folder(path: str | os.PathLike[str]) -> Iterator[Path]:
    """Yield a temporary folder next to `path`; it replaces a folder at `path` on success and is removed on failure.

    Where the system can swap two folders, as Linux can, there is a whole one at `path` at any time. A symbolic link
    stays one: what it points to is replaced.
    """
    target = _behind_link(path)
    with contextlib.suppress(OSError):
        if not stat.S_ISDIR(target.stat().st_mode):
            raise UserError(f"cannot write {target}: a file has that name; choose another folder.")
    with _temporary(target, is_folder=True) as temporary:
        yield temporary
        files = [path for path in temporary.rglob("*") if path.is_file()]
        with ThreadPoolExecutor(_SYNCED) as threads:  # they wait for the disk together
            list(threads.map(_sync, files))
        while not _put(temporary, target):  # another process made or removed the folder between two steps
            continue


def _sync(file: Path) -> None:
    """Wait until a file is on disk; some file systems notice only now that it does not fit."""
    with file.open("rb") as opened:
        os.fsync(opened.fileno())


def _put(temporary: Path, target: Path) -> bool:
    """Give a folder its name; one that has the name is then the temporary one, or gone. False to try again."""
    try:
        if target.exists():
            return _exchange(temporary, target) or _replace(temporary, target)
        os.rename(temporary, target)
    except FileNotFoundError:
        if not temporary.exists():
            raise
        return False
    except OSError as error:
        if error.errno in (errno.ENOTEMPTY, errno.EEXIST):
            return False
        raise
    return True


def _exchange(first: Path, second: Path) -> bool:
    """Swap the names of two folders in one step, so that readers find one or the other; False where none can."""
    swap = of_libc("renameat2")
    if swap is None:
        return False
    if swap(_AT_FDCWD, os.fsencode(first), _AT_FDCWD, os.fsencode(second), _RENAME_EXCHANGE) == 0:
        return True
    number = ctypes.get_errno()
    if number in _NO_EXCHANGE:
        return False
    raise OSError(number, os.strerror(number))


def _replace(temporary: Path, target: Path) -> bool:
    """Put a folder in place of another by two renames. `read_whole` waits for the second one."""
    old = target.with_name(f"{_MARK}{target.name}.{uuid.uuid4().hex[:8]}{_OLD}")
    os.rename(target, old)
    try:
        os.rename(temporary, target)
    except OSError:
        if target.exists():  # that of another process
            shutil.rmtree(old, ignore_errors=True)
        else:
            os.rename(old, target)
        raise
    shutil.rmtree(old, ignore_errors=True)
    return True


def read_whole(folder: str | os.PathLike[str], read: Callable[[], Value]) -> Value:
    """What `read` returns, from one version of a folder that another process may replace meanwhile.

    If the folder was replaced during the call, `read` is called again, and its errors count only if the folder stayed
    the same. Files that are open or memory-mapped afterwards keep their content.

    Raises:
        UserError: The folder was replaced during each of ten calls; or something in it is of another type or size than
            what is written there, which can come out anywhere in reading.
    """
    place = path_of(folder)
    for _ in range(_READS):
        with _held_open(place) as version:
            try:
                value = read()
            except _ALTERED as error:
                if version == _version(place):
                    if version is None or isinstance(error, UserError):
                        raise
                    reason = (str(error).splitlines() or [""])[0][:160]
                    problem = f"{type(error).__name__}: {reason}" if reason else type(error).__name__
                    raise UserError(f"{place} is damaged or was altered ({problem}); make it again.") from error
            except Exception:
                if version == _version(place):
                    raise
            else:
                if version == _version(place):
                    return value
    raise UserError(f"{place} is replaced again and again while it is read; wait until that ends.")


@contextlib.contextmanager
def _held_open(folder: Path) -> Iterator[tuple[int, int] | None]:
    """The version of a folder inside the block, in which the system gives no other folder the same number."""
    descriptor = None
    with contextlib.suppress(OSError):  # there is none, or the system does not open folders
        descriptor = os.open(folder, os.O_RDONLY | _NO_WAIT)
    try:
        yield _version(folder)
    finally:
        if descriptor is not None:
            os.close(descriptor)


def _version(folder: Path) -> tuple[int, int] | None:
    """What differs between a folder and the one that replaces it; None if there is none."""
    deadline = time.monotonic() + _BETWEEN_SECONDS
    while True:
        with contextlib.suppress(OSError):
            stat = folder.stat()
            return stat.st_dev, stat.st_ino
        is_between = folder.name and any(folder.parent.glob(f"{_MARK}{glob.escape(folder.name)}.*{_OLD}"))
        if not is_between or time.monotonic() > deadline:
            return None
        time.sleep(0.01)


def _behind_link(path: str | os.PathLike[str]) -> Path:
    place = path_of(path)
    refuse_links_of_others(place)
    return Path(os.path.realpath(place)) if place.is_symlink() else place


@contextlib.contextmanager
def _temporary(target: Path, *, is_folder: bool) -> Iterator[Path]:
    """An empty file or folder next to the target; what is left there at the end is removed.

    Its name is always the same, so that whoever writes the target next removes what a killed process left. Only where
    that cannot be locked, since another process is writing the target now, it is of another user, or its disk has no
    locks, the file or folder has a name of its own.
    """
    make_folder(target.parent)
    with contextlib.ExitStack() as stack, writing(target):
        temporary = target.with_name(f"{_MARK}{target.name}{_ENDING}")
        try:
            stack.callback(_discard, temporary, _made(temporary, is_folder))
        except OSError as error:
            if error.errno in NO_LOCKS:  # nobody writes under the shared name there
                _remove(temporary)
            temporary = target.with_name(f"{_MARK}{target.name}.{uuid.uuid4().hex[:8]}{_ENDING}")
            stack.callback(_remove, temporary)
            try:
                stack.callback(os.close, _made(temporary, is_folder))
            except OSError as lacking:
                if lacking.errno not in NO_LOCKS:
                    raise
        if is_folder:
            for left in temporary.iterdir():
                _remove(left)
        else:
            os.truncate(temporary, 0)
            os.utime(temporary, (0, 0))  # tells whether it was written
        yield temporary


def _made(path: Path, is_folder: bool) -> int:
    """Make a temporary file or folder, unless it is there, and lock it; as `_lock`."""
    if not is_folder:
        return _lock(path, os.O_RDWR | os.O_CREAT)
    path.mkdir(exist_ok=True)
    try:
        return _lock(path, os.O_RDONLY)
    except OSError as error:
        if error.errno not in (*NO_LOCKS, errno.EWOULDBLOCK):
            with contextlib.suppress(OSError):  # it is not empty: it was there
                path.rmdir()
        raise


def _lock(path: Path, flags: int) -> int:
    """Lock a temporary file or folder without waiting; the descriptor that has the lock, until it or its process ends.

    Raises:
        OSError: Another process has it, or has renamed or removed the path, it is a link or of another user, or its
            disk has no locks.
    """
    descriptor = os.open(path, flags | getattr(os, "O_NOFOLLOW", 0), 0o666)
    try:
        if hasattr(os, "geteuid") and os.fstat(descriptor).st_uid != os.geteuid():
            raise PermissionError(errno.EACCES, os.strerror(errno.EACCES))
        if fcntl is None:
            raise OSError(errno.ENOLCK, os.strerror(errno.ENOLCK))
        fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
        if not _is_at(descriptor, path):
            raise FileNotFoundError(errno.ENOENT, os.strerror(errno.ENOENT))
    except OSError:
        os.close(descriptor)
        raise
    return descriptor


def _is_at(descriptor: int, path: Path) -> bool:
    with contextlib.suppress(OSError):
        return os.path.samestat(os.fstat(descriptor), path.stat())
    return False


def _discard(path: Path, lock: int) -> None:
    """Remove what is at the temporary path of a file or folder that this process has locked, and release the lock."""
    if _is_at(lock, path):
        _remove(path)
        os.close(lock)
    else:  # It got its name. What is here now was swapped with it, or is another process's.
        os.close(lock)
        _remove_unlocked(path)


def _remove_unlocked(path: Path) -> None:
    with contextlib.suppress(OSError):
        lock = _lock(path, os.O_RDONLY if path.is_dir() else os.O_RDWR)
        _remove(path)
        os.close(lock)


def is_leftover(path: Path) -> bool:
    """Whether a path has a temporary name."""
    return path.name.startswith(_MARK)


def remove_leftovers(folder: Path) -> None:
    """Remove what killed processes left under temporary names in a folder and in the folders there."""
    for pattern in (f"{_MARK}*{_ENDING}", f"*/{_MARK}*{_ENDING}"):
        for left in folder.glob(pattern):
            _remove_unlocked(left)


def _remove(path: Path) -> None:
    """Remove a file or folder, if there is one; never an error, which could hide another."""
    shutil.rmtree(path, ignore_errors=True)
    with contextlib.suppress(OSError):
        path.unlink()


def check_replaceable(path: str | os.PathLike[str], mark: str) -> Path:
    """Check that a folder is absent, empty, or holds an older artifact, which alone contains a file named `mark`."""
    folder = path_of(path)
    folder = folder if folder.name else folder.resolve()  # "." has no name for the temporary folder next to it
    if folder.is_dir():
        # a writer that is killed at once leaves its lock and temporary files
        left = (entry for entry in folder.iterdir() if not is_leftover(entry))
        others = (entry for entry in left if not (entry.name.startswith(".") and entry.name.endswith(".lock")))
        if any(others) and not (folder / mark).is_file():
            raise UserError(f"{folder} holds other files (no {mark} among them), which would be lost; choose another.")
    elif folder.exists() or folder.is_symlink():
        raise UserError(f"{folder} is not a folder; choose another path.")
    make_folder(folder.parent)
    return folder
