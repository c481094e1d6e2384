"""Checks of the records that every source of a collection provides, and the names of their columns."""

from __future__ import annotations

import numbers
import re
from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import dataclass, field
from typing import Any, NamedTuple

from retrodistill.core.errors import UserError, sample_of
from retrodistill.data.tables import Columns

DOCUMENT_KEYS = ("_id", "title", "text")  # of a record; all others are fields
_TEXT = ("_id", "text")
_DOCUMENT_IDS = ("doc_id", "docid", "document_id", "corpus_id", "corpus-id", "docno")
_QUERY_IDS = ("query_id", "query-id", "qid", "queryid")
# The names of columns in files and datasets. Those without a header are BEIR's and MS MARCO's, and in judgments TREC's.
DOCUMENT_COLUMNS = Columns(
    {"_id": ("id", *_DOCUMENT_IDS), "title": (), "text": ()},
    {2: _TEXT},
    '{"_id": ..., "title": ..., "text": ...}',
)
QUERY_COLUMNS = Columns({"_id": ("id", *_QUERY_IDS), "text": ()}, {2: _TEXT}, '{"_id": ..., "text": ...}')
JUDGMENT_COLUMNS = Columns(
    {
        "query-id": tuple(name for name in _QUERY_IDS if name != "query-id"),
        "corpus-id": tuple(name for name in _DOCUMENT_IDS if name != "corpus-id"),
        "score": ("relevance", "grade", "rel", "label"),
    },
    {3: ("query-id", "corpus-id", "score"), 4: ("query-id", "iteration", "corpus-id", "score")},
    '{"query-id": ..., "corpus-id": ..., "score": ...}',
    only_ids=True,
)
_GRADE = re.compile(r"\s*([+-]?\d{1,20})(?:\.0*)?\s*")
_LONGEST_ID = 10_000  # characters; addresses are ids, texts are not
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
        if "\0" in value:  # which ends a string in the libraries that measure
            raise UserError(f"{where} {place}: {name!r} is {_shown(value)}, with a NUL character; remove it.")
        if len(value) > _LONGEST_ID:
            raise UserError(
                f"{where} {place}: {name!r} has {len(value)} characters; give an id of at most {_LONGEST_ID}."
            )
        return text_of(value, name, where, place)
    if isinstance(value, numbers.Integral) and not isinstance(value, bool):
        return str(value)
    if value is _MISSING:
        fields = f" (fields: {_names(record)})" if record is not None else ""
        raise UserError(f"{where} {place}: {name!r} is missing{fields}; give every line an id.")
    raise UserError(f"{where} {place}: {name!r} is {_shown(value)}; expected a non-empty string or an integer.")


def text_of(value: object, name: str, where: str, place: int | str) -> str:
    """Check that a value is a string that can be encoded as UTF-8."""
    if not isinstance(value, str):
        raise UserError(f"{where} {place}: {name!r} is {_shown(value)}; expected a string.")
    if problem := not_utf8(value):
        raise UserError(f"{where} {place}: {name!r} {problem}; give it as UTF-8.")
    return value


def not_utf8(text: str) -> str:
    """What keeps a string from being encoded as UTF-8; empty for nearly all strings.

    Half of a surrogate pair comes from JSON that was cut; Python puts one in the place of a byte of a file name or an
    argument that is not UTF-8.
    """
    if text.isascii():
        return ""
    try:
        text.encode()
    except UnicodeEncodeError as error:
        half = text[error.start]
        if "\udc80" <= half <= "\udcff":
            return f"is not UTF-8 (byte 0x{ord(half) - 0xDC00:02x} at {error.start})"
        return f"holds half a character ({half!a}, a lone surrogate), which is not text"
    return ""


def require_utf8(texts: Iterable[str], what: str) -> None:
    """Raise for the first text that cannot be encoded as UTF-8; `what` is one of them."""
    for number, text in enumerate(texts, start=1):
        if problem := not_utf8(text):
            raise UserError(f"{what} {number} {problem}; give it as UTF-8.")


def judgment_of(record: Mapping[str, Any], where: str, place: int) -> Judgment:
    """Check a judgment with query-id, corpus-id and score, a 32-bit integer, also as text or as a whole float."""
    query = id_of(_stripped(record.get("query-id", _MISSING)), "query-id", where, place, record)
    document = id_of(_stripped(record.get("corpus-id", _MISSING)), "corpus-id", where, place, record)
    grade, score = None, record.get("score", _MISSING)
    if score is _MISSING:
        raise UserError(f"{where} {place}: 'score' is missing (fields: {_names(record)}); give every pair a grade.")
    if isinstance(score, str) and (whole := _GRADE.fullmatch(score)):
        grade = int(whole[1])
    elif isinstance(score, numbers.Real) and (number := float(score)).is_integer():
        grade = int(number)
    if grade is None or grade not in _INT32:
        problem = f"the score {score!r} is not an integer"
        raise UserError(f"{where} {place}: {problem}; expected a relevance grade such as 0, 1 or 2.")
    return Judgment(place, query, document, grade)


def _stripped(value: object) -> object:
    return value.strip() if isinstance(value, str) else value


def split_name(given: str) -> str:
    """The name of a split in this package: 'validation', 'valid' and 'val' become 'dev', and 'TEST' becomes 'test'."""
    lower = given.lower()
    return "dev" if lower in _DEV else lower if lower in ("train", "test") else given


def _names(record: Mapping[str, Any]) -> str:
    return sample_of(record, 8) or "none"


def _shown(value: object) -> str:
    if value is None:
        return "null"
    shown = repr(value)
    return f"{shown if len(shown) < 40 else shown[:37] + '...'} ({type(value).__name__})"
