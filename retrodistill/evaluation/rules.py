"""BEIR's rules for its data sets: which split counts, what is one row of the table, and which version it is."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from dataclasses import dataclass
from functools import partial
from pathlib import Path

from retrodistill.core.errors import UserError
from retrodistill.data import Collection, load_collection
from retrodistill.data.beir import FORUMS, load_folder

CQADUPSTACK = "cqadupstack"
_SPLITS = {"msmarco": "dev"}  # its test split is TREC's Deep Learning track of 2019; BEIR's table has dev
_TOUCHE, _TOUCHE_V2 = "webis-touche2020", 2214


@dataclass(frozen=True)
class Source:
    """A collection to measure on.

    Attributes:
        load: Opens it.
        place: What `load_collection` takes, as text; None for a collection in memory.
        row: The table's row that it is part of; None for one of its own.
    """

    load: Callable[[], Collection]
    place: str | None = None
    row: str | None = None


def sources(given: Iterable[Collection | str | Path]) -> list[Source]:
    """Collections in the order given, CQADupStack as its twelve forums that make one row.

    Raises:
        UserError: A folder of CQADupStack lacks a forum.
    """
    found = []
    for one in given:
        if isinstance(one, Collection):
            found.append(Source(partial(load_collection, one)))
        else:
            found += _forums(one) or [Source(partial(load_collection, one), str(one))]
    return found


def split_of(collection: Collection, split: str | None) -> str:
    """The split that counts: the one asked for, else BEIR's, which is test, and dev for msmarco.

    Without any judgments it is ``all``: there is no quality to measure, and the rest can be.
    """
    if split is not None:
        return split
    if not collection.qrels:
        return "all"
    ruled = _SPLITS.get(_beir_name(collection), "test")
    return ruled if ruled in collection.qrels else "test"


def version_note(collection: Collection, split: str) -> str | None:
    """What a reader must know of a data set that exists in several versions."""
    if _beir_name(collection) not in (_TOUCHE, f"{_TOUCHE}-v2") or split not in collection.qrels:
        return None
    count = len(collection.qrels[split])
    if count == _TOUCHE_V2:
        return f"{_TOUCHE} is version 2 ({count:,} judgments), the one in BEIR's zip: not comparable with v1 or v3."
    return f"{_TOUCHE} has {count:,} judgments; BEIR's version 2 has {_TOUCHE_V2:,}: not comparable with its table."


def _beir_name(collection: Collection) -> str:
    """What BEIR calls a data set, wherever it was loaded from: ir_datasets puts ``beir-`` before it."""
    return collection.name.removeprefix("beir-")


def _forums(source: str | Path) -> list[Source]:
    """The forums where a source is the whole of CQADupStack; else none."""
    if source in (f"beir/{CQADUPSTACK}", f"ir_datasets:beir/{CQADUPSTACK}"):
        places = [f"{source}/{forum}" for forum in FORUMS]
        return [Source(partial(load_collection, place), place, CQADUPSTACK) for place in places]
    folder = Path(source)
    if folder.name != CQADUPSTACK or not folder.is_dir() or list(folder.glob("corpus.jsonl*")):
        return []
    lacking = [forum for forum in FORUMS if not list((folder / forum).glob("corpus.jsonl*"))]
    if lacking:
        raise UserError(
            f"{folder} lacks {', '.join(lacking)} of CQADupStack's {len(FORUMS)} forums; its row is the mean of all: "
            "add them, or name the forums' folders one by one."
        )
    folders = [(folder / forum, f"{CQADUPSTACK}-{forum}") for forum in FORUMS]
    return [Source(partial(load_folder, place, name), str(place), CQADUPSTACK) for place, name in folders]
