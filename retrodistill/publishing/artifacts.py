"""What of a folder is uploaded: the files that its manifest lists, whole, and without folders of this machine."""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import xxhash

from retrodistill.core.checksums import PREFIX, check_files, files_of, map_sealed
from retrodistill.core.errors import UserError, unknown
from retrodistill.core.json_files import CHECKSUM, json_object_text, read_json
from retrodistill.core.manifest import FILE_NAME, Manifest
from retrodistill.core.paths import path_of
from retrodistill.core.published import holds_key, published_value
from retrodistill.encoders.contract import STUDENT_MANIFEST
from retrodistill.encoders.loading import check_student
from retrodistill.encoders.model_files import check_model_files, leads_out
from retrodistill.encoders.names import KINDS
from retrodistill.indexes.base import read_index_manifest
from retrodistill.indexes.columns import COLUMNS_FILE

CARD = "README.md"
_RECIPE, _STUDENTS, _INDEXES = "recipe.yaml", "students", "indexes"  # of the folder of a job
_READ = 1 << 20  # bytes of the largest text that is searched for keys and places
_TEXTS = (".json", ".md", ".txt", ".yaml", ".py")
_PLACE = "name_or_path"  # how libraries call where a model was loaded from


@dataclass(frozen=True)
class Artifact:
    """A student or an index in a folder; all checksums were verified."""

    kind: str  # ``student`` or ``index``
    folder: Path
    mark: str  # name of its manifest
    manifest: Manifest
    files: list[str]  # names of its other files, without the card

    def contents(self, names: Mapping[str, str]) -> dict[str, Path | bytes]:
        """What is uploaded, by name, without the card: a file, or the bytes that replace it.

        `names` are names on the hub of models that the manifest names otherwise. A file that holds a key is a
        `UserError`.
        """
        found: dict[str, Path | bytes] = {name: self.folder / name for name in self.files}
        checksums = dict(self.manifest.files)
        for name in self.files:
            path = self.folder / name
            if path.suffix not in _TEXTS or path.stat().st_size > _READ:
                continue
            text = path.read_text(encoding="utf-8", errors="replace")
            refuse_key(text, name)
            if path.suffix == ".json" and (config := _without_places(json.loads(text))) is not None:
                found[name] = changed = json.dumps(config, indent=2, ensure_ascii=False).encode()
                checksums[name] = PREFIX + xxhash.xxh3_128_hexdigest(changed)
        content = read_json(self.folder / self.mark)
        if checksums:
            content["files"] = checksums
        settings, inputs = published_value(content["settings"]), published_value(content["inputs"])
        content |= {"settings": settings, "inputs": inputs, "about": published_value(_named(content["about"], names))}
        content["fingerprint"] = Manifest(content["artifact"], inputs, settings).fingerprint
        text = json_object_text(content)
        refuse_key(text, self.mark)
        return {**found, self.mark: text.encode()}

    def model_names(self) -> dict[str, str]:
        """The document encoder and the query encoder of an index, as its manifest names them; a student has none."""
        if self.kind != "index":
            return {}
        about = self.manifest.about
        return {"documents": about["space"]["documents_by"] or "", "queries": about["queries_by"] or ""}


def open_artifact(folder: Path, student: str | None = None) -> Artifact:
    """The student or the index in a folder, or a student of a job's folder, after its checksums were verified.

    Args:
        folder: Of a student, an index, or a job.
        student: Of a job: the name of the student, unless there is only one.

    Raises:
        UserError: There is no such artifact, or a file of it is missing or damaged.
    """
    folder = path_of(folder)
    if not folder.is_dir():
        raise UserError(f"no folder {folder}; give the folder of a student, an index, or a job.")
    if (folder / _RECIPE).is_file():
        folder = _of_job(folder, student)
    elif student is not None:
        raise UserError(f"student {student!r} is for the folder of a job, and {folder} is none; leave it out.")
    if (folder / STUDENT_MANIFEST).is_file():
        return _student(folder)
    if (folder / FILE_NAME).is_file():
        return _index(folder)
    raise UserError(
        f"{folder} holds neither a student (no {STUDENT_MANIFEST}) nor an index (no {FILE_NAME}); give one of them, or "
        "the folder of a job."
    )


