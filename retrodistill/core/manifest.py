"""Manifests record what an artifact was made from, so that it can be reused, refused or made again."""

from __future__ import annotations

import datetime
import os
import platform
import tomllib
from dataclasses import dataclass, field, replace
from importlib import metadata
from pathlib import Path
from typing import Any

from retrodistill.core.checksums import check_files, files_of
from retrodistill.core.digests import digest
from retrodistill.core.errors import UserError
from retrodistill.core.formats import check_stamp, stamp
from retrodistill.core.json_files import read_json, write_json
from retrodistill.core.paths import path_of

FILE_NAME = "manifest.json"
_LIBRARIES = ("retrodistill", "torch", "sentence-transformers", "transformers", "faiss-cpu", "bm25s", "numpy")


@dataclass(frozen=True)
class Manifest:
    """What an artifact was made from."""

    artifact: str  # its kind: ``"candidates"``, ``"index"``, ``"student"``...
    inputs: dict[str, str] = field(default_factory=dict)  # fingerprint of each input, by name
    settings: dict[str, Any] = field(default_factory=dict)  # the settings used, seeds included (JSON values)
    about: dict[str, Any] = field(default_factory=dict)  # not in the fingerprint: counts, seconds, contracts
    files: dict[str, str] = field(default_factory=dict)  # nor are these: checksums of files of the folder, by name

    @property
    def fingerprint(self) -> str:
        """Digest of artifact, inputs and settings; library versions and hardware are recorded but not part of it."""
        return digest(self.artifact, self.inputs, self.settings)

    def write(self, folder: str | os.PathLike[str], name: str = FILE_NAME) -> None:
        """Write to a folder, with library versions, hardware and time. Call it last: it marks an artifact complete."""
        content = {
            "artifact": self.artifact,
            **stamp(self.artifact),
            "fingerprint": self.fingerprint,
            "inputs": self.inputs,
            "settings": self.settings,
            "about": self.about,
            **({"files": self.files} if self.files else {}),
            "versions": library_versions(),
            "hardware": hardware(),
            "created": datetime.datetime.now(datetime.UTC).isoformat(timespec="seconds"),
        }
        write_json(path_of(folder) / name, content)

    @classmethod
    def read(cls, folder: str | os.PathLike[str], name: str = FILE_NAME) -> Manifest:
        """Read the manifest of a folder; that of a format of a later release is a UserError."""
        path = path_of(folder) / name
        content = read_json(path)
        try:
            check_stamp(content, content["artifact"], path)
            artifact, inputs, settings, about = (content[key] for key in ("artifact", "inputs", "settings", "about"))
            return cls(artifact, inputs, settings, about, content.get("files", {}))
        except (KeyError, TypeError) as error:
            problem = f"lacks {error}" if isinstance(error, KeyError) else "is not a JSON object"
            raise UserError(f"{path} is not a retrodistill manifest: it {problem}.") from error

    def with_files(self, folder: str | os.PathLike[str]) -> Manifest:
        """The same with the checksums of a folder's files, as `files_of`."""
        return replace(self, files=files_of(path_of(folder)))

    def check_files(self, folder: str | os.PathLike[str], advice: str) -> None:
        """As `checksums.check_files`, for the files of the manifest; those that were added later are not looked at."""
        check_files(path_of(folder), self.files, advice)

    def matches(self, folder: str | os.PathLike[str], name: str = FILE_NAME) -> bool:
        """Whether the folder holds an artifact made from the same inputs with the same settings."""
        path = path_of(folder) / name
        return path.exists() and Manifest.read(folder, name).fingerprint == self.fingerprint


def library_versions() -> dict[str, str]:
    """Versions of Python and of the libraries that affect results."""
    versions = {"python": platform.python_version()}
    for name in _LIBRARIES:
        try:
            versions[name] = metadata.version(name)
        except metadata.PackageNotFoundError:
            versions[name] = (_clone_version() if name == "retrodistill" else None) or "absent"
    return versions


def _clone_version() -> str | None:
    """Version of this package when it runs from a clone without being installed."""
    project = Path(__file__).parents[2] / "pyproject.toml"
    about = tomllib.loads(project.read_text(encoding="utf-8")).get("project", {}) if project.exists() else {}
    return str(about["version"]) if about.get("name") == "retrodistill" else None


def hardware() -> dict[str, Any]:
    """Processor, cores, memory in GiB and GPU of this machine."""
    import torch

    facts: dict[str, Any] = {"machine": platform.machine(), "system": platform.system(), "cores": os.cpu_count()}
    cpuinfo = Path("/proc/cpuinfo")
    if cpuinfo.exists():
        models = [
            line.split(":", 1)[1].strip()
            for line in cpuinfo.read_text(encoding="utf-8", errors="replace").splitlines()
            if "model name" in line
        ]
        facts["processor"] = models[0] if models else platform.processor()
    if hasattr(os, "sysconf") and "SC_PHYS_PAGES" in os.sysconf_names:
        facts["memory_gib"] = round(os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES") / 2**30, 1)
    facts["gpu"] = torch.cuda.get_device_name(0) if torch.cuda.is_available() else None
    return facts
