"""Students on disk: ordinary sentence-transformers folders, and a manifest that says whose space they search."""

from __future__ import annotations

import contextlib
import os
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING

from retrodistill.files import atomic_folder, check_replaceable
from retrodistill.manifest import Manifest
from retrodistill.models.contract import STUDENT_MANIFEST
from retrodistill.models.encoder import Encoder, load_encoder
from retrodistill.models.loading import quiet_libraries

if TYPE_CHECKING:
    from sentence_transformers import SentenceTransformer


def save_student(model: SentenceTransformer, manifest: Manifest, folder: str | os.PathLike[str]) -> Encoder:
    """Save a student, whole or not at all, and load it back as the encoder that users will load.

    Args:
        model: The trained model.
        manifest: What it was made from; ``about.query_space`` names the document space that its queries search.
        folder: An ordinary sentence-transformers folder appears here.

    Raises:
        UserError: The folder is not writable, the disk is full, or something else stands there.
    """
    with atomic_folder(check_replaceable(folder, STUDENT_MANIFEST)) as temporary, disk_errors(), quiet_libraries():
        model.save_pretrained(str(temporary), create_model_card=False)
        manifest.write(temporary, STUDENT_MANIFEST)
    return load_student(folder)


@contextlib.contextmanager
def disk_errors() -> Iterator[None]:
    """Raise what a full disk makes torch and safetensors raise as the OSError that it is."""
    from safetensors import SafetensorError

    try:
        yield
    except (SafetensorError, RuntimeError) as error:
        if not is_disk_error(error):
            raise
        raise OSError(str(error).strip().splitlines()[0]) from error


def is_disk_error(error: BaseException) -> bool:
    """Whether a library's error is about writing: they put the system's words into their own classes."""
    words = ("No space left", "os error", "PytorchStreamWriter", "inline_container", "File too large", "quota")
    return isinstance(error, OSError) or any(word in str(error) for word in words)


def load_student(folder: str | os.PathLike[str]) -> Encoder:
    """Load a student's folder; static ones are told from dense ones by their first module."""
    encoder = load_encoder(f"dense:{Path(folder)}")
    encoder.name = f"{'static' if encoder.is_static else 'dense'}:{Path(folder)}"
    return encoder