def refuse_key(text: str, name: str) -> None:
    """Refuse to upload a text that holds something of the form of a key."""
    if holds_key(text):
        raise UserError(f"{name} holds what looks like a key to a service; remove it before the folder is uploaded.")


def is_here(name: str, folder: Path) -> bool:
    """Whether a model's name, as a manifest in a folder has it, is a folder or file of this machine."""
    kind, _, place = name.partition(":")
    is_local = place.startswith((".", "/", "~")) or "\\" in place or (folder / place).exists()
    return kind in KINDS and bool(place) and is_local


def _of_job(folder: Path, student: str | None) -> Path:
    from retrodistill.recipes.loading import load_recipe  # with torch, which other folders do not need

    found = sorted(path.parent.name for path in folder.glob(f"{_STUDENTS}/*/{STUDENT_MANIFEST}"))
    own = sorted(set(load_recipe(folder / _RECIPE).students).intersection(found))  # without controls
    if student is None and len(own) == 1:
        student = own[0]
    if student in found:
        return folder / _STUDENTS / student
    if student is not None:
        raise unknown("student of this job", student, found)
    if not found:
        raise UserError(f"the job in {folder} has no finished student; for an index, give {folder / _INDEXES}/NAME.")
    raise UserError(f"the job in {folder} has the students {', '.join(own)}; choose one with student, or --student.")


def _student(folder: Path) -> Artifact:
    manifest = Manifest.read(folder, STUDENT_MANIFEST)
    check_student(folder)
    check_model_files(folder)
    # version 0.1.0 wrote no checksums
    files = list(manifest.files) or [name for name in files_of(folder) if not name.startswith("checkpoint-")]
    return Artifact("student", folder, STUDENT_MANIFEST, manifest, _own(files, folder, STUDENT_MANIFEST))


def _index(folder: Path) -> Artifact:
    manifest = read_index_manifest(folder)
    checksums = dict(manifest.about["checksums"])
    files = _own(list(checksums), folder, FILE_NAME)
    advice = "build the index again"
    if checksums.get(COLUMNS_FILE, "").startswith(PREFIX):
        seal = checksums.pop(COLUMNS_FILE)
        if (folder / COLUMNS_FILE).is_file():
            map_sealed(folder / COLUMNS_FILE, advice=advice, expected=seal).verify()
        else:
            check_files(folder, {COLUMNS_FILE: seal}, advice)
    check_files(folder, checksums, advice)
    return Artifact("index", folder, FILE_NAME, manifest, files)


def _own(files: list[str], folder: Path, mark: str) -> list[str]:
    if outside := next(filter(leads_out, files), None):
        raise UserError(f"{folder / mark} names the file {outside!r}, which is not in that folder; correct it.")
    return sorted(name for name in files if name not in (mark, CARD))


def _named(about: dict[str, Any], names: Mapping[str, str]) -> dict[str, Any]:
    """The manifest's ``about`` of an index with other names of its encoders."""
    about = {key: value for key, value in about.items() if key != CHECKSUM}
    if "queries" in names:
        about["queries_by"] = names["queries"]
    if "documents" in names:
        about["space"] = {**about["space"], "documents_by": names["documents"]}
    return about


def _without_places(value: Any) -> Any:
    """A configuration without the local folders that a model was loaded from; None if it names none."""
    changed = json.loads(json.dumps(value), object_hook=_shortened)
    return None if changed == value else changed


def _shortened(entries: dict[str, Any]) -> dict[str, Any]:
    return {key: published_value(value) if key.endswith(_PLACE) else value for key, value in entries.items()}
