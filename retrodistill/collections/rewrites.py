"""Better queries: what the teacher is asked in a query's place (a rewrite, an expansion, a generated query)."""

from __future__ import annotations

import json
import os
from pathlib import Path

from retrodistill.collections.records import id_of, text_of
from retrodistill.collections.texts import Texts
from retrodistill.errors import UserError, sample_of, unknown

_KEYS = ("query_id", "text")


def load_rewrites(path: str | os.PathLike[str]) -> Texts:
    """Read a JSONL of ``{"query_id": .., "text": ..}``, one better query for each query that has one.

    Raises:
        UserError: It cannot be read or is empty, or a line is no such object, has an empty text or repeats a query; the
            message names the line.
    """
    first: dict[str, int] = {}
    pairs: list[tuple[str, str]] = []
    try:
        lines = Path(path).read_text(encoding="utf-8-sig").split("\n")
    except UnicodeDecodeError as error:
        raise UserError(f"{path}: not UTF-8 ({error.reason}); convert the file to UTF-8.") from error
    except OSError as error:
        raise UserError(f"cannot read {path}: {error.strerror or error}.") from error
    for number, line in enumerate(lines, start=1):
        if not line.strip():
            continue
        query, text = _rewrite(line, f"{path}, line", number)
        if first.setdefault(query, number) != number:
            raise UserError(f"{path}, line {number}: query {query!r} has a rewrite in line {first[query]} already.")
        pairs.append((query, text))
    if not pairs:
        raise UserError(f"{path} has no lines; wanted one JSON object a query, with {' and '.join(_KEYS)}.")
    return Texts.from_pairs(pairs)


def asked_better(texts: Texts, better: Texts) -> Texts:
    """The texts in their order, each replaced by its better query where it has one."""
    known = dict(zip(better.ids, better.texts, strict=True))
    return Texts.from_pairs((id_, known.get(id_, text)) for id_, text in zip(texts.ids, texts.texts, strict=True))


def check_rewrites(better: Texts, queries: Texts, where: str) -> str:
    """Check that rewrites are for these queries.

    Returns:
        A line for the results: how many queries have one, and that the others stand for themselves.

    Raises:
        UserError: A rewrite of an unknown query, or none at all for these.
    """
    lost = [query for query in better.ids if query not in queries]
    if lost:
        raise UserError(f"{where}: {len(lost)} rewrites are of no query of the collection ({sample_of(lost)}).")
    return (
        f"the teacher was asked rewrites of {len(better)} of {len(queries)} queries, and the others as they are; the "
        "students are asked the queries themselves."
    )


def _rewrite(line: str, where: str, number: int) -> tuple[str, str]:
    try:
        record = json.loads(line)
    except (json.JSONDecodeError, RecursionError) as error:
        raise UserError(f"{where} {number}: not JSON ({error}); wanted one object a query.") from error
    if not isinstance(record, dict):
        raise UserError(f"{where} {number}: a JSON {type(record).__name__}, not an object; wanted one object a query.")
    for key in record:
        if key not in _KEYS:
            raise UserError(f"{where} {number}: {unknown('key', key, _KEYS)}")
    for key in _KEYS:
        if record.get(key) is None:
            raise UserError(f"{where} {number}: no {key!r}; every rewrite has {' and '.join(_KEYS)}.")
    text = text_of(record["text"], "text", where, number)
    if not text.strip():
        raise UserError(f"{where} {number}: 'text' is empty; leave a query without a rewrite out.")
    return id_of(record["query_id"], "query_id", where, number), text
