"""What the index command builds from its options."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from retrodistill.cli.app import show
from retrodistill.core.errors import UserError

if TYPE_CHECKING:
    from retrodistill.indexes import Index
    from retrodistill.indexes.learned import LearnedIndex


def given_options(pairs: list[str], flags: dict[str, Any]) -> dict[str, Any]:
    """The options of an index, of ``KEY=VALUE`` arguments and of flags; flags that were not given are left out.

    Raises:
        UserError: An argument is not ``KEY=VALUE``.
    """
    from retrodistill.recipes.loading import override

    content: dict[str, Any] = {name: value for name, value in flags.items() if value not in (None, False)}
    for pair in pairs:
        override(content, pair)
    return content


def build(source: str, documents: str, queries: str | None, options: dict[str, Any], out: Path) -> Index:
    """Build and save an index; options are checked before any work starts."""
    from retrodistill.data import load_collection
    from retrodistill.encoders import load_encoder
    from retrodistill.indexes import IndexOptions, build_index
    from retrodistill.indexes.base import check_index_folder
    from retrodistill.indexes.registry import check_options_fit, kind_for
    from retrodistill.recipes import validated

    check_index_folder(out)
    wanted = validated(IndexOptions, options, "index")
    collection, encoder = load_collection(source), load_encoder(documents)
    kind = kind_for(encoder)
    check_options_fit(list(options), [kind])
    wanted.check([kind])
    built = build_index(collection, encoder, queries, settings=wanted)
    built.save(out)
    return built


@dataclass(frozen=True)
class Learning:
    """How a quantizer is learned from the command line: whether a map of the queries is learned too, and the seed."""

    queries: bool
    seed: int


def learn(source: str, documents: str, queries: str | None, options: dict[str, Any], out: Path, how: Learning) -> Index:
    """Learn a quantizer, save the index, and show what OPQ gives at the same bytes.

    Raises:
        UserError: Documents that are not dense, or an option that learning does not take.
    """
    from retrodistill.data import load_collection
    from retrodistill.encoders import load_encoder
    from retrodistill.encoders.any_encoder import DENSE
    from retrodistill.indexes.base import check_index_folder
    from retrodistill.indexes.learned import learn_index, save_query_map, texts_with_vectors
    from retrodistill.quantizers import QuantizerSettings

    strange = [name for name in options if name not in ("bytes", "factory")]
    if strange:
        raise UserError(f"--learn takes --bytes or --factory; leave {strange[0]} out.")
    check_index_folder(out)
    collection, encoder = load_collection(source), load_encoder(documents, DENSE)
    query_encoder = None if queries is None else load_encoder(queries, DENSE)
    learned = learn_index(
        collection,
        encoder,
        texts_with_vectors(collection, query_encoder or encoder, seed=how.seed),
        queries=query_encoder,
        target=options.get("factory") or options.get("bytes") or 16,
        settings=QuantizerSettings(
            query_map=how.queries, transform="rotation" if how.queries else "free", seed=how.seed
        ),
    )
    if learned.learned.query_map is not None:
        save_query_map(learned, out.with_name(f"{out.name}.queries"))
    learned.index.save(out)
    show(_agreement(learned))
    return learned.index


def _agreement(result: LearnedIndex) -> str:
    before, after = result.learned.agreement
    note = "" if result.learned.improved else " Nothing learned was better: the index is its start."
    return (
        f"agreement with exact search on held-out queries (0 to 1): {after:.4f}, OPQ at the same bytes "
        f"({result.learned.factory}) {before:.4f}.{note}"
    )
