"""Checksums of files: damage is noticed by name before a file is used.

A sealed file carries checksums of its blocks of 64 KiB: at its end, or, in Parquet and Arrow files, before the footer,
where readers of these formats do not look. What is memory-mapped is verified block by block when it is first read, once
per process; the rest when the file is opened. A file without a seal, as earlier versions wrote it, is read as it is.
"""

from __future__ import annotations

import bisect
import hashlib
import os
import struct
import threading
import weakref
from collections.abc import Iterable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple, TypeVar

import numpy as np
import pyarrow as pa
import xxhash

from retrodistill.core.arrays import check_table
from retrodistill.core.errors import UserError, first_line

T = TypeVar("T")
PREFIX = "xxh3:"  # of checksums as text
_BLOCK = 1 << 16  # bytes that are verified at once
_READ = 1 << 22  # bytes that are read at once
_MAGIC = b"\x89RDseal1"
# Magic, number of content bytes, and the checksum of the rest of the seal, the footer and the owner.
_END = struct.Struct("<8sQQ")
# The last bytes of formats whose footer comes last, and how the footer's length is written before them.
_FOOTERS = {b"ARROW1": struct.Struct("<i6s"), b"PAR1": struct.Struct("<I4s")}
_BATCH = 4 << 20  # bytes of a record batch: opening a file reads a block of each, and many make it slow


class DamagedError(UserError):
    """A file whose content is not what was written.

    Attributes:
        path: The file.
        problem: What is wrong with it: a clause.
    """

    def __init__(self, path: str | os.PathLike[str], problem: str, advice: str) -> None:
        super().__init__(f"{path} is damaged: {problem}; {advice}.")
        self.path, self.problem = Path(path), problem


def checksum(*parts: Any) -> str:
    """Checksum of bytes, 16 hexadecimal digits after ``xxh3:``."""
    state = xxhash.xxh3_64()
    for part in parts:
        state.update(part)
    return PREFIX + state.hexdigest()


def file_checksum(path: str | os.PathLike[str]) -> str:
    """Checksum of a file's bytes and their number, 32 hexadecimal digits after ``xxh3:``; at several GB/s."""
    state, buffer = xxhash.xxh3_128(), memoryview(bytearray(_READ))
    with Path(path).expanduser().open("rb", buffering=0) as file:
        while count := file.readinto(buffer):
            state.update(buffer[:count])
    return PREFIX + state.hexdigest()


def files_of(folder: Path) -> dict[str, str]:
    """By name, the checksums of all files below a folder, except hidden ones, and read-mes, which people edit."""
    files = (file for file in sorted(folder.rglob("*")) if file.is_file() and file.name != "README.md")
    names = [file.relative_to(folder) for file in files]
    names = [name for name in names if not any(part.startswith(".") for part in name.parts)]
    return {name.as_posix(): file_checksum(folder / name) for name in names}


def check_files(folder: Path, checksums: Mapping[str, str], advice: str) -> None:
    """Check files of a folder, by their names in it, against their `file_checksum`; blake2b was that of version 0.1.0.

    Raises:
        DamagedError: One is missing, cut short or altered; `advice` says what to do then, in a clause.
    """
    for name, wanted in checksums.items():
        path = folder / name
        if os.path.isabs(name) or ".." in Path(name).parts or not path.is_file():
            raise DamagedError(path, "it is missing", advice)
        if wanted.startswith(PREFIX):
            found = file_checksum(path)
        else:
            with path.open("rb") as file:
                found = hashlib.file_digest(file, "blake2b").hexdigest()
        if found != wanted:
            raise DamagedError(path, "it is cut short or altered (checksum)", advice)


def seal(path: Path, *, owner: str = "", lazy: Sequence[tuple[int, int]] = ()) -> str:
    """Add checksums of its blocks to a file that is complete; returns the seal's own, which stands for the content.

    Args:
        path: A Parquet or Arrow file, or another one whose readers know where its content ends.
        owner: Of the content, such as a fingerprint: as that of another owner the file is damaged.
        lazy: Ranges of bytes that are verified when they are read; the others are when the file is opened.
    """
    size = path.stat().st_size
    with path.open("r+b") as file:
        first = file.read(max(map(len, _FOOTERS)))
        file.seek(max(size - 16, 0))
        tail = _footer(file.read()) if first.startswith(tuple(_FOOTERS)) else 0
        content = size - tail
        file.seek(0)
        sums, left = [], content
        while left:
            read = file.read(min(_READ, left))
            left -= len(read)
            sums += _sums(memoryview(read))
        footer = file.read(tail)
        eager = _outside(lazy, content)
        body = np.array(sums, "<u8").tobytes() + eager.tobytes()
        proof = _proof(body, content, footer, owner)
        file.seek(content)
        file.write(body + _END.pack(_MAGIC, content, proof) + footer)
    return f"{PREFIX}{proof:016x}"


