"""Bulk files for a server that is not at hand: ``elasticsearch:FOLDER``, ``opensearch:FOLDER``.

``FOLDER/index.json`` is the body that creates the index, ``FOLDER/bulk-00000.ndjson``... are bodies of bulk requests,
and ``FOLDER/manifest.json`` holds counts, checksums and, once everything is written, the state "complete".
"""

from __future__ import annotations

import contextlib
import re
import shlex
from collections.abc import Iterable, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any
from urllib.parse import quote

from retrodistill.core.checksums import file_checksum
from retrodistill.core.errors import UserError
from retrodistill.core.files import atomic_file, check_replaceable
from retrodistill.core.json_files import json_text
from retrodistill.core.locks import exclusive
from retrodistill.core.manifest import FILE_NAME, Manifest
from retrodistill.core.paths import path_of
from retrodistill.data.filters import Filter
from retrodistill.exports.protocol import VectorStore, check_parts, check_same
from retrodistill.exports.records import Answers, Batch, Records, Vectors
from retrodistill.exports.search_engines.layout import Dialect, Layout, check_name, chunks, default_name

_INDEX = "index.json"
_PARTS = "bulk-*.ndjson"
_BATCH = 1000  # documents that are read at a time
_WRITING, _COMPLETE = "being written", "complete"


class BulkFiles(VectorStore):
    """A folder of bulk files. Every file is read back after it is written; it cannot be searched."""

    batch_size = _BATCH

    def __init__(self, dialect: Dialect, folder: Path, settings: Any, name: str = "") -> None:
        self.dialect, self.folder, self.settings = dialect, folder, settings
        self.name = settings.name or name
        self._lock = contextlib.ExitStack()

    @classmethod
    def open_folder(cls, dialect: Dialect, place: str, settings: Any, *, create: bool) -> BulkFiles:
        """``FOLDER`` or ``FOLDER#INDEX``; the name of the index is for the commands that load the files.

        Raises:
            UserError: The place looks like a server without ``http://``, or files are to be searched.
        """
        folder, _, name = place.partition("#")
        if not folder or re.fullmatch(r"[\w.-]+:\d+(/.*)?", folder):
            raise UserError(
                f"'{dialect.prefix}:{place}' names no place; write '{dialect.prefix}:http://HOST:9200#INDEX', or a "
                "folder for bulk files."
            )
        store = cls(dialect, path_of(folder), settings, name)
        if not create:
            raise store._not_searched()
        return store

    @property
    def root(self) -> Path:
        """As `VectorStore.root`."""
        return self.folder

    @property
    def address(self) -> str:
        """``PREFIX:FOLDER``."""
        return f"{self.dialect.prefix}:{self.folder}"

    def create(self, spec: Records) -> None:
        """As `VectorStore.create`."""
        self.name = self.name or default_name(spec)
        check_name(self.name, self.dialect.name)
        self._layout = Layout(self.dialect, spec, self.settings)
        settings = {**self._layout.manifest.settings, "bulk_mb": self.settings.bulk_mb}
        self._manifest = spec.manifest(f"{self.dialect.name} bulk files", settings, self.folder)
        check_replaceable(self.folder, FILE_NAME)
        self._lock.enter_context(exclusive(self.folder / ".lock"))
        if (self.folder / FILE_NAME).is_file():
            check_same(self.manifest(), self._manifest, str(self.folder), "choose another folder, or delete it first")
        self._write_manifest(state=_WRITING)
        _write(self.folder / _INDEX, json_text(self._layout.body, indent=2).encode() + b"\n")

    def upload(self, batches: Iterable[Batch]) -> int:
        """As `VectorStore.upload`. Files of an interrupted export are compared with the source, too."""
        written, self._names = 0, []
        lines = (line for batch in batches for line in self._layout.lines(batch, range(len(batch))))
        for number, part in enumerate(chunks(lines, self.settings.bulk_mb)):
            self._names.append(f"bulk-{number:05d}.ndjson")
            written += len(part) * _write(self.folder / self._names[-1], b"".join(part))
        return written

    def finish(self) -> dict[str, Any]:
        """As `VectorStore.finish`; ``load`` has the commands that fill an index."""
        check_parts(self.folder, _PARTS, self._names)
        files = [self.folder / name for name in (_INDEX, *self._names)]
        checksums = {file.name: file_checksum(file) for file in files}
        self._write_manifest(state=_COMPLETE, parts=len(self._names), checksums=checksums)
        size = sum(file.stat().st_size for file in files)
        return {"folder": str(self.folder), "parts": len(self._names), "bytes": size, "load": self._commands()}

    def manifest(self) -> Manifest:
        """As `VectorStore.manifest`."""
        manifest = Manifest.read(self.folder)
        return replace(manifest, about={**manifest.about, "is_complete": manifest.about.get("state") == _COMPLETE})

    def count(self) -> int:
        """As `VectorStore.count`, of a complete export."""
        return int(self.manifest().about["documents"])

    def payloads(self, ids: Sequence[str]) -> dict[str, dict[str, Any]]:
        """Refused: nothing reads single documents of bulk files."""
        raise self._not_searched()

    def best(self, queries: Vectors, k: int, filter: Filter | None = None) -> Answers:
        """Refused: bulk files are for a server."""
        raise self._not_searched()

    def close(self) -> None:
        """Let others write to the folder."""
        self._lock.close()

    def _write_manifest(self, **about: Any) -> None:
        replace(self._manifest, about={**self._manifest.about, **about}).write(self.folder)

    def _commands(self) -> str:
        """For a POSIX shell."""
        send = f"curl --fail-with-body -sS \"$URL/{quote(self.name)}{{path}}\" -H 'Content-Type: application/{{kind}}'"
        create = send.format(path="", kind="json") + f" -X PUT --data-binary @{shlex.quote(str(self.folder / _INDEX))}"
        fill = send.format(path="/_bulk?filter_path=errors,items.*.error", kind="x-ndjson")
        parts = f"{shlex.quote(str(self.folder))}/{_PARTS}"
        return f'{create}\nfor part in {parts}; do {fill} --data-binary "@$part"; done'

    def _not_searched(self) -> UserError:
        prefix = self.dialect.prefix
        return UserError(
            f"'{self.address}' is a folder of bulk files, which is not searched; load them into a server, and write "
            f"'{prefix}:http://HOST:9200#INDEX'."
        )


def _write(path: Path, content: bytes) -> bool:
    """Write a file unless it is there with the same content; returns whether it was written."""
    if path.is_file() and path.read_bytes() == content:
        return False
    with atomic_file(path) as temporary:
        temporary.write_bytes(content)
    if path.read_bytes() != content:
        raise UserError(f"{path} does not read back as it was written; the disk may be failing: export elsewhere.")
    return True
