"""Students on disk: ordinary sentence-transformers folders, and a manifest that says whose space they search."""

from __future__ import annotations

import os
from pathlib import Path
from typing import TYPE_CHECKING

from retrodistill.files import atomic_folder
from retrodistill.manifest import Manifest
from retrodistill.models.encoder import STUDENT_MANIFEST, Encoder, load_encoder

if TYPE_CHECKING:
    from sentence_transformers import SentenceTransformer


def save_student(model: SentenceTransformer, manifest: Manifest, folder: str | os.PathLike[str]) -> Encoder:
    """Save a student, whole or not at all, and load it back as the encoder that users will load.

    Args:
        model: The trained model.
        manifest: What it was made from; ``about.query_space`` names the document space that its queries search.
        folder: An ordinary sentence-transformers folder appears here.

    Raises:
        UserError: The folder is not writable.
    """
    with atomic_folder(folder) as temporary:
        model.save_pretrained(str(temporary), create_model_card=False)
        manifest.write(temporary, STUDENT_MANIFEST)
    return load_student(folder)


def load_student(folder: str | os.PathLike[str]) -> Encoder:
    """Load a student's folder; static ones are told from dense ones by their first module."""
    encoder = load_encoder(f"dense:{Path(folder)}")
    encoder.name = f"{'static' if encoder.is_static else 'dense'}:{Path(folder)}"
    return encoder
