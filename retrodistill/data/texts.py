"""Texts by id: the type of documents, queries and pseudo-queries."""

from __future__ import annotations

import hashlib
import itertools
import re
import unicodedata
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from functools import cached_property
from typing import Any, overload

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from retrodistill.core.checksums import checked, is_lazy
from retrodistill.core.errors import UserError, sample_of
from retrodistill.data.records import text_of

# 64-bit offsets: a selection from a corpus may exceed the 2 GiB that a `string` array can hold.
SCHEMA = pa.schema([("id", pa.string()), ("text", pa.large_string())])
# The first character of ids that this package makes, such as those of pseudo-queries. Collections refuse it in users'
# ids, so that no id of theirs is taken for one, or clashes with one.
GENERATED = "\0"
BATCH = 4096
_BATCH_CHARACTERS = 1 << 24  # of a batch of long texts, which has fewer rows
_MANY_CUTS = 10_000  # rows; a table in more pieces than that is slow to read
_MANY = 200_000  # above this many ids, looking some up does not turn all of them into Python strings


# Letters and symbols that show nothing, by their names in Unicode: fillers, joiners, selectors, the blank of braille.
_FILLERS = frozenset({0x034F, 0x115F, 0x1160, 0x17B4, 0x17B5, 0x2800, 0x3164, 0xFFA0, *range(0x180B, 0x1810)})
_FILLERS |= {*range(0xFE00, 0xFE10), *range(0xE0100, 0xE01F0)}
_INVISIBLE = frozenset({"Cc", "Cf", "Cn", "Cs", "Zl", "Zp", "Zs"})  # control, format, unassigned, surrogates, space
_PLAIN = re.compile("[!-~]").search  # of most texts the first letter tells


def is_blank(text: str) -> bool:
    """Whether a text has no visible character: it is empty, or white, or made of what shows nothing.

    This is the one definition of a text without content: it has no vector in any model, is never found, proposed or
    trained on, and as a query finds nothing. Zero-width and control characters, a byte order mark, soft hyphens and
    unassigned code points show nothing.
    """
    return not _PLAIN(text) and not any(
        unicodedata.category(letter) not in _INVISIBLE and ord(letter) not in _FILLERS for letter in text
    )


def blank_rows(texts: Iterable[str]) -> list[int]:
    """The rows of the texts that are blank."""
    return [row for row, text in enumerate(texts) if not _PLAIN(text) and is_blank(text)]


