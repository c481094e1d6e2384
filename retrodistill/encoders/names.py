"""Models are named ``kind:name`` in Python, in recipes and on the command line alike."""

from __future__ import annotations

import re
from dataclasses import dataclass
from pathlib import Path

from retrodistill.core.errors import UserError, unknown

KINDS = {
    "bm25": "lexical search, stemmed English BM25 (bm25s); takes no name",
    "dense": "a sentence-transformers bi-encoder: folder or hub name",
    "static": "a static token-table encoder (StaticEmbedding): folder or hub name",
    "sparse": "a learned sparse encoder (SparseEncoder): folder or hub name",
    "multi-vector": "a late-interaction encoder (MultiVectorEncoder): folder or hub name",
    "vectors": "document or query vectors that were made elsewhere, an API's say: a file or folder",
    "cross-encoder": "a sentence-transformers cross-encoder, raw logits: folder or hub name",
    "prett": "a PreTT re-ranker that was distilled here: its folder",
    "tk": "a TK re-ranker that was distilled here: its folder",
    "run": "recorded scores: a run file (.run, .trec, .parquet, .jsonl)",
    "judgments": "relevance judgments of a split that is not measured, as a teacher: judgments:train",
}
PAIR_KINDS = ("cross-encoder", "prett", "tk")  # they score pairs and search nothing
SEARCHING_KINDS = tuple(kind for kind in KINDS if kind not in (*PAIR_KINDS, "judgments"))
_NAMELESS = ("bm25",)


@dataclass(frozen=True)
class ModelName:
    """A parsed model name.

    Attributes:
        kind: One of `KINDS`.
        name: Folder, hub name or file; empty for ``bm25``.
    """

    kind: str
    name: str = ""

    def __str__(self) -> str:
        return f"{self.kind}:{self.name}" if self.name else self.kind


def parse_model_name(text: str) -> ModelName:
    """Read ``kind:name``.

    Raises:
        UserError: Unknown kind (the nearest is named), or a kind without its name.
    """
    kind, colon, name = str(text).strip().partition(":")
    if kind not in KINDS:
        hint = "" if colon else f" A model is named kind:name, e.g. 'dense:{kind}'."
        raise UserError(f"{unknown('model kind', kind, KINDS)}{hint}")
    if kind in _NAMELESS and name:
        raise UserError(f"model {text!r}: {kind} takes no name; write {kind!r}.")
    if kind not in _NAMELESS and not name:
        raise UserError(f"model {text!r} has no name; write '{kind}:NAME', {KINDS[kind]}.")
    return ModelName(kind, name)


def split_exit(name: str) -> tuple[str, int | None]:
    """A model's folder or hub name and the layer of ``@exit-4`` behind it, None without; a folder of that name wins."""
    found = re.fullmatch(r"(.+)@exit-(\d+)", name)
    if found is None or Path(name).expanduser().exists():
        return name, None
    return found[1], int(found[2])
