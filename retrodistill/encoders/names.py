"""Models are named ``kind:name`` in Python, in recipes and on the command line."""

from __future__ import annotations

import os
import re
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import NamedTuple

from retrodistill.core.digests import content_digest, digest
from retrodistill.core.errors import UserError, unknown
from retrodistill.core.json_files import read_json
from retrodistill.core.paths import path_of


class ModelKind(NamedTuple):
    """Properties of a kind of model that follow from its name alone."""

    about: str  # one line for users: what it is, and what its name is
    can_search: bool = True  # otherwise it only scores pairs
    is_cross_encoder: bool = False  # loaded as a cross-encoder
    ranker: str = ""  # ``module:class`` of the `Ranker` whose ``of_name`` opens it; empty for encoders, cross-encoders
    student: str = ""  # module of retrodistill.students that defines students of this kind; empty if not trained here
    needs_name: bool = True


_RECORDED = "retrodistill.rankers.recorded"
# Students that share a class of sentence-transformers are tried in this order: the most general of each class is last.
MODEL_KINDS = {
    "bm25": ModelKind(
        "lexical search (bm25s): English, or a setting: a language, auto, characters, a model whose tokenizer is used",
        ranker="retrodistill.rankers.bm25:BM25Ranker",
        needs_name=False,
    ),
    "static": ModelKind("a static token-table encoder (StaticEmbedding): folder or hub name", student="static"),
    "dense": ModelKind("a sentence-transformers bi-encoder: folder or hub name", student="dense"),
    "sparse": ModelKind("a learned sparse encoder (SparseEncoder): folder or hub name", student="sparse"),
    "multi-vector": ModelKind(
        "a late-interaction encoder (MultiVectorEncoder): folder or hub name", student="multi_vector"
    ),
    "vectors": ModelKind("document or query vectors that were made elsewhere, such as by an API: a file or folder"),
    "embeddings-api": ModelKind("an embedding model behind an HTTP API: its settings file (YAML), or URL#MODEL"),
    "concat": ModelKind("the vectors of several dense encoders side by side: concat:KIND:NAME+KIND:NAME"),
    "prett": ModelKind("a PreTT re-ranker that was distilled here: its folder", False, True, student="prett"),
    "tk": ModelKind("a TK re-ranker that was distilled here: its folder", False, True, student="tk"),
    "cross-encoder": ModelKind(
        "a sentence-transformers cross-encoder, raw logits: folder or hub name", False, True, student="cross_encoder"
    ),
    "rerank-api": ModelKind(
        "a re-ranker behind an HTTP API: its settings file (YAML), or URL#MODEL",
        can_search=False,
        ranker="retrodistill.rankers.rerank_api:RerankApiRanker",
    ),
    "llm": ModelKind(
        "a language model as a judge, behind a chat API: its settings file (YAML), or URL#MODEL",
        can_search=False,
        ranker="retrodistill.rankers.llm:LlmRanker",
    ),
    "function": ModelKind(
        "a Python function that scores pairs: function:MODULE:NAME, decorated with @teacher_function",
        can_search=False,
        ranker="retrodistill.rankers.function:FunctionRanker",
    ),
    "run": ModelKind(
        "recorded scores: a run file (.run, .trec, .parquet, .jsonl)", ranker=f"{_RECORDED}:RecordedRanker"
    ),
    "judgments": ModelKind(
        "relevance judgments of a split that is not measured, as a teacher: judgments:train",
        can_search=False,
        ranker=f"{_RECORDED}:JudgmentRanker",
    ),
}
KINDS = {name: kind.about for name, kind in MODEL_KINDS.items()}


_CONCAT = "concat"
_NEXT = re.compile(rf"\+(?=(?:{'|'.join(map(re.escape, KINDS))}):)")  # a plus inside a name is not followed by a kind


def member_names(name: str) -> list[str]:
    """The names of the members in ``KIND:NAME+KIND:NAME``."""
    return _NEXT.split(name)


def _of_members(name: str, change: Callable[[str], str | None]) -> str | None:
    """The name of a ``concat`` with each member's name changed; None for any other name."""
    kind, _, members = name.partition(":")
    if kind != _CONCAT:
        return None
    return f"{kind}:" + "+".join(change(member) or member for member in member_names(members))


@dataclass(frozen=True)
class ModelName:
    """A parsed model name: one of `KINDS`, and a folder, hub name, file, or setting (empty for plain ``bm25``)."""

    kind: str
    name: str = ""

    def __str__(self) -> str:
        return f"{self.kind}:{self.name}" if self.name else self.kind

    @property
    def anywhere(self) -> ModelName:
        """The same model for a process in another working directory: a folder or file gets its absolute path."""
        if self.kind == _CONCAT:
            members = (str(parse_model_name(member).anywhere) for member in member_names(self.name))
            return ModelName(self.kind, "+".join(members))
        is_here = bool(self.name) and path_of(split_variant(self.name)[0]).exists()
        return ModelName(self.kind, os.path.abspath(path_of(self.name))) if is_here else self


