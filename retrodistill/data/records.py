"""Readers for text files, and checks of the records that every source of a collection provides."""

from __future__ import annotations

import gzip
import json
import zlib
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, NamedTuple

from retrodistill.core.errors import UserError, unknown

DOCUMENT_KEYS = ("_id", "title", "text")  # of a record; all others are fields
_BOM = b"\xef\xbb\xbf"
_MISSING = object()
_DEV = ("validation", "valid", "val", "dev")
_INT32 = range(-(2**31), 2**31)


class Document(NamedTuple):
    """A document; `place` is its line or row in the source, from 1; `fields` may also have `DOCUMENT_KEYS`."""

    place: int
    id: str
    title: str
    body: str
    fields: Mapping[str, Any] = {}


class Query(NamedTuple):
    """A query; `place` is its line or row in the source, from 1."""

    place: int
    id: str
    text: str


class Judgment(NamedTuple):
    """A relevance judgment; `place` is its line or row in the source, from 1."""

    place: int
    query_id: str
    document_id: str
    relevance: int


@dataclass(frozen=True)
class Source:
    """A collection that can be read several times: each call starts a new streaming pass.

    Attributes:
        documents: Yields every document.
        queries: Yields every query.
        qrels: For each split, yields every judgment.
        where: Prefix of places in error messages, for ``documents`` and ``queries``: ``"/data/x/corpus.jsonl, line"``.
        warnings: Problems that the source already noticed.
    """

    documents: Callable[[], Iterator[Document]]
    queries: Callable[[], Iterator[Query]]
    qrels: Mapping[str, Callable[[], Iterator[Judgment]]]
    where: Mapping[str, str] = field(default_factory=dict)
    warnings: tuple[str, ...] = ()


def read_lines(path: Path) -> Iterator[tuple[int, str]]:
    """Yield (line number from 1, line) for each line that is not blank; ``.gz`` files are decompressed.

    Only line feeds end a line, because texts may contain other line breaks. A byte order mark is dropped: otherwise it
    would become part of the first id.
    """
    number = 0
    try:
        with gzip.open(path, "rb") if path.suffix == ".gz" else path.open("rb") as file:
            for number, raw in enumerate(file, start=1):
                line = raw.removeprefix(_BOM) if number == 1 else raw
                if line.strip():
                    yield number, line.decode("utf-8").rstrip("\r\n")
    except UnicodeDecodeError as error:
        raise UserError(
            f"{path}, line {number}: not UTF-8 (byte 0x{error.object[error.start]:02x} at {error.start}); "
            "convert the file to UTF-8."
        ) from error
    except (EOFError, gzip.BadGzipFile, zlib.error) as error:
        raise UserError(f"{path}, after line {number}: not a whole gzip file ({error}); download it again.") from error
    except OSError as error:
        raise UserError(f"cannot read {path}: {error.strerror or error}.") from error


def read_objects(path: Path, wanted: str) -> Iterator[tuple[int, dict[str, Any]]]:
    """Yield (line number from 1, JSON object) for each line; `wanted` describes a line in error messages."""
    for number, line in read_lines(path):
        try:
            record = json.loads(line)
        except (json.JSONDecodeError, RecursionError) as error:
            raise UserError(f"{path}, line {number}: not JSON ({error}); expected {wanted}.") from error
        if not isinstance(record, dict):
            kind = type(record).__name__
            raise UserError(f"{path}, line {number}: a JSON {kind}, not an object; expected {wanted}.")
        yield number, record


def read_records(
    path: Path, what: str, required: Sequence[str], optional: Sequence[str] = ()
) -> Iterator[tuple[int, dict[str, Any]]]:
    """Yield (line number from 1, JSON object) for a file whose objects have known keys.

    Args:
        path: The file, with at least one object.
        what: Noun for one object in error messages.
        required: Keys that every object has, not null.
        optional: Keys that an object may have.
    """
    keys, is_empty = [*required, *optional], True
    for number, record in read_objects(path, f"one JSON object per {what}"):
        is_empty, where = False, f"{path}, line {number}"
        for key in record:
            if key not in keys:
                raise UserError(f"{where}: {unknown('key', key, keys)}")
        for key in required:
            if record.get(key) is None:
                raise UserError(f"{where}: no {key!r}; every {what} has {', '.join(required)}.")
        yield number, record
    if is_empty:
        raise UserError(f"{path} has no lines; expected one JSON object per {what}, with {', '.join(required)}.")


