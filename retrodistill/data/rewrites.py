"""Better queries: what the teacher is asked in a query's place (a rewrite, an expansion, a generated query)."""

from __future__ import annotations

import os
from pathlib import Path

from retrodistill.core.errors import UserError, sample_of
from retrodistill.data.jsonl import read_objects
from retrodistill.data.records import id_of, text_of
from retrodistill.data.texts import Texts

_KEYS = ("query_id", "text")


def load_rewrites(path: str | os.PathLike[str]) -> Texts:
    """Read a JSONL of ``{"query_id": .., "text": ..}``, one better query for each query that has one.

    Raises:
        UserError: It cannot be read or is empty, or a line is no such object, has an empty text or repeats a query; the
            message names the line.
    """
    first: dict[str, int] = {}
    pairs: list[tuple[str, str]] = []
    where = f"{path}, line"
    for number, record in read_objects(Path(path), "rewrite", _KEYS):
        query = id_of(record["query_id"], "query_id", where, number)
        text = text_of(record["text"], "text", where, number)
        if not text.strip():
            raise UserError(f"{where} {number}: 'text' is empty; leave a query without a rewrite out.")
        if first.setdefault(query, number) != number:
            raise UserError(f"{where} {number}: query {query!r} has a rewrite in line {first[query]} already.")
        pairs.append((query, text))
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
