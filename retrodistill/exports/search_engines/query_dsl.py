"""Fields and filters as Elasticsearch and OpenSearch take them: mappings, values of documents, and queries.

To both, a field that is missing, null, or an empty list has no value, and neither has a string that is too long to be
indexed. Documents name such fields in `PRESENT`, so that a filter tells them from those without a value.
"""

from __future__ import annotations

import datetime
import math
import re
from typing import Any

import pyarrow as pa

from retrodistill.core.errors import UserError
from retrodistill.data.fields import to_json
from retrodistill.data.filters import Condition, Filter

PRESENT = "retrodistill_present"
"""A field of documents: the names of their fields that have a value, of which the index knows nothing."""
_LONGEST = 8191  # bytes of a string that is indexed: at 4 bytes each, as many characters fit into a term of Lucene
_KEYWORD = {"type": "keyword", "ignore_above": _LONGEST}
_EXACT = "keyword"  # the part of a title's field that is not cut into words
_RANGES = {"<": "lt", "<=": "lte", ">": "gt", ">=": "gte"}
_ALL: dict[str, Any] = {"match_all": {}}
_NONE: dict[str, Any] = {"match_none": {}}


def safe_name(name: str) -> str:
    """A name of a field or token without what has a meaning there: dots, asterisks, and a leading underscore or space.

    Names stay different, and most stay as they are.
    """
    encoded = re.sub(r"[%.*]", lambda match: f"%{ord(match[0]):02X}", name)
    if encoded[:1] == "_" or encoded[:1].isspace():
        encoded = f"%{ord(encoded[0]):02X}{encoded[1:]}"
    return encoded or "%"


def field_mapping(name: str, kind: pa.DataType) -> dict[str, Any]:
    """The mapping of a field of the payload."""
    if name == "text":
        return {"type": "text"}
    if name == "title":
        return {"type": "text", "fields": {_EXACT: _KEYWORD}}
    kind = kind.value_type if pa.types.is_list(kind) else kind
    if _is_moment(kind):
        return {"type": "date", "format": "strict_date_optional_time"}
    named = {pa.bool_(): "boolean", pa.int64(): "long", pa.float64(): "double"}
    return {"type": named[kind]} if kind in named else _KEYWORD


def field_values(record: dict[str, Any]) -> dict[str, Any]:
    """The values of a document as JSON values by field; what is None is left out."""
    values = {safe_name(name): to_json(value) for name, value in record.items() if value is not None}
    unindexed = [name for name, value in values.items() if name != "text" and not _is_indexed(value)]
    return values | ({PRESENT: unindexed} if unindexed else {})


def to_query(part: Filter | Condition) -> dict[str, Any]:
    """A filter as a query.

    Raises:
        UserError: It compares whole texts, or a string that is too long to be indexed.
    """
    if isinstance(part, Filter):
        inner = [to_query(one) for one in part.parts]
        if part.is_any:
            return {"bool": {"should": inner, "minimum_should_match": 1}} if inner else _NONE
        return {"bool": {"filter": inner}} if inner else _ALL
    word, value = part.operator, part.value
    if word in ("exists", "null"):
        return _not(_present(part)) if (word == "null") == value else _present(part)
    if part.field == "text":
        raise UserError("filter: 'text' is cut into words here and not compared; use exists or null.")
    if word in _RANGES:
        return {"range": {_place(part): {_RANGES[word]: _bound(part)}}}
    equal = _one_of(part, value if word in ("in", "not in") else [value])
    if word in ("!=", "not in"):
        return {"bool": {"filter": [_present(part)], "must_not": [equal]}}
    return equal


def _is_indexed(value: Any) -> bool:
    """Whether the index notices a value."""
    items = [item for item in value if item is not None] if isinstance(value, list) else [value]
    return any(not isinstance(item, str) or len(item.encode()) <= _LONGEST for item in items)


def _present(part: Condition) -> dict[str, Any]:
    own = {"exists": {"field": safe_name(part.field)}}
    if not pa.types.is_list(part.kind) and not _is_string(part.kind):
        return own
    named = {"term": {PRESENT: {"value": safe_name(part.field)}}}
    return {"bool": {"should": [own, named], "minimum_should_match": 1}}


def _not(query: dict[str, Any]) -> dict[str, Any]:
    return {"bool": {"must_not": [query]}}


def _one_of(part: Condition, values: Any) -> dict[str, Any]:
    # A fraction equals no integer.
    wanted = [_comparable(value) for value in values if not (_is_whole(part.kind) and isinstance(value, float))]
    return {"terms": {_place(part): wanted}} if wanted else _NONE


def _bound(part: Condition) -> Any:
    value = part.value
    if _is_whole(part.kind) and isinstance(value, float):
        return math.floor(value) if part.operator in ("<=", ">") else math.ceil(value)
    return _comparable(value)


def _comparable(value: Any) -> Any:
    if isinstance(value, str) and len(value.encode()) > _LONGEST:
        raise UserError(f"filter: strings of more than {_LONGEST} bytes are not indexed here; compare a shorter one.")
    if isinstance(value, datetime.datetime):
        # What is left out of a time counts as its greatest value in some comparisons.
        return value.isoformat(timespec="microseconds")
    return to_json(value)


def _place(part: Condition) -> str:
    return f"title.{_EXACT}" if part.field == "title" else safe_name(part.field)


def _is_string(kind: pa.DataType) -> bool:
    return bool(pa.types.is_string(kind) or pa.types.is_large_string(kind))


def _is_whole(kind: pa.DataType) -> bool:
    return bool(pa.types.is_integer(kind.value_type if pa.types.is_list(kind) else kind))


def _is_moment(kind: pa.DataType) -> bool:
    return bool(pa.types.is_date(kind) or pa.types.is_timestamp(kind))
