"""PostgreSQL with pgvector: ``pgvector:postgresql://USER@HOST/DATABASE#TABLE``."""

from __future__ import annotations

import contextlib
import json
import struct
import threading
import weakref
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import asdict
from functools import cached_property
from typing import TYPE_CHECKING, Any, Literal

import numpy as np
import pyarrow as pa
from pydantic import Field
from scipy.sparse import csr_array

from retrodistill.core.errors import UserError, sample_of
from retrodistill.core.formats import check_stamp, stamp
from retrodistill.core.manifest import Manifest
from retrodistill.core.stores import slug
from retrodistill.data.filters import Condition, Filter
from retrodistill.exports.protocol import StoreSettings, VectorStore, check_same
from retrodistill.exports.records import Answers, Batch, Records, Vectors, stacked
from retrodistill.runs.documents import PASSAGE

if TYPE_CHECKING:
    from psycopg import Connection, Cursor
    from psycopg.sql import Composed, Identifier

_EXPORTS = "retrodistill_exports"  # the table of manifests
_OLDEST = (0, 7)  # of pgvector: halfvec and sparsevec
_ITERATIVE = (0, 8)  # an index goes on until enough rows pass a filter
_NAME = 63  # bytes of a name; PostgreSQL cuts longer ones
_TIMEOUT = 10  # seconds until a server that does not answer is given up
# Dimensions that an HNSW index of pgvector takes.
_INDEXED = {"float32": 2000, "float16": 4000, "binary": 64_000}
_ENTRIES = 16_000  # non-zero entries that a sparsevec takes
_RAW = "bytea"  # COPY in binary sends what pgvector's receive functions read
_SYMBOLS = {"==": "=", "!=": "<>"}
_BATCH = {"dense": 1000, "sparse": 1000}


class PgvectorSettings(StoreSettings):
    """How an index is exported to PostgreSQL."""

    name: str | None = None
    """Name of the table; by default the collection's, or the index's."""
    precision: Literal["float32", "float16", "binary"] = "float32"
    """Of dense vectors: `float32` (a `vector` column), `float16` (`halfvec`, half of the size), or `binary` (`vector`,
    indexed by one bit per number; what is found by bits is ranked by the vectors)."""
    index: Literal["hnsw", "none"] = "hnsw"
    """How dense vectors are searched: `hnsw` (approximately) or `none` (exactly). Sparse vectors are searched
    exactly."""
    m: int = Field(default=16, ge=2, le=100)
    """Neighbors of a vector in an HNSW index."""
    ef_construction: int = Field(default=64, ge=4, le=1000)
    """Candidates per vector while an HNSW index is built; at least twice `m`."""
    ef_search: int = Field(default=100, ge=1, le=1000)
    """Candidates per query of an HNSW index."""
    oversampling: int = Field(default=4, ge=1)
    """How many times as many documents as wanted are found by bits and ranked by their vectors (`binary`)."""
    batch: int = Field(default=1000, ge=1)
    """Documents per transaction."""
    sample: int = Field(default=50, ge=1)
    """Number of documents that are compared with the source and whose vectors are used as queries at the end."""
    agreement: float = Field(default=0.9, ge=0, le=1)
    """Least mean share of the exact top 10 that an HNSW index must find for them; reported only for `binary`."""


