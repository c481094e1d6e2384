"""What every index shares: the protocol, adding and removing documents, and the folder on disk."""

from __future__ import annotations

import os
from collections import Counter
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

from retrodistill.core.errors import UserError, sample_of, unknown
from retrodistill.core.files import atomic_folder, check_replaceable, digest, file_digest
from retrodistill.core.manifest import FILE_NAME, Manifest
from retrodistill.data.collection import Collection
from retrodistill.data.texts import Texts
from retrodistill.encoders.any_encoder import load_encoder
from retrodistill.encoders.contract import IN_MEMORY, EmbeddingSpace, TextModel
from retrodistill.indexes.registry import KINDS
from retrodistill.rankers.protocol import Queries, Ranker
from retrodistill.runs.run import Run

_UNIT = 1e-3  # by how much a unit vector's length may be off: float16 stores
_LARGEST = 1e15  # squared and summed over a thousand dimensions it is still far from float32's largest


def check_new(ids: Sequence[str], known: Sequence[str]) -> None:
    """Refuse ids that cannot be added.

    Raises:
        UserError: An id that is no string or empty, is in the index already, or stands twice.
    """
    _check_list(ids)
    strange = [one for one in ids if not isinstance(one, str)]
    if strange:
        raise UserError(f"document id {strange[0]!r} is {type(strange[0]).__name__}; ids are strings.")
    if any(not one.strip() for one in ids):
        raise UserError(f"document id {next(one for one in ids if not one.strip())!r} is empty; give each one a name.")
    there = set(known)
    twice = [one for one, times in Counter(ids).items() if one in there or times > 1]
    if twice:
        raise UserError(f"{sample_of(twice)}: in the index already, or twice; remove or rename them first.")


def to_remove(ids: Sequence[str], known: Sequence[str]) -> np.ndarray:
    """(len(known),) bool, true where a document is to go.

    Raises:
        UserError: Ids that are not there.
    """
    _check_list(ids)
    wanted = set(ids)
    gone = np.fromiter((one in wanted for one in known), dtype=bool, count=len(known))
    if int(gone.sum()) != len(wanted):
        raise UserError(f"cannot remove {sample_of(sorted(wanted - set(known), key=str))}: not in the index.")
    return gone


def check_lengths(vectors: np.ndarray, ids: Sequence[str], *, unit: bool) -> None:
    """Refuse vectors that no query could tell from others: of no length, or of one that float32 products overflow.

    Args:
        vectors: (n, d) float32, finite.
        ids: Of their documents.
        unit: They are compared by cosine.

    Raises:
        UserError: Names the first few ids.
    """
    largest = np.abs(vectors).max(axis=1, initial=0.0)
    zero = np.flatnonzero(largest == 0) if unit else np.zeros(0, dtype=np.int64)
    if len(zero):
        named = sample_of(ids[int(row)] for row in zero)
        raise UserError(
            f"documents: {len(zero)} vectors are zero ({named}), which have no cosine; embed these again or leave them "
            "out."
        )
    huge = np.flatnonzero(largest > _LARGEST)
    if len(huge):
        named = sample_of(ids[int(row)] for row in huge)
        raise UserError(
            f"documents: {len(huge)} vectors hold numbers beyond {_LARGEST:g} ({named}); embed these again or leave "
            "them out."
        )


def of_unit_length(vectors: np.ndarray) -> np.ndarray:
    """Vectors from an API or a file may have any length; those that are of unit length stay as they are."""
    lengths = np.linalg.norm(vectors, axis=1, keepdims=True)
    off = (np.abs(lengths - 1) > _UNIT) & (lengths > 0) & np.isfinite(lengths)
    return vectors / np.where(off, lengths, np.float32(1)) if off.any() else vectors


def _check_list(ids: Sequence[str]) -> None:
    if isinstance(ids, str):
        raise UserError(f"document ids are {ids!r}, one string; give a list of them, e.g. [{ids!r}].")


def encoder_of(space: EmbeddingSpace, kinds: Sequence[str]) -> Any:
    """The encoder that made a space's documents, by its name, for documents that are added as texts.

    Raises:
        UserError: It is not to be found, or is no longer the same.
    """
    found = load_encoder(space.documents_by, kinds)
    if found.document_space != space.fingerprint:
        raise UserError(
            f"{found.name} is no longer the model that made the documents ({'; '.join(space.differences(found))}); add "
            "vectors of the index' space instead."
        )
    return found


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
        target = check_index_folder(folder)
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


def check_index_folder(folder: str | os.PathLike[str]) -> Path:
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


def saved_name(queries: TextModel | None) -> str | None:
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


class Index(Ranker):
    """A ranker over documents of its own: it is filled, searched, saved and loaded.

    Attributes:
        index_kind: Name of its kind in the registry.
        ids: Document ids, in the order in which they were added.
        space: Where the documents lie; query encoders of another space are refused.
        made_from: Fingerprint of the folder that it was loaded from; empty once it was changed, or where there is none.
        build_seconds: How long indexing took; None where it is unknown.
    """

    can_search = True
    index_kind: str
    ids: list[str]
    space: EmbeddingSpace
    made_from: str = ""
    build_seconds: float | None = None

    def __len__(self) -> int:
        return len(self.ids)

    def fingerprint(self, collection: Collection) -> str:
        """Digest of its folder and its query encoder; empty for an index in memory."""
        asking = self.queries.fingerprint("query") if hasattr(self.queries, "fingerprint") else ""
        return digest(self.made_from, asking) if self.made_from else ""

    @property
    def documents_by(self) -> str:
        """Name of the encoder of its documents."""
        return self.space.documents_by

    @property
    def can_be_timed(self) -> bool:
        """Whether it has a query encoder that encodes new queries."""
        return self.queries is not None and not getattr(self.queries, "is_recorded", False)

    def add(self, documents: Texts) -> None:
        """Encode documents by the encoder of the space and index them.

        Raises:
            UserError: An id that is there already, or no encoder of the space at hand.
        """
        raise NotImplementedError

    def search(self, queries: Queries, collection: Collection | None = None, k: int | None = None) -> Run:
        """The k best documents of each query.

        Args:
            queries: One text, several (their ids are "0", "1"...), or queries with ids: a mapping of them, or `Texts`.
            collection: Of the documents, where there is one: vectors of queries come from the store, k is cut to the
                size of the index, and documents that the collection lacks are refused.
            k: Documents per query, 1 to the size of the index; 10 by default, or all of fewer.

        Returns:
            A run in rank order.

        Raises:
            UserError: No query encoder, an empty query, or k beyond the index.
        """
        raise NotImplementedError

    def vector_reader(self) -> Callable[[int, int], Any] | None:
        """A function that reads the vectors of documents start to stop (exclusive), as the index scores them.

        They are (stop - start, d) float32, CSR rows, or `Tokens`. None where the index holds codes only.
        """
        return None

    def bytes_per_document(self, collection: Collection | None = None) -> float | None:
        """Bytes that serving keeps per document."""
        raise NotImplementedError

    def save(self, folder: str | os.PathLike[str]) -> None:
        """Write the index' folder, whole or not at all.

        Raises:
            UserError: The folder is not writable or holds something else.
        """
        raise NotImplementedError
