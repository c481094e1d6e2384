"""Load rankers by name."""

from __future__ import annotations

import re
from importlib import import_module
from operator import attrgetter
from pathlib import Path
from typing import Any, Literal

from retrodistill.core.errors import UserError
from retrodistill.core.hub import PREFIX
from retrodistill.core.paths import path_of
from retrodistill.encoders.any_encoder import load_encoder
from retrodistill.encoders.contract import IN_MEMORY, TextModel
from retrodistill.encoders.names import KINDS, MODEL_KINDS, ModelName, cannot_search, check_can_search, parse_model_name
from retrodistill.rankers.bi_encoder import DenseRanker, MultiVectorRanker, SparseRanker
from retrodistill.rankers.cross_encoder import CrossEncoderRanker, open_cross_encoder
from retrodistill.rankers.protocol import Ranker, cannot_score
from retrodistill.rankers.recorded import RecordedRanker
from retrodistill.rankers.reranker import DEPTH, Reranker
from retrodistill.runs.run import Run

# Openers of later rooms, by dotted name: imported only when they are needed.
_INDEX = "retrodistill.indexes.registry:load_index"
_STORES, _STORE = "retrodistill.exports.protocol:STORES", "retrodistill.exports.index:load_store"
_STORED_DOCUMENTS = "retrodistill.students.late_interaction:StoredDocumentsRanker.of_model"
_BY_KIND: dict[str, Any] = {"sparse": SparseRanker, "multi-vector": MultiVectorRanker}


def load_ranker(source: Any, store: Path | None = None, *, needs: Literal["search", "score"] | None = None) -> Ranker:
    """Load a ranker by name, or make one from an object.

    Args:
        source: A model name (``bm25``, ``dense:NAME``, ``cross-encoder:NAME``, ``run:FILE``...), the folder of an
            index, one on the hub (``hf:USER/NAME``), an exported store (``qdrant:PLACE#NAME``),
            ``rerank:TEACHER@SOURCE``; or a `Ranker` (an index is one), a `Run`, an encoder, a sentence-transformers
            model.
        store: Folder for its scores or embeddings; the shared cache by default.
        needs: Reject a ranker that cannot search, or cannot score pairs.

    Raises:
        UserError: Not the name of a ranker, not found, or without the needed capability.
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
    if text.startswith(PREFIX) or (text.partition(":")[0] not in KINDS and path_of(text).is_dir()):
        return _imported(_INDEX)(text)
    name = parse_model_name(text)
    if needs == "search":
        check_can_search(name)
    return _of_name(name, store)


def is_store(source: Any) -> bool:
    """Whether this names an exported store, such as ``qdrant:PLACE#NAME``."""
    prefix, colon, _ = str(source).partition(":")
    return bool(colon) and prefix in _imported(_STORES)


def open_store(text: str, queries: Any = None) -> Any:
    """Open an exported store (``qdrant:PLACE#NAME``) as an index, by default with the exported query encoder."""
    return _imported(_STORE)(text, queries)


def of_encoder(encoder: TextModel, store: Path | None = None) -> Ranker:
    """The ranker of an encoder, for both sides."""
    return _BY_KIND.get(encoder.kind, DenseRanker)(encoder, root=store)


def _of_name(name: ModelName, store: Path | None) -> Ranker:
    kind = MODEL_KINDS[name.kind]
    if kind.ranker:
        return _imported(f"{kind.ranker}.of_name")(name, store)
    if not kind.is_cross_encoder:
        return of_encoder(load_encoder(name), store)
    ranker = open_cross_encoder(name, store)
    own = ranker.student_kind
    if name.kind not in (own, "cross-encoder"):
        raise UserError(f"model {name.name} is not a {name.kind} student but a {own}; name it '{own}:{name.name}'.")
    return ranker


def _of_object(model: Any, store: Path | None) -> Ranker:
    if isinstance(model, Run):
        return RecordedRanker(model)
    if type(model).__name__ == "CrossEncoder":
        return CrossEncoderRanker(model, f"cross-encoder:{model.model_card_data.model_id or IN_MEMORY}", store)
    return of_encoder(load_encoder(model), store)


def _imported(target: str) -> Any:
    module, _, path = target.partition(":")
    return attrgetter(path)(import_module(module))


def _reranker(text: str, store: Path | None) -> Reranker:
    """Parse ``rerank:TEACHER@SOURCE``, such as ``rerank@50:cross-encoder:NAME@run:FILE``.

    A folder means ``cross-encoder:FOLDER``, also for ``prett`` and ``tk`` students, which are saved as cross-encoders.
    """
    parsed = re.fullmatch(r"rerank(?:@(\d+))?:(.+)", text)
    depth, rest = parsed.groups() if parsed is not None else (None, "")
    splits = [(rest[: at.start()], rest[at.end() :]) for at in re.finditer("@", rest)]
    # the source begins at the last @ before a kind of model or store: names of models and files may have one too
    kinds = re.compile(rf"(?:{'|'.join(map(re.escape, [PREFIX.rstrip(':'), *KINDS, *_imported(_STORES)]))})(?::.+)?")
    named = [split for split in splits if split[0] and kinds.fullmatch(split[1])]
    folders = [split for split in splits if all(split) and path_of(split[1]).is_dir()]
    if not named and not folders:
        raise UserError(
            f"{text!r} is not a re-ranker; write rerank:TEACHER@SOURCE or rerank@DEPTH:TEACHER@SOURCE, e.g. "
            "rerank:cross-encoder:NAME@bm25, where SOURCE is a model's name, run:FILE or the folder of an index."
        )
    teacher, source = (named[-1:] or folders)[0]
    if path_of(teacher).is_dir():
        teacher = f"cross-encoder:{teacher}"
    finder, judge = load_ranker(source, store, needs="search"), load_ranker(teacher, store, needs="score")
    if isinstance(judge, CrossEncoderRanker) and judge.student_kind != "cross-encoder":
        judge = _imported(_STORED_DOCUMENTS)(judge.model, judge.name)
    return Reranker(judge, finder, int(depth or DEPTH), text)
