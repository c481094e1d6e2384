"""Tables of rows in files: JSONL, JSON, TSV, CSV, and Parquet, compressed or not, read once and a part at a time."""

from __future__ import annotations

import codecs
import csv
import gzip
import io
import json
import re
import zlib
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from itertools import islice
from pathlib import Path
from typing import Any, BinaryIO, NamedTuple, cast

import pyarrow as pa

from retrodistill.core.arrays import foreign_parquet, values_of
from retrodistill.core.errors import UserError, first_line, sample_of, unknown
from retrodistill.core.json_files import parse_json
from retrodistill.core.paths import input_file

_BOM = b"\xef\xbb\xbf"
_COMPRESSED = {".gz": "gzip", ".zst": "zstd"}  # ending -> name
_CHUNK = 1 << 20  # bytes that are read or decompressed at once
# Bytes of a line, and characters of an item of a JSON array: lists in them become objects of thirty times their size.
_LONGEST = 1 << 26
_MOST_CELLS = 10_000  # of a line between tabs or spaces
_PARQUET_ROWS = 1024  # rows that are Python objects at once
_QUOTED = re.compile(r'"((?:[^"]|"")*)"(?=\t|$)')  # a whole cell between tabs
_SPACE = re.compile(r"[ \t\r\n,]*")  # between the items of a JSON array
# Files that may lie among the parts of a table and hold no rows.
_ASIDE = re.compile(r"[._].*|(?:readme|license|licence|citation|changelog|notice)\b.*|.*\.(?:md|rst|html)", re.I)

Record = dict[str, Any]


class Columns(NamedTuple):
    """The columns that a kind of table has."""

    names: Mapping[str, Sequence[str]]  # what columns are called in files, by the name that records get
    unnamed: Mapping[int, Sequence[str]]  # the columns of a table without a header, by their number
    wanted: str  # an example of a record, for error messages
    only_ids: bool = False  # no texts: columns may be separated by spaces, too, and a quote that does not end is wrong

    def renamed(self, record: Record) -> Record:
        """The record with the first of a column's names replaced by the name that records get, in place."""
        for name, spellings in self.names.items():
            if name not in record:
                for spelling in spellings:
                    if spelling in record:
                        record[name] = record.pop(spelling)
                        break
        return record

    def header(self, cells: Sequence[str]) -> list[str] | None:
        """The names of the columns if these cells are a header, which has at least one known name."""
        known = {spelling: name for name, spellings in self.names.items() for spelling in (name, *spellings)}
        lower = [cell.strip().lower() for cell in cells]
        return [known.get(cell, cell) for cell in lower] if known.keys() & set(lower) else None


class _Format(NamedTuple):
    unit: str  # what a place is called: line, item or row
    read: Callable[[Path, Columns], Iterator[tuple[int, Record]]]


@dataclass(frozen=True)
class Table:
    """A table in a file ``NAME.ENDING``, or in a folder ``NAME`` of such files, its parts.

    Attributes:
        path: The file or the folder.
        files: The file, or the parts in the order of their names.
        aside: Names in the folder that are not read, such as README.md.
    """

    path: Path
    files: tuple[Path, ...]
    aside: tuple[str, ...] = ()

    @property
    def where(self) -> str:
        """Prefix of places in error messages: the file and its unit; rows of a folder are counted through."""
        unit = _FORMATS[_ending(self.path)].unit if self.path.is_file() else "row"
        return f"{self.path}, {unit}"

    def records(self, columns: Columns) -> Iterator[tuple[int, Record]]:
        """Yield (line or row from 1, record) with the names of `columns`; a missing column is a missing key."""
        if self.path.is_file():
            yield from read_table(self.path, columns)
            return
        rows = (record for file in self.files for _, record in read_table(file, columns))
        yield from enumerate(rows, start=1)


def stem(file: Path) -> str:
    """The name of a file without the endings of its format and compression: ``corpus`` of ``corpus.jsonl.gz``."""
    ending, compression = _ending(file), _compression(file)
    return file.name[: len(file.name) - len(ending) - len(compression)]


