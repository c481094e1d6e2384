"""Downloads, compared with their published digests, and zip files, unpacked into one folder and nowhere else."""

from __future__ import annotations

import hashlib
import shutil
import stat
import zipfile
import zlib
from pathlib import Path, PurePosixPath, PureWindowsPath

from retrodistill.core.errors import UserError
from retrodistill.core.runtime import bar

_SECONDS = 60  # without a byte
_BLOCK = 1 << 20
_MOST_ENTRIES = 100_000  # of a zip file
_MOST_TIMES = 200  # as large as its zip file; text takes 3 to 20 times the room
_SMALL = 64 << 20  # bytes that any zip file may unpack to


def download(url: str, to: Path, what: str, md5: str | None = None) -> str:
    """Download a file over HTTPS, redirects included; its SHA-256. `what` names it in errors.

    MD5 is what BEIR publishes: it shows damage and another version, but not a forgery, against which HTTPS protects.

    Raises:
        UserError: The digest differs.
        requests.RequestException: The server does not answer, or not with the file.
    """
    import requests

    digests = hashlib.sha256(), hashlib.md5(usedforsecurity=False)
    with requests.Session() as session:
        session.adapters.pop("http://")  # no redirect to unencrypted HTTP
        with session.get(url, stream=True, timeout=_SECONDS) as response, to.open("wb") as file:
            response.raise_for_status()
            total = int(response.headers.get("Content-Length", 0)) or None
            with bar(total, f"downloading {what}", "bytes") as progress:
                for block in response.iter_content(_BLOCK):
                    file.write(block)
                    progress.update(len(block))
                    for digest in digests:
                        digest.update(block)
    sha256, found = (digest.hexdigest() for digest in digests)
    if md5 is not None and found != md5:
        raise UserError(
            f"the download of {what} is damaged or another version: its MD5 is {found}, the published one {md5}; try "
            "again, or look at its publisher's page."
        )
    return sha256


def unpack(archive: Path, folder: Path, inside: str, what: str) -> None:
    """Write the files of a zip file that are in its folder `inside` into an existing folder.

    Raises:
        UserError: It is not a whole zip file, has no such folder, holds a name that leads elsewhere or a link, or would
            unpack to far more than its size.
    """
    try:
        with zipfile.ZipFile(archive) as content:
            entries = content.infolist()
            _check_sizes(entries, archive, what)
            places = [(_parts(entry, what), entry) for entry in entries]
            wanted = [(parts[1:], entry) for parts, entry in places if parts[0] == inside and len(parts) > 1]
            if not wanted:
                raise UserError(f"{what} holds no folder {inside!r}; it is another file than its name says.")
            for parts, entry in wanted:
                target = folder.joinpath(*parts)
                if entry.is_dir():
                    target.mkdir(parents=True, exist_ok=True)
                    continue
                target.parent.mkdir(parents=True, exist_ok=True)
                # "x": an entry that is there twice, by letter case too, is an error
                with content.open(entry) as source, target.open("xb") as file:
                    shutil.copyfileobj(source, file, _BLOCK)  # which ends at the declared size
    except (zipfile.BadZipFile, zlib.error, EOFError, NotImplementedError, RuntimeError, ValueError) as error:
        raise UserError(f"{what} is not a whole zip file ({error}); get it again.") from error
    except (FileExistsError, NotADirectoryError) as error:
        raise UserError(f"{what} holds {Path(error.filename).name!r} twice; it is not what its name says.") from error


def _check_sizes(entries: list[zipfile.ZipInfo], archive: Path, what: str) -> None:
    size, total = archive.stat().st_size, sum(entry.file_size for entry in entries)
    if total > max(_SMALL, _MOST_TIMES * size) or len(entries) > _MOST_ENTRIES:
        raise UserError(
            f"{what} would unpack to {len(entries):,} files of {total:,} bytes, from {size:,}; that is not a data set: "
            "it is not unpacked."
        )


def _parts(entry: zipfile.ZipInfo, what: str) -> tuple[str, ...]:
    name = entry.orig_filename  # `filename` ends at a NUL
    windows = PureWindowsPath(name)
    leads_out = windows.anchor or ".." in windows.parts or "\0" in name or "\\" in name or not windows.parts
    if leads_out or stat.S_ISLNK(entry.external_attr >> 16):
        raise UserError(f"{what} holds {name!r}, a link or a name that leads out of its folder; it is not unpacked.")
    return PurePosixPath(name).parts
