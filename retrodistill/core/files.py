"""Atomic writes (a file or folder is complete or absent), locks, JSON files and digests."""

from __future__ import annotations

import contextlib
import ctypes
import errno
import functools
import glob
import hashlib
import json
import os
import shutil
import tempfile
import time
import uuid
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any, TypeVar

import filelock
import numpy as np
import platformdirs

from retrodistill.core.arrays import save_array
from retrodistill.core.checksums import (
    PREFIX,
    DamagedError,
    check_files,
    checksum,
    files_of,
    seal,
    sealed_file,
)
from retrodistill.core.disk import reason_of, writing
from retrodistill.core.errors import UserError
from retrodistill.core.links import refuse_links_of_others
from retrodistill.core.runtime import is_main, log, of_libc

try:
    import fcntl
except ModuleNotFoundError:  # Windows
    fcntl = None  # type: ignore[assignment]

Value = TypeVar("Value")

CHECKSUMS = "checksums.json"  # of the other files of a folder
CHECKSUM = "checksum"  # last key of a JSON object that is written
_MOST_BYTES = 1 << 20  # of a file that a person wrote
_BLOCK = 4096  # texts that are fingerprinted at once
_MARK, _ENDING, _OLD = ".retrodistill-", ".part", ".old"  # of temporary names; the last one of a folder being replaced
_SYNCED = 8  # files whose way to the disk is waited for at once
_AT_FDCWD, _RENAME_EXCHANGE = -100, 2  # of renameat2(2)
_NO_EXCHANGE = (errno.EINVAL, errno.ENOSYS, errno.ENOTSUP)  # of a kernel or a file system that cannot swap names
_NO_LOCKS = (errno.ENOLCK, errno.ENOSYS, errno.ENOTSUP, errno.EBADF)  # the last one of folders on NFS
_NO_WAIT = getattr(os, "O_NONBLOCK", 0)  # for the other end of a pipe
_WAIT_SECONDS = 1.0  # before a log line says that another process has a lock
# What code raises that meets a value of a file of another type or size than it was written with.
_ALTERED = (LookupError, TypeError, ValueError, AttributeError, ArithmeticError, AssertionError, EOFError, UserError)
_READS = 10  # of a folder that is replaced during each of them
_BETWEEN_SECONDS = 1.0  # that a folder may be absent between the two renames of a writer


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
            if error.errno in _NO_LOCKS:
                return folder, None
            if error.errno not in (errno.ENOENT, errno.EWOULDBLOCK):  # another process took it for one that was left
                raise


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


@contextlib.contextmanager
def atomic_file(path: str | os.PathLike[str]) -> Iterator[Path]:
    """Yield a temporary path next to `path`; it is renamed to `path` on success and removed on failure.

    A symbolic link stays one: what it points to is replaced.
    """
    target = _behind_link(path)
    if target.exists() and not target.is_file():
        kind = "a folder" if target.is_dir() else "a device or a pipe"
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
    if target.exists() and not target.is_dir():
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
            if error.errno in _NO_LOCKS:  # nobody writes under the shared name there
                _remove(temporary)
            temporary = target.with_name(f"{_MARK}{target.name}.{uuid.uuid4().hex[:8]}{_ENDING}")
            stack.callback(_remove, temporary)
            try:
                stack.callback(os.close, _made(temporary, is_folder))
            except OSError as lacking:
                if lacking.errno not in _NO_LOCKS:
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
        if error.errno not in (*_NO_LOCKS, errno.EWOULDBLOCK):
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


def write_checksums(folder: Path, *, but: str | None = None) -> None:
    """Write checksums of a folder's files, but of names that begin so, into one more; see `check_checksums`."""
    checksums = files_of(folder)
    write_json(folder / CHECKSUMS, {name: checksums[name] for name in checksums if not (but and name.startswith(but))})


def check_checksums(folder: Path, advice: str) -> None:
    """Check a folder's files, unless it has no checksums, as in earlier versions; as `checksums.check_files`."""
    if (folder / CHECKSUMS).is_file():
        check_files(folder, read_json(folder / CHECKSUMS), advice)


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
        if error.errno in _NO_LOCKS:
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


def write_json(path: str | os.PathLike[str], value: Any) -> None:
    """Write a value as indented JSON, atomically; an object with a checksum of its content. NaN raises ValueError."""
    text = json_text(value, indent=2)
    if isinstance(value, dict):
        content = {key: part for key, part in json.loads(text).items() if key != CHECKSUM}
        text = json_text({**content, CHECKSUM: _json_checksum(content)}, indent=2)
    with atomic_file(path) as temporary:
        temporary.write_text(text + "\n", encoding="utf-8")


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
    """The path, or a `UserError` for a pipe, socket, or device, which may have no end; a missing one is no error."""
    if path.exists() and not path.is_file() and not path.is_dir():
        raise UserError(f"{path} is a pipe, a socket, or a device; give a file.")
    return path


def digest(*parts: object) -> str:
    """Fingerprint of JSON-like values, 16 hexadecimal digits; the order of dictionary keys does not matter."""
    text = json.dumps(parts, sort_keys=True, ensure_ascii=False, default=str)
    return hashlib.blake2b(text.encode("utf-8", "surrogatepass"), digest_size=8).hexdigest()


def texts_digest(texts: Sequence[str]) -> str:
    """``digest(*texts)``, without holding the texts at once."""
    state = hashlib.blake2b(b"[", digest_size=8)
    for start in range(0, len(texts), _BLOCK):
        block = json.dumps(list(texts[start : start + _BLOCK]), ensure_ascii=False)[1:-1]
        state.update(((", " if start else "") + block).encode())
    state.update(b"]")
    return state.hexdigest()


def file_digest(path: str | os.PathLike[str], algorithm: str = "blake2b") -> str:
    """Hexadecimal digest of a file's bytes, read in chunks."""
    with input_file(path_of(path)).open("rb") as file:
        try:
            return hashlib.file_digest(file, algorithm).hexdigest()
        except OSError as error:
            error.filename = str(path)  # which errors of reading lack
            raise


def content_digest(path: str | os.PathLike[str]) -> str:
    """Digest of a file, or of all files of a folder and their names there, but not of hidden ones and read-mes."""
    place = Path(path)
    files = [place]
    if place.is_dir():
        below = (file for file in sorted(place.rglob("*")) if file.is_file() and file.suffix != ".md")
        files = [file for file in below if not any(part.startswith(".") for part in file.relative_to(place).parts)]
    stats = [(file.relative_to(place).as_posix(), file.stat()) for file in files]
    return _content_digest(str(place), tuple((name, stat.st_size, stat.st_mtime_ns) for name, stat in stats))


@functools.lru_cache(maxsize=64)
def _content_digest(place: str, files: tuple[tuple[str, int, int], ...]) -> str:
    """As `content_digest`; files that have the size and time of before are not read again."""
    return digest([(name, file_digest(Path(place, name))) for name, _, _ in files])