def document_of(record: Mapping[str, Any], where: str, place: int) -> Document:
    """Check a document record with _id, text and optionally title; other keys are its fields.

    A missing or null title becomes '', and so does a null text. A missing text is an error, because the text is
    probably in a field with another name.
    """
    if "text" not in record:
        raise UserError(
            f"{where} {place}: a document has no 'text' (fields: {_names(record)}); "
            'expected {"_id": ..., "title": ..., "text": ...}.'
        )
    title, body = record.get("title"), record["text"]
    return Document(
        place,
        id_of(record.get("_id", _MISSING), "_id", where, place, record),
        "" if title is None else text_of(title, "title", where, place),
        "" if body is None else text_of(body, "text", where, place),
        record,
    )


def query_of(record: Mapping[str, Any], where: str, place: int) -> Query:
    """Check a query record with _id and text."""
    id_ = id_of(record.get("_id", _MISSING), "_id", where, place, record)
    if "text" not in record:
        raise UserError(
            f"{where} {place}: query {id_!r} has no 'text' (fields: {_names(record)}); "
            'expected {"_id": ..., "text": ...}.'
        )
    return Query(place, id_, text_of(record["text"], "text", where, place))


def id_of(value: object, name: str, where: str, place: int, record: Mapping[str, Any] | None = None) -> str:
    """Check an id and return it as a string; an integer is converted."""
    if isinstance(value, str) and value:
        return text_of(value, name, where, place)
    if isinstance(value, int) and not isinstance(value, bool):
        return str(value)
    if value is _MISSING:
        fields = f" (fields: {_names(record)})" if record is not None else ""
        raise UserError(f"{where} {place}: {name!r} is missing{fields}; give every line an id.")
    raise UserError(f"{where} {place}: {name!r} is {_shown(value)}; expected a non-empty string or an integer.")


def text_of(value: object, name: str, where: str, place: int) -> str:
    """Check that a value is a string that can be encoded as UTF-8."""
    if not isinstance(value, str):
        raise UserError(f"{where} {place}: {name!r} is {_shown(value)}; expected a string.")
    if not value.isascii():
        try:
            value.encode()
        except UnicodeEncodeError as error:
            raise UserError(
                f"{where} {place}: {name!r} holds half a character ({value[error.start]!a}, a lone "
                "surrogate), which is not text; write the file again as UTF-8."
            ) from error
    return value


def judgment_of(query_id: object, document_id: object, relevance: object, where: str, place: int) -> Judgment:
    """Check a judgment; its grade is a 32-bit integer, also as text or as a float without a fraction."""
    query, document = id_of(query_id, "query-id", where, place), id_of(document_id, "corpus-id", where, place)
    grade = None
    try:
        if isinstance(relevance, str | int) or (isinstance(relevance, float) and relevance.is_integer()):
            grade = int(relevance)
    except ValueError:
        pass  # refused below
    if grade is None or grade not in _INT32:
        problem = f"the score {relevance!r} is not an integer"
        raise UserError(f"{where} {place}: {problem}; expected a relevance grade such as 0, 1 or 2.")
    return Judgment(place, query, document, grade)


def split_name(given: str) -> str:
    """The name of a split in this package: 'validation', 'valid' and 'val' become 'dev'."""
    return "dev" if given.lower() in _DEV else given


def _names(record: Mapping[str, Any]) -> str:
    return ", ".join(map(repr, record)) or "none"


def _shown(value: object) -> str:
    if value is None:
        return "null"
    shown = repr(value)
    return f"{shown if len(shown) < 40 else shown[:37] + '...'} ({type(value).__name__})"
