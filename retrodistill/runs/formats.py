"""Reading and writing run files: TREC, JSONL and Parquet, chosen by the file's extension."""

from __future__ import annotations

import contextlib
import gzip
import io
import json
import math
import os
from collections.abc import Callable, Iterator
from functools import partial
from pathlib import Path
from typing import Any, NamedTuple

import pyarrow as pa
import pyarrow.parquet as pq

from retrodistill.core.arrays import foreign_table
from retrodistill.core.checksums import DamagedError, map_sealed, seal
from retrodistill.core.errors import UserError, first_line, unknown
from retrodistill.core.files import atomic_file
from retrodistill.core.formats import check_stamp, stamp
from retrodistill.core.json_files import parse_json
from retrodistill.core.paths import path_of
from retrodistill.data.tables import read_lines
from retrodistill.runs.run import Run, id_codes

_ADVICE = "make it again"
_STAMP = b"retrodistill"  # our key in the metadata of a Parquet file

_TREC_ENDINGS = (".run", ".trec", ".txt", ".tsv")

_Row = tuple[str, str, float, str | None]  # query id, document id, score, name of the run


class _Format(NamedTuple):
    read: Callable[[Path, str | None], Run]
    write: Callable[[Run, Path, bool], None]  # run, file, whether to compress


def read_run(path: str | os.PathLike[str], name: str | None = None, *, may_be_empty: bool = False) -> Run:
    """Read a run file: TREC (.run, .trec, .txt, .tsv) or JSONL (.jsonl), both optionally as .gz, or Parquet (.parquet).

    TREC's rank column is ignored: scores determine the order, with ties by ascending document id.

    Args:
        path: The file.
        name: Name of the run; by default the name in the file, else the file's name.
        may_be_empty: Accept a file without rows, such as the results of a system that found nothing.

    Raises:
        UserError: The file is missing, malformed (the message names the line) or empty, has an unknown extension, or
            contains a NaN or infinite score or a pair twice.
    """
    path = path_of(path)
    if not path.is_file():
        raise UserError(f"no run file {path}; give a .run, .trec, .parquet or .jsonl file.")
    form = _format_of(path)
    try:
        if path.suffix == ".parquet":
            map_sealed(path, advice=_ADVICE).verify()
        run = form.read(path, name)
    except UserError as error:
        raise error if str(path) in str(error) else UserError(f"{path}: {error}") from error
    if not len(run) and not may_be_empty:
        raise UserError(
            f"run file {path} is empty: it was cut short, or its system found no document for any query; make it again "
            "or leave it out."
        )
    return run


def write_run(run: Run, path: str | os.PathLike[str]) -> None:
    """Write a run in rank order and in the format of the file's extension, atomically.

    A Parquet file has checksums, which `read_run` verifies.

    TREC and JSONL store scores exactly (the shortest text that reads back as the same number). An unknown extension, an
    id with a space in TREC, or a folder that is not writable is a `UserError`.
    """
    path = path_of(path)
    form = _format_of(path)
    with atomic_file(path) as temporary:
        form.write(run.ranked(), temporary, path.suffix == ".gz")
        if path.suffix == ".parquet":
            seal(temporary)


def save_run(run: Run, stem: Path) -> Path:
    """Write a run as ``STEM.run``, or as ``STEM.parquet`` if an id contains a space; delete the other of the two."""
    endings = (".run", ".parquet") if _not_in_trec(run) is None else (".parquet", ".run")
    file, other = (stem.with_name(stem.name + ending) for ending in endings)
    write_run(run, file)
    other.unlink(missing_ok=True)
    return file


def _format_of(path: Path) -> _Format:
    compressed = path.suffix == ".gz"
    ending = (path.with_suffix("") if compressed else path).suffix.lower()
    known = ".run" if ending in _TREC_ENDINGS else ending
    if known not in _FORMATS or (compressed and known == ".parquet"):
        text_endings = [*_TREC_ENDINGS, ".jsonl"]
        options = [*text_endings, ".parquet", *(f"{text}.gz" for text in text_endings)]
        raise unknown("run file ending", ending + ".gz" * compressed or path.name, options)
    return _FORMATS[known]


def _not_in_trec(run: Run) -> tuple[str, str] | None:
    """The column and value of the first id that a TREC line cannot hold, if there is one."""
    ids = ((column, id_) for column in ("query_id", "document_id") for id_ in id_codes(run.table[column])[0])
    return next(((column, id_) for column, id_ in ids if id_.split() != [id_]), None)