def is_table(file: Path, formats: Sequence[str] = ()) -> bool:
    """Whether a file's name has the ending of a table's format, or of one of `formats`."""
    return file.is_file() and _ending(file) in (formats or TABLES) and not file.name.startswith((".", "_"))


def table_at(path: Path, formats: Sequence[str] = ()) -> Table | None:
    """The table in a file or in a folder of parts; None if there is none.

    A folder with parts that also holds something else is a UserError: a part that is not read would be missing.
    """
    if path.is_file():
        return Table(path, (path,)) if is_table(path, formats) else None
    if not path.is_dir():
        return None
    inside = sorted(path.iterdir())
    parts = tuple(file for file in inside if is_table(file, formats))
    if not parts:
        return None
    others = [entry for entry in inside if entry not in parts]
    refuse_unread(path, others, formats)
    return Table(path, parts, tuple(entry.name for entry in others))


def refuse_unread(folder: Path, others: Sequence[Path], formats: Sequence[str]) -> None:
    """Raise for the first of some entries of a folder that is not read and may hold data."""
    if strange := [entry.name for entry in others if not _ASIDE.fullmatch(entry.name)]:
        raise UserError(
            f"{folder} holds {sample_of(strange)}, which cannot be read; expected files that end in "
            f"{', '.join(formats or TABLES)}, also with .gz or .zst: convert it, or move it elsewhere."
        )


def read_table(path: Path, columns: Columns) -> Iterator[tuple[int, Record]]:
    """Yield (line or row from 1, record) of a file, whose format is that of its ending."""
    yield from _FORMATS[_ending(path)].read(path, columns)


def read_lines(path: Path) -> Iterator[tuple[int, str]]:
    """Yield (line number from 1, line) for each line that is not blank; ``.gz`` and ``.zst`` are decompressed.

    Only line feeds end a line, because texts may contain other line breaks. A byte order mark is dropped: otherwise it
    would become part of the first id.
    """
    for number, line in _decoded(path):
        if line.strip():
            yield number, line.rstrip("\r\n")


def read_objects(path: Path, wanted: str) -> Iterator[tuple[int, Record]]:
    """Yield (line number from 1, JSON object) for each line; `wanted` describes a line in error messages."""
    for number, line in read_lines(path):
        try:
            record = parse_json(line)
        except ValueError as error:
            raise UserError(f"{path}, line {number}: not JSON ({error}); expected {wanted}.") from error
        yield number, _object(record, f"{path}, line {number}", wanted)


def read_records(
    path: Path, what: str, required: Sequence[str], optional: Sequence[str] = ()
) -> Iterator[tuple[int, Record]]:
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


def _read_jsonl(path: Path, columns: Columns) -> Iterator[tuple[int, Record]]:
    for number, record in read_objects(path, columns.wanted):
        yield number, columns.renamed(record)


