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
from typing import IO, Any

import pyarrow as pa
import pyarrow.parquet as pq

from retrodistill.core.errors import UserError, unknown
from retrodistill.core.files import atomic_file
from retrodistill.data.records import read_lines
from retrodistill.runs.run import Run, id_codes

_TREC_ENDINGS = (".run", ".trec", ".txt", ".tsv")

_Row = tuple[str, str, float, str | None]  # query id, document id, score, name of the run


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
    path = Path(path)
    if not path.is_file():
        raise UserError(f"no run file {path}; give a .run, .trec, .parquet or .jsonl file.")
    reader = _by_ending(path, _READERS)
    try:
        run = reader(path, name)
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

    TREC and JSONL store scores exactly (the shortest text that reads back as the same number).

    Raises:
        UserError: The extension is unknown, an id contains a space (TREC), or the folder is not writable.
    """
    path = Path(path)
    writer = _by_ending(path, _WRITERS)
    with atomic_file(path) as temporary:
        writer(run.ranked(), temporary, path.suffix == ".gz")


def save_run(run: Run, stem: Path) -> Path:
    """Write a run as ``STEM.run``, or as ``STEM.parquet`` if an id contains a space; delete the other of the two.

    Returns:
        The path of the file.
    """
    ids = (id_ for column in ("query_id", "document_id") for id_ in id_codes(run.table[column])[0])
    endings = [".run", ".parquet"]
    if not all(map(_fits_trec, ids)):
        endings.reverse()
    file, other = (stem.with_name(stem.name + ending) for ending in endings)
    write_run(run, file)
    other.unlink(missing_ok=True)
    return file


def _by_ending(path: Path, table: dict[str, Callable]) -> Callable:
    compressed = path.suffix == ".gz"
    ending = (path.with_suffix("") if compressed else path).suffix.lower()
    known = ".run" if ending in _TREC_ENDINGS else ending
    if known not in table or (compressed and known == ".parquet"):
        text_endings = [*_TREC_ENDINGS, ".jsonl"]
        options = [*text_endings, ".parquet", *(f"{text}.gz" for text in text_endings)]
        raise unknown("run file ending", ending + ".gz" * compressed or path.name, options)
    return table[known]


def _fits_trec(id_: str) -> bool:
    return id_.split() == [id_]


def _parse_trec(line: str) -> _Row:
    fields = line.split()
    if len(fields) not in (5, 6):
        raise ValueError(f"{len(fields)} columns")
    return fields[0], fields[2], float(fields[4]), fields[5] if len(fields) == 6 else None


def _parse_json(line: str) -> _Row:
    row = json.loads(line)
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
        table = pq.read_table(path)
    except (OSError, pa.ArrowException) as error:
        raise UserError(f"{path} is not a whole Parquet file ({str(error).splitlines()[0]}); make it again.") from error
    stored_name = (table.schema.metadata or {}).get(b"run", b"").decode()
    return Run.from_table(table, name or stored_name or path.stem)


@contextlib.contextmanager
def _text_out(temporary: Path, compressed: bool) -> Iterator[IO[str]]:
    """Text file with the same bytes on every system: gzip's header stores no name and no time."""
    with contextlib.ExitStack() as stack:
        out: Any = stack.enter_context(temporary.open("wb"))
        if compressed:
            out = stack.enter_context(gzip.GzipFile(filename="", mode="wb", fileobj=out, mtime=0))
        yield stack.enter_context(io.TextIOWrapper(out, encoding="utf-8", newline="\n"))


def _write_trec(run: Run, temporary: Path, compressed: bool) -> None:
    for column in ("query_id", "document_id"):
        for id_ in id_codes(run.table[column])[0]:
            if not _fits_trec(id_):
                raise UserError(
                    f"run {run.name}: {column} {id_!r} is empty or has a space, which a TREC line cannot hold; "
                    "write .parquet or .jsonl instead."
                )
    tag = "_".join(run.name.split()) or "run"
    with _text_out(temporary, compressed) as file:
        for query, documents, scores in run:
            for rank, (document, score) in enumerate(zip(documents, scores.tolist(), strict=True), start=1):
                file.write(f"{query} Q0 {document} {rank} {score!r} {tag}\n")


def _write_jsonl(run: Run, temporary: Path, compressed: bool) -> None:
    with _text_out(temporary, compressed) as file:
        for query, documents, scores in run:
            for document, score in zip(documents, scores.tolist(), strict=True):
                row = {"query_id": query, "document_id": document, "score": score, "run": run.name}
                file.write(json.dumps(row, ensure_ascii=False) + "\n")


def _write_parquet(run: Run, temporary: Path, compressed: bool) -> None:
    pq.write_table(run.table.replace_schema_metadata({"run": run.name}), temporary, compression="zstd")


_READERS: dict[str, Callable[[Path, str | None], Run]] = {
    ".run": partial(_read_text, _parse_trec, "'query Q0 document rank score tag'"),
    ".jsonl": partial(_read_text, _parse_json, '{"query_id": .., "document_id": .., "score": ..}'),
    ".parquet": _read_parquet,
}
_WRITERS: dict[str, Callable[[Run, Path, bool], None]] = {
    ".run": _write_trec,
    ".jsonl": _write_jsonl,
    ".parquet": _write_parquet,
}
