"""What an index stores of its documents beside vectors: fields, and titles and texts if wanted, as Arrow columns."""

from __future__ import annotations

import itertools
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any, Literal, TypeAlias

import numpy as np
import pyarrow as pa

from retrodistill.core.checksums import DamagedError, checked, open_arrow, write_arrow
from retrodistill.core.errors import UserError, unknown
from retrodistill.data.collection import Collection
from retrodistill.data.fields import fields_table, type_name
from retrodistill.data.filters import Filter, listed, mask_of
from retrodistill.data.texts import Texts, take_rows

COLUMNS_FILE = "documents.arrow"
ID = "document_id"
TEXTS = ("title", "text")  # no field has these names
Choice: TypeAlias = Literal["all", "none"] | list[str]
Records: TypeAlias = Mapping[str, Mapping[str, Any]]
"""Fields by document id."""


def read_choice(fields: Any) -> Any:
    """A choice as settings take it: ``year,tags`` is a list, and null or an empty list is ``none``."""
    if isinstance(fields, str) and fields not in ("all", "none"):
        return [name.strip() for name in fields.split(",")]
    return fields or "none"


def chosen(table: pa.Table | None, fields: Choice) -> dict[str, pa.ChunkedArray]:
    """The chosen columns of a table of fields; one that does not exist is refused."""
    known = [] if table is None else [name for name in table.column_names if name not in TEXTS]
    names = {"all": known, "none": []}[fields] if isinstance(fields, str) else fields
    if strange := [name for name in names if name not in known]:
        raise unknown("field", strange[0], known)
    return {} if table is None else {name: checked(table[name]) for name in names}


def columns_of(collection: Collection, fields: Choice = "all", *, texts: bool = False) -> pa.Table | None:
    """The columns of a collection's documents, in their order, without copies; None if there are none.

    Raises:
        UserError: A chosen field does not exist.
    """
    columns: dict[str, pa.ChunkedArray] = {}
    if texts:
        columns = {"title": collection.titles.table["text"], "text": collection.bodies.table["text"]}
    own = pa.table(chosen(collection.whole.fields, fields))
    if collection.parents is not None and own.num_columns:
        own = take_rows(own, collection.parents.rows)  # passages have the fields of their documents
    columns |= dict(zip(own.column_names, own.columns, strict=True))
    return pa.table(columns) if columns else None


def records_of(collection: Collection, ids: Sequence[str]) -> list[dict[str, Any]]:
    """Title, text, and fields of documents of a collection, without missing values; empty for an unknown document."""
    table = columns_of(collection, texts=True)
    rows = collection.documents.positions(ids).tolist()
    return [row_of(table, row) if row >= 0 else {} for row in rows]


def row_of(columns: pa.Table | None, row: int) -> dict[str, Any]:
    """What is stored of one document, without missing values and empty titles."""
    if columns is None:
        return {}
    # Taking several rows of a table would first join its chunks.
    values = checked(columns.slice(row, 1)).to_pylist()[0]
    return {name: value for name, value in values.items() if value is not None and (name, value) != ("title", "")}


def schema_with_ids(columns: pa.Table | None) -> pa.Schema:
    """Names and types of what filters compare: the columns, and ``document_id``, unless a field has that name."""
    stored = pa.schema([]) if columns is None else columns.schema
    return stored if ID in stored.names else stored.append(pa.field(ID, pa.string()))


def passing_rows(parsed: Filter, columns: pa.Table | None, ids: Callable[[], Any]) -> np.ndarray | None:
    """Ascending rows of documents that pass a filter; None for a filter without conditions.

    Args:
        parsed: A filter on `schema_with_ids`.
        columns: What is stored of the documents.
        ids: Gives their (n,) ids, an Arrow array or a list; called if the filter needs them.
    """
    names = {condition.field for condition in parsed.conditions}
    if not names:
        return None
    table = pa.table({}) if columns is None else columns
    used = {name: checked(table[name]) for name in names.intersection(table.column_names)}
    if ID in names:
        used.setdefault(ID, pa.chunked_array([ids()], pa.string()))
    return np.flatnonzero(mask_of(parsed, pa.table(used)))