def _read_json(path: Path, columns: Columns) -> Iterator[tuple[int, Record]]:
    """The objects of an array, decoded one after the other, so that the array is never in memory as a whole."""
    decode, chunks = json.JSONDecoder().raw_decode, _chunks(path)
    text = next((text for chunk in chunks if (text := chunk.lstrip())), "")
    if text and not text.startswith("["):
        raise UserError(f"{path} is not a JSON array; expected [{columns.wanted}, ...], or .jsonl for a line each.")
    at, number = 1, 0
    while text:
        at = blanks.end() if (blanks := _SPACE.match(text, at)) else at
        where = f"{path}, item {number + 1}"
        if text.startswith("]", at):
            if text[at + 1 :].strip() or next(chunks, "").strip():
                raise UserError(f"{where}: something follows the array; write one array of all objects.")
            return
        try:
            record, at = decode(text, at)
        except (ValueError, RecursionError) as error:
            length = len(text) - at
            # As much again as there is: a long item is decoded from its beginning each time.
            more = islice(chunks, max(1, length // _CHUNK)) if _is_cut(error, len(text)) and length < _LONGEST else ()
            if not (following := "".join(more)):
                raise UserError(f"{where}: not JSON ({error}); expected {columns.wanted}.") from error
            text, at = text[at:] + following, 0
            continue
        number += 1
        yield number, columns.renamed(_object(record, where, columns.wanted))


def _is_cut(error: Exception, length: int) -> bool:
    """Whether more text may mend what could not be decoded: it ends in the middle of a value, or of an escape."""
    return isinstance(error, json.JSONDecodeError) and (error.pos > length - 12 or "Unterminated" in error.msg)


def _read_tabs(path: Path, columns: Columns) -> Iterator[tuple[int, Record]]:
    def rows() -> Iterator[tuple[int, list[str]]]:
        for number, line in read_lines(path):
            is_spaced = columns.only_ids and "\t" not in line
            cells = line.split(maxsplit=_MOST_CELLS) if is_spaced else _tab_cells(line)
            if columns.only_ids and '"' in line and any(cell.startswith('"') for cell in cells):
                raise UserError(f"{path}, line {number}: a quote has no end ({line[:60]!r}); close it or remove it.")
            yield number, cells

    return _delimited(path, rows(), columns, "spaces or tabs" if columns.only_ids else "tabs")


def _read_commas(path: Path, columns: Columns) -> Iterator[tuple[int, Record]]:
    csv.field_size_limit(_LONGEST)  # the library's own limit is less than a long document
    reader = csv.reader((line for _, line in _decoded(path)), strict=True)

    def rows() -> Iterator[tuple[int, list[str]]]:
        try:
            while True:
                number = reader.line_num + 1  # a quoted cell may have several lines
                row = next(reader)
                if row:
                    yield number, row
        except StopIteration:
            return
        except csv.Error as error:
            raise UserError(f"{path}, line {reader.line_num}: not CSV ({error}); quote cells with commas.") from error

    return _delimited(path, rows(), columns, "commas")


def _delimited(
    path: Path, rows: Iterator[tuple[int, list[str]]], columns: Columns, separator: str
) -> Iterator[tuple[int, Record]]:
    names: Sequence[str] = ()
    for number, cells in rows:
        if not names:
            header = columns.header(cells)
            names = header or columns.unnamed.get(len(cells), ())
            if header:
                continue
        if len(cells) != len(names):
            layouts = [names] if names else [*columns.unnamed.values()]
            expected = " or ".join(f"{len(layout)} ({', '.join(layout)})" for layout in layouts)
            raise UserError(
                f"{path}, line {number}: {len(cells)} columns ({sample_of(cells, 6)}), separated by {separator}; "
                f"expected {expected}{'' if names else ', or a header that names them'}."
            )
        yield number, dict(zip(names, cells, strict=True))


def _tab_cells(line: str) -> list[str]:
    """The cells of a line; quotes around a whole cell are dropped, as beir does, and others belong to the text."""
    if '"' not in line:
        return line.split("\t", _MOST_CELLS)
    cells: list[str] = []
    at = 0
    while at <= len(line) and len(cells) <= _MOST_CELLS:
        if quoted := _QUOTED.match(line, at):
            cells.append(quoted[1].replace('""', '"'))
            at = quoted.end() + 1
        else:
            end = line.find("\t", at)
            end = len(line) if end < 0 else end
            cells.append(line[at:end])
            at = end + 1
    return cells


def _read_parquet(path: Path, columns: Columns) -> Iterator[tuple[int, Record]]:
    number = 0
    try:
        with foreign_parquet(path) as file:
            for batch in file.iter_batches(_PARQUET_ROWS):
                batch.validate(full=True)  # Parquet's reader takes any bytes for a text
                for row in zip(*map(values_of, batch.columns), strict=True):
                    number += 1
                    yield number, columns.renamed(dict(zip(batch.schema.names, row, strict=True)))
    except (pa.ArrowException, OSError, ValueError, OverflowError) as error:  # the last two of dates that Python lacks
        reason = first_line(error)
        raise UserError(f"{path}, after row {number}: not a whole Parquet file ({reason}); make it again.") from error


def _object(record: Any, where: str, wanted: str) -> Record:
    if not isinstance(record, dict):
        raise UserError(f"{where}: a JSON {type(record).__name__}, not an object; expected {wanted}.")
    return record


def _decoded(path: Path) -> Iterator[tuple[int, str]]:
    """Yield (line number from 1, line with its end)."""
    number = 0
    for number, raw in enumerate(_parts(path, _lines, "line"), start=1):
        if len(raw) >= _LONGEST:
            raise UserError(f"{path}, line {number} is longer than {_LONGEST >> 20} MiB; expected a record per line.")
        line = raw.removeprefix(_BOM) if number == 1 else raw
        try:
            yield number, line.decode("utf-8")
        except UnicodeDecodeError as error:
            raise _not_utf8(f"{path}, line {number}", error) from error


def _lines(file: BinaryIO) -> Iterator[bytes]:
    return iter(lambda: file.readline(_LONGEST), b"")


def _chunks(path: Path) -> Iterator[str]:
    """The text in chunks."""
    decoder = codecs.getincrementaldecoder("utf-8-sig")()
    for raw in _parts(path, lambda file: iter(lambda: file.read(_CHUNK), b""), "MiB"):
        try:
            yield decoder.decode(raw)
        except UnicodeDecodeError as error:
            raise _not_utf8(str(path), error) from error


def _not_utf8(where: str, error: UnicodeDecodeError) -> UserError:
    return UserError(
        f"{where}: not UTF-8 (byte 0x{error.object[error.start]:02x} at {error.start}); convert the file to UTF-8."
    )


def _parts(path: Path, split: Callable[[BinaryIO], Iterator[bytes]], unit: str) -> Iterator[bytes]:
    """The parts of an opened and decompressed file; errors count them by their unit."""
    number, compression = 0, _COMPRESSED.get(_compression(path).lower())
    try:
        with _opened(input_file(path), compression) as file:
            for part in split(file):
                number += 1
                yield part
    except (OSError, EOFError, zlib.error) as error:
        # damage is an error without a number, as gzip, zlib and Arrow report it
        if compression is not None and getattr(error, "errno", None) is None:
            problem = f"not a whole {compression} file ({error})"
            raise UserError(f"{path}, after {unit} {number}: {problem}; download it again.") from error
        raise UserError(f"cannot read {path}: {getattr(error, 'strerror', None) or error}.") from error


def _opened(path: Path, compression: str | None) -> BinaryIO:
    if compression == "gzip":
        return cast("BinaryIO", gzip.open(path, "rb"))
    if compression == "zstd":
        raw = pa.input_stream(str(path), compression="zstd", buffer_size=_CHUNK)
        return cast("BinaryIO", io.BufferedReader(raw, _CHUNK))
    return path.open("rb")


def _compression(file: Path) -> str:
    return file.suffix if file.suffix.lower() in _COMPRESSED else ""


def _ending(file: Path) -> str:
    """The ending that names the format, in lower case; Parquet files are compressed inside."""
    compression = _compression(file)
    ending = Path(file.name.removesuffix(compression)).suffix.lower() if compression else file.suffix.lower()
    return "" if compression and ending == ".parquet" else ending


TABLES = (".jsonl", ".json", ".tsv", ".csv", ".parquet")
JUDGMENTS = (".tsv", ".txt", ".trec", ".qrels", ".qrel", ".csv", ".jsonl", ".json", ".parquet")
_FORMATS = {
    ".jsonl": _Format("line", _read_jsonl),
    ".json": _Format("item", _read_json),
    ".csv": _Format("line", _read_commas),
    ".parquet": _Format("row", _read_parquet),
    **{ending: _Format("line", _read_tabs) for ending in (".tsv", ".txt", ".trec", ".qrels", ".qrel")},
}