class PgvectorStore(VectorStore):
    """A table in PostgreSQL.

    A row has ``document_id``, ``title`` and ``text`` where they are exported, a column for each field, and ``vector``;
    a passage has ``passage_id``, too. Missing values are NULL, and so is the vector of a document without any entry,
    which is never found. The table `retrodistill_exports` has the manifest with the contract of the space, so that
    queries of another space are refused. Scores are inner products.
    """

    options = PgvectorSettings

    def __init__(
        self, connection: Connection[Any], settings: PgvectorSettings | None = None, place: str = "", name: str = ""
    ) -> None:
        self.connection, self.settings, self.place = connection, settings or PgvectorSettings(), place
        self.name = self.settings.name or name
        self._lock = threading.RLock()  # threads share the connection, and with it a transaction
        self.sample, self.batch_size = self.settings.sample, self.settings.batch

    @classmethod
    def open(cls, place: str, settings: PgvectorSettings | None = None, *, create: bool = False) -> PgvectorStore:
        """Open ``postgresql://USER@HOST:PORT/DATABASE#TABLE``; ``#TABLE`` may be left out where there is one export.

        What the address leaves out is read from libpq's environment variables (PGHOST, PGUSER, PGPASSWORD...) and
        files. It must not have a password, since addresses are printed and stored.

        Raises:
            UserError: The package, the server, pgvector, or the table is missing, or the address has a password.
        """
        url, _, name = place.rpartition("#") if "#" in place else (place, "", "")
        _check_url(url)
        store = cls(_connect(url), settings, url, name)
        weakref.finalize(store, store.connection.close)
        store._check_version()
        if not create:
            names = [row[0] for row in store._rows("SELECT name FROM {} ORDER BY name", _EXPORTS)]
            store.name = names[0] if not name and len(names) == 1 else name
            if store.name not in names:
                store.close()
                what = f"has no export {name!r}" if name else f"has {len(names)} exports"
                listed = sample_of(names, 8) or "none"
                raise UserError(f"PostgreSQL at {url} {what}; there are: {listed}. Write 'pgvector:{url}#TABLE'.")
        return store

    @property
    def address(self) -> str:
        """``pgvector:PLACE#TABLE``."""
        return f"pgvector:{self.place}" + (f"#{self.name}" if self.name else "")

    @property
    def min_agreement(self) -> float:  # type: ignore[override]
        """As `VectorStore.min_agreement`."""
        if self._index == "none":
            return 1.0
        return 0.0 if self._precision == "binary" else self.settings.agreement

    @property
    def tolerance(self) -> float:  # type: ignore[override]
        """As `VectorStore.tolerance`: float16 has 11 bits."""
        return 1e-3 if self._precision == "float16" else 1e-4

    def create(self, spec: Records) -> None:
        """As `VectorStore.create`."""
        settings = self.settings
        self.name = self.name or spec.collection or slug(spec.name)
        _check_spec(spec, settings, self.name)
        decisive: dict[str, Any] = {"texts": settings.texts}
        if spec.kind == "dense":
            decisive |= {"precision": settings.precision, "index": settings.index}
        self._manifest = spec.manifest("PostgreSQL table", decisive)
        with self._transaction() as cursor:
            self._execute(
                cursor,
                "CREATE TABLE IF NOT EXISTS {} (name text PRIMARY KEY, manifest jsonb NOT NULL, "
                "complete boolean NOT NULL DEFAULT false)",
                _EXPORTS,
            )
            [[exists]] = self._execute(cursor, "SELECT to_regclass(%s) IS NOT NULL", values=[_quoted(self.name)])
            if exists:
                advice = "choose another name, or drop that table first"
                check_same(self._read_manifest(cursor), self._manifest, self.address, advice)
                self._execute(cursor, "UPDATE {} SET complete = false WHERE name = %s", _EXPORTS, values=[self.name])
                return
            columns = self._columns(spec)
            typed = ", ".join(f"{{}} {kind}" for _, kind in columns)
            names = [self.name, *(name for name, _ in columns), self._own_id]
            self._execute(cursor, f"CREATE TABLE {{}} ({typed}, PRIMARY KEY ({{}}))", *names)
            content = json.dumps({**asdict(self._manifest), **stamp(self._manifest.artifact)})
            insert = "INSERT INTO {} (name, manifest) VALUES (%s, %s) ON CONFLICT (name) DO UPDATE SET "
            insert += "manifest = excluded.manifest, complete = false"
            self._execute(cursor, insert, _EXPORTS, values=[self.name, content])

    def upload(self, batches: Iterable[Batch]) -> int:
        """As `VectorStore.upload`; a batch is a transaction. The HNSW index is built at the end, which is faster."""
        written = 0
        for batch in batches:
            ids = batch.ids
            with self._transaction() as cursor:
                found = "SELECT {} FROM {} WHERE {} = ANY(%s)"
                known = {
                    row[0] for row in self._execute(cursor, found, self._own_id, self.name, self._own_id, values=[ids])
                }
                rows = [row for row, id_ in enumerate(ids) if id_ not in known]
                if rows:
                    self._copy(cursor, batch, rows)
                    written += len(rows)
        if self._index == "hnsw":
            self._build_index()
        return written

    def finish(self) -> dict[str, Any]:
        """As `VectorStore.finish`; ``bytes`` are those of the table with its indexes."""
        with self._transaction() as cursor:
            self._execute(cursor, "ANALYZE {}", self.name)
            self._execute(cursor, "UPDATE {} SET complete = true WHERE name = %s", _EXPORTS, values=[self.name])
            size = "SELECT pg_total_relation_size(%s::regclass)"
            [[size]] = self._execute(cursor, size, values=[_quoted(self.name)])
        return {"bytes": int(size)}

    def manifest(self) -> Manifest | None:
        """As `VectorStore.manifest`."""
        with self._transaction() as cursor:
            return self._read_manifest(cursor)

    def count(self) -> int:
        """Number of rows."""
        [[count]] = self._rows("SELECT count(*) FROM {}", self.name)
        return int(count)

    def stored(self, ids: Sequence[str]) -> tuple[list[str], Vectors]:
        """As `VectorStore.stored`."""
        cast = "real[]" if self._kind == "dense" else "text"
        select = f"SELECT {{}}, vector::{cast} FROM {{}} WHERE {{}} = ANY(%s)"
        rows = self._rows(select, self._own_id, self.name, self._own_id, values=[list(ids)])
        dimension = int(self._manifest.about["space"]["dimension"])
        if self._kind == "dense":
            vectors = [np.array([row[1]], np.float32) for row in rows]
        else:
            vectors = [_from_sparsevec(row[1], dimension) for row in rows]
        return [row[0] for row in rows], stacked(self._kind, vectors, dimension)

    def payloads(self, ids: Sequence[str]) -> dict[str, dict[str, Any]]:
        """As `VectorStore.payloads`."""
        names = [name for name in self.schema().names if name not in (PASSAGE, "document_id")]
        select = "SELECT " + ", ".join(["{}"] * (1 + len(names))) + " FROM {} WHERE {} = ANY(%s)"
        rows = self._rows(select, self._own_id, *names, self.name, self._own_id, values=[list(ids)])
        return {
            id_: {name: value for name, value in zip(names, values, strict=True) if value is not None}
            for id_, *values in rows
        }

    def best(self, queries: Vectors, k: int, filter: Filter | None = None) -> Answers:
        """As `VectorStore.best`. Ties are broken by id."""
        where, values = _where(filter)
        answers: Answers = []
        with self._transaction() as cursor:
            if self._index == "hnsw":
                self._tune(cursor, k)
            for query in _to_text(queries, int(self._manifest.about["space"]["dimension"])):
                if query is None:  # no entry: it finds nothing
                    answers.append([])
                    continue
                select, given = self._select(where, values, query, k)
                rows = self._execute(cursor, select, values=given)
                answers.append([(id_, float(score)) for id_, score in rows])
        return answers

    def close(self) -> None:
        """Close the connection."""
        self.connection.close()

    @property
    def _precision(self) -> str:
        return str(self._manifest.settings.get("precision", "float32"))

    @property
    def _index(self) -> str:
        return str(self._manifest.settings.get("index", "none"))

    @cached_property
    def _version(self) -> tuple[int, ...]:
        """Of pgvector in this database; empty if it is absent."""
        rows = self._rows("SELECT extversion FROM pg_extension WHERE extname = 'vector'")
        return tuple(map(int, rows[0][0].split(".")[:2])) if rows else ()

    def _check_version(self) -> None:
        if not self._version:
            with self._transaction() as cursor:
                self._execute(cursor, "CREATE EXTENSION IF NOT EXISTS vector")
            del self._version
        if self._version < _OLDEST:
            found, oldest = (".".join(map(str, version)) for version in (self._version, _OLDEST))
            raise UserError(f"PostgreSQL at {self.place} has pgvector {found}; version {oldest} or newer is needed.")

    def _columns(self, spec: Records) -> list[tuple[str, str]]:
        passage = [(PASSAGE, "text")] if spec.parents is not None else []
        texts = [(name, "text") for name in spec.payload]
        fields = [(name, _column_type(kind)) for name, kind in spec.field_types]
        kind = {"float16": "halfvec"}.get(self._precision, "vector") if spec.kind == "dense" else "sparsevec"
        return [
            *passage, ("document_id", "text NOT NULL"), *texts, *fields, ("vector", f"{kind}({spec.space.dimension})"),
        ]  # fmt: skip

    def _copy(self, cursor: Cursor[Any], batch: Batch, rows: list[int]) -> None:
        """Write rows of a batch in binary form."""
        from psycopg import sql

        payload, fields = batch.payload, batch.fields
        columns: dict[str, Any] = {name: [texts[row] or None for row in rows] for name, texts in payload.items()}
        types = dict.fromkeys(columns, "text")
        if fields is not None:
            taken = fields.take(pa.array(rows))
            for field in taken.schema:
                columns[field.name] = taken[field.name].to_pylist()
                types[field.name] = _column_type(field.type)
        columns["vector"] = _to_binary(batch.vectors, rows, self._precision)
        types["vector"] = _RAW
        names = sql.SQL(", ").join(map(sql.Identifier, columns))
        command = sql.SQL("COPY {} ({}) FROM STDIN (FORMAT binary)").format(sql.Identifier(self.name), names)
        with self._errors(), cursor.copy(command) as copy:
            copy.set_types(list(types.values()))
            for values in zip(*columns.values(), strict=True):
                copy.write_row(values)

    def _build_index(self) -> None:
        settings, dimension = self.settings, int(self._manifest.about["space"]["dimension"])
        column = {
            "float32": "vector vector_ip_ops",
            "float16": "vector halfvec_ip_ops",
            "binary": f"(binary_quantize(vector)::bit({dimension})) bit_hamming_ops",
        }[self._precision]
        options = f"(m = {settings.m}, ef_construction = {max(settings.ef_construction, 2 * settings.m)})"
        with self._transaction() as cursor:
            name = _index_name(self.name)
            self._execute(
                cursor, f"CREATE INDEX IF NOT EXISTS {{}} ON {{}} USING hnsw ({column}) WITH {options}", name, self.name
            )

    def _tune(self, cursor: Cursor[Any], k: int) -> None:
        wanted = k * self.settings.oversampling if self._precision == "binary" else k
        self._execute(cursor, f"SET LOCAL hnsw.ef_search = {min(max(self.settings.ef_search, wanted), 1000)}")
        if self._version >= _ITERATIVE:
            self._execute(cursor, "SET LOCAL hnsw.iterative_scan = strict_order")

    def _select(self, where: Composed, values: list[Any], query: str, k: int) -> tuple[Any, list[Any]]:
        """The statement for one query, and its values."""
        from psycopg import sql

        own, table = _with_values(self._own_id), _with_values(self.name)
        dimension = int(self._manifest.about["space"]["dimension"])
        kind = {"float16": "halfvec"}.get(self._precision, "vector") if self._kind == "dense" else "sparsevec"
        given = sql.SQL(f"%s::{kind}({dimension})")
        order = sql.SQL("SELECT {own}, -distance FROM ({found}) AS found ORDER BY distance, {own} LIMIT %s")
        distance = sql.SQL("vector <#> {}").format(given)
        if self._precision == "binary" and self._index == "hnsw":
            bits = sql.SQL(f"binary_quantize(vector)::bit({dimension}) <~> binary_quantize({{}})").format(given)
            found = sql.SQL("SELECT {}, vector FROM {} WHERE {} ORDER BY {} LIMIT %s").format(own, table, where, bits)
            ranked = sql.SQL("SELECT {}, {} AS distance FROM ({}) AS by_bits").format(own, distance, found)
            inner = [query, *values, query, k * self.settings.oversampling]
            return order.format(own=own, found=ranked), [*inner, k]
        positive = sql.SQL(" AND {} < 0").format(distance) if self._kind == "sparse" else sql.SQL("")
        found = sql.SQL(
            "SELECT {own}, {distance} AS distance FROM {table} WHERE vector IS NOT NULL AND {where}{positive} "
            "ORDER BY {distance} LIMIT %s"
        ).format(own=own, distance=distance, table=table, where=where, positive=positive)
        above = [query] if self._kind == "sparse" else []
        return order.format(own=own, found=found), [query, *values, *above, query, k, k]

    def _read_manifest(self, cursor: Cursor[Any]) -> Manifest | None:
        [[exists]] = self._execute(cursor, "SELECT to_regclass(%s) IS NOT NULL", values=[_EXPORTS])
        select = "SELECT manifest, complete FROM {} WHERE name = %s"
        rows = self._execute(cursor, select, _EXPORTS, values=[self.name]) if exists else []
        if not rows:
            return None
        held, complete = rows[0]
        check_stamp(held, held["artifact"], self.address)
        about = {**held["about"], "is_complete": complete}
        return Manifest(held["artifact"], held["inputs"], held["settings"], about)

    @contextlib.contextmanager
    def _transaction(self) -> Iterator[Cursor[Any]]:
        with self._lock, self._errors(), self.connection.transaction(), self.connection.cursor() as cursor:
            yield cursor

    def _rows(self, statement: str, *names: str, values: Sequence[Any] = ()) -> list[Any]:
        with self._transaction() as cursor:
            return self._execute(cursor, statement, *names, values=values)

    def _execute(
        self, cursor: Cursor[Any], statement: str | Composed, *names: str, values: Sequence[Any] = ()
    ) -> list[Any]:
        """Rows of a statement, in which ``{}`` are quoted names."""
        from psycopg import sql

        if isinstance(statement, str):
            quote = _with_values if values else sql.Identifier
            statement = sql.SQL(statement).format(*map(quote, names))
        with self._errors():
            cursor.execute(statement, values or None)
            return cursor.fetchall() if cursor.description else []

    def _errors(self) -> contextlib.AbstractContextManager[None]:
        return _one_line_errors(self.place)


