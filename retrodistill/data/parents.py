"""Which document each passage was cut from, and by which rule."""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import Any, Literal

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
from pydantic import Field, field_validator, model_validator

from retrodistill.core.errors import UserError
from retrodistill.core.settings import Settings, validated

BEST = "max"
_MEAN = re.compile(r"mean@([1-9]\d*)")
_MARK = "#"  # between a document's id and the number of its passage, from 1


class PassageSettings(Settings):
    """How documents are cut into passages, which are searched and scored in their place."""

    words: int = Field(default=120, ge=1)
    """Most words of a passage, without the title, which is put before each passage. Whole sentences are packed up to
    this; a longer sentence is cut. A character of a script without spaces counts as a word."""
    overlap: int = Field(default=20, ge=0)
    """Most words that a passage repeats from the end of the one before, in whole sentences."""
    aggregate: str = BEST
    """How a document's score is made of its passages': `max`, the best passage, or `mean@N`, the mean of its N best,
    or of all if it has fewer."""
    bm25: Literal["documents", "passages"] = "documents"
    """What BM25 searches where it is measured. As a teacher and a source of candidates, it searches passages."""

    @field_validator("aggregate")
    @classmethod
    def _known_aggregate(cls, aggregate: str) -> str:
        if aggregate != BEST and not _MEAN.fullmatch(aggregate):
            raise ValueError(f"{aggregate!r} is not a way to aggregate passages; give max, or mean@N such as mean@3")
        return aggregate

    @model_validator(mode="after")
    def _overlap_fits(self) -> PassageSettings:
        if self.overlap >= self.words:
            raise ValueError(f"overlap must be below words, and {self.overlap} is not below {self.words}")
        return self

    @classmethod
    def of(cls, given: Any) -> PassageSettings:
        """Settings from settings, a mapping, or a text: ``WORDS,OVERLAP``, or ``KEY=VALUE,KEY=VALUE``."""
        if isinstance(given, PassageSettings):
            return given
        content = _parsed(given) if isinstance(given, str) else given
        if not isinstance(content, Mapping):
            raise UserError(f"passages={given!r}: give {{'words': 120, 'overlap': 20}}, or '120,20'.")
        return validated(cls, dict(content), "passages")

    @property
    def cut(self) -> dict[str, int]:
        """The keys that decide the passages."""
        return {"words": self.words, "overlap": self.overlap}


def mean_of(aggregate: str) -> int | None:
    """The n of ``mean@n``; None for the best passage. Anything else is a `UserError`."""
    aggregate = PassageSettings.of({"aggregate": aggregate}).aggregate
    found = _MEAN.fullmatch(aggregate)
    return int(found[1]) if found else None


def passages_option(given: Any) -> Any:
    """What a settings key takes: the short form ``WORDS,OVERLAP`` as a mapping, and anything else as it is."""
    return _parsed(given) if isinstance(given, str) else given


def _parsed(text: str) -> dict[str, str]:
    parts = [part.strip() for part in text.split(",")]
    names = ("words", "overlap") if "=" not in text else ()
    if names and not 1 <= len(parts) <= len(names):
        raise UserError(f"passages={text!r}: give WORDS,OVERLAP such as 120,20, or KEY=VALUE,KEY=VALUE.")
    if names:
        return dict(zip(names, parts, strict=False))
    pairs = [part.partition("=") for part in parts]
    return {key.strip(): value.strip() for key, _, value in pairs}


@dataclass(frozen=True, eq=False)
class Parents:
    """The documents that passages were cut from. The passages of a document are adjacent and in order.

    Attributes:
        ids: (documents,) ids of the documents, strings.
        rows: (passages,) int32, ascending: the document of each passage.
        settings: How they were cut.
    """

    ids: pa.Array | pa.ChunkedArray
    rows: np.ndarray
    settings: PassageSettings

    @classmethod
    def of_column(cls, documents: pa.Array | pa.ChunkedArray, settings: PassageSettings) -> Parents:
        """From a column with the document of each passage; those of a document are adjacent."""
        coded = pa.chunked_array(documents).combine_chunks().dictionary_encode()
        return cls(coded.dictionary, coded.indices.to_numpy(), settings)

    def with_added(self, documents: Sequence[str]) -> Parents:
        """With more passages, by the document of each; the first may go on with the last document."""
        added = pa.array(documents, pa.string()).dictionary_encode()
        names, first = added.dictionary, len(self.ids)
        if len(names) and first and names[0] == self.ids[-1]:
            names, first = names[1:], first - 1
        ids = pa.concat_arrays([self._names, names])
        return Parents(ids, np.concatenate([self.rows, added.indices.to_numpy() + np.int32(first)]), self.settings)

    def without(self, removed: np.ndarray) -> Parents:
        """Without some passages, all of their documents, by a (passages,) mask."""
        return Parents.of_column(self.column.cast(pa.string()).filter(pa.array(~removed)), self.settings)

    @cached_property
    def _names(self) -> pa.Array:
        return self.ids.combine_chunks() if isinstance(self.ids, pa.ChunkedArray) else self.ids

    @property
    def column(self) -> pa.Array:
        """The document of each passage, dictionary-encoded strings."""
        return pa.DictionaryArray.from_arrays(pa.array(self.rows), self._names)

    def names(self, start: int) -> list[str]:
        """Ids of the passages from row `start` on."""
        documents = self.column[start:].to_pylist()
        numbers = np.arange(start, len(self.rows)) - self.bounds[self.rows[start:]] + 1
        return [passage_id(document, number) for document, number in zip(documents, numbers.tolist(), strict=True)]

    @cached_property
    def bounds(self) -> np.ndarray:
        """(documents + 1,) int64: passages of document i are rows ``bounds[i]`` to ``bounds[i + 1]``."""
        return np.concatenate([[0], np.cumsum(np.bincount(self.rows, minlength=len(self.ids)))])

    def sizes_of(self, ids: pa.Array) -> np.ndarray:
        """(n,) int64 numbers of passages of distinct documents, by id; 0 for an unknown one."""
        places = pc.index_in(self.ids, value_set=ids).fill_null(-1).to_numpy()  # the ids are the smaller table
        known, sizes = np.flatnonzero(places >= 0), np.zeros(len(ids), dtype=np.int64)
        sizes[places[known]] = np.diff(self.bounds)[known]
        return sizes

    def passages_of(self, documents: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        """The passages of (n,) rows of documents, one document after the other: places in `documents`, and rows."""
        starts, counts = self.bounds[documents], np.diff(self.bounds)[documents]
        places = np.repeat(np.arange(len(documents)), counts)
        return places, np.arange(len(places)) - np.repeat(np.cumsum(counts) - counts - starts, counts)


def passage_id(document: str, number: int) -> str:
    """The id of a document's passage; numbers count from 1."""
    return f"{document}{_MARK}{number}"


def document_ids(passages: pa.Array) -> pa.Array:
    """The documents of passages, by their ids."""
    return pc.replace_substring_regex(passages, rf"{_MARK}[0-9]+$", "")
