"""Teachers by name."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

from retrodistill.core.errors import UserError
from retrodistill.encoders.encoder import load_encoder
from retrodistill.encoders.loading import load_cross_encoder
from retrodistill.encoders.names import PAIR_KINDS, ModelName, parse_model_name
from retrodistill.rankers.cross_encoder import CrossEncoderTeacher
from retrodistill.rankers.dense import DenseTeacher
from retrodistill.rankers.judgments import JudgmentTeacher
from retrodistill.rankers.lexical import LexicalTeacher
from retrodistill.rankers.protocol import Teacher
from retrodistill.rankers.recorded import RecordedTeacher
from retrodistill.runs.formats import read_run
from retrodistill.runs.run import Run


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
        "judgments": lambda: JudgmentTeacher(name.name),
        **{kind: lambda: _of_pairs(name, store) for kind in PAIR_KINDS},
    }
    return by_kind.get(name.kind, lambda: DenseTeacher(load_encoder(name), store))()


def _of_pairs(name: ModelName, store: Path | None) -> Teacher:
    """A cross-encoder, or a student that is saved as one and named by its own kind.

    Raises:
        UserError: Not to be found, or a folder of another kind than the name says.
    """
    model = load_cross_encoder(name.name)
    kind = str(getattr(model[0], "kind", "cross-encoder"))
    if name.kind not in (kind, "cross-encoder"):
        raise UserError(f"model {name.name} is no {name.kind} student but a {kind}; name it '{kind}:{name.name}'.")
    return CrossEncoderTeacher(model, str(name), store)


def _from_object(model: Any, store: Path | None) -> Teacher:
    if isinstance(model, Run):
        return RecordedTeacher(model)
    if type(model).__name__ == "CrossEncoder":
        return CrossEncoderTeacher(model, f"cross-encoder:{model.model_card_data.model_id or 'in-memory'}", store)
    return DenseTeacher(load_encoder(model), store)
