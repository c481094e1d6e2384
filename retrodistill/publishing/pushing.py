"""Upload a student or an index to the Hugging Face hub: one commit, of what has been checked before."""

from __future__ import annotations

import contextlib
import os
import warnings
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from retrodistill.core.errors import UserError, sample_of
from retrodistill.core.files import temporary_folder
from retrodistill.core.hub import bars_unless_quiet, check_repository, hub_errors, hub_token
from retrodistill.core.manifest import Manifest
from retrodistill.core.paths import path_of
from retrodistill.core.runtime import log
from retrodistill.encoders.contract import STUDENT_MANIFEST
from retrodistill.indexes.base import Index
from retrodistill.indexes.registry import load_index
from retrodistill.publishing.artifacts import CARD, Artifact, is_here, open_artifact
from retrodistill.publishing.cards import card_of

_OF_HUB = (".gitattributes", CARD)  # in repositories that hold nothing yet


@dataclass(frozen=True)
class Published:
    """What was uploaded, or would be.

    Attributes:
        kind: ``student`` or ``index``.
        repository: ``USER/NAME``.
        files: Bytes of each file, by its name in the repository.
        url: Of the commit; None if nothing was uploaded.
    """

    kind: str
    repository: str
    files: dict[str, int]
    url: str | None = None

    def to_json(self) -> dict[str, Any]:
        """The content as JSON values."""
        return {"kind": self.kind, "repository": self.repository, "files": self.files, "url": self.url}


def push_to_hub(
    source: Any,
    repository: str,
    *,
    student: str | None = None,
    queries: str | None = None,
    license: str | None = None,
    private: bool = False,
    message: str | None = None,
    dry_run: bool = False,
) -> Published:
    """Upload a student or an index to the Hugging Face hub, with its manifest and a model card, in one commit.

    Only the files that the manifest lists are uploaded, after a check of their checksums. Local folders in the manifest
    and the card are cut to their last part. An upload that was interrupted goes on when it is called again: what the
    hub has is not sent again. Files of an earlier version that this one does not have are removed.

    A student is loaded by its name, ``load_encoder("dense:USER/NAME")``, an index by ``load_index("hf:USER/NAME")``.

    Args:
        source: The folder of a student, an index, or a job; an `Index`; or a student, as `distill` returns it.
        repository: ``USER/NAME``; it is made if it does not exist.
        student: Of a job: the name of the student, unless there is only one.
        queries: Of an index: the name of its query encoder, such as ``dense:USER/STUDENT``, for those who load it. It
            is needed if the index was saved with an encoder of this machine, and is checked against the index's space.
        license: Identifier of the license on the hub, such as ``apache-2.0``; by default that in the card, or of the
            base model on the hub. An index needs one.
        private: Make the repository private; one that exists and is public is refused.
        message: Of the commit.
        dry_run: Only check, and say what would be uploaded.

    Raises:
        UserError: There is no such artifact, or it is damaged; the repository holds something else; no license is
            known; there is no token, or it may not write there; or the hub cannot be reached.
    """
    check_repository(repository)
    with _folder_of(source, queries) as folder:
        artifact = open_artifact(folder, student)
        names = _names_of_models(artifact, queries)
        token = None if dry_run else hub_token()
        contents = artifact.contents(names)
        contents[CARD] = card_of(artifact, repository, license, {**artifact.model_names(), **names})
        sizes = {
            name: len(content) if isinstance(content, bytes) else content.stat().st_size
            for name, content in sorted(contents.items())
        }
        published = Published(artifact.kind, repository, sizes)
        if token is None:
            return published
        log(f"uploading {len(sizes)} files, {sum(sizes.values()):,} bytes, to {repository}")
        with hub_errors(repository), bars_unless_quiet(), warnings.catch_warnings():
            warnings.simplefilter("ignore")  # that an index has Parquet files
            url = _commit(artifact, contents, repository, token, private=private, message=message)
    return Published(artifact.kind, repository, sizes, url)


@contextlib.contextmanager
def _folder_of(source: Any, queries: str | None) -> Iterator[Path]:
    """The folder of what is uploaded; an index in memory is saved for the time of the upload."""
    if isinstance(source, (str, os.PathLike)):
        yield path_of(source)
    elif isinstance(source, Index):
        with temporary_folder() as place:
            source.save(place / "index")
            yield place / "index"
    else:
        folder = path_of(str(getattr(source, "name", "")).partition(":")[2] or "?")
        if not (folder / STUDENT_MANIFEST).is_file():
            raise UserError(f"{type(source).__name__} is not a student from a folder; save it, and give the folder.")
        yield folder


def _names_of_models(artifact: Artifact, queries: str | None) -> dict[str, str]:
    """Names on the hub for the models of an index that its manifest calls otherwise, by role."""
    if artifact.kind == "student":
        if queries is not None:
            raise UserError("queries names the query encoder of an index, and this is a student; leave it out.")
        return {}
    own = artifact.model_names()
    if queries is None:
        if is_here(own["queries"], artifact.folder):
            raise UserError(
                f"the queries of this index are encoded by {own['queries']}, which is on this machine only; upload it "
                "first, then name it: --queries KIND:USER/NAME."
            )
        return {}
    if is_here(queries, artifact.folder) or path_of(queries.partition(":")[2]).exists():
        raise UserError(f"queries {queries} is on this machine; upload it, and give its name on the hub.")
    load_index(artifact.folder, queries, memory_map=True)  # refuses an encoder of another space
    documents = {"documents": queries} if own["documents"] == own["queries"] else {}
    return {"queries": queries, **documents}


def _commit(
    artifact: Artifact,
    contents: dict[str, Path | bytes],
    repository: str,
    token: str,
    *,
    private: bool,
    message: str | None,
) -> str:
    from huggingface_hub import CommitOperationAdd, CommitOperationDelete, HfApi
    from huggingface_hub.errors import RepositoryNotFoundError

    api = HfApi(token=token, library_name="retrodistill")
    try:
        there = api.model_info(repository)
    except RepositoryNotFoundError:
        api.create_repo(repository, private=private, exist_ok=True)
        stale: list[str] = []
    else:
        if private and not there.private:
            raise UserError(f"{repository} exists and is public; make it private on the hub, or take another name.")
        present = [file.rfilename for file in there.siblings or []]
        if artifact.mark not in present and set(present).difference(_OF_HUB):
            raise UserError(
                f"{repository} holds something else than a {artifact.kind} ({sample_of(sorted(present))}); take "
                "another name."
            )
        stale = _stale(api, artifact, repository, present)
    operations = [CommitOperationAdd(name, content) for name, content in sorted(contents.items())]
    removed = [CommitOperationDelete(name) for name in stale if name not in contents]
    return str(
        api.create_commit(
            repository, [*operations, *removed], commit_message=message or f"Upload {artifact.kind} with retrodistill"
        ).commit_url
    )


def _stale(api: Any, artifact: Artifact, repository: str, present: list[str]) -> list[str]:
    """Files in the repository that its present manifest lists."""
    if artifact.mark not in present:
        return []
    path = Path(api.hf_hub_download(repository, artifact.mark))
    manifest = Manifest.read(path.parent, path.name)
    listed = manifest.files or manifest.about.get("checksums", {})
    return sorted(set(listed).intersection(present))