def _parse_trec(line: str) -> _Row:
    fields = line.split()
    if len(fields) not in (5, 6):
        raise ValueError(f"{len(fields)} columns")
    return fields[0], fields[2], float(fields[4]), fields[5] if len(fields) == 6 else None


def _parse_json(line: str) -> _Row:
    row = parse_json(line)
    if not isinstance(row, dict):
        raise ValueError("not a JSON object")
    for key, kinds in (("query_id", (str, int)), ("document_id", (str, int)), ("score", (int, float))):
        if not isinstance(row.get(key), kinds):
            raise ValueError(f"{key} is {row.get(key)!r}")
    return str(row["query_id"]), str(row["document_id"]), float(row["score"]), str(row.get("run") or "") or None


def _read_text(parse: Callable[[str], _Row], form: str, path: Path, name: str | None) -> Run:
    queries, documents, scores, stored_name = [], [], [], None
    for number, line in read_lines(path):
        try:
            query, document, score, row_name = parse(line)
        except ValueError as error:
            raise UserError(f"{path}, line {number}: {error}; expected {form}.") from error
        if not math.isfinite(score):
            raise UserError(
                f"{path}, line {number}: score {score} of query {query!r}, document {document!r} is not "
                "finite; leave out pairs without a score."
            )
        stored_name = stored_name or row_name
        queries.append(query)
        documents.append(document)
        scores.append(score)
    return Run.from_arrays(queries, documents, scores, name=name or stored_name or path.name.split(".")[0])


def _read_parquet(path: Path, name: str | None) -> Run:
    try:
        table = foreign_table(path)
    except (OSError, pa.ArrowException) as error:
        problem = f"it is not a whole Parquet file ({first_line(error)})"
        raise DamagedError(path, problem, _ADVICE) from error
    about = table.schema.metadata or {}
    if _STAMP in about:
        try:
            check_stamp(parse_json(about[_STAMP]), "run", path)
        except (ValueError, AttributeError) as error:
            raise UserError(f"{path} is altered: its format cannot be read; make it again.") from error
    stored_name = about.get(b"run", b"").decode(errors="replace")
    return Run.from_table(table, name or stored_name or path.stem)


def _write_text(lines: Callable[[Run], Iterator[str]], run: Run, file: Path, compressed: bool) -> None:
    """Write a text file with the same bytes on every system: gzip's header stores no name and no time."""
    with contextlib.ExitStack() as stack:
        out: Any = stack.enter_context(file.open("wb"))
        if compressed:
            out = stack.enter_context(gzip.GzipFile(filename="", mode="wb", fileobj=out, mtime=0))
        stack.enter_context(io.TextIOWrapper(out, encoding="utf-8", newline="\n")).writelines(lines(run))


def _trec_lines(run: Run) -> Iterator[str]:
    if wrong := _not_in_trec(run):
        raise UserError(
            f"run {run.name}: {wrong[0]} {wrong[1]!r} is empty or has a space, which a TREC line cannot hold; "
            "write .parquet or .jsonl instead."
        )
    tag = "_".join(run.name.split()) or "run"
    for query, documents, scores in run:
        for rank, (document, score) in enumerate(zip(documents, scores.tolist(), strict=True), start=1):
            yield f"{query} Q0 {document} {rank} {score!r} {tag}\n"


def _json_lines(run: Run) -> Iterator[str]:
    for query, documents, scores in run:
        for document, score in zip(documents, scores.tolist(), strict=True):
            row = {"query_id": query, "document_id": document, "score": score, "run": run.name}
            yield json.dumps(row, ensure_ascii=False) + "\n"


def _write_parquet(run: Run, file: Path, compressed: bool) -> None:
    about = {"run": run.name, _STAMP: json.dumps(stamp("run"))}
    pq.write_table(run.table.replace_schema_metadata(about), file, compression="zstd")


_FORMATS = {
    ".run": _Format(
        partial(_read_text, _parse_trec, "'query Q0 document rank score tag'"), partial(_write_text, _trec_lines)
    ),
    ".jsonl": _Format(
        partial(_read_text, _parse_json, '{"query_id": .., "document_id": .., "score": ..}'),
        partial(_write_text, _json_lines),
    ),
    ".parquet": _Format(_read_parquet, _write_parquet),
}
