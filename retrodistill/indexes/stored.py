"""The folder of an index: files of its kind, the documents' ids, and a manifest with checksums and the contract."""

from __future__ import annotations

import os
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

from retrodistill.core.errors import UserError, sample_of, unknown
from retrodistill.core.files import atomic_folder, check_replaceable, file_digest
from retrodistill.core.manifest import FILE_NAME, Manifest
from retrodistill.encoders.contract import IN_MEMORY, EmbeddingSpace, TextModel
from retrodistill.indexes.registry import KINDS

IDS_FILE = "ids.parquet"
_BESIDE = ("made-from.json",)  # what a job keeps in the folder
_ABOUT = ("space", "name", "queries_by", "checksums")


@dataclass(frozen=True)
class StoredIndex:
    """What the folder of every kind of index says.

    Attributes:
        kind: One of `KINDS`.
        settings: How it was built, as JSON values.
        space: Where its documents lie.
        ids: (n,) document ids.
        name: What its runs are called.
        queries_by: Name of the query encoder, relative to the folder where it is a folder; None for none.
        labels: (n,) int64 by which its files name the documents; their places by default.
        about: What else is good to know.
        fingerprint: Of the folder's manifest; empty before it is written.
    """

    kind: str
    settings: dict[str, Any]
    space: EmbeddingSpace
    ids: Sequence[str]
    name: str
    queries_by: str | None = None
    labels: np.ndarray | None = None
    about: dict[str, Any] = field(default_factory=dict)
    fingerprint: str = ""

    def write(self, folder: str | os.PathLike[str], write_files: Callable[[Path], None]) -> None:
        """Write a folder: the kind's own files by `write_files`, then ids and manifest; whole or not at all.

        Raises:
            UserError: The folder is not writable, the disk is full, or it holds something else than an index; what
                stood there stays.
        """
        target = replaceable(folder)
        with atomic_folder(target) as temporary:
            try:
                write_files(temporary)
            except RuntimeError as error:  # FAISS
                raise OSError(str(error).strip().splitlines()[-1]) from error
            labels = np.arange(len(self.ids)) if self.labels is None else self.labels
            table = {"document_id": pa.array(list(self.ids), pa.string()), "label": pa.array(labels, pa.int64())}
            pq.write_table(pa.table(table), temporary / IDS_FILE)
            checksums = {file.name: file_digest(file) for file in sorted(temporary.iterdir())}
            about = {
                "space": self.space.to_json(),
                "documents": len(self.ids),
                "name": self.name,
                "queries_by": _relative(self.queries_by, target),
                "checksums": checksums,
                **self.about,
            }
            inputs = {"space": self.space.fingerprint, **checksums}
            Manifest("index", inputs, {"kind": self.kind, **self.settings}, about).write(temporary)

    @classmethod
    def open(cls, folder: str | os.PathLike[str]) -> StoredIndex:
        """Read and check a folder; the kind's own files are known to be whole afterwards.

        Raises:
            UserError: No index, or a file that is missing, cut short or altered.
        """
        path, manifest = Path(folder), _manifest(Path(folder))
        settings, about = dict(manifest.settings), dict(manifest.about)
        kind = settings.pop("kind")
        for name, checksum in about["checksums"].items():
            if not (path / name).is_file() or file_digest(path / name) != checksum:
                raise UserError(f"{path / name} is missing, cut short or altered (checksum); build the index again.")
        ids = pq.read_table(path / IDS_FILE)
        return cls(
            kind,
            settings,
            EmbeddingSpace.from_json(about["space"]),
            ids["document_id"].to_pylist(),
            about["name"],
            _absolute(about["queries_by"], path),
            ids["label"].to_numpy(),
            {key: value for key, value in about.items() if key not in (*_ABOUT, "documents")},
            manifest.fingerprint,
        )


def replaceable(folder: str | os.PathLike[str]) -> Path:
    """Check that an index may be written here: the folder is absent, empty, or an older index and nothing else.

    Raises:
        UserError: Files or folders of somebody else's, which would be lost.
    """
    target = check_replaceable(folder, IDS_FILE)
    if not (target / FILE_NAME).is_file():
        return target
    known = {FILE_NAME, *_BESIDE, *Manifest.read(target).about.get("checksums", {})}
    strange = sorted(entry.name for entry in target.iterdir() if entry.name not in known)
    if strange:
        raise UserError(
            f"{target} holds an index and {sample_of(strange)}, which would be lost; choose another folder."
        )
    return target


def kind_of(folder: str | os.PathLike[str]) -> str:
    """The kind of the index in a folder, one of `KINDS`; its files are not checked yet.

    Raises:
        UserError: No index.
    """
    return str(_manifest(Path(folder)).settings["kind"])


def _manifest(path: Path) -> Manifest:
    """The whole manifest of an index' folder."""
    if not path.is_dir():
        raise UserError(f"no index folder {path}; build one with 'retrodistill index'.")
    if not (path / FILE_NAME).is_file():
        raise UserError(f"folder {path} holds no index (no {FILE_NAME}); a model is named 'dense:{path}'.")
    manifest = Manifest.read(path)
    if manifest.artifact != "index":
        raise UserError(f"{path} holds no index but {manifest.artifact}; give an index' folder.")
    lacking = [key for key in _ABOUT if key not in manifest.about] + [
        key for key in ("kind",) if key not in manifest.settings
    ]
    if lacking:
        what = f"it lacks {lacking[0]!r}; build it again"
        raise UserError(f"{path / FILE_NAME} is no whole manifest of an index: {what}.")
    if manifest.settings["kind"] not in KINDS:
        raise unknown("kind of index", manifest.settings["kind"], KINDS)
    return manifest


def built_in(seconds: float | None) -> dict[str, Any]:
    """What the manifest says of the wall time that building took; nothing where it is not known."""
    return {} if seconds is None else {"build_seconds": round(seconds, 3)}


def name_of(queries: TextModel | None) -> str | None:
    """A query encoder's name for the manifest; None for one that was never saved: it is given again at loading."""
    if queries is None or queries.name.partition(":")[2] == IN_MEMORY:
        return None
    return queries.name


def _relative(name: str | None, folder: Path) -> str | None:
    """A folder is named relative to the index, so that both can move together."""
    if name is None:
        return None
    kind, _, place = name.partition(":")
    return f"{kind}:{os.path.relpath(place, folder)}" if Path(place).exists() else name


def _absolute(name: str | None, folder: Path) -> str | None:
    if name is None:
        return None
    kind, _, place = name.partition(":")
    return f"{kind}:{folder / place}" if (folder / place).exists() else name