class Texts(Mapping[str, str]):
    """An ordered, immutable mapping from id to text, backed by an Arrow table that may be memory-mapped.

    It uses no memory beyond the table, and texts become Python strings only on access. The first lookup by id keeps
    all ids (not the texts) as Python strings.

    Attributes:
        table: Columns id (string) and text (large_string), one row per text, no nulls.
    """

    def __init__(
        self, table: pa.Table, fingerprint: str | None = None, blank_rows: Sequence[int] | None = None
    ) -> None:
        """Wrap a table with columns id and text (any string type).

        Args:
            table: Other columns are dropped. Ids must be unique: `from_pairs`, `select` and `+` check this, but the
                constructor does not.
            fingerprint: Digest of the content, if it is known from a manifest.
            blank_rows: Rows of blank texts, ascending, if they are: finding them reads all texts.
        """
        self.table = table.select(SCHEMA.names).cast(SCHEMA)
        nulls = sum(self.table[name].null_count for name in SCHEMA.names)
        if nulls:
            raise UserError(f"texts: {nulls} ids or texts are null; give '' for an empty text, and every text an id.")
        if fingerprint is not None:
            self.__dict__["fingerprint"] = fingerprint  # where the cached property looks first
        if blank_rows is not None:
            self.__dict__["blank_rows"] = np.array(blank_rows, dtype=np.int64)

    @classmethod
    def from_pairs(cls, pairs: Iterable[tuple[str, str]]) -> Texts:
        """Build from (id, text) pairs.

        Raises:
            UserError: An id appears twice.
        """
        return cls(pa.Table.from_batches(list(row_batches(pairs)), schema=SCHEMA))._with_unique_ids()

    def __len__(self) -> int:
        return self.table.num_rows

    def __iter__(self) -> Iterator[str]:
        return iter(self.ids)

    def __contains__(self, id_: object) -> bool:
        return id_ in self._places

    def __getitem__(self, id_: str) -> str:
        return self.column[self._places[id_]]

    def __repr__(self) -> str:
        return f"Texts({len(self)} texts)"

    __hash__ = None  # type: ignore[assignment]  # a Mapping compares by content, so a hash by identity would be wrong

    @cached_property
    def ids(self) -> list[str]:
        """All ids, in order."""
        return self.table["id"].to_pylist()

    @cached_property
    def lengths(self) -> np.ndarray:
        """(n,) int64 bytes of each text; no text is read for it."""
        lengths = [np.zeros(0, dtype=np.int64)]
        for chunk in self.table["text"].chunks:
            offsets = np.frombuffer(chunk.buffers()[1], np.int64)
            lengths.append(np.diff(checked(offsets[chunk.offset : chunk.offset + len(chunk) + 1])))
        return np.concatenate(lengths)

    @property
    def texts(self) -> list[str]:
        """All texts, in order; not cached, because it holds the whole corpus in memory. See `column`."""
        return checked(self.table["text"]).to_pylist()

    @cached_property
    def column(self) -> TextColumn:
        """All texts, in order, as a sequence that converts them to Python strings on access."""
        return TextColumn(self.table["text"])

    @cached_property
    def blank_rows(self) -> np.ndarray:
        """(m,) int64 rows of the texts that are blank, ascending: see `is_blank`."""
        return self.rows_of(blank_rows, unless="[!-~]")

    def rows_of(self, choose: Callable[[list[str]], list[int]], unless: str | None = None) -> np.ndarray:
        """(m,) int64 ascending rows that a function chooses from some texts, of those that do not match a pattern.

        Most texts are decided by the pattern, a regular expression of RE2, without becoming Python strings.
        """
        rows: list[int] = []
        start = 0
        for batch in self.table.to_batches(max_chunksize=BATCH):
            checked(batch["text"])
            others = np.arange(batch.num_rows)
            if unless is not None:
                matches = pc.match_substring_regex(batch["text"], unless).to_numpy(zero_copy_only=False)
                others = np.flatnonzero(~matches)
            if len(others):
                texts = batch["text"].take(pa.array(others)).to_pylist()
                rows += (start + others[choose(texts)]).tolist()
            start += batch.num_rows
        return np.array(rows, dtype=np.int64)

    @cached_property
    def blank(self) -> frozenset[str]:
        """Ids of the texts that are blank."""
        return frozenset(self.table["id"].take(pa.array(self.blank_rows)).to_pylist())

    def without(self, rows: np.ndarray) -> Texts:
        """The texts without those of (m,) ascending rows; itself for none."""
        return Texts(without_rows(self.table, rows)) if len(rows) else self

    @cached_property
    def _places(self) -> dict[str, int]:
        return {id_: place for place, id_ in enumerate(self.ids)}

    def position(self, id_: str) -> int:
        """The row of an id; raises KeyError if it is unknown."""
        return self._places[id_]

    def positions(self, ids: Iterable[str]) -> np.ndarray:
        """(n,) int64 rows of `ids`, in their order; -1 for an unknown id."""
        wanted = list(ids)
        if len(self) > _MANY and "_places" not in self.__dict__:
            # The hash table holds the ids that are wanted, not all.
            distinct = pa.array(wanted, pa.string()).dictionary_encode()
            found = pc.index_in(self.table["id"], value_set=distinct.dictionary).fill_null(-1).to_numpy()
            rows, places = np.flatnonzero(found >= 0), np.full(len(distinct.dictionary), -1, dtype=np.int64)
            places[found[rows]] = rows
            return places[distinct.indices.to_numpy()]
        return np.fromiter((self._places.get(id_, -1) for id_ in wanted), dtype=np.int64, count=len(wanted))

    def id_order(self, rows: np.ndarray) -> np.ndarray:
        """(n,) int64 keys that sort `rows` by ascending id: the rule for equal scores (see `id_places`)."""
        return self._id_places[rows]

    @cached_property
    def _id_places(self) -> np.ndarray:
        return id_places(self.table["id"])

    @cached_property
    def originals(self) -> np.ndarray:
        """(n,) int64 row of the first text that is equal to each: its own row unless it is a copy.

        Empty texts are no copies. Texts are compared by a hash of 64 bits each; a million take about two seconds.
        """
        hashes = [_hashes(checked(batch.column("text"))) for batch in self.table.to_batches(max_chunksize=BATCH)]
        if not hashes:
            return np.zeros(0, dtype=np.int64)
        first, inverse = np.unique(np.concatenate(hashes), return_index=True, return_inverse=True)[1:]
        originals = first.astype(np.int64)[inverse]
        empty = np.flatnonzero(self.lengths == 0)
        originals[empty] = empty
        return originals

    @cached_property
    def copies(self) -> np.ndarray | None:
        """(n,) bool, which texts are copies of an earlier one; None if there is none."""
        is_copy = self.originals != np.arange(len(self))
        return is_copy if is_copy.any() else None

    def slice(self, start: int, stop: int) -> list[str]:
        """The texts of rows start to stop (exclusive), as in a Python slice."""
        return self.column[start:stop]

    def select(self, ids: Sequence[str]) -> Texts:
        """The texts of `ids`, in that order.

        Raises:
            UserError: An id is unknown or appears twice.
        """
        rows = self.positions(ids)
        if len(rows) and rows.min() < 0:
            missing = [id_ for id_, row in zip(ids, rows, strict=True) if row < 0]
            raise UserError(
                f"no text with id {sample_of(missing)}: {len(missing)} of {len(rows)} ids are unknown; "
                f"select from the {len(self)} existing ids."
            )
        return Texts(take_rows(self.table, rows))._with_unique_ids()

    def __add__(self, other: Texts) -> Texts:
        """Concatenate; raises UserError if both contain the same id."""
        return Texts(pa.concat_tables([self.table, other.table]))._with_unique_ids()

    @cached_property
    def fingerprint(self) -> str:
        """Digest of ids and texts in order, 32 hexadecimal digits; independent of the table's chunks."""
        parts = column_digest(self.table["id"].chunks) + column_digest(checked(self.table["text"]).chunks)
        return hashlib.blake2b(parts.encode(), digest_size=16).hexdigest()

    def _with_unique_ids(self) -> Texts:
        twice = duplicates(self.table["id"])
        if twice:
            raise UserError(f"texts: id {sample_of(twice)} appears more than once; ids must be unique.")
        return self