def _check_url(url: str) -> None:
    library = _library()
    try:
        given = library.conninfo.conninfo_to_dict(url)
    except library.ProgrammingError as error:
        raise UserError(
            f"'pgvector:{_hidden(url)}' is not an address of PostgreSQL ({_one_line(error)}); write "
            "'pgvector:postgresql://USER@HOST:5432/DATABASE#TABLE'."
        ) from error
    if given.get("password"):
        raise UserError(
            "the address of PostgreSQL has a password, and addresses are stored and printed; leave it out, and set "
            "PGPASSWORD or use ~/.pgpass."
        )


def _check_spec(spec: Records, settings: PgvectorSettings, name: str) -> None:
    """Refuse, before anything is written, what pgvector cannot hold."""
    if spec.kind == "multi-vector":
        raise UserError(
            "pgvector has no MaxSim over token vectors; export multi-vector indexes to qdrant, lancedb, or parquet."
        )
    most = _INDEXED[settings.precision]
    if spec.kind == "dense" and settings.index == "hnsw" and spec.space.dimension > most:
        raise UserError(
            f"an HNSW index of pgvector takes {most} dimensions of {settings.precision}, and these vectors have "
            f"{spec.space.dimension}; set precision to float16 (4,000) or binary (64,000), or index to none."
        )
    long = [one for one in [name, *(field for field, _ in spec.field_types)] if len(one.encode()) > _NAME]
    if long:
        raise UserError(f"{sample_of(long)}: PostgreSQL takes names of {_NAME} bytes; choose a shorter one.")


