"""Manifests: what an artifact was made from, so that it is reused, refused or redone, never mixed."""

from __future__ import annotations

import datetime
import os
import platform
import tomllib
from dataclasses import dataclass, field
from importlib import metadata
from pathlib import Path
from typing import Any

from retrodistill.core.errors import UserError
from retrodistill.core.files import digest, read_json, write_json

FILE_NAME = "manifest.json"
_LIBRARIES = ("retrodistill", "torch", "sentence-transformers", "transformers", "faiss-cpu", "bm25s", "numpy")


@dataclass(frozen=True)
class Manifest:
    """What went into an artifact.

    Attributes:
        artifact: What it is: ``"candidates"``, ``"index"``, ``"student"``...
        inputs: Fingerprint of each thing that went in, by name.
        settings: The settings it was made with, seeds included (JSON values).
        about: Facts that do not decide a match (counts, seconds, contracts).
    """

    artifact: str
    inputs: dict[str, str] = field(default_factory=dict)
    settings: dict[str, Any] = field(default_factory=dict)
    about: dict[str, Any] = field(default_factory=dict)

    @property
    def fingerprint(self) -> str:
        """Digest of artifact, inputs and settings; library versions and hardware are recorded but do not count."""
        return digest(self.artifact, self.inputs, self.settings)

    def write(self, folder: str | os.PathLike[str], name: str = FILE_NAME) -> None:
        """Write into a folder, with library versions, hardware and time; the last file of an artifact to appear."""
        write_json(
            Path(folder) / name,
            {
                "artifact": self.artifact,
                "fingerprint": self.fingerprint,
                "inputs": self.inputs,
                "settings": self.settings,
                "about": self.about,
                "versions": library_versions(),
                "hardware": hardware(),
                "created": datetime.datetime.now(datetime.UTC).isoformat(timespec="seconds"),
            },
        )

    @classmethod
    def read(cls, folder: str | os.PathLike[str], name: str = FILE_NAME) -> Manifest:
        """Read the manifest of a folder.

        Raises:
            UserError: There is none, or it is not a manifest.
        """
        path = Path(folder) / name
        content = read_json(path)
        try:
            return cls(content["artifact"], content["inputs"], content["settings"], content["about"])
        except KeyError as error:
            raise UserError(f"{path} is not a retrodistill manifest: it lacks {error}.") from error
        except TypeError as error:
            raise UserError(f"{path} is not a retrodistill manifest: it is not a JSON object.") from error

    def matches(self, folder: str | os.PathLike[str], name: str = FILE_NAME) -> bool:
        """Whether the folder holds an artifact made from the same inputs with the same settings."""
        if not (Path(folder) / name).exists():
            return False
        return Manifest.read(folder, name).fingerprint == self.fingerprint


def library_versions() -> dict[str, str]:
    """Versions of Python and of the libraries that decide a result."""
    versions = {"python": platform.python_version()}
    for name in _LIBRARIES:
        try:
            versions[name] = metadata.version(name)
        except metadata.PackageNotFoundError:
            versions[name] = (_clone_version() if name == "retrodistill" else None) or "absent"
    return versions


def _clone_version() -> str | None:
    """The version of this package where it runs from a clone that nobody installed."""
    project = Path(__file__).parents[2] / "pyproject.toml"
    about = tomllib.loads(project.read_text()).get("project", {}) if project.exists() else {}
    return str(about["version"]) if about.get("name") == "retrodistill" else None


def hardware() -> dict[str, Any]:
    """Processor, cores, memory in GiB and GPU of this machine."""
    facts: dict[str, Any] = {"machine": platform.machine(), "system": platform.system(), "cores": os.cpu_count()}
    cpuinfo = Path("/proc/cpuinfo")
    if cpuinfo.exists():
        models = [line.split(":", 1)[1].strip() for line in cpuinfo.read_text().splitlines() if "model name" in line]
        facts["processor"] = models[0] if models else platform.processor()
    if hasattr(os, "sysconf") and "SC_PHYS_PAGES" in os.sysconf_names:
        facts["memory_gib"] = round(os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES") / 2**30, 1)
    facts["gpu"] = _gpu()
    return facts


def _gpu() -> str | None:
    import torch

    return torch.cuda.get_device_name(0) if torch.cuda.is_available() else None
