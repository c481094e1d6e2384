"""Fields of documents: what their records hold besides id, title, and text, as typed Arrow columns.

A value is a boolean, integer, float, string, date, time, or a list of strings or integers. The type of a column follows
from all its values: integers and floats become floats; strings become dates, or times, if all of them are ISO 8601
dates (``2020-01-31``) or times (with a zone in all of them or in none); values of several types become strings. Keys of
an object ``metadata``, as in BEIR, are fields of their own. Other objects, and lists of lists or objects, become JSON
strings. Bytes and lists of floats (vectors) are not kept.
"""

from __future__ import annotations

import contextlib
import datetime
import json
import math
import tempfile
from collections import Counter
from collections.abc import Iterable, Iterator, Mapping
from decimal import Decimal
from pathlib import Path
from typing import IO, Any

import pyarrow as pa
import pyarrow.compute as pc

from retrodistill.core.digests import digest
from retrodistill.core.errors import UserError, sample_of
from retrodistill.data.records import DOCUMENT_KEYS, text_of
from retrodistill.data.texts import BATCH, column_digest

METADATA = "metadata"
_MOST = 256  # columns; more of them come from an object that is used as a dictionary
_INT64 = range(-(2**63), 2**63)
_EMPTY = pa.list_(pa.null())
_LISTS = {pa.string(): pa.list_(pa.string()), pa.int64(): pa.list_(pa.int64())}
_SCALARS = {bool: pa.bool_(), int: pa.int64(), float: pa.float64(), str: pa.string(), datetime.date: pa.date32()}
_DATES = (pa.date32(), pa.timestamp("us"), pa.timestamp("us", "UTC"))


def type_name(kind: pa.DataType) -> str:
    """The word for the type of a field: ``integer``, ``list of strings``..."""
    if pa.types.is_list(kind):
        return f"list of {type_name(kind.value_type)}s"
    named = {pa.bool_(): "boolean", pa.int64(): "integer", pa.float64(): "float", pa.string(): "string"}
    named |= {pa.large_string(): "string", pa.date32(): "date"}
    return named.get(kind, "time")


def type_names(schema: pa.Schema) -> dict[str, str]:
    """The type of each column of a schema, for manifests; `schema_of` reads it."""
    return {field.name: str(field.type) for field in schema}


def schema_of(types: Mapping[str, str]) -> pa.Schema:
    """The schema of `type_names`."""
    kinds = [*_SCALARS.values(), *_LISTS.values(), *_DATES, pa.large_string()]
    by_name = {str(kind): kind for kind in kinds}
    return pa.schema([(name, by_name[kind]) for name, kind in types.items()])


def to_json(value: Any) -> Any:
    """A value as JSON: dates and times as ISO 8601."""
    return value.isoformat() if isinstance(value, datetime.date) else value


def from_json(value: Any, kind: pa.DataType) -> Any:
    """The inverse of `to_json` for a field of this type."""
    if isinstance(value, str) and pa.types.is_date(kind):
        return datetime.date.fromisoformat(value)
    return datetime.datetime.fromisoformat(value) if isinstance(value, str) and pa.types.is_timestamp(kind) else value