class TextColumn(Sequence[str]):
    """The texts of an Arrow column by row, converted to Python strings on access."""

    def __init__(self, column: pa.ChunkedArray) -> None:
        self._column, self._is_lazy = column, is_lazy(column)

    def __len__(self) -> int:
        return len(self._column)

    @overload
    def __getitem__(self, rows: int) -> str: ...
    @overload
    def __getitem__(self, rows: slice) -> list[str]: ...
    def __getitem__(self, rows: int | slice) -> str | list[str]:
        if isinstance(rows, slice):
            return checked(self._column[rows]).to_pylist()
        row = int(rows)
        if self._is_lazy:
            checked(self._column[row % len(self) :][:1])
        return self._column[row].as_py()

    def __iter__(self) -> Iterator[str]:
        for start in range(0, len(self), BATCH):
            yield from self[start : start + BATCH]

    def __eq__(self, other: object) -> bool:
        if not isinstance(other, Sequence) or isinstance(other, str):
            return NotImplemented
        return len(self) == len(other) and all(one == another for one, another in zip(self, other, strict=True))

    def __repr__(self) -> str:
        return f"TextColumn({len(self)} texts)"

    __hash__ = None  # type: ignore[assignment]  # it compares by content


def spread(texts: Sequence[str], most: int) -> list[str]:
    """At most `most` texts, evenly spread."""
    return [texts[row] for row in spread_rows(len(texts), most)]


def spread_rows(count: int, most: int) -> np.ndarray:
    """At most `most` of a number of rows, ascending, evenly spread."""
    return np.unique(np.linspace(0, count - 1, min(most, count), dtype=int))


def row_batches(rows: Iterable[tuple[Any, ...]], schema: pa.Schema = SCHEMA) -> Iterator[pa.RecordBatch]:
    """Turn rows, by default (id, text), into record batches of a schema."""
    batch: list[tuple[Any, ...]] = []
    characters = 0
    for row in rows:
        batch.append(row)
        characters += sum(len(value) for value in row if isinstance(value, str))
        if len(batch) == BATCH or characters >= _BATCH_CHARACTERS:
            yield _record_batch(batch, schema)
            batch, characters = [], 0
    if batch:
        yield _record_batch(batch, schema)


def _record_batch(rows: Sequence[tuple[Any, ...]], schema: pa.Schema) -> pa.RecordBatch:
    try:
        return pa.record_batch([list(column) for column in zip(*rows, strict=True)], schema=schema)
    except (pa.ArrowException, TypeError, UnicodeEncodeError):
        for id_, *_rest in rows:
            text_of(id_, "id", "text", repr(id_))
        for id_, *texts in rows:
            for column, text in zip(list(schema)[1:], texts, strict=True):
                if pa.types.is_string(column.type) or pa.types.is_large_string(column.type):
                    text_of(text, column.name, "text", repr(id_))
        raise