class Mapped(NamedTuple):
    """A memory-mapped file, verified as far as its seal asks for it at opening."""

    data: np.ndarray  # (size,) uint8: content, seal, and footer if the format has one
    blocks: _Blocks | None  # None for a file without a seal

    @property
    def content(self) -> np.ndarray:
        """What comes before the seal."""
        return self.data if self.blocks is None else self.data[: self.blocks.content]

    def verify(self) -> Mapped:
        """Verify what is left; returns the same."""
        if self.blocks is not None:
            self.blocks.verify(self.data, np.arange(len(self.blocks.sums)))
        return self

    def lazily(self) -> Mapped:
        """Let `checked` verify what is left, when it is given memory of this file; returns the same."""
        if self.blocks is not None and self.blocks.left:
            _REGISTRY.add(self.data, self.blocks)
        return self


def map_sealed(path: Path, *, owner: str = "", advice: str, expected: str | None = None) -> Mapped:
    """Map a file into memory and verify it as far as its seal asks for it at opening.

    Args:
        path: The file.
        owner: As it was sealed.
        advice: What to do with a damaged file, for the error: a clause.
        expected: The seal that it must have, where another file has noted it; otherwise it may have any or none.

    Raises:
        DamagedError: It is cut short, altered, of another owner, or has another seal.
        OSError: It is missing or cannot be read.
    """
    if not path.stat().st_size:
        raise DamagedError(path, "it is empty", advice)
    with pa.memory_map(str(path)) as source:
        data = np.frombuffer(source.read_buffer(), np.uint8)
    found, end, content, proof = None, 0, 0, 0
    for tail in (_footer(data[-16:].tobytes()), 0):
        end = len(data) - tail - _END.size
        if end >= 0 and data[end : end + len(_MAGIC)].tobytes() == _MAGIC:
            _, content, proof = _END.unpack(data[end : end + _END.size].tobytes())
            found = f"{PREFIX}{proof:016x}"
            break
    if expected is not None and found != expected:
        raise DamagedError(path, "it is cut short, altered or another file (checksum)", advice)
    if found is None:
        return Mapped(data, None)
    count = -(-content // _BLOCK)
    if content + 9 * count != end:
        raise DamagedError(path, "it is cut short or altered (length)", advice)
    body, footer = data[content:end].tobytes(), data[len(data) - tail :].tobytes()
    if _proof(body, content, footer, owner) != proof:
        raise DamagedError(path, "it is altered, or of another owner (checksum)", advice)
    blocks = _Blocks(path, advice, content, np.frombuffer(body, "<u8", count))
    blocks.verify(data, np.flatnonzero(np.frombuffer(body, np.uint8, offset=8 * count)))
    return Mapped(data, blocks)


class _Blocks:
    """The checksums of a file's blocks, and which of these were verified."""

    def __init__(self, path: Path, advice: str, content: int, sums: np.ndarray) -> None:
        self.path, self.advice, self.content, self.sums = path, advice, content, sums
        self.is_verified, self.left = np.zeros(len(sums), dtype=bool), len(sums)

    def verify(self, data: np.ndarray, blocks: np.ndarray) -> None:
        """Verify (m,) blocks of the file that `data` maps, unless they were before."""
        new = blocks[~self.is_verified[blocks]]
        content = memoryview(data)[: self.content]  # type: ignore[arg-type]  # an array has the buffer interface
        for block, wanted in zip(new.tolist(), self.sums[new].tolist(), strict=True):
            start = block * _BLOCK
            if xxhash.xxh3_64_intdigest(content[start : start + _BLOCK]) != wanted:
                raise DamagedError(self.path, f"it is altered near byte {start:,} (checksum)", self.advice)
            self.is_verified[block] = True
        if len(new):
            self.left = len(self.sums) - int(np.count_nonzero(self.is_verified))


def sealed_file(path: Path, *, owner: str = "", advice: str) -> pa.BufferReader:
    """A verified file, as a file object to read Parquet or NumPy from; arguments and errors as of `map_sealed`."""
    return pa.BufferReader(pa.py_buffer(map_sealed(path, owner=owner, advice=advice).verify().data))


def write_arrow(
    path: Path, schema: pa.Schema, batches: Iterable[pa.RecordBatch], *, owner: str = "", lazy: Sequence[str] = ()
) -> str:
    """Write a sealed Arrow file; returns its seal. Values of `lazy` columns are verified when they are read."""
    with pa.OSFile(str(path), "wb") as sink, pa.ipc.new_file(sink, schema) as writer:
        for batch in _joined(batches):
            writer.write_batch(batch)
    ranges = []
    if lazy:
        with pa.memory_map(str(path)) as source:
            data = np.frombuffer(source.read_buffer(), np.uint8)
        for array in _arrays(_table(data).select(list(lazy))):
            ranges += [(start - data.ctypes.data, stop - data.ctypes.data) for start, stop in _memory(array)]
    return seal(path, owner=owner, lazy=ranges)


def open_arrow(
    path: Path, *, owner: str = "", advice: str, expected: str | None = None, is_own: bool = True
) -> pa.Table:
    """Open a file of `write_arrow`, memory-mapped; arguments and errors as of `map_sealed`.

    Give what is read of its lazy columns to `checked` before. A file that is not of this machine, so that not `is_own`,
    may have the seal of somebody who altered it: its structure is checked as well.
    """
    mapped = map_sealed(path, owner=owner, advice=advice, expected=expected)
    try:
        table = _table(mapped.data)
        if mapped.blocks is None or not is_own:
            check_table(table)
    except (pa.ArrowException, OSError) as error:
        raise DamagedError(path, f"it is cut short or altered ({first_line(error)})", advice) from error
    mapped.lazily()
    return table


def checked(values: T) -> T:
    """The values, after the memory of a sealed file that they are in has been verified.

    Args:
        values: An Arrow array, column, record batch or table, or a contiguous numpy array.

    Raises:
        DamagedError: The file is damaged there.
    """
    if _REGISTRY.files:
        for array in _arrays(values):
            for start, stop in _memory(array):
                _REGISTRY.verify(start, stop)
    return values


def is_lazy(values: Any) -> bool:
    """Whether values of an Arrow array or column are in a sealed file that is not verified as a whole yet."""
    first = (next((start for start, _ in _memory(array)), 0) for array in _arrays(values))
    return bool(_REGISTRY.files) and any(_REGISTRY.find(start) is not None for start in first)


def check_rows(matrix: np.ndarray, rows: np.ndarray) -> None:
    """As `checked`, for some rows of a (n, d) contiguous array; verifies the blocks that these are in."""
    if _REGISTRY.files and len(rows) and matrix.size:
        _REGISTRY.verify_rows(matrix.ctypes.data, rows, matrix.strides[0])


class _Registry:
    """Sealed files in memory that are not verified as a whole yet, by address.

    It does not keep a file mapped: a mapping ends when nobody has its memory any more.
    """

    def __init__(self) -> None:
        # start and end of the memory, ascending; a new list at each change
        self.files: list[tuple[int, int, _Blocks, weakref.ref[np.ndarray]]] = []
        self._lock = threading.Lock()

    def add(self, data: np.ndarray, blocks: _Blocks) -> None:
        entry = (data.ctypes.data, data.ctypes.data + len(data), blocks, weakref.ref(data))
        with self._lock:
            mapped = [other for other in self.files if other[3]() is not None]
            self.files = sorted([*mapped, entry], key=_start)

    def find(self, address: int) -> tuple[int, _Blocks, np.ndarray] | None:
        """Start, checksums and memory of the file at an address; None if there is none, or it is verified."""
        files = self.files
        place = bisect.bisect_right(files, address, key=_start) - 1
        if place < 0:
            return None
        start, end, blocks, mapped = files[place]
        data = mapped()
        return (start, blocks, data) if data is not None and address < end and blocks.left else None

    def verify(self, start: int, stop: int) -> None:
        if start < stop and (found := self.find(start)) is not None:
            first, blocks, data = found
            last = min(stop - first, blocks.content)
            blocks.verify(data, np.arange((start - first) // _BLOCK, -(-last // _BLOCK)))

    def verify_rows(self, start: int, rows: np.ndarray, width: int) -> None:
        if (found := self.find(start)) is not None:
            first, blocks, data = found
            starts = start - first + rows.astype(np.int64) * width
            blocks.verify(data, np.unique(np.concatenate([starts // _BLOCK, (starts + width - 1) // _BLOCK])))


def _start(entry: Any) -> int:
    return int(entry[0])


_REGISTRY = _Registry()


def _arrays(values: Any) -> Iterator[Any]:
    if isinstance(values, (pa.Table, pa.RecordBatch)):
        for column in values.columns:
            yield from _arrays(column)
    elif isinstance(values, pa.ChunkedArray):
        yield from values.chunks
    else:
        yield values


def _memory(array: Any) -> Iterator[tuple[int, int]]:
    """Addresses of the bytes that the values of an array are in, each with its end."""
    if isinstance(array, np.ndarray):
        yield array.ctypes.data, array.ctypes.data + array.nbytes
        return
    if not len(array):
        return
    validity, *buffers = array.buffers()
    if validity is not None:
        yield validity.address, validity.address + validity.size
    if type(array) in (pa.StringArray, pa.LargeStringArray):
        width = 4 if isinstance(array, pa.StringArray) else 8
        first = buffers[0].address + array.offset * width
        yield first, first + (len(array) + 1) * width
        _REGISTRY.verify(first, first + (len(array) + 1) * width)  # before they are read here
        bounds = np.frombuffer(buffers[0], f"<i{width}")[[array.offset, array.offset + len(array)]].tolist()
        if buffers[1] is not None:
            yield buffers[1].address + bounds[0], buffers[1].address + bounds[1]
    elif pa.types.is_primitive(array.type) and array.type.bit_width >= 8:
        first, width = buffers[0].address, array.type.bit_width // 8
        yield first + array.offset * width, first + (array.offset + len(array)) * width
    else:
        yield from ((buffer.address, buffer.address + buffer.size) for buffer in buffers if buffer is not None)


def _joined(batches: Iterable[pa.RecordBatch]) -> Iterator[pa.RecordBatch]:
    """Small batches joined to larger ones: each costs time when a file is opened."""
    waiting: list[pa.RecordBatch] = []
    size = 0
    for batch in (batch for batch in batches if batch.num_rows):
        if waiting and size + batch.nbytes > _BATCH:
            yield _one(waiting)
            waiting, size = [], 0
        waiting.append(batch)
        size += batch.nbytes
    if waiting:
        yield _one(waiting)


def _one(batches: list[pa.RecordBatch]) -> pa.RecordBatch:
    if len(batches) == 1:
        return batches[0]
    [joined] = pa.Table.from_batches(batches).combine_chunks().to_batches()
    return joined


def _table(data: np.ndarray) -> pa.Table:
    return pa.ipc.open_file(pa.BufferReader(pa.py_buffer(data))).read_all()


def _footer(last: bytes) -> int:
    """Bytes of the footer of a file that ends so; 0 if its format has none."""
    for magic, layout in _FOOTERS.items():
        if last.endswith(magic) and len(last) >= layout.size:
            length: int = layout.unpack(last[-layout.size :])[0]
            return length + layout.size if length >= 0 else 0
    return 0


def _sums(content: memoryview) -> list[int]:
    return [xxhash.xxh3_64_intdigest(content[start : start + _BLOCK]) for start in range(0, len(content), _BLOCK)]


def _outside(lazy: Sequence[tuple[int, int]], content: int) -> np.ndarray:
    """(blocks,) uint8, 1 for each block with bytes outside some ranges."""
    eager = np.zeros(-(-content // _BLOCK), dtype=np.uint8)
    place = 0
    for start, stop in [*sorted(lazy), (content, content)]:
        if place < start:
            eager[place // _BLOCK : -(-start // _BLOCK)] = 1
        place = max(place, stop)
    return eager


def _proof(body: bytes, content: int, footer: bytes, owner: str) -> int:
    state = xxhash.xxh3_64(owner.encode() + b"\0" + content.to_bytes(8, "little"))
    state.update(body)
    state.update(footer)
    return int(state.intdigest())