class FieldWriter:
    """Turns records into record batches of one schema, with memory for `BATCH` records.

    Batches are kept in a temporary file until all types are known.
    """

    def __init__(self, where: str, folder: Path | None = None, strings: Iterable[str] = ()) -> None:
        """Start without records.

        Args:
            where: Prefix of a record's place in error messages, as in `Source.where`.
            folder: Of the temporary file.
            strings: Fields whose strings stay strings, even if all are dates.
        """
        self._strings = set(strings)
        self._where = where
        self._file: IO[bytes] = tempfile.TemporaryFile(dir=folder)  # noqa: SIM115 - `finish` closes it
        self._records: list[dict[str, Any]] = []
        self._places: list[int] = []
        self._batches = 0
        self._types: dict[str, set[pa.DataType]] = {}
        self._dates: dict[str, set[pa.DataType]] = {}  # types that all strings of a column so far can be cast to
        self._left_out: dict[str, Counter[str]] = {"clash": Counter(), "kind": Counter(), "many": Counter()}

    def append(self, record: Mapping[str, Any], place: int) -> None:
        """Add the next record; an object ``metadata`` is flattened."""
        values = {key: value for key, value in record.items() if key not in DOCUMENT_KEYS}
        if isinstance(values.get(METADATA), dict):
            for key, value in values.pop(METADATA).items():
                if key in values or key in DOCUMENT_KEYS:
                    self._left_out["clash"][key] += 1
                else:
                    values[key] = value
        self._records.append(values)
        self._places.append(place)
        if len(self._records) == BATCH:
            self._flush()

    def _flush(self) -> None:
        columns = {}
        for name in dict.fromkeys(key for record in self._records for key in record):
            values = [record.get(name) for record in self._records]
            if name not in self._types and len(self._types) == _MOST:
                self._left_out["many"][name] += 1
            elif (column := self._column(name, values)).null_count < len(column):
                columns[name] = column
        columns[DOCUMENT_KEYS[0]] = pa.nulls(len(self._records))  # a batch without any field still has rows
        batch = pa.record_batch(columns)
        with pa.ipc.new_stream(self._file, batch.schema) as writer:
            writer.write_batch(batch)
        self._records, self._places, self._batches = [], [], self._batches + 1

    def _column(self, name: str, values: list[Any]) -> pa.Array:
        column = _column_of_one_type(values)
        kinds = set() if column is None else {column.type}
        if column is None:
            values = [self._checked(name, value, place) for value, place in zip(values, self._places, strict=True)]
            kinds = {_type_of(value) for value in values if value is not None}
            kind = _union(kinds)
            column = pa.array(map(_as_text, values) if kind == pa.string() else values, kind)
        if column.null_count == len(column):
            return column
        if name not in self._types:
            text_of(name, "a field", self._where, self._places[0])
        self._types.setdefault(name, set()).update(kinds)
        if column.type == pa.string():
            possible = self._dates.setdefault(name, set(_DATES))
            possible -= {date for date in possible if not _can_cast(column, date)}
        return column

    def _checked(self, name: str, given: Any, place: int) -> Any:
        """A value that a column can hold; None for one that is missing or not kept."""
        value = _plain(given)
        if value is None and given is not None and not isinstance(given, float | Decimal):
            self._left_out["kind"][name] += 1
        for text in value if isinstance(value, list) else [value]:
            if isinstance(text, str):
                text_of(text, name, self._where, place)
        return value

    def finish(self) -> tuple[pa.Schema, Iterator[pa.RecordBatch], list[str]]:
        """The schema, all batches, and warnings. The schema is empty if there are no fields.

        The batches can be read once.
        """
        if self._records:
            self._flush()
        types = {name: _union(kinds) for name, kinds in self._types.items()}
        for name, possible in self._dates.items():
            if self._types[name] == {pa.string()} and name not in self._strings:
                types[name] = next((date for date in _DATES if date in possible), pa.string())
        schema = pa.schema([(name, _LISTS[pa.string()] if kind == _EMPTY else kind) for name, kind in types.items()])
        return schema, self._read(schema), self._warnings(types)

    def _read(self, schema: pa.Schema) -> Iterator[pa.RecordBatch]:
        with self._file as file:
            file.seek(0)
            for _ in range(self._batches):
                with pa.ipc.open_stream(file) as reader:
                    batch = reader.read_next_batch()
                    for _end in reader:
                        pass  # the next stream begins after the end of this one
                columns = [
                    _cast(batch[field.name], field.type) if field.name in batch.schema.names
                    else pa.nulls(len(batch), field.type)
                    for field in schema
                ]  # fmt: skip
                yield pa.record_batch(columns, schema=schema)

    def _warnings(self, types: Mapping[str, pa.DataType]) -> list[str]:
        warnings = []
        mixed = {name: kinds for name, kinds in self._types.items() if types[name] == pa.string() and len(kinds) > 1}
        if mixed:
            named = ", ".join(f"{name} ({', '.join(sorted(map(type_name, kinds)))})" for name, kinds in mixed.items())
            warnings.append(f"fields with values of several types are kept as strings: {named}.")
        reasons = {
            "clash": "are also keys of the document, which count",
            "kind": "hold bytes, lists of floats, or other values that are not kept",
            "many": f"are beyond the first {_MOST} and are not kept",
        }
        for reason, count in self._left_out.items():
            if count:
                what = f"keys of '{METADATA}'" if reason == "clash" else "fields"
                most = f"in up to {max(count.values())} documents"
                warnings.append(f"{len(count)} {what} {reasons[reason]} ({sample_of(count)}; {most}).")
        return warnings


