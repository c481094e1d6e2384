"""Filters on the fields of documents: parsed and checked against the fields' types, then turned into a mask.

A filter maps fields to values. ``{"lang": "de"}`` means equality, ``{"lang": ["de", "fr"]}`` one of several, and
``{"year": {">=": 2020, "<": 2023}}`` names operators; all conditions must hold. ``{"or": [{...}, {...}]}`` needs one of
several filters. A document without a value passes ``null`` only: a missing value is not equal to, different from, less
or greater than anything. A list matches ``contains``, ``==`` and ``in`` by any of its values, and ``!=`` and ``not in``
if it has none of them.
"""

from __future__ import annotations

import csv
import datetime
import math
import operator
import re
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import Any, TypeAlias

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from retrodistill.core.errors import UserError, did_you_mean
from retrodistill.core.json_files import parse_json
from retrodistill.data.fields import type_name
from retrodistill.data.records import text_of

OR = "or"
_ORDERED = {"<": pc.less, "<=": pc.less_equal, ">": pc.greater, ">=": pc.greater_equal}
_SETS = ("in", "not in")
_PRESENCE = ("exists", "null")
OPERATORS = ("==", "!=", *_ORDERED, *_SETS, "contains", *_PRESENCE)
_EXPECTED = {
    "boolean": "true or false",
    "integer": "a whole number",
    "float": "a number",
    "string": "a string",
    "date": "a date such as 2020-01-31",
    "time": "a time such as 2020-01-31T12:00:00",
}
_FIELD = r'(?P<field>"[^"]+"|[^\s"=!<>]+)'
_WRITTEN = re.compile(
    rf"\s*{_FIELD}\s*(?:(?P<symbol>==|=|!=|<=|>=|<|>)\s*(?P<value>.*)|\s(?P<word>not\s+in|in|contains)\s+(?P<words>.+)"
    r"|\s(?P<presence>exists|null))\s*",
    re.DOTALL,
)


@dataclass(frozen=True)
class Condition:
    """One comparison; `value` has the type of the field, or is a tuple of such values for ``in`` and ``not in``."""

    field: str
    operator: str  # one of `OPERATORS`
    value: Any
    kind: pa.DataType  # of the field


@dataclass(frozen=True)
class Filter:
    """Conditions that all hold, or one of which does."""

    parts: tuple[Condition | Filter, ...]
    is_any: bool = False

    @property
    def conditions(self) -> list[Condition]:
        """All conditions, at any depth."""
        nested = (part.conditions if isinstance(part, Filter) else [part] for part in self.parts)
        return [condition for conditions in nested for condition in conditions]


Filtering: TypeAlias = Filter | Mapping[str, Any]
"""What searches take: a mapping as described above, or what `parse_filter` made of one."""


def parse_filter(given: Filtering, schema: pa.Schema) -> Filter:
    """Check a filter against the fields that there are.

    Raises:
        UserError: An unknown field or operator, or a value that the field's type cannot be compared with; the message
            lists the fields and their types.
    """
    if isinstance(given, Filter):
        return given
    if not isinstance(given, Mapping):
        raise UserError(
            f"a filter is a mapping of fields to values, not {type(given).__name__}; e.g. {{'year': 2020}}."
        )
    parts: list[Condition | Filter] = []
    for name, wanted in given.items():
        several = wanted if isinstance(wanted, list | tuple) else ()
        if name == OR and several and all(isinstance(part, Mapping) for part in several):
            parts.append(Filter(tuple(parse_filter(part, schema) for part in wanted), is_any=True))
        elif isinstance(wanted, Mapping):
            if not wanted:
                raise UserError(f"filter: {name!r} has no operator; give one of {', '.join(OPERATORS)}.")
            parts += [_condition(name, word, value, schema) for word, value in wanted.items()]
        elif isinstance(wanted, list | tuple | set | frozenset):
            parts.append(_condition(name, "in", wanted, schema))
        else:
            word, value = ("null", True) if wanted is None else ("==", wanted)
            parts.append(_condition(name, word, value, schema))
    return Filter(tuple(parts))