def new_rows(
    table: pa.Table | None, ids: Sequence[str], fields: Records | pa.Table | None, texts: Collection | None = None
) -> pa.Table | None:
    """Rows of new documents for the columns that an index stores, or None if it stores none.

    Args:
        table: What it stores.
        ids: (n,) ids of the new documents.
        fields: Fields by id, or a table of theirs, of which columns that are not stored are dropped. What is missing is
            null.
        texts: The new documents; their titles and texts are null by default.

    Raises:
        UserError: A field or a document is unknown, or values do not have the type of their column.
    """
    strings = [] if table is None else [field.name for field in table.schema if field.type == pa.string()]
    given: Any = fields
    is_table = isinstance(fields, pa.Table)
    if not isinstance(fields, pa.Table):
        given = fields_table(fields, ids, strings)[0] if fields else None
    if table is None:
        if given is not None and not is_table:
            raise UserError(f"the index stores no fields ({given.column_names[0]!r} is given); build it with fields.")
        return None
    known = [name for name in table.column_names if name not in TEXTS]
    columns = {name: pa.nulls(len(ids), table.schema.field(name).type) for name in table.column_names}
    if "text" in columns and texts is not None:
        columns |= {"title": texts.titles.table["text"], "text": texts.bodies.table["text"]}
    new = [] if given is None else zip(given.column_names, given.columns, strict=True)
    for name, column in new:
        if name in known:
            columns[name] = _as_type(column, name, table.schema)
        elif not is_table:
            raise unknown("field", name, known)
    return pa.table(columns, schema=table.schema)


def of_passages(rows: pa.Table | None, owners: Sequence[str], passages: Texts | None = None) -> pa.Table | None:
    """Rows of documents as rows of their passages, by the document of each; those of a document are adjacent.

    Texts are those of the passages, which begin with the title.
    """
    if rows is None:
        return None
    places = np.cumsum([owner != before for owner, before in itertools.pairwise(owners)], dtype=np.int64)
    rows = take_rows(rows, np.concatenate([np.zeros(min(len(owners), 1), dtype=np.int64), places]))
    if passages is not None and "text" in rows.column_names:
        place = rows.schema.get_field_index("text")
        rows = rows.set_column(place, rows.schema.field(place), passages.table["text"])
    return rows


def _as_type(column: pa.ChunkedArray, name: str, schema: pa.Schema) -> pa.ChunkedArray:
    wanted = schema.field(name).type
    is_list = pa.types.is_list(column.type)
    fits = column.type == wanted or (column.type == pa.int64() and wanted == pa.float64())
    is_empty = is_list and pa.types.is_list(wanted) and not any(map(len, filter(None, column.to_pylist())))
    is_moment = pa.types.is_date(column.type) or pa.types.is_timestamp(column.type)
    if not (fits or is_empty or (is_moment and pa.types.is_timestamp(wanted))):  # a date is a time at midnight
        raise UserError(f"field {name!r} of the new documents is {type_name(column.type)}. {listed(schema)}")
    return column.cast(wanted, safe=False)


def write_columns(table: pa.Table, folder: Path) -> str:
    """Write the file of columns; returns its seal."""
    batches = (checked(batch) for batch in table.to_batches())
    return write_arrow(folder / COLUMNS_FILE, table.schema, batches, lazy=table.column_names)


def read_columns(folder: Path, seal: str | None) -> pa.Table:
    """The file of columns, memory-mapped, which has this seal if it has one; give what is read of it to `checked`."""
    path, advice = folder / COLUMNS_FILE, "build the index again"
    try:
        return open_arrow(path, advice=advice, expected=seal, is_own=False)
    except FileNotFoundError as error:
        raise DamagedError(path, "it is missing", advice) from error
