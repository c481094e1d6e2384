"""Digests: of values, which name what is cached, and of files."""

from __future__ import annotations

import functools
import hashlib
import json
import os
from collections.abc import Sequence
from pathlib import Path

from retrodistill.core.paths import input_file, path_of

_BLOCK = 4096  # texts that are fingerprinted at once


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
