"""Arrays in files, written so that a full disk is noticed; arrays and Arrow tables of files, checked before use."""

from __future__ import annotations

import contextlib
import io
import os
import tokenize
import zipfile
from collections.abc import Iterator, Sequence
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

from retrodistill.core.errors import UserError, first_line

_LEAST_VALUES, _VALUES_PER_BYTE = 10_000_000, 20  # that a column of a Parquet file may have; real files have about 1
_FAILURES = (
    *(ValueError, EOFError, OSError, MemoryError, RecursionError, TypeError, SyntaxError, tokenize.TokenError),
    *(zipfile.BadZipFile, pa.ArrowException),
)


def save_array(path: Path, array: np.ndarray) -> None:
    """Write an array as ``.npy``.

    By Python: NumPy itself does not look whether closing its file succeeded, and the end of an array may be lost.
    """
    with path.open("wb") as file:
        as_stream: Any = SimpleNamespace(write=file.write)  # NumPy calls this for what is not a file of the system
        np.save(as_stream, array, allow_pickle=False)


def append_array(file: io.BufferedWriter, array: np.ndarray) -> None:
    """Write the bytes of an array to an open file, by Python as `save_array` does."""
    file.write(np.ascontiguousarray(array).data)


def read_array(path: str | os.PathLike[str], *, memory_map: bool = False) -> np.ndarray:
    """The array of a ``.npy`` file, whose header is compared with the file's size before memory is taken for it.

    Raises:
        UserError: The file is absent, cut short, of another format, or holds Python objects, which would be unpickled.
    """
    with _readable(path):
        # mapping compares the header with the size, and refuses Python objects
        mapped = np.load(path, mmap_mode="r", allow_pickle=False)
        if not isinstance(mapped, np.ndarray):
            raise ValueError("not one array")
        return mapped if memory_map else np.array(mapped)


def read_arrays(path: str | os.PathLike[str]) -> dict[str, np.ndarray]:
    """The arrays of an ``.npz`` file as `numpy.savez` writes it, by name; compressed ones are refused.

    Raises:
        UserError: As for `read_array`.
    """
    with _readable(path):
        with zipfile.ZipFile(path) as archive:
            entries = archive.infolist()
        if any(entry.compress_type != zipfile.ZIP_STORED for entry in entries):
            raise ValueError("compressed, so that its size says nothing")
        if sum(entry.file_size for entry in entries) > Path(path).stat().st_size:
            raise ValueError("its arrays are larger than the file")
        with np.load(path, allow_pickle=False) as arrays:
            return {name: arrays[name] for name in arrays.files}


def read_parquet(
    path: str | os.PathLike[str], columns: Sequence[str] | None = None, advice: str = "make it again"
) -> pa.Table:
    """The table of a Parquet file whose texts are UTF-8.

    Raises:
        UserError: The file is absent, cut short, altered, or of another format, claims more values than files of its
            size have, or lacks one of the `columns`. The message ends in the `advice`.
    """
    try:
        with pq.ParquetFile(path) as file:
            _check_values(path, file)
            table = file.read(None if columns is None else list(columns))
        table.validate(full=True)  # Parquet's reader takes any bytes for a text
    except _FAILURES as error:
        raise UserError(f"{path} is not a whole Parquet file ({first_line(error)[:160]}); {advice}.") from error
    if lacking := [name for name in columns or () if name not in table.column_names]:
        found = ", ".join(table.column_names) or "none"
        raise UserError(f"{path} has no column {lacking[0]!r} (columns: {found}); {advice}.")
    return table


@contextlib.contextmanager
def foreign_parquet(path: str | os.PathLike[str]) -> Iterator[pq.ParquetFile]:
    """A Parquet file of another program, open, whose texts are read as dictionaries.

    A small file may repeat a long text any number of times: see `values_of`.

    Raises:
        pa.ArrowException: The file is damaged, or claims more values than files of its size have.
    """
    with pq.ParquetFile(path) as file:
        leaves = [file.schema.column(number) for number in range(len(file.schema))]
        texts = [leaf.path for leaf in leaves if leaf.physical_type == "BYTE_ARRAY" and "." not in leaf.path]
        metadata = file.metadata
    with pq.ParquetFile(path, metadata=metadata, read_dictionary=texts, pre_buffer=False) as file:
        _check_values(path, file)
        yield file


def foreign_table(path: str | os.PathLike[str]) -> pa.Table:
    """The table of a Parquet file of another program, as `foreign_parquet` reads it; errors as there."""
    with foreign_parquet(path) as file:
        table = file.read()
    table.validate(full=True)  # Parquet's reader takes any bytes for a text
    return table


def _check_values(path: str | os.PathLike[str], file: pq.ParquetFile) -> None:
    size, groups = os.stat(path).st_size, [file.metadata.row_group(number) for number in range(file.num_row_groups)]
    for column in range(file.metadata.num_columns):
        values = sum(group.column(column).num_values for group in groups)
        if values > _LEAST_VALUES + _VALUES_PER_BYTE * size:
            raise pa.ArrowInvalid(f"{values} values of a column in {size} bytes")


def values_of(column: pa.Array | pa.ChunkedArray) -> list[Any]:
    """The values of a column as Python objects; equal texts of a dictionary are one object."""
    if isinstance(column, pa.ChunkedArray):
        return [value for chunk in column.chunks for value in values_of(chunk)]
    if not pa.types.is_dictionary(column.type):
        return column.to_pylist()
    values = column.dictionary.to_pylist()
    return [None if place is None else values[place] for place in column.indices.to_pylist()]


def check_table(table: pa.Table) -> None:
    """Check that the offsets and indices of a memory-mapped table all lie within its data.

    Texts themselves are not read: of ten million, 80 MB of offsets are.

    Raises:
        pa.ArrowException: They do not; reading could end the process.
    """
    for column in table.columns:
        for chunk in column.chunks:
            _check_chunk(chunk)


def _check_chunk(chunk: pa.Array) -> None:
    # Arrow's full validation of texts reads them all, to see that they are UTF-8, which decoding tells as well.
    is_large = pa.types.is_large_string(chunk.type) or pa.types.is_large_binary(chunk.type)
    if not (is_large or pa.types.is_string(chunk.type) or pa.types.is_binary(chunk.type)):
        chunk.validate(full=True)
        return
    chunk.validate()  # first and last offset against the size of the data
    buffer = chunk.buffers()[1]
    if buffer is not None and len(chunk):
        offsets = np.frombuffer(buffer, np.int64 if is_large else np.int32)[chunk.offset :][: len(chunk) + 1]
        if len(offsets) <= len(chunk) or (np.diff(offsets) < 0).any():
            raise pa.ArrowInvalid("its texts overlap")


@contextlib.contextmanager
def _readable(path: str | os.PathLike[str]) -> Iterator[None]:
    try:
        yield
    except FileNotFoundError as error:
        raise UserError(f"no file {path}; make it again.") from error
    except _FAILURES as error:
        raise UserError(
            f"{path} is cut short or altered ({first_line(error)[:160]}); delete it and make it again."
        ) from error
