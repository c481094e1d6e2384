"""Teachers by name."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

from retrodistill.models.encoder import load_encoder
from retrodistill.models.loading import load_cross_encoder
from retrodistill.models.names import ModelName, parse_model_name
from retrodistill.runs.formats import read_run
from retrodistill.runs.run import Run
from retrodistill.teachers.cross_encoder import CrossEncoderTeacher
from retrodistill.teachers.dense import DenseTeacher
from retrodistill.teachers.judgements import JudgementTeacher
from retrodistill.teachers.lexical import LexicalTeacher
from retrodistill.teachers.protocol import Teacher
from retrodistill.teachers.recorded import RecordedTeacher


def load_teacher(source: Any, store: Path | None = None) -> Teacher:
    """A teacher from a model name or an object.

    Objects: a `Teacher`, a `Run`, an `Encoder`, a SentenceTransformer, a CrossEncoder.

    Args:
        source: The name or object.
        store: Folder for its scores or embeddings; the shared cache by default.

    Raises:
        UserError: Not a model name, or not to be found.
    """
    if isinstance(source, Teacher):
        return source
    if not isinstance(source, (str, Path, ModelName)):
        return _from_object(source, store)
    name = source if isinstance(source, ModelName) else parse_model_name(str(source))
    by_kind: dict[str, Callable[[], Teacher]] = {
        "bm25": LexicalTeacher,
        "run": lambda: RecordedTeacher(read_run(name.name), str(name)),
        "judgements": lambda: JudgementTeacher(name.name),
        "cross-encoder": lambda: CrossEncoderTeacher(load_cross_encoder(name.name), str(name), store),
    }
    return by_kind.get(name.kind, lambda: DenseTeacher(load_encoder(name), store))()


def _from_object(model: Any, store: Path | None) -> Teacher:
    if isinstance(model, Run):
        return RecordedTeacher(model)
    if type(model).__name__ == "CrossEncoder":
        return CrossEncoderTeacher(model, f"cross-encoder:{model.model_card_data.model_id or 'in-memory'}", store)
    return DenseTeacher(load_encoder(model), store)