def without_rows(table: pa.Table, rows: np.ndarray) -> pa.Table:
    """A table without some ascending rows; it shares the memory of the others, mapped or not, unless there are many."""
    if len(rows) > _MANY_CUTS:
        kept = np.ones(len(table), dtype=bool)
        kept[rows] = False
        return checked(table).filter(pa.array(kept))
    bounds = [-1, *rows.tolist(), len(table)]
    return pa.concat_tables([table.slice(a + 1, b - a - 1) for a, b in itertools.pairwise(bounds)])


def duplicates(ids: pa.ChunkedArray) -> list[str]:
    """The ids that appear more than once, in the order of their first row."""
    if pc.count_distinct(ids).as_py() == len(ids):
        return []
    counts = pc.value_counts(ids)
    return counts.filter(pc.greater(counts.field("counts"), 1)).field("values").to_pylist()


def id_places(ids: pa.Array | pa.ChunkedArray) -> np.ndarray:
    """(n,) int64 place of each id among all in ascending order, by code points: equal scores are ranked in it."""
    order = pc.sort_indices(ids).to_numpy().astype(np.int64)
    places = np.empty_like(order)
    places[order] = np.arange(len(order))
    return places


class ColumnDigest:
    """Digest of a column of strings, 32 hexadecimal digits; independent of how the column is split into arrays.

    Lengths and bytes are hashed separately and directly from Arrow's buffers, without creating Python strings.
    """

    def __init__(self) -> None:
        self._lengths, self._content = hashlib.blake2b(digest_size=16), hashlib.blake2b(digest_size=16)

    def update(self, arrays: Iterable[pa.Array]) -> ColumnDigest:
        """Add the next arrays of the column."""
        for piece in arrays:
            if len(piece) == 0:
                continue
            array = piece.cast(pa.large_string())
            is_null = array.is_null().to_numpy(zero_copy_only=False)
            filled = pc.fill_null(array, "")
            offsets = np.frombuffer(filled.buffers()[1], np.int64)[filled.offset : filled.offset + len(filled) + 1]
            self._lengths.update(np.where(is_null, -1, np.diff(offsets)).tobytes())  # null differs from ''
            self._content.update(memoryview(filled.buffers()[2] or b"")[offsets[0] : offsets[-1]])
        return self

    def hexdigest(self) -> str:
        """The digest of what was added so far."""
        return hashlib.blake2b(self._lengths.digest() + self._content.digest(), digest_size=16).hexdigest()


def column_digest(arrays: Iterable[pa.Array]) -> str:
    """The `ColumnDigest` of a whole column."""
    return ColumnDigest().update(arrays).hexdigest()


def _hashes(texts: pa.Array) -> np.ndarray:
    """(n,) uint64, directly from Arrow's buffers."""
    offsets = np.frombuffer(texts.buffers()[1], np.int64)[texts.offset : texts.offset + len(texts) + 1].tolist()
    content = memoryview(texts.buffers()[2] or b"")
    digests = (
        hashlib.blake2b(content[start:stop], digest_size=8).digest() for start, stop in itertools.pairwise(offsets)
    )
    return np.frombuffer(b"".join(digests), dtype=np.uint64)


def take_rows(table: pa.Table, rows: np.ndarray) -> pa.Table:
    """Rows of a chunked table, in the given order.

    `Table.take` first joins all chunks of strings, which would read a memory-mapped corpus into memory. This takes
    rows from each chunk and sorts only the result.
    """
    batches = table.to_batches()
    if len(rows) == 0 or len(batches) < 2:
        return checked(table).take(pa.array(rows, pa.int64()))
    starts = np.concatenate([[0], np.cumsum([batch.num_rows for batch in batches])])
    chunk = np.searchsorted(starts, rows, side="right") - 1
    order = np.argsort(chunk, kind="stable")
    bounds = np.flatnonzero(np.diff(chunk[order])) + 1
    taken = [
        checked(batches[chunk[group[0]]]).take(pa.array(rows[group] - starts[chunk[group[0]]]))
        for group in np.split(order, bounds)
    ]
    back = np.empty_like(order)
    back[order] = np.arange(len(order))
    return pa.Table.from_batches(taken, schema=table.schema).take(pa.array(back))