def read_filters(written: Iterable[str], schema: pa.Schema) -> Filter:
    """Parse conditions as the command line takes them; all of them must hold.

    They are ``FIELD OPERATOR VALUE`` (``year>=2020``, ``author = "A B"``, ``lang in de,fr``, ``lang not in de``, ``tags
    contains x``), ``FIELD exists``, ``FIELD null``, or a filter as a JSON object. A field whose name has spaces or
    operators is written in double quotes.
    """
    return Filter(tuple(_read(each, schema) for each in written))


def mask_of(parsed: Filter, table: pa.Table) -> np.ndarray:
    """(n,) boolean: the rows of a table that pass."""
    combine = operator.or_ if parsed.is_any else operator.and_
    mask = np.full(table.num_rows, not parsed.is_any)
    for part in parsed.parts:
        mask = combine(mask, mask_of(part, table) if isinstance(part, Filter) else _matches(part, table[part.field]))
    return mask


def _matches(condition: Condition, column: pa.ChunkedArray) -> np.ndarray:
    word, kind, value = condition.operator, condition.kind, condition.value
    if word in _PRESENCE:
        return _numpy(pc.is_valid(column) if (word == "exists") == value else pc.is_null(column))
    if pa.types.is_list(kind):
        values = pa.array(value if word in _SETS else [value], kind.value_type)
        has = np.concatenate([np.zeros(0, dtype=bool), *(_has_any(chunk, values) for chunk in column.chunks)])
        return ~has & _numpy(pc.is_valid(column)) if word in ("!=", "not in") else has
    if word in _SETS:
        found = _numpy(pc.is_in(column, value_set=pa.array(value, kind)))
        return found if word == "in" else ~found & _numpy(pc.is_valid(column))
    if isinstance(value, float) and pa.types.is_integer(kind):  # a fraction; as floats, large integers are not exact
        if word in ("==", "!="):
            return _numpy(pc.is_valid(column)) & (word == "!=")
        is_below = word in ("<", "<=")
        nearest = math.floor(value) if is_below else math.ceil(value)
        return _numpy((pc.less_equal if is_below else pc.greater_equal)(column, pa.scalar(nearest, kind)))
    compare = {"==": pc.equal, "!=": pc.not_equal, **_ORDERED}[word]
    return _numpy(compare(column, pa.scalar(value, kind)))


def _has_any(lists: pa.ListArray, values: pa.Array) -> np.ndarray:
    has = np.zeros(len(lists), dtype=bool)
    hits = pc.is_in(lists.flatten(), value_set=values)
    has[pc.list_parent_indices(lists).filter(hits).to_numpy()] = True
    return has


def _numpy(mask: pa.ChunkedArray) -> np.ndarray:
    return np.asarray(pc.fill_null(mask, False).to_numpy())


def _condition(name: Any, word: Any, value: Any, schema: pa.Schema) -> Condition:
    if name not in schema.names:
        known = did_you_mean(name, schema.names)
        raise UserError(f"filter: unknown field {str(name)!r}.{known} {listed(schema)}")
    kind = schema.field(name).type
    if word not in OPERATORS:
        raise UserError(f"filter: unknown operator {word!r} for {name!r}; use one of {', '.join(OPERATORS)}.")
    is_list = pa.types.is_list(kind)
    if (word == "contains" and not is_list) or (word in _ORDERED and (is_list or kind == pa.bool_())):
        raise UserError(f"filter: {word!r} does not fit {name!r}, which is {type_name(kind)}. {listed(schema)}")
    if word in _PRESENCE:
        if not isinstance(value, bool):
            raise UserError(f"filter: {word!r} of {name!r} takes true or false, not {value!r}.")
        return Condition(name, word, value, kind)
    if (word in _SETS) != isinstance(value, list | tuple | set | frozenset):
        wanted = "a list of values" if word in _SETS else "one value; 'in' takes several"
        raise UserError(f"filter: {word!r} of {name!r} takes {wanted}, not {value!r}.")
    try:
        typed = tuple(_typed(item, kind) for item in value) if word in _SETS else _typed(value, kind)
    except ValueError as error:
        expected = _EXPECTED[type_name(kind.value_type if is_list else kind)]
        raise UserError(f"filter: {name!r} is compared with {value!r}, not {expected}. {listed(schema)}") from error
    return Condition(name, word, typed, kind)