def content_of(name: str) -> str | None:
    """Digest of the folder or file that a model's name (or the path of an index) means; None for any other name."""
    kind, _, place = name.partition(":")
    if kind == _CONCAT:
        contents = [content_of(member) for member in member_names(place)]
        return digest(*(content or "" for content in contents)) if any(contents) else None
    place = place if kind in KINDS else name
    path = path_of(split_variant(place)[0])
    if not place or not path.exists():
        return None
    bases = [content_of(base) for base in _bases(path)]
    return digest(content_digest(path), *filter(None, bases)) if any(bases) else content_digest(path)


def _bases(path: Path) -> list[str]:
    """What the adapters in a folder name as their base models, with the paths of those that are in this folder."""
    files = sorted(path.rglob("adapter_config.json")) if path.is_dir() else []
    bases = [str(read_json(file).get("base_model_name_or_path") or "") for file in files]
    return [str(path / base) if base and (path / base).exists() else base for base in bases]


def relative_to(name: str | None, folder: Path) -> str | None:
    """A model's name for a file in a folder (an index): a model that is a folder is named relative to it.

    Then both can be moved together, and be found from any working directory. Relative is to where the folder really is,
    since the system follows ``..`` from there. The way by the names is taken where it leads to the model, and otherwise
    the way by the real places: links inside a project that is moved stay in use.
    """
    if name is not None and (changed := _of_members(name, lambda member: relative_to(member, folder))):
        return changed
    kind, _, place = (name or "").partition(":")
    model, variant = split_variant(place)
    path = os.path.abspath(path_of(model))
    if name is None or not place or not os.path.exists(path):
        return name
    real = os.path.realpath(folder)
    way = os.path.relpath(path, os.path.abspath(folder))
    if not (os.path.exists(found := os.path.join(real, way)) and os.path.samefile(found, path)):
        way = os.path.relpath(os.path.realpath(path), real)
    return f"{kind}:{way}" + ("" if variant is None else f"@{variant}")


def found_from(name: str | None, folder: Path) -> str | None:
    """The name that `relative_to` wrote, with the model's absolute path; as it is if there is no such folder."""
    if name is not None and (changed := _of_members(name, lambda member: found_from(member, folder))):
        return changed
    kind, _, place = (name or "").partition(":")
    for start in (os.path.realpath(folder), os.path.abspath(folder)):  # earlier versions wrote the way by the names
        path = os.path.normpath(os.path.join(start, place))
        if name and place and os.path.exists(split_variant(path)[0]):
            return f"{kind}:{path}"
    return name


def parse_model_name(text: str) -> ModelName:
    """Parse ``kind:name``; an unknown kind (the error suggests the nearest) or one without its name is refused."""
    kind, colon, name = str(text).strip().partition(":")
    if kind not in KINDS:
        hint = "" if colon else f" A model is named kind:name, e.g. 'dense:{kind}'."
        raise UserError(f"{unknown('model kind', kind, KINDS)}{hint}")
    if MODEL_KINDS[kind].needs_name and not name:
        raise UserError(f"model {text!r} has no name; write '{kind}:NAME', {KINDS[kind]}.")
    return ModelName(kind, name)


def check_can_search(name: ModelName) -> None:
    """Reject a kind of model that cannot search, before any is loaded."""
    if not MODEL_KINDS[name.kind].can_search:
        raise UserError(cannot_search(str(name)))


def cannot_search(name: str) -> str:
    """The message for a model that only scores pairs; it lists the kinds that search."""
    kinds = ", ".join(kind for kind, about in MODEL_KINDS.items() if about.can_search)
    return f"model {name} scores pairs and cannot search a corpus; use it as a teacher, and mine with one of {kinds}."


def split_variant(name: str) -> tuple[str, str | None]:
    """Split ``NAME@exit-4`` or ``NAME@keep-0.5`` into the name and what follows the ``@``.

    The latter, a variant inside the model, is None without one or if a folder has the whole name.
    """
    match = re.fullmatch(r"(.+)@(exit-\d+|keep-\d+(?:\.\d+)?)", name)
    if match is None or path_of(name).exists():
        return name, None
    return match[1], match[2]


def hub_name(name: str) -> str | None:
    """The model's name on the Hugging Face hub; None for a folder or file."""
    kind, _, place = name.partition(":")
    if kind in ("vectors", "run", "bm25") or Path(place).exists() or not re.fullmatch(r"[\w.-]+(/[\w.-]+)?", place):
        return None
    return place if "/" in place else f"sentence-transformers/{place}"