def _column_type(kind: pa.DataType) -> str:
    if pa.types.is_list(kind):
        return f"{_column_type(kind.value_type)}[]"
    named = {pa.bool_(): "boolean", pa.int64(): "bigint", pa.float64(): "double precision"}
    if pa.types.is_date(kind):
        return "date"
    if pa.types.is_timestamp(kind):
        return "timestamptz" if kind.tz else "timestamp"
    return named.get(kind, "text")


def _where(part: Filter | Condition | None) -> tuple[Any, list[Any]]:
    """A filter as SQL, and its values. What is compared with NULL does not pass."""
    from psycopg import sql

    if part is None:
        return sql.SQL("TRUE"), []
    if isinstance(part, Filter):
        inner = [_where(one) for one in part.parts]
        joined = sql.SQL(" OR " if part.is_any else " AND ").join(condition for condition, _ in inner)
        whole = sql.SQL("({})").format(joined) if inner else sql.SQL("FALSE" if part.is_any else "TRUE")
        return whole, [value for _, values in inner for value in values]
    column, word, value, kind = _with_values(part.field), part.operator, part.value, _column_type(part.kind)
    if word in ("exists", "null"):
        return sql.SQL(f"{{}} IS {'NULL' if (word == 'null') == value else 'NOT NULL'}").format(column), []
    is_set = word in ("in", "not in")
    if pa.types.is_list(part.kind):
        has = sql.SQL(f"{{}} && %s::{kind}").format(column)
        condition = sql.SQL("NOT ({})").format(has) if word in ("!=", "not in") else has
        return condition, [list(value) if is_set else [value]]
    if is_set:
        compare = f"{{}} = ANY(%s::{kind}[])" if word == "in" else f"{{}} <> ALL(%s::{kind}[])"
        condition = sql.SQL(compare).format(column)
        if word == "not in":  # NULL <> ALL of nothing is true
            condition = sql.SQL("({} AND {} IS NOT NULL)").format(condition, column)
        return condition, [list(value)]
    cast = "double precision" if isinstance(value, float) else kind
    collate = ' COLLATE "C"' if kind == "text" else ""  # by code points, as everywhere else
    return sql.SQL(f"{{}} {_SYMBOLS.get(word, word)} %s::{cast}{collate}").format(column), [value]


