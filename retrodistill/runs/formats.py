"""Run files: TREC, Parquet and JSONL, both ways; the ending names the format."""

from __future__ import annotations

import contextlib
import gzip
import io
import json
import math
import os
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import IO, Any

import pyarrow as pa
import pyarrow.parquet as pq

from retrodistill.core.errors import UserError, unknown
from retrodistill.core.files import atomic_file
from retrodistill.data.records import read_lines
from retrodistill.runs.run import Run, id_codes

_TREC_ENDINGS = (".run", ".trec", ".txt", ".tsv")


def read_run(path: str | os.PathLike[str], name: str | None = None, *, may_be_empty: bool = False) -> Run:
    """Read a run file: TREC (.run, .trec, .txt, .tsv) or JSONL (.jsonl), both also as .gz, or Parquet (.parquet).

    TREC's rank column is ignored: scores decide, ties by document id ascending. `may_be_empty` is for what a system
    found: that can be nothing.

    Raises:
        UserError: The file is missing, of an unknown ending, malformed (file and line are named), empty, or holds
            NaN, infinite or double scores.
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
    """Write a run in the format that the ending names, in rank order, atomically.

    TREC and JSONL carry scores to the last bit (shortest text that reads back equal).

    Raises:
        UserError: Unknown ending, an id with a space for TREC, or the place is not writable.
    """
    path = Path(path)
    writer = _by_ending(path, _WRITERS)
    with atomic_file(path) as temporary:
        writer(run.ranked(), temporary, path.suffix == ".gz")


def save_run(run: Run, stem: Path) -> Path:
    """Write a run as TREC's ``STEM.run``, or as ``STEM.parquet`` where an id holds a space; one of another form goes.

    Returns:
        The file.

    Raises:
        UserError: The place is not writable.
    """
    ids = (id_ for column in ("query_id", "document_id") for id_ in id_codes(run.table[column])[0])
    endings = [".run", ".parquet"]
    if not all(id_.split() == [id_] for id_ in ids):
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
        options = [*text_endings, ".parquet", *(f"{one}.gz" for one in text_endings)]
        raise unknown("run file ending", ending + ".gz" * compressed or path.name, options)
    return table[known]


def _read_rows(path: Path, name: str | None, parse: Callable[[str], tuple[str, str, float, str | None]]) -> Run:
    queries, documents, scores, tag = [], [], [], None
    for number, line in read_lines(path):
        try:
            query, document, score, found = parse(line)
        except ValueError as error:
            raise UserError(f"{path}, line {number}: {error}; wanted {_FORMS[parse]}.") from error
        if not math.isfinite(score):
            raise UserError(
                f"{path}, line {number}: score {score} of query {query!r}, document {document!r} is not "
                "finite; leave a pair without a score out."
            )
        tag = tag or found
        queries.append(query)
        documents.append(document)
        scores.append(score)
    return Run.from_arrays(queries, documents, scores, name=name or tag or path.name.split(".")[0])


def _parse_trec(line: str) -> tuple[str, str, float, str | None]:
    fields = line.split()
    if len(fields) not in (5, 6):
        raise ValueError(f"{len(fields)} columns")
    return fields[0], fields[2], float(fields[4]), fields[5] if len(fields) == 6 else None


def _parse_json(line: str) -> tuple[str, str, float, str | None]:
    row = json.loads(line)
    if not isinstance(row, dict):
        raise ValueError("no JSON object")
    for key, kinds in (("query_id", (str, int)), ("document_id", (str, int)), ("score", (int, float))):
        if not isinstance(row.get(key), kinds):
            raise ValueError(f"{key} is {row.get(key)!r}")
    return str(row["query_id"]), str(row["document_id"]), float(row["score"]), str(row.get("run") or "") or None


_FORMS: dict[Callable, str] = {
    _parse_trec: "'query Q0 document rank score tag'",
    _parse_json: '{"query_id": .., "document_id": .., "score": ..}',
}


def _read_trec(path: Path, name: str | None) -> Run:
    return _read_rows(path, name, _parse_trec)


def _read_jsonl(path: Path, name: str | None) -> Run:
    return _read_rows(path, name, _parse_json)


def _read_parquet(path: Path, name: str | None) -> Run:
    try:
        table = pq.read_table(path)
    except (OSError, pa.ArrowException) as error:
        raise UserError(f"{path} is not a whole Parquet file ({str(error).splitlines()[0]}); make it again.") from error
    stored = (table.schema.metadata or {}).get(b"run", b"").decode()
    return Run.from_table(table, name or stored or path.stem)


@contextlib.contextmanager
def _text_out(temporary: Path, compressed: bool) -> Iterator[IO[str]]:
    """Text that is the same byte for byte on every system and at any time: gzip's header keeps no name and no time."""
    with contextlib.ExitStack() as stack:
        out: Any = stack.enter_context(temporary.open("wb"))
        if compressed:
            out = stack.enter_context(gzip.GzipFile(filename="", mode="wb", fileobj=out, mtime=0))
        yield stack.enter_context(io.TextIOWrapper(out, encoding="utf-8", newline="\n"))


def _write_trec(run: Run, temporary: Path, compressed: bool) -> None:
    tag = "_".join(run.name.split()) or "run"
    _refuse_spaces(run)
    with _text_out(temporary, compressed) as file:
        for query, documents, scores in run:
            for rank, (document, score) in enumerate(zip(documents, scores.tolist(), strict=True), start=1):
                file.write(f"{query} Q0 {document} {rank} {score!r} {tag}\n")


def _refuse_spaces(run: Run) -> None:
    for column in ("query_id", "document_id"):
        for id_ in id_codes(run.table[column])[0]:
            if id_.split() != [id_]:
                raise UserError(
                    f"run {run.name}: {column} {id_!r} is empty or has a space, which a TREC line cannot hold; "
                    "write .parquet or .jsonl instead."
                )


def _write_jsonl(run: Run, temporary: Path, compressed: bool) -> None:
    with _text_out(temporary, compressed) as file:
        for query, documents, scores in run:
            for document, score in zip(documents, scores.tolist(), strict=True):
                row = {"query_id": query, "document_id": document, "score": score, "run": run.name}
                file.write(json.dumps(row, ensure_ascii=False) + "\n")


def _write_parquet(run: Run, temporary: Path, compressed: bool) -> None:
    pq.write_table(run.table.replace_schema_metadata({"run": run.name}), temporary, compression="zstd")


_READERS: dict[str, Callable[[Path, str | None], Run]] = {
    ".run": _read_trec,
    ".jsonl": _read_jsonl,
    ".parquet": _read_parquet,
}
_WRITERS: dict[str, Callable[[Run, Path, bool], None]] = {
    ".run": _write_trec,
    ".jsonl": _write_jsonl,
    ".parquet": _write_parquet,
}
