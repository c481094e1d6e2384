"""Rankers by name."""

from __future__ import annotations

import re
from importlib import import_module
from pathlib import Path
from typing import Any, Literal

from retrodistill.core.errors import UserError
from retrodistill.encoders.any_encoder import load_encoder
from retrodistill.encoders.contract import TextModel
from retrodistill.encoders.loading import load_cross_encoder
from retrodistill.encoders.names import KINDS, MODEL_KINDS, ModelName, cannot_search, check_can_search, parse_model_name
from retrodistill.rankers.bi_encoder import DenseRanker, MultiVectorRanker, SparseRanker
from retrodistill.rankers.cross_encoder import CrossEncoderRanker
from retrodistill.rankers.protocol import Ranker, cannot_score
from retrodistill.rankers.recorded import RecordedRanker
from retrodistill.rankers.reranker import DEPTH, Reranker
from retrodistill.runs.run import Run

# What later rooms open, by a dotted name: nothing of them is imported before it is needed.
_INDEX = "retrodistill.indexes.registry:load_index"
_STORES, _STORE = "retrodistill.exports.protocol:STORES", "retrodistill.exports.index:load_store"
_STORED_DOCUMENTS = "retrodistill.students.late_interaction:StoredDocumentsRanker.of_model"
_RERANK = (
    "rerank:TEACHER@SOURCE or rerank@DEPTH:TEACHER@SOURCE, e.g. rerank:cross-encoder:NAME@bm25, where SOURCE is a "
    "model's name, run:FILE or an index' folder"
)


def load_ranker(source: Any, store: Path | None = None, *, needs: Literal["search", "score"] | None = None) -> Ranker:
    """A ranker from a name or an object.

    Args:
        source: A model name (``bm25``, ``dense:NAME``, ``cross-encoder:NAME``, ``run:FILE``...), an index' folder, an
            exported store (``qdrant:PLACE#NAME``), ``rerank:TEACHER@SOURCE``; or a `Ranker` (an index is one), a `Run`,
            an encoder, a sentence-transformers model.
        store: Folder for its scores or embeddings; the shared cache by default.
        needs: Refuse a ranker that cannot search, or cannot score pairs.

    Raises:
        UserError: Not the name of a ranker, not to be found, or it cannot do what is needed.
    """
    ranker = _load(source, store, needs)
    if needs == "search" and not ranker.can_search:
        raise UserError(cannot_search(ranker.name))
    if needs == "score" and not ranker.can_score_pairs:
        raise UserError(cannot_score(ranker.name))
    return ranker


def _load(source: Any, store: Path | None, needs: str | None) -> Ranker:
    if isinstance(source, Ranker):
        return source
    if not isinstance(source, (str, Path, ModelName)):
        return _of_object(source, store)
    text = str(source)
    if text.startswith(("rerank:", "rerank@")):
        return _reranker(text, store)
    if is_store(text):
        return open_store(text)
    if text.partition(":")[0] not in KINDS and Path(text).expanduser().is_dir():
        return _opened(_INDEX)(Path(text).expanduser())
    name = parse_model_name(text)
    if needs == "search":
        check_can_search(name)
    return _of_name(name, store)


def is_store(source: Any) -> bool:
    """Whether this names an exported store, such as ``qdrant:PLACE#NAME``."""
    prefix, colon, _ = str(source).partition(":")
    return bool(colon) and prefix in _opened(_STORES)


def open_store(text: str, queries: Any = None) -> Any:
    """An exported store as an index.

    Args:
        text: ``qdrant:PLACE#NAME``.
        queries: Name or object of the query encoder; by default the one that was exported.
    """
    return _opened(_STORE)(text, queries)


def _of_name(name: ModelName, store: Path | None) -> Ranker:
    kind = MODEL_KINDS[name.kind]
    if kind.ranker:
        ranker: Ranker = _opened(f"{kind.ranker}.of_name")(name, store)
        return ranker
    return _of_pairs(name, store) if kind.is_cross_encoder else of_encoder(load_encoder(name), store)


def _of_pairs(name: ModelName, store: Path | None) -> CrossEncoderRanker:
    """A cross-encoder, or a student that is saved as one and named by its own kind.

    Raises:
        UserError: Not to be found, or a folder of another kind than the name says.
    """
    model = load_cross_encoder(name.name)
    kind = _kind_of(model)
    if name.kind not in (kind, "cross-encoder"):
        raise UserError(f"model {name.name} is not a {name.kind} student but a {kind}; name it '{kind}:{name.name}'.")
    return CrossEncoderRanker(model, str(name), store)


def _kind_of(cross_encoder: Any) -> str:
    return str(getattr(cross_encoder[0], "kind", "cross-encoder"))


def of_encoder(encoder: TextModel, store: Path | None = None) -> Ranker:
    """The ranker of an encoder, for both sides."""
    by_kind: dict[str, Any] = {"sparse": SparseRanker, "multi-vector": MultiVectorRanker}
    ranker: Ranker = by_kind.get(encoder.kind, DenseRanker)(encoder, root=store)
    return ranker


def _of_object(model: Any, store: Path | None) -> Ranker:
    if isinstance(model, Run):
        return RecordedRanker(model)
    if type(model).__name__ == "CrossEncoder":
        return CrossEncoderRanker(model, f"cross-encoder:{model.model_card_data.model_id or 'in-memory'}", store)
    return of_encoder(load_encoder(model), store)


def _opened(target: str) -> Any:
    module, _, path = target.partition(":")
    found: Any = import_module(module)
    for part in path.split("."):
        found = getattr(found, part)
    return found


def _reranker(text: str, store: Path | None) -> Reranker:
    """Read ``rerank:TEACHER@SOURCE``, such as ``rerank@50:cross-encoder:NAME@run:FILE``.

    A folder stands for ``cross-encoder:FOLDER``: students that re-rank are saved as cross-encoders. ``prett:FOLDER``
    and ``tk:FOLDER`` name them by their own kind.

    Raises:
        UserError: Another form, or a teacher or source that cannot be found.
    """
    # The source begins at the last @ that a kind of model follows: names of models and files may hold one.
    kinds = "|".join(map(re.escape, [*KINDS, *_opened(_STORES)]))
    parsed = re.fullmatch(rf"rerank(?:@(\d+))?:(.+)@((?:{kinds})(?::.+)?)", text)
    parts = _of_an_index(text) if parsed is None else parsed.groups()
    if parts is None:
        raise UserError(f"{text!r} is not a re-ranker; write {_RERANK}.")
    depth, teacher, source = parts
    named = f"cross-encoder:{teacher}" if Path(teacher).expanduser().is_dir() else teacher
    finder, judge = load_ranker(source, store, needs="search"), load_ranker(named, store, needs="score")
    model = getattr(judge, "model", None)
    if model is not None and _kind_of(model) != "cross-encoder":
        judge = _opened(_STORED_DOCUMENTS)(model, judge.name)
    return Reranker(judge, finder, int(depth or DEPTH), text)


def _of_an_index(text: str) -> tuple[str | None, str, str] | None:
    """Depth, teacher and source where an index' folder follows an @; None otherwise."""
    parsed = re.fullmatch(r"rerank(?:@(\d+))?:(.+)", text)
    if parsed is None:
        return None
    depth, rest = parsed.groups()
    splits = [(rest[: at.start()], rest[at.end() :]) for at in re.finditer("@", rest)]
    return next(((depth, *sides) for sides in splits if all(sides) and Path(sides[1]).expanduser().is_dir()), None)
