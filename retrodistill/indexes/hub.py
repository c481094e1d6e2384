"""Indexes on the Hugging Face hub, by the name ``hf:USER/NAME``."""

from __future__ import annotations

import os
from pathlib import Path

from retrodistill.core.errors import UserError
from retrodistill.core.hub import PREFIX, bars_unless_quiet, check_repository, hub_errors, offline_unless_reachable
from retrodistill.core.manifest import FILE_NAME
from retrodistill.indexes.base import read_index_manifest


def is_on_hub(place: str | os.PathLike[str]) -> bool:
    """Whether this names an index on the hub."""
    return str(place).startswith(PREFIX)


def download_index(place: str | os.PathLike[str]) -> Path:
    """The folder of an index on the hub, in the hub's cache; what is there already is not downloaded again.

    Raises:
        UserError: There is no such repository, it does not hold an index, or it can neither be reached nor is here.
    """
    from huggingface_hub import hf_hub_download, snapshot_download
    from huggingface_hub.errors import RemoteEntryNotFoundError

    repository = check_repository(str(place).removeprefix(PREFIX))
    with hub_errors(repository), bars_unless_quiet(), offline_unless_reachable():
        try:
            manifest = Path(hf_hub_download(repository, FILE_NAME))
        except RemoteEntryNotFoundError as error:
            raise UserError(
                f"{repository} does not hold an index (no {FILE_NAME}); a model is named 'dense:{repository}'."
            ) from error
        files = read_index_manifest(manifest.parent).about["checksums"]
        return Path(snapshot_download(repository, allow_patterns=[FILE_NAME, *files]))