def _to_binary(vectors: Any, rows: list[int], precision: str) -> list[bytes | None]:
    """Rows as pgvector receives them; None for one without entries."""
    if isinstance(vectors, np.ndarray):
        head = struct.pack(">HH", vectors.shape[1], 0)
        numbers = np.ascontiguousarray(vectors[rows], ">f2" if precision == "float16" else ">f4")
        return [head + row.tobytes() for row in numbers]
    return [_sparsevec(vectors[[row]]) for row in rows]


def _sparsevec(row: csr_array) -> bytes | None:
    if not row.nnz:
        return None
    if row.nnz > _ENTRIES:
        raise UserError(f"a sparse vector has {row.nnz} entries, and pgvector takes {_ENTRIES}; prune the index.")
    head = struct.pack(">iii", row.shape[1], row.nnz, 0)
    return head + row.indices.astype(">i4").tobytes() + row.data.astype(">f4").tobytes()


def _to_text(queries: Any, dimension: int) -> Iterator[str | None]:
    """Queries as pgvector reads them; None for one without entries. Indices start at 1."""
    if isinstance(queries, np.ndarray):
        yield from ("[" + ",".join(map(repr, row)) + "]" for row in queries.tolist())
        return
    for start, stop in zip(queries.indptr[:-1], queries.indptr[1:], strict=True):
        pairs = zip(queries.indices[start:stop].tolist(), queries.data[start:stop].tolist(), strict=True)
        entries = ",".join(f"{index + 1}:{value!r}" for index, value in pairs)
        yield f"{{{entries}}}/{dimension}" if entries else None