def fields_table(
    records: Mapping[str, Mapping[str, Any]], ids: Iterable[str], strings: Iterable[str] = ()
) -> tuple[pa.Table | None, list[str]]:
    """The fields of documents as a table in the order of `ids`, and warnings; None if there are no fields.

    Args:
        records: Fields by document id; documents without any may be missing.
        ids: All documents.
        strings: As of `FieldWriter`.

    Raises:
        UserError: A document is unknown, a field has a reserved name, or a string is not text.
    """
    writer, unknown = FieldWriter("fields, document", strings=strings), set(records)
    for place, id_ in enumerate(ids, start=1):
        unknown.discard(id_)
        record = records.get(id_, {})
        if not isinstance(record, Mapping):
            kind = type(record).__name__
            raise UserError(f"fields of document {id_!r} are {kind}; expected a mapping of names to values.")
        if reserved := [name for name in DOCUMENT_KEYS if name in record]:
            raise UserError(f"document {id_!r} has a field {reserved[0]!r}, which is not a field; leave it out.")
        writer.append(record, place)
    if unknown:
        raise UserError(f"fields are given for {len(unknown)} unknown documents ({sample_of(sorted(unknown))}).")
    schema, batches, warnings = writer.finish()
    table = pa.Table.from_batches(batches, schema)
    return (table if schema.names else None), warnings


def _column_of_one_type(values: list[Any]) -> pa.Array | None:
    """The values as a column, without a look at each of them; None if that takes one."""
    kinds = set(map(type, values)) - {type(None)}
    if len(kinds) != 1 or not kinds <= {*_SCALARS, list}:
        return None
    try:
        column = pa.array(values, _SCALARS.get(next(iter(kinds))), from_pandas=True)  # NaN means missing
    except (pa.ArrowException, OverflowError, UnicodeEncodeError):
        return None
    return column if column.type in (*_SCALARS.values(), *_LISTS.values(), _EMPTY) else None


def fields_digest(table: pa.Table) -> str:
    """Digest of names, types, and values, independent of the table's chunks."""
    parts: list[Any] = []
    for field, column in zip(table.schema, table.columns, strict=True):
        strings = [column]
        if pa.types.is_list(field.type):
            strings = [pc.list_value_length(column), pc.list_flatten(column)]
        parts.append([field.name, str(field.type), *(column_digest(each.cast(pa.string()).chunks) for each in strings)])
    return digest(parts)


def _plain(value: Any) -> Any:
    """A value that a column can hold; None for one that is missing or not kept."""
    if hasattr(value, "tolist"):  # NumPy's
        value = value.tolist()
    if isinstance(value, float | Decimal):
        return None if math.isnan(value) else float(value)  # NaN means missing
    if value is None or isinstance(value, bool | str | datetime.date):  # a time is a date, too
        return value
    if isinstance(value, int):
        return value if value in _INT64 else str(value)
    return _list(value) if isinstance(value, list | tuple) else _as_json(value)


def _list(value: list[Any] | tuple[Any, ...]) -> Any:
    kinds = {type(item) for item in value if item is not None}
    if kinds <= {str} or (kinds == {int} and all(item is None or item in _INT64 for item in value)):
        return list(value)
    is_vector = float in kinds and kinds <= {int, float}
    return None if is_vector else _as_json(value)


def _as_json(value: Any) -> str | None:
    with contextlib.suppress(TypeError, ValueError):
        return json.dumps(value, ensure_ascii=False)
    return None


def _type_of(value: Any) -> pa.DataType:
    if isinstance(value, list):
        return next((_LISTS[_SCALARS[type(item)]] for item in value if item is not None), _EMPTY)
    if isinstance(value, datetime.datetime):
        return pa.timestamp("us", "UTC" if value.tzinfo else None)
    return _SCALARS[type(value)]


def _union(kinds: set[pa.DataType]) -> pa.DataType:
    """The narrowest type for values of all these types."""
    kinds = kinds - {_EMPTY} if kinds & set(_LISTS.values()) else kinds
    if len(kinds) == 1:
        return next(iter(kinds))
    return pa.float64() if kinds == {pa.int64(), pa.float64()} else pa.string()


def _can_cast(column: pa.Array, kind: pa.DataType) -> bool:
    try:
        column.cast(kind)
    except pa.ArrowInvalid:
        return False
    return True


def _cast(column: pa.Array, kind: pa.DataType) -> pa.Array:
    if kind == pa.string() and column.type != kind:
        return pa.array([_as_text(value) for value in column.to_pylist()], kind)
    return column.cast(kind, safe=False)


def _as_text(value: Any) -> str | None:
    if value is None or isinstance(value, str):
        return value
    return to_json(value) if isinstance(value, datetime.date) else json.dumps(value, ensure_ascii=False)
