"""LanceDB, embedded in a folder: ``lancedb:FOLDER#NAME``."""

from __future__ import annotations

import contextlib
import datetime
import math
import re
import warnings
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import replace
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
from pydantic import Field

from retrodistill.core.checksums import check_files, file_checksum
from retrodistill.core.disk import REFUSALS, reason_of
from retrodistill.core.errors import UserError, first_line, sample_of
from retrodistill.core.files import check_replaceable
from retrodistill.core.locks import exclusive
from retrodistill.core.manifest import Manifest
from retrodistill.core.names import check_file_name
from retrodistill.core.paths import path_of
from retrodistill.core.stores import slug
from retrodistill.data.filters import Condition, Filter
from retrodistill.encoders.multi_vector import Tokens
from retrodistill.exports.columns import read_vectors, table_of
from retrodistill.exports.protocol import StoreSettings, VectorStore, check_same
from retrodistill.exports.records import Answers, Batch, Records, Vectors, stacked
from retrodistill.indexes.columns import TEXTS
from retrodistill.runs.documents import PASSAGE

if TYPE_CHECKING:
    from lancedb.table import Table

_TABLES = "*.lance"  # folders
_MANIFEST = ".manifest.json"  # ending of a file beside the table, whose fingerprint the table has, too
_OWNER = b"retrodistill"  # our key in the metadata of a table
_WRITING, _COMPLETE = "being written", "complete"
_NUMBERS = 64_000_000  # of a batch, 256 MB; each batch is a version of the table, and a file until the end
_TOKENS = 512  # of a long document
_MOST = 20_000  # documents per batch
_TABLE_NAME = re.compile(r"[A-Za-z0-9_.-]+")
# Columns that Lance adds to answers, or keeps for itself.
_LANCE_COLUMNS = (
    *("_distance", "_rowid", "_rowaddr", "_rowoffset"),
    *("_row_created_at_version", "_row_last_updated_at_version"),
)
_NEGATIVE = ("!=", "not in")
_EQUALITY = ("==", "in", "contains", *_NEGATIVE)
# A query's largest number is brought to this power of two, far from the largest one of its type.
_EXPONENTS = {"float32": 60, "float16": 11}
# How Lance words a file that is absent, cut short, or altered.
_DAMAGED = re.compile(
    "not found|whole buffer|magic|too small|sufficient data|corrupt|invalid range|decode|internal error", re.IGNORECASE
)
_RUST_FILE = re.compile(r",? /\S+\.rs\S*")
# Configurations of `lancedb.index`.
_INDEXES = {
    "ivf_flat": "IvfFlat",
    "ivf_sq": "IvfSq",
    "ivf_pq": "IvfPq",
    "ivf_rq": "IvfRq",
    "ivf_hnsw_flat": "HnswFlat",
    "ivf_hnsw_sq": "HnswSq",
    "ivf_hnsw_pq": "HnswPq",
}
_TRAINED = 256  # documents that a product quantizer needs
_COARSE = ("ivf_pq", "ivf_rq", "ivf_hnsw_pq")  # a few bits per number or less: how much is found depends on the vectors


class LanceSettings(StoreSettings):
    """How an index is exported to LanceDB."""

    name: str | None = None
    """Name of the table; by default the collection's, or the index's."""
    precision: Literal["float32", "float16"] = "float32"
    """Type of the numbers; `float16` takes half the bytes and keeps 11 bits of each number."""
    index: Literal["none", "ivf_flat", "ivf_sq", "ivf_pq", "ivf_rq", "ivf_hnsw_flat", "ivf_hnsw_sq", "ivf_hnsw_pq"] = (
        "none"
    )
    """How dense vectors are searched: `none` (exactly, all of them), or by an index of LanceDB: inverted lists (`ivf`)
    of vectors (`flat`), of scalar-quantized (`sq`), product-quantized (`pq`), or RaBitQ (`rq`) codes, or with a graph
    (`hnsw`) per list. Token vectors are searched exactly."""
    partitions: int | None = Field(default=None, ge=1)
    """Inverted lists of an index; LanceDB's choice by default."""
    sub_vectors: int | None = Field(default=None, ge=1)
    """Codes per vector of `pq`; by default a sixteenth of the dimension."""
    nprobes: int = Field(default=20, ge=1)
    """Inverted lists that a query visits; more are visited while fewer than k documents pass a filter."""
    refine: int = Field(default=10, ge=1)
    """How many times as many documents as wanted are found by the index and ranked by their vectors."""
    batch: int | None = Field(default=None, ge=1)
    """Documents per write; by default about 256 MB of numbers, at most 20,000 documents."""
    sample: int = Field(default=50, ge=1)
    """Number of documents that are compared with the source and whose vectors are used as queries at the end."""
    agreement: float = Field(default=0.9, ge=0, le=1)
    """Least mean share of the exact top 10 that an index, or `float16`, must find for them; reported only for `pq` and
    `rq`."""


