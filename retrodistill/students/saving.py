"""Students on disk: ordinary sentence-transformers folders, and a manifest that names the space they search."""

from __future__ import annotations

import os
from pathlib import Path
from typing import Any

from retrodistill.core.errors import unknown
from retrodistill.core.files import atomic_folder, check_replaceable, disk_errors, read_json
from retrodistill.core.manifest import Manifest
from retrodistill.encoders.contract import STUDENT_MANIFEST
from retrodistill.encoders.encoder import Encoder
from retrodistill.encoders.loading import quiet_libraries
from retrodistill.encoders.multi_vector import MultiVectorModel
from retrodistill.encoders.sparse import SparseTextEncoder
from retrodistill.students.cross_encoder import CrossEncoderStudent
from retrodistill.students.registry import all_kinds, kind_of

AnyStudent = Encoder | SparseTextEncoder | MultiVectorModel | CrossEncoderStudent


def save_student(model: Any, manifest: Manifest, folder: str | os.PathLike[str]) -> AnyStudent:
    """Save a student, whole or not at all, and load it back as the encoder that users will load.

    Args:
        model: The trained model, of any kind.
        manifest: What it was made from; ``about.query_space`` names the document space that its queries search.
        folder: An ordinary sentence-transformers folder appears here.

    Raises:
        UserError: The folder is not writable, the disk is full, or the path holds something else.
    """
    with atomic_folder(check_replaceable(folder, STUDENT_MANIFEST)) as temporary, disk_errors(), quiet_libraries():
        model.save_pretrained(str(temporary), create_model_card=False)
        manifest.write(temporary, STUDENT_MANIFEST)
    return load_student(folder)


def load_student(folder: str | os.PathLike[str]) -> AnyStudent:
    """Load a student's folder, of any kind.

    Raises:
        UserError: Not a sentence-transformers folder, or one of an unknown class.
    """
    place = Path(folder)
    path = place / "config_sentence_transformers.json"
    library_class = "SentenceTransformer"  # folders of old versions of the library do not say
    if path.exists():
        library_class = read_json(path).get("model_type", library_class)
    kinds = {kind.library_class: kind for kind in all_kinds()}  # of each class the most general one
    if library_class not in kinds:
        raise unknown("class of student", library_class, kinds)
    student: AnyStudent = kinds[library_class].load(str(place))
    kind = kind_of(student.model)
    if kind.written:
        student.name = f"{kind.name}:{place}"
    return student