def listed(schema: pa.Schema) -> str:
    """The fields and their types, for a message."""
    named = ", ".join(f"{field.name} ({type_name(field.type)})" for field in schema)
    return f"Fields: {named}." if named else "There are no fields."


def _typed(value: Any, kind: pa.DataType) -> Any:
    """A value as one of a field's type; ValueError if it is not."""
    if pa.types.is_list(kind):
        kind = kind.value_type
    if hasattr(value, "tolist"):  # NumPy's
        value = value.tolist()
    if pa.types.is_date(kind) or pa.types.is_timestamp(kind):
        return _moment(value, kind)
    if kind in (pa.string(), pa.large_string()) and isinstance(value, str):
        return text_of(value, "a value", "filter", 1)
    if kind == pa.bool_() and isinstance(value, bool):
        return value
    is_number = isinstance(value, int | float) and not isinstance(value, bool) and not math.isnan(value)
    if kind == pa.int64() and is_number:
        whole = int(value) if isinstance(value, int) or value.is_integer() else value
        if abs(whole) < 2**63:
            return whole
    if kind == pa.float64() and is_number:
        return float(value)
    raise ValueError(value)


def _moment(value: Any, kind: pa.DataType) -> Any:
    if isinstance(value, str):
        is_day = pa.types.is_date(kind)
        value = datetime.date.fromisoformat(value) if is_day else datetime.datetime.fromisoformat(value)
    is_time = isinstance(value, datetime.datetime)
    if pa.types.is_date(kind):
        if isinstance(value, datetime.date) and not is_time:
            return value
        raise ValueError(value)
    if isinstance(value, datetime.date) and not is_time:
        value = datetime.datetime(value.year, value.month, value.day)
    if not isinstance(value, datetime.datetime) or (value.tzinfo and not kind.tz):
        raise ValueError(value)
    return value.replace(tzinfo=datetime.UTC) if kind.tz and not value.tzinfo else value


def _read(written: str, schema: pa.Schema) -> Filter:
    if written.lstrip().startswith("{"):
        try:
            content = parse_json(written)
        except ValueError as error:
            raise UserError(f"filter {written!r} is not JSON ({error}).") from error
        return parse_filter(content, schema)
    match = _WRITTEN.fullmatch(written)
    if match is None:
        raise UserError(
            f"filter {written!r} is not FIELD OPERATOR VALUE; e.g. 'year>=2020', 'lang in de,fr', 'tags contains x', "
            "'author = \"A B\"', 'year exists'."
        )
    name = match["field"].strip('"')
    if match["presence"]:
        return Filter((_condition(name, match["presence"], True, schema),))
    word = " ".join((match["word"] or match["symbol"]).split())
    word = "==" if word == "=" else word
    kind = schema.field(name).type if name in schema.names else pa.string()
    kind = kind.value_type if pa.types.is_list(kind) else kind
    values = next(csv.reader([(match["words"] or match["value"]).strip()], skipinitialspace=True), [])
    if word in _SETS:
        return Filter((_condition(name, word, [_from_text(value, kind) for value in values], schema),))
    value = values[0] if len(values) == 1 else (match["words"] or match["value"]).strip()
    return Filter((_condition(name, word, _from_text(value, kind), schema),))


def _from_text(text: str, kind: pa.DataType) -> Any:
    """The value that a text stands for, or the text if it stands for none, which is then refused."""
    text = text.strip() if kind != pa.string() else text
    if kind == pa.bool_():
        return {"true": True, "false": False}.get(text.lower(), text)
    try:
        return int(text) if kind == pa.int64() else float(text) if kind == pa.float64() else text
    except ValueError:
        return float(text) if kind == pa.int64() and re.fullmatch(r"[-+]?\d*\.\d+", text) else text
