"""Rates of past work on this machine, in one JSON file of the cache, so that a plan need not measure them again."""

from __future__ import annotations

import os
from typing import Any

from retrodistill.core.cache import cache_folder
from retrodistill.core.digests import digest
from retrodistill.core.errors import UserError
from retrodistill.core.json_files import read_json, write_json
from retrodistill.core.locks import lock_file, locked
from retrodistill.core.manifest import hardware
from retrodistill.core.paths import make_folder
from retrodistill.core.runtime import processes

_FILE = "rates.json"
_KEPT = 1000  # rates; the oldest are dropped


def rate_key(*about: Any) -> str:
    """Key of the rates of some work: what decides them (JSON values), this machine, its threads and processes."""
    import torch

    return digest(*about, hardware(), torch.get_num_threads(), processes(), os.environ.get("OMP_NUM_THREADS"))


def remembered(key: str) -> dict[str, float] | None:
    """The rates that were last written under a key; None if there are none."""
    rates: dict[str, float] | None = _read().get(key)
    return rates


def remember(key: str, rates: dict[str, float]) -> None:
    """Write rates under a key, in place of earlier ones. A cache that cannot be written keeps none."""
    try:
        folder = make_folder(cache_folder())
        with locked(lock_file(folder / f".{_FILE}.lock")):
            others = {name: value for name, value in _read().items() if name != key}
            write_json(folder / _FILE, dict([*others.items(), (key, rates)][-_KEPT:]))
    except (UserError, OSError):
        return


def _read() -> dict[str, dict[str, float]]:
    try:
        content = read_json(cache_folder() / _FILE)
    except UserError:  # there is none, or it is damaged: it is only a record, and is written anew
        return {}
    return content if isinstance(content, dict) else {}