class LanceStore(VectorStore):
    """A table in a folder of LanceDB.

    A row has ``document_id``, ``title`` and ``text`` where they are exported, a column for each field, and ``vector``
    or ``vectors`` (one per token); a passage has ``passage_id``, too. Missing values are null. The file
    ``NAME.manifest.json`` beside the table has the contract of the space, so that queries of another space are
    refused. Scores are inner products or MaxSim.
    """

    options = LanceSettings

    def __init__(self, folder: Path, settings: LanceSettings | None = None, name: str = "") -> None:
        self.folder, self.settings = folder, settings or LanceSettings()
        self.name = self.settings.name or name
        self.sample = self.settings.sample
        self._lock = contextlib.ExitStack()
        self._held = pa.chunked_array([], pa.string())  # ids of an export that is continued

    @classmethod
    def open(cls, place: str, settings: LanceSettings | None = None, *, create: bool = False) -> LanceStore:
        """Open ``FOLDER#NAME``; ``#NAME`` may be left out where there is one table.

        Raises:
            UserError: The package, the folder, or the table is missing, or the folder holds something else.
        """
        folder, _, name = place.partition("#")
        if not folder or "://" in folder:
            raise UserError(f"'lancedb:{place}' is not a folder and a table; write 'lancedb:FOLDER#NAME'.")
        store = cls(path_of(folder), settings, name)
        _library()
        if create:
            store._check_folder()
            return store
        names = sorted(table.stem for table in store.folder.glob(_TABLES))
        store.name = names[0] if not name and len(names) == 1 else name
        if store.name not in names:
            what = f"has no table {name!r}" if name else f"has {len(names)} tables"
            listed = sample_of(names, 8) or "none"
            raise UserError(f"LanceDB in {folder} {what}; there are: {listed}. Write 'lancedb:{folder}#NAME'.")
        return store

    @property
    def root(self) -> Path:
        """As `VectorStore.root`."""
        return self.folder

    @property
    def address(self) -> str:
        """``lancedb:FOLDER#NAME``."""
        return f"lancedb:{self.folder}" + (f"#{self.name}" if self.name else "")

    @property
    def min_agreement(self) -> float:  # type: ignore[override]
        """As `VectorStore.min_agreement`."""
        if self._is_exact and self._precision == "float32":
            return 1.0
        return 0.0 if self._index in _COARSE else self.settings.agreement

    @property
    def tolerance(self) -> float:  # type: ignore[override]
        """As `VectorStore.tolerance`: float16 has 11 bits."""
        return 1e-3 if self._precision == "float16" else 1e-4

    def create(self, spec: Records) -> None:
        """As `VectorStore.create`."""
        settings = self.settings
        self.name = self.name or spec.collection or slug(spec.name)
        _check_spec(spec, settings, self.name)
        numbers = spec.space.dimension * (_TOKENS if spec.kind == "multi-vector" else 1)
        self.batch_size = settings.batch or max(1, min(_MOST, _NUMBERS // numbers))
        decisive: dict[str, Any] = {"texts": settings.texts, "precision": settings.precision, "index": settings.index}
        if settings.index != "none":
            decisive |= {"partitions": settings.partitions, "sub_vectors": settings.sub_vectors}
        manifest = spec.manifest("LanceDB table", decisive, self.folder)
        searching = {"nprobes": settings.nprobes, "refine": settings.refine}
        self._manifest = replace(manifest, about={**manifest.about, **searching})
        self._check_folder()
        self._lock.enter_context(exclusive(self.folder / f".{self.name}.lock"))
        exists = self._path.is_dir()
        if exists:
            held = self.manifest()
            check_same(held, self._manifest, self.address, "choose another name, or drop that table first")
            self._check_data(held)
            self._held = self._read(self._own_id)[self._own_id]
        self._write_manifest(_WRITING)
        if not exists:
            schema = table_of(next(spec.batches(1)), settings.precision).schema
            with self._errors():
                fingerprint = {_OWNER: self._manifest.fingerprint}
                self._database.create_table(self.name, schema=schema.with_metadata(fingerprint))

    def upload(self, batches: Iterable[Batch]) -> int:
        """As `VectorStore.upload`; a batch is a version of the table. Files are merged, and indexed, at the end."""
        written = 0
        for batch in batches:
            known = pc.is_in(pa.array(batch.ids, pa.string()), value_set=self._held)
            if pc.all(known).as_py():
                continue
            rows = _with_nulls(table_of(batch, self._precision)).filter(pc.invert(known))
            with self._errors():
                self._table.add(rows)
            written += len(rows)
        self._held = pa.chunked_array([], pa.string())
        self._tidy()
        return written

    def finish(self) -> dict[str, Any]:
        """As `VectorStore.finish`; ``bytes`` are those of the table with its indexes."""
        data = (file.relative_to(self.folder).as_posix() for file in (self._path / "data").iterdir())
        self._write_manifest(_COMPLETE, data_files={name: file_checksum(self.folder / name) for name in sorted(data)})
        return {"bytes": sum(file.stat().st_size for file in self._path.rglob("*") if file.is_file())}

    def manifest(self) -> Manifest | None:
        """As `VectorStore.manifest`; one of a table that was dropped does not count."""
        file = f"{self.name}{_MANIFEST}"
        if not self._path.is_dir() or not (self.folder / file).is_file():
            return None
        manifest = Manifest.read(self.folder, file)
        with self._errors():
            metadata = self._table.schema.metadata or {}
        if metadata.get(_OWNER) != manifest.fingerprint.encode():
            return None
        return replace(manifest, about={**manifest.about, "is_complete": manifest.about.get("state") == _COMPLETE})

    def count(self) -> int:
        """Number of rows."""
        with self._errors():
            return int(self._table.count_rows())

    def stored(self, ids: Sequence[str]) -> tuple[list[str], Vectors]:
        """As `VectorStore.stored`."""
        found = self._read(self._own_id, self._vectors, where=_among(self._own_id, ids))
        dimension = int(self._manifest.about["space"]["dimension"])
        blocks = [read_vectors(rows, dimension) for rows in found.to_batches()]
        return found[self._own_id].to_pylist(), stacked(self._kind, blocks, dimension)

    def payloads(self, ids: Sequence[str]) -> dict[str, dict[str, Any]]:
        """As `VectorStore.payloads`."""
        names = [name for name in self.schema().names if name not in (PASSAGE, "document_id")]
        rows = self._read(self._own_id, *names, where=_among(self._own_id, ids)).to_pylist()
        return {row[self._own_id]: {name: row[name] for name in names if row[name] is not None} for row in rows}

    def best(self, queries: Vectors, k: int, filter: Filter | None = None) -> Answers:
        """As `VectorStore.best`; queries without tokens find nothing. Ties among those found are broken by id."""
        where = None if filter is None else _sql(filter)
        vectors = [queries[row] for row in range(len(queries))] if isinstance(queries, Tokens) else list(queries)
        return [self._found(vector, k, where) if len(vector) else [] for vector in vectors]

    def close(self) -> None:
        """Let others write to the table."""
        self._lock.close()

    @cached_property
    def _database(self) -> Any:
        with self._errors():
            return _library().connect(str(self.folder))

    @cached_property
    def _table(self) -> Table:
        with self._errors():
            return self._database.open_table(self.name)

    @property
    def _path(self) -> Path:
        return self.folder / f"{self.name}.lance"

    @property
    def _precision(self) -> Literal["float32", "float16"]:
        return "float16" if self._manifest.settings["precision"] == "float16" else "float32"

    @property
    def _index(self) -> str:
        return str(self._manifest.settings["index"])

    @property
    def _is_exact(self) -> bool:
        return self._index == "none"

    @property
    def _vectors(self) -> str:
        return "vectors" if self._kind == "multi-vector" else "vector"

    def _check_folder(self) -> None:
        """Refuse a folder of something else; tables of others stay as they are."""
        ours = (self.folder.glob(pattern) for pattern in (_TABLES, f"*{_MANIFEST}"))
        if not any(path for paths in ours for path in paths):
            check_replaceable(self.folder, _TABLES)

    def _check_data(self, manifest: Manifest | None) -> None:
        """Refuse a complete table with a damaged file; those that LanceDB has replaced are no longer there."""
        checksums = {} if manifest is None else manifest.about.get("data_files", {})
        left = {name: checksum for name, checksum in checksums.items() if (self.folder / name).is_file()}
        check_files(self.folder, left, f"delete {self._path.name} and export again")

    def _write_manifest(self, state: str, **about: Any) -> None:
        about = {**self._manifest.about, "state": state, **about}
        replace(self._manifest, about=about).write(self.folder, f"{self.name}{_MANIFEST}")

    def _tidy(self) -> None:
        """Merge the files of the batches, drop the versions before, and build the indexes that are not there."""
        index = _library().index
        wanted: dict[str, Any] = {self._own_id: index.BTree()}
        if not self._is_exact:
            settings = self.settings
            options: dict[str, Any] = {"distance_type": "dot", "num_partitions": settings.partitions}
            if self._index.endswith("pq"):
                options["num_sub_vectors"] = settings.sub_vectors
            wanted[self._vectors] = getattr(index, _INDEXES[self._index])(**options)
        with self._errors(), warnings.catch_warnings():
            warnings.filterwarnings("ignore", message="optimize")  # nobody reads a table that is not complete
            self._table.optimize(cleanup_older_than=datetime.timedelta(0))
            built = {column for held in self._table.list_indices() for column in held.columns}
            for column, config in wanted.items():
                if column not in built:
                    self._table.create_index(column, config=config)

    def _read(self, *columns: str, where: str | None = None) -> pa.Table:
        """Columns of all rows, or of those that pass."""
        with self._errors():
            query = self._table.search().select(list(columns))
            return (query if where is None else query.where(where)).to_arrow()

    def _found(self, query: np.ndarray, k: int, where: str | None) -> list[tuple[str, float]]:
        """Ids and scores for one vector, or for the vectors of tokens."""
        scale = self._scale(query)
        with self._errors():
            search = self._table.search((query * scale).astype(np.float32), vector_column_name=self._vectors)
            search = search.distance_type("dot").limit(k).select([self._own_id, "_distance"])
            if where is not None:
                search = search.where(where)
            if not self._is_exact:
                about = self._manifest.about
                search = search.minimum_nprobes(about["nprobes"]).maximum_nprobes(0).refine_factor(about["refine"])
            rows = search.to_arrow()
        vectors = len(query) if query.ndim > 1 else 1
        scores = (vectors - rows["_distance"].to_numpy().astype(np.float64)) / scale
        return sorted(
            zip(rows[self._own_id].to_pylist(), scores.tolist(), strict=True), key=lambda row: (-row[1], row[0])
        )

    def _scale(self, query: np.ndarray) -> float:
        """What a query is multiplied with: LanceDB's distance is 1 - product, which loses products far below 1."""
        if not self._is_exact or not query.any():  # codes have a range, which a query must not leave
            return 1.0
        return 2.0 ** (_EXPONENTS[self._precision] - int(np.frexp(np.abs(query).max())[1]))

    def _errors(self) -> contextlib.AbstractContextManager[None]:
        return _one_line_errors(self.folder, self.name)


def _check_spec(spec: Records, settings: LanceSettings, name: str) -> None:
    """Refuse, before anything is written, what LanceDB cannot hold."""
    if spec.kind == "sparse":
        raise UserError(
            "LanceDB has no sparse vectors; export sparse indexes to qdrant, pgvector, elasticsearch, opensearch, or "
            "parquet."
        )
    if spec.kind == "multi-vector" and settings.index != "none":
        raise UserError(
            f"index {settings.index!r}: LanceDB's indexes of token vectors miss most of the best documents; leave it "
            "out, and all documents are compared."
        )
    check_file_name(name, "a table of LanceDB")
    if not _TABLE_NAME.fullmatch(name):
        raise UserError(f"a table of LanceDB cannot be called {name!r}; use letters, digits, and . - _.")
    odd = [field for field, _ in spec.field_types if "." in field or "`" in field or field in _LANCE_COLUMNS]
    if odd:
        own = ", ".join(_LANCE_COLUMNS)
        raise UserError(
            f"fields {sample_of(odd)}: LanceDB takes no name with . or `, and not {own}; choose others with 'fields'."
        )
    if settings.index != "none":
        _check_index(settings.index, len(spec), spec.space.dimension, settings.sub_vectors)


def _check_index(index: str, documents: int, dimension: int, sub_vectors: int | None) -> None:
    if index.endswith("pq") and documents < _TRAINED:
        raise UserError(
            f"index {index!r} is trained on at least {_TRAINED} documents, and there are {documents}; leave it out."
        )
    if index.endswith("pq") and sub_vectors is not None and dimension % sub_vectors:
        raise UserError(f"sub_vectors {sub_vectors} does not divide the {dimension} dimensions of these vectors.")
    if index == "ivf_rq" and dimension % 8:
        raise UserError(f"index 'ivf_rq' takes dimensions that 8 divides, and these vectors have {dimension}.")


def _with_nulls(rows: pa.Table) -> pa.Table:
    """The rows with null in place of a title or text that is ''."""
    for name in set(TEXTS) & set(rows.column_names):
        filled = pc.if_else(pc.equal(rows[name], ""), pa.scalar(None, pa.string()), rows[name])
        rows = rows.set_column(rows.column_names.index(name), name, filled)
    return rows


def _sql(part: Filter | Condition) -> str:
    """A filter as SQL. What is compared with NULL does not pass."""
    if isinstance(part, Filter):
        joined = (" OR " if part.is_any else " AND ").join(f"({_sql(one)})" for one in part.parts)
        return joined or ("FALSE" if part.is_any else "TRUE")
    column, word, value = f"`{part.field}`", part.operator, part.value
    if word in ("exists", "null"):
        return f"{column} IS {'NULL' if (word == 'null') == value else 'NOT NULL'}"
    is_list = pa.types.is_list(part.kind)
    is_integer = pa.types.is_integer(part.kind.value_type if is_list else part.kind)
    if word not in _EQUALITY:  # Lance does not compare an integer with a fraction
        compared = f"CAST({column} AS DOUBLE)" if is_integer and isinstance(value, float) else column
        return f"{compared} {word} {_literal(value)}"
    values = value if word in ("in", "not in") else (value,)
    listed = ", ".join(_literal(one) for one in values if not (is_integer and isinstance(one, float)))
    has = f"array_has_any({column}, [{listed}])" if is_list else f"{column} IN ({listed})"
    if not listed:
        has = "FALSE"
    return f"NOT {has} AND {column} IS NOT NULL" if word in _NEGATIVE else has


def _among(column: str, ids: Sequence[str]) -> str:
    return f"`{column}` IN ({', '.join(map(_literal, ids))})" if ids else "FALSE"


def _literal(value: Any) -> str:
    """A value of a filter in SQL."""
    if isinstance(value, bool):
        return str(value).upper()
    if isinstance(value, float) and math.isinf(value):
        return f"CAST('{value}' AS DOUBLE)"
    if isinstance(value, int | float):
        return repr(value)
    if isinstance(value, datetime.datetime):
        moment = value.astimezone(datetime.UTC).replace(tzinfo=None) if value.tzinfo else value
        return f"TIMESTAMP '{moment.isoformat()}{'Z' if value.tzinfo else ''}'"
    if isinstance(value, datetime.date):
        return f"DATE '{value.isoformat()}'"
    doubled = value.replace("'", "''")
    return f"'{doubled}'"


def _library() -> Any:
    try:
        import lancedb
        import lancedb.index
    except ImportError as error:
        raise UserError(
            "LanceDB needs the package lancedb, which is not installed; pip install 'retrodistill[lancedb]'."
        ) from error
    return lancedb


@contextlib.contextmanager
def _one_line_errors(folder: Path, name: str) -> Iterator[None]:
    """Turn what LanceDB raises into one line that says what to do."""
    try:
        yield
    except BaseException as error:
        # A panic of Rust is not an Exception, and its class has no public name.
        if not isinstance(error, (OSError, RuntimeError, ValueError)) and type(error).__name__ != "PanicException":
            raise
        said = _RUST_FILE.sub("", first_line(error))[:200].rstrip(".")
        if isinstance(error, PermissionError) or any(words in str(error) for words in REFUSALS.values()):
            raise UserError(
                f"cannot write or read {folder}: {reason_of(error, folder)}; run it again to go on."
            ) from error
        if _DAMAGED.search(str(error)):
            raise UserError(
                f"LanceDB's table {name} in {folder} is damaged ({said}); delete {name}.lance and export again."
            ) from error
        raise UserError(f"LanceDB in {folder} refuses: {said}.") from error


STORE = LanceStore
