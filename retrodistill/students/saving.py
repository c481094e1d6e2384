"""Students on disk: ordinary sentence-transformers folders, and a manifest that says whose space they search."""

from __future__ import annotations

import contextlib
import os
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from retrodistill.core.errors import unknown
from retrodistill.core.files import atomic_folder, check_replaceable, read_json
from retrodistill.core.manifest import Manifest
from retrodistill.encoders.any_encoder import DENSE, MULTI_VECTOR, SPARSE, load_encoder
from retrodistill.encoders.contract import STUDENT_MANIFEST
from retrodistill.encoders.loading import load_cross_encoder, quiet_libraries
from retrodistill.students.cross_encoder import CrossEncoderStudent
from retrodistill.students.kinds import CLASSES, AnyStudent


def save_student(model: Any, manifest: Manifest, folder: str | os.PathLike[str]) -> AnyStudent:
    """Save a student, whole or not at all, and load it back as the encoder that users will load.

    Args:
        model: The trained model, of any kind.
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


def load_student(folder: str | os.PathLike[str]) -> AnyStudent:
    """Load a student's folder, of any kind; static ones are told from dense ones by their first module.

    Raises:
        UserError: No sentence-transformers folder, or of an unknown kind.
    """
    place = Path(folder)
    kind = _kind(place)
    if kind == "sparse":
        return load_encoder(f"sparse:{place}", SPARSE)
    if kind == "multi-vector":
        return load_encoder(f"multi-vector:{place}", MULTI_VECTOR)
    if kind == "cross-encoder":
        return CrossEncoderStudent(load_cross_encoder(str(place)), f"cross-encoder:{place}", _manifest(place))
    encoder = load_encoder(f"dense:{place}", DENSE)
    encoder.name = f"{'static' if encoder.is_static else 'dense'}:{place}"
    return encoder


def _kind(folder: Path) -> str:
    path = folder / "config_sentence_transformers.json"
    said = read_json(path).get("model_type", "SentenceTransformer") if path.exists() else "SentenceTransformer"
    if said not in CLASSES:
        raise unknown("class of student", said, CLASSES)
    return CLASSES[said]


def _manifest(folder: Path) -> Manifest | None:
    return Manifest.read(folder, STUDENT_MANIFEST) if (folder / STUDENT_MANIFEST).exists() else None