def _from_sparsevec(text: str | None, dimension: int) -> csr_array:
    pairs = [] if text is None else [pair.split(":") for pair in text[1 : text.index("}")].split(",")]
    columns, values = [int(index) - 1 for index, _ in pairs], [float(value) for _, value in pairs]
    return csr_array((values, columns, [0, len(pairs)]), shape=(1, dimension), dtype=np.float32)


def _with_values(name: str) -> Identifier:
    """A quoted name in a statement with values, in which a percent sign begins a placeholder."""
    from psycopg import sql

    return sql.Identifier(name.replace("%", "%%"))


def _quoted(name: str) -> str:
    """A name as `to_regclass` reads it."""
    doubled = name.replace('"', '""')
    return f'"{doubled}"'


def _index_name(table: str) -> str:
    return table.encode()[: _NAME - len("_hnsw")].decode("utf-8", "ignore") + "_hnsw"


def _hidden(url: str) -> str:
    return url.rpartition("@")[2]


def _library() -> Any:
    try:
        import psycopg
    except ImportError as error:
        raise UserError(
            "PostgreSQL needs the package psycopg, which is not installed; pip install 'retrodistill[pgvector]'."
        ) from error
    return psycopg


def _connect(url: str) -> Any:
    with _one_line_errors(url):
        return _library().connect(url, autocommit=True, connect_timeout=_TIMEOUT)


@contextlib.contextmanager
def _one_line_errors(place: str) -> Iterator[None]:
    """Turn what psycopg raises into one line that says what to do."""
    library = _library()
    where = f"PostgreSQL at {place}" if place else "PostgreSQL"
    try:
        yield
    except library.OperationalError as error:
        said = _one_line(error)
        if "password" in said or "authentication" in said:
            raise UserError(f"{where} refuses the login ({said}); set PGUSER and PGPASSWORD.") from error
        if getattr(error, "sqlstate", None) == "53100":
            raise UserError(
                f"{where} has no space left ({said}); make space and run the same command again."
            ) from error
        raise UserError(f"{where} does not answer ({said}); is it running, and is this its address?") from error
    except library.errors.InsufficientPrivilege as error:
        raise UserError(f"{where} does not permit this ({_one_line(error)}); ask its owner.") from error
    except (library.errors.UndefinedFile, library.errors.FeatureNotSupported) as error:
        raise UserError(f"{where} has no pgvector ({_one_line(error)}); install it there.") from error
    except library.Error as error:
        raise UserError(f"{where} refuses: {_one_line(error)}.") from error


def _one_line(error: Exception) -> str:
    return " ".join((str(error).strip() or type(error).__name__).split())[:200].rstrip(".")


STORE = PgvectorStore
