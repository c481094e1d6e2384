"""Kinds of students: which sentence-transformers class each is, and the encoder that users hold of it."""

from __future__ import annotations

from typing import Any

from retrodistill.core.errors import unknown
from retrodistill.core.manifest import Manifest
from retrodistill.encoders.encoder import Encoder
from retrodistill.encoders.multi_vector import MultiVectorModel
from retrodistill.encoders.sparse import SparseTextEncoder
from retrodistill.students.cross_encoder import CrossEncoderStudent

CLASSES = {
    "SentenceTransformer": "dense",
    "SparseEncoder": "sparse",
    "MultiVectorEncoder": "multi-vector",
    "CrossEncoder": "cross-encoder",
}
KINDS = tuple(CLASSES.values())
AnyStudent = Encoder | SparseTextEncoder | MultiVectorModel | CrossEncoderStudent


def kind_of(model: Any) -> str:
    """One of `KINDS`, of a sentence-transformers model.

    Raises:
        UserError: Another class.
    """
    for one in type(model).__mro__:
        if one.__name__ in CLASSES:
            return CLASSES[one.__name__]
    raise unknown("class of student", type(model).__name__, CLASSES)


def as_student(model: Any, name: str | None = None, manifest: Manifest | None = None) -> AnyStudent:
    """The encoder (of a cross-encoder: the scorer) around a sentence-transformers model.

    Args:
        model: Of one of `CLASSES`.
        name: ``kind:name``; ``kind:student`` by default.
        manifest: Of a student that retrodistill trained.

    Raises:
        UserError: Another class.
    """
    kind = kind_of(model)
    name = name or f"{kind}:student"
    if kind == "sparse":
        return SparseTextEncoder(model, name, manifest)
    if kind == "multi-vector":
        return MultiVectorModel(model, name, manifest)
    if kind == "cross-encoder":
        return CrossEncoderStudent(model, name, manifest)
    return Encoder(model, name, manifest)
