"""Parallel texts: pairs of a source, which the teacher reads, and its translation, which only the student reads."""

from __future__ import annotations

import os
from dataclasses import dataclass

from retrodistill.core.digests import digest
from retrodistill.core.errors import UserError
from retrodistill.core.paths import path_of
from retrodistill.data.leaks import ExcludedQueries
from retrodistill.data.records import text_of
from retrodistill.data.tables import Columns, table_at
from retrodistill.data.texts import GENERATED, Texts

_KEYS = ("source", "translation")
_COLUMNS = Columns(dict.fromkeys(_KEYS, ()), {2: _KEYS}, '{"source": "...", "translation": "..."}')
_SOURCE, _TRANSLATION = (f"{GENERATED}{key}:" for key in _KEYS)


@dataclass(frozen=True)
class Parallel:
    """Pairs of texts; a student learns the teacher's vector of the source for both (Reimers and Gurevych 2020).

    Attributes:
        texts: What the student reads: every distinct source (`GENERATED` and ``source:ROW``) and every translation
            (`GENERATED` and ``translation:ROW``).
        sources: What the teacher reads instead of a translation, by the translation's id.
    """

    texts: Texts
    sources: Texts

    @property
    def fingerprint(self) -> str:
        """Digest of the pairs."""
        return digest(self.texts.fingerprint, self.sources.fingerprint)

    def __len__(self) -> int:
        return len(self.sources)

    @classmethod
    def from_pairs(cls, pairs: list[tuple[str, str]]) -> Parallel:
        """From (source, translation) texts."""
        distinct = dict.fromkeys(source for source, _ in pairs)
        rows = {source: row for row, source in enumerate(distinct)}
        texts = [(f"{_SOURCE}{row}", source) for source, row in rows.items()]
        texts += [(f"{_TRANSLATION}{row}", translation) for row, (_, translation) in enumerate(pairs)]
        sources = ((f"{_TRANSLATION}{row}", source) for row, (source, _) in enumerate(pairs))
        return cls(Texts.from_pairs(texts), Texts.from_pairs(sources))

    def without_leaks(self, excluded: ExcludedQueries) -> tuple[Parallel, int]:
        """The pairs of which neither text is a test query, or nearly, and the number of the others."""
        leaked = {leak.text for leak in excluded.leaks_in(self.texts)}
        pairs = [(source, self.texts[id_]) for id_, source in self.sources.items()]
        kept = [pair for pair in pairs if leaked.isdisjoint(pair)]
        return Parallel.from_pairs(kept), len(pairs) - len(kept)


def load_parallel(path: str | os.PathLike[str]) -> Parallel:
    """Read pairs from a table with the columns source and translation: JSONL, TSV, CSV, or Parquet.

    Raises:
        UserError: There is no such table, it has other columns or an empty text, or there is no pair.
    """
    table, pairs = table_at(path_of(path)), []
    if table is None:
        raise UserError(f"no parallel texts at {path}; give a file of {_COLUMNS.wanted}, or of source<tab>translation.")
    for place, record in table.records(_COLUMNS):
        source, translation = (text_of(record.get(key), key, table.where, place) for key in _KEYS)
        if not source.strip() or not translation.strip():
            empty = _KEYS[bool(source.strip())]
            raise UserError(f"{table.where} {place}: the {empty} is empty; leave out pairs without both texts.")
        pairs.append((source, translation))
    if not pairs:
        raise UserError(f"{path} has no pairs; expected texts with their translations.")
    return Parallel.from_pairs(pairs)
