"""What the index command builds from its options."""

from __future__ import annotations

from dataclasses import dataclass, fields
from pathlib import Path
from typing import TYPE_CHECKING, Any

from retrodistill.cli.app import show
from retrodistill.core.errors import UserError

if TYPE_CHECKING:
    from retrodistill.data import Collection
    from retrodistill.indexes import Index
    from retrodistill.indexes.learned import LearnedIndex

_FLOAT = 32  # bits of an impact that is kept as it is
_OF = {  # options of each kind of index
    "faiss": ("factory", "bytes", "recall", "truncate", "learn", "learn_queries"),
    "multi-vector": ("codec", "muvera"),
    "inverted": ("bits", "backend", "prune", "query_cut", "heap_factor"),
}


@dataclass(frozen=True)
class IndexOptions:
    """The options of the index command, None or false where they were not given."""

    factory: str | None = None
    bytes: int | None = None
    recall: float | None = None
    truncate: int | None = None
    learn: bool = False
    learn_queries: bool = False
    codec: str | None = None
    muvera: bool = False
    bits: int | None = None
    backend: str | None = None
    prune: int | None = None
    query_cut: int | None = None
    heap_factor: float | None = None
    seed: int = 0

    def check(self, kind: str) -> None:
        """Refuse options of another kind of index.

        Raises:
            UserError: Names the first.
        """
        values = {one.name: getattr(self, one.name) for one in fields(self) if one.name != "seed"}
        given = [name for name, value in values.items() if value not in (None, False)]
        strange = [name for name in given if name not in _OF[kind]]
        if strange:
            option = strange[0].replace("_", "-")
            known = ", ".join(f"--{name.replace('_', '-')}" for name in _OF[kind])
            raise UserError(f"--{option} does not fit an index of kind {kind}, which takes {known}.")
        if self.learn and (self.truncate or self.recall):
            raise UserError("--learn takes --bytes or --factory; leave --truncate and --recall out.")
        if self.bytes and not self.learn and self.factory not in (None, "auto"):
            raise UserError(f"--bytes chooses the factory; leave --factory {self.factory} out.")


def build(source: str, documents: str, queries: str | None, wanted: IndexOptions, out: Path) -> Index:
    """Build and save an index; what was asked is checked before any work starts."""
    from retrodistill.data import load_collection
    from retrodistill.encoders.any_encoder import load_encoder
    from retrodistill.encoders.multi_vector import MultiVectorModel
    from retrodistill.encoders.sparse import SparseTextEncoder
    from retrodistill.indexes import FaissSettings, InvertedSettings, MultiVectorSettings, build_index
    from retrodistill.indexes.muvera import MuveraSettings
    from retrodistill.indexes.stored import replaceable
    from retrodistill.recipes import validated

    replaceable(out)
    collection, encoder = load_collection(source), load_encoder(documents)
    settings: Any
    if isinstance(encoder, SparseTextEncoder):
        wanted.check("inverted")
        asked: dict[str, Any] = {name: getattr(wanted, name) for name in _OF["inverted"]}
        given = {name: value for name, value in asked.items() if value is not None}
        if given.get("bits") == _FLOAT:
            given["bits"] = None
        settings = validated(InvertedSettings, given, "index")
    elif isinstance(encoder, MultiVectorModel):
        wanted.check("multi-vector")
        given = {"codec": wanted.codec} if wanted.codec else {}
        muvera = MuveraSettings() if wanted.muvera else None
        settings = validated(MultiVectorSettings, {**given, "muvera": muvera}, "index")
    else:
        wanted.check("faiss")
        if wanted.learn:
            return _learned(collection, encoder, queries, wanted, out)
        chosen = "auto" if wanted.bytes or wanted.recall else "Flat"
        settings = FaissSettings(
            factory=wanted.factory or chosen, bytes=wanted.bytes, recall=wanted.recall, truncate=wanted.truncate
        )
    built = build_index(collection, encoder, queries, settings=settings)
    built.save(out)
    return built


def _learned(collection: Collection, encoder: Any, queries: str | None, wanted: IndexOptions, out: Path) -> Index:
    """Learn a quantizer, save it, and tell what OPQ gives at the same bytes."""
    from retrodistill.encoders.any_encoder import DENSE, load_encoder
    from retrodistill.indexes.learned import learn_index, save_query_map, texts_with_vectors
    from retrodistill.quantizers import QuantizerSettings

    asking = None if queries is None else load_encoder(queries, DENSE)
    found = learn_index(
        collection,
        encoder,
        texts_with_vectors(collection, asking or encoder, seed=wanted.seed),
        queries=asking,
        target=wanted.factory or wanted.bytes or 16,
        settings=QuantizerSettings(
            query_map=wanted.learn_queries, transform="rotation" if wanted.learn_queries else "free", seed=wanted.seed
        ),
    )
    if found.learned.query_map is not None:
        save_query_map(found, out.with_name(f"{out.name}.queries"))
    found.index.save(out)
    show(_told(found))
    return found.index


def _told(found: LearnedIndex) -> str:
    before, after = found.learned.agreement
    kept = "" if found.learned.improved else " Nothing learned was better: the index is its start."
    return (
        f"agreement with exact search on held-out queries (0 to 1): {after:.4f}, OPQ at the same bytes "
        f"({found.learned.factory}) {before:.4f}.{kept}"
    )
