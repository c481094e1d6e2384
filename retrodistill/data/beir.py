"""Collections in BEIR's layout: a local folder, or one of BEIR's public collections, downloaded once."""

from __future__ import annotations

import re
from collections.abc import Callable, Iterator, Mapping, Sequence
from functools import partial
from pathlib import Path
from typing import Any, TypeVar

from retrodistill.core.cache import cache_folder, make_once
from retrodistill.core.digests import file_digest
from retrodistill.core.downloads import download, unpack
from retrodistill.core.errors import UserError, did_you_mean, sample_of
from retrodistill.core.runtime import log
from retrodistill.data import records
from retrodistill.data.collection import Collection
from retrodistill.data.records import DOCUMENT_COLUMNS, JUDGMENT_COLUMNS, QUERY_COLUMNS, Judgment, Source, split_name
from retrodistill.data.stored import cached
from retrodistill.data.tables import JUDGMENTS, TABLES, Columns, Table, is_table, refuse_unread, stem, table_at

URL = "https://public.ukp.informatik.tu-darmstadt.de/thakur/BEIR/datasets/{name}.zip"
# The public collections and the MD5 of their zip files, both from the README of beir 2.2, which has no list to import.
PUBLIC: dict[str, str | None] = {
    "arguana": "8ad3e3c2a5867cdced806d6503f29b99",
    "climate-fever": "8b66f0a9126c521bae2bde127b4dc99d",
    "cqadupstack": "4e41456d7df8ee7760a7f866133bda78",
    "dbpedia-entity": "c2a39eb420a3164af735795df012ac2c",
    "fever": "5a818580227bfb4b35bb6fa46d9b6c03",
    "fiqa": "17918ed23cd04fb15047f73e6c3bd9d9",
    "germanquad": None,
    "hotpotqa": "f412724f78b0d91183a0e86805e16114",
    "msmarco": "444067daf65d982533ea17ebd59501e4",
    "msmarco-v2": None,
    "nfcorpus": "a89dba18a62ef92f7d323ec890a0d38d",
    "nq": "d4d3d2e48787a744b6f6e691ff534307",
    "nq-train": None,
    "quora": "18fb154900ba42a600f84b839c173167",
    "scidocs": "38121350fc3a4d2f48850f6aff52e4a9",
    "scifact": "5f7d1de60b170fc8027bb7898e2efca1",
    "trec-covid": "ce62140cb23feb9becf6270d0d1fe6d1",
    "webis-touche2020": "46f650ba5a527fc69e0a6521c5a23563",
}
FORUMS = (
    "android", "english", "gaming", "gis", "mathematica", "physics", "programmers", "stats", "tex", "unix",
    "webmasters", "wordpress",
)  # fmt: skip
_QRELS = r"(?:qrels?|judge?ments?)"  # a folder of judgments, and what files of judgments next to the corpus are called
_QRELS_FOLDER = re.compile(_QRELS, re.IGNORECASE)
_QRELS_FILE = re.compile(rf"{_QRELS}(?:[._-].+)?|.+[._-]{_QRELS}(?:\.\w+)*", re.IGNORECASE)
_SPLIT_FILE = re.compile(r"(?:train|dev|validation|valid|val|test)(?:\.\w+)+", re.IGNORECASE)
_AROUND_SPLIT = re.compile(rf"^{_QRELS}(?:[._-]|$)|[._-]{_QRELS}$", re.IGNORECASE)

_Record = TypeVar("_Record")


def load_folder(path: Path, name: str | None = None) -> Collection:
    """Load a folder with corpus.jsonl, queries.jsonl and qrels/<split>.tsv, in these or other formats of tables.

    A table is a file, also compressed, or a folder of parts. Judgments are files ``qrels/<split>``, or ``qrels``,
    ``qrels.<split>`` and ``<split>.qrels`` next to the corpus; without a name of their own, they are the split test.
    What may hold data and cannot be read is a UserError, because queries whose judgments are passed over would be
    trained on.

    The files are checked row by row and copied to the cache once; later calls open the copy. Without qrels, every
    query is unjudged; without queries and qrels, the collection has only documents. The default name is the folder's.
    """
    try:
        entries = sorted(path.iterdir())
    except OSError as error:
        raise UserError(f"cannot read {path}: {error.strerror}.") from error
    corpus, queries = _single_table(entries, "corpus"), _single_table(entries, "queries")
    qrels, warnings = _judgment_tables(entries)
    if corpus is None:
        below = sorted(folder.name for folder in entries if is_collection(folder))
        advice = f" (but its folders {', '.join(below)} do: name one of them)" if below else ""
        raise UserError(
            f"{path} is not a BEIR folder: it has no corpus.jsonl{advice}; expected corpus.jsonl, "
            "queries.jsonl and qrels/<split>.tsv."
        )
    if queries is None and qrels:
        raise UserError(f"{path} has judgments but no queries.jsonl; put it next to corpus.jsonl.")
    tables = {"corpus": corpus} | {f"qrels {split}": table for split, table in qrels.items()}
    if queries:
        tables["queries"] = queries
    try:  # the name of a file decides how it is read
        digests = {
            what: [[file.name.lower(), file_digest(file)] for file in table.files] for what, table in tables.items()
        }
    except OSError as error:
        raise UserError(f"cannot read {error.filename or path}: {error.strerror}.") from error
    key = ("tables", digests, warnings)
    return cached(name or path.resolve().name, key, lambda: _source(corpus, queries, qrels, warnings))


def is_collection(folder: Path) -> bool:
    """Whether a folder holds the documents of a collection."""
    entries = folder.iterdir() if folder.is_dir() else ()
    return any(_is_named(entry, "corpus") and table_at(entry) is not None for entry in entries)


def load_public(name: str) -> Collection:
    """Load a public collection such as ``"scifact"`` or ``"cqadupstack/android"``.

    On first use, it is downloaded and unzipped into a folder of the cache, atomically.
    """
    base, _, forum = name.partition("/")
    if base not in PUBLIC:
        hint = did_you_mean(base, PUBLIC, "beir/")
        raise UserError(f"BEIR has no public collection {base!r}.{hint} Public: {', '.join(PUBLIC)}.")
    if base != "cqadupstack" and forum:
        raise UserError(f"beir/{base} has no part {forum!r}; write beir/{base}.")
    if base == "cqadupstack" and forum not in FORUMS:
        problem = f"no forum {forum!r}" if forum else "no documents of its own"
        raise UserError(f"beir/{base} has {problem}; write beir/{base}/<forum> with one of {', '.join(FORUMS)}.")
    folder = cache_folder() / "beir" / base
    make_once(folder, partial(_fetch, base, folder))
    return load_folder(folder / forum, name.replace("/", "-"))


def _fetch(name: str, folder: Path, temporary: Path) -> None:
    import requests

    what, url, archive = f"the download of beir/{name}", URL.format(name=name), temporary / f"{name}.zip"
    advice = f"check the network, or unzip {url} to {folder}"
    try:
        sha256 = download(url, archive, f"beir/{name}", PUBLIC[name])
    except requests.RequestException as error:  # their texts are pages long, so name only the type
        raise UserError(f"cannot download beir/{name} ({type(error).__name__}); {advice}.") from error
    if PUBLIC[name] is None:
        log(f"BEIR publishes no digest of beir/{name}: what was downloaded has the SHA-256 {sha256}")
    unpack(archive, temporary, name, what)
    archive.unlink()


def _source(corpus: Table, queries: Table | None, qrels: dict[str, Table], warnings: list[str]) -> Source:
    no_queries = "there is no queries.jsonl: queries can only be drawn from the documents."
    return Source(
        documents=partial(records_in, corpus, DOCUMENT_COLUMNS, records.document_of, "document"),
        queries=partial(records_in, queries, QUERY_COLUMNS, records.query_of, "query") if queries else lambda: iter(()),
        qrels={split: partial(judgments_in, table) for split, table in qrels.items()},
        where={"documents": corpus.where, "queries": queries.where if queries else ""},
        warnings=(*warnings, *(() if queries else (no_queries,))),
    )


def records_in(
    table: Table, columns: Columns, parse: Callable[[Mapping[str, Any], str, int], _Record], what: str
) -> Iterator[_Record]:
    """The parsed records of a table; an empty one is a UserError that says `what` is missing."""
    where, place = table.where, 0
    for place, record in table.records(columns):
        yield parse(record, where, place)
    if not place:
        raise UserError(f"{table.path} is empty: it holds no {what}; expected one {columns.wanted} or more.")


def judgments_in(table: Table) -> Iterator[Judgment]:
    """The judgments of a table."""
    where = table.where
    for place, record in table.records(JUDGMENT_COLUMNS):
        yield records.judgment_of(record, where, place)


def _is_named(entry: Path, name: str) -> bool:
    return (entry.name if entry.is_dir() else stem(entry)).lower() == name


def _single_table(entries: Sequence[Path], name: str) -> Table | None:
    """The table with a name, in any format; a UserError for two, or for one in a format that cannot be read."""
    tables = [table for entry in entries if _is_named(entry, name) and (table := table_at(entry))]
    if len(tables) > 1:
        both = " and ".join(table.path.name for table in tables)
        raise UserError(f"{tables[0].path.parent} has {both}; keep one of them, because both are the {name}.")
    if not tables:
        for entry in entries:
            if entry.is_file() and entry.name.lower().startswith(f"{name}.") and not is_table(entry):
                refuse_unread(entry.parent, [entry], TABLES)
    return tables[0] if tables else None


def _judgment_tables(entries: Sequence[Path]) -> tuple[dict[str, Table], list[str]]:
    """The tables of judgments by split, from what lies next to the corpus, and warnings of what is not read."""
    found: dict[str, Table] = {}
    warnings: list[str] = []

    def add(name: str, table: Table) -> None:
        split = split_name(_AROUND_SPLIT.sub("", name) or "test")
        if split in found:
            raise UserError(f"{found[split].path} and {table.path} are both the split {split!r}; keep one of them.")
        found[split] = table

    for entry in entries:
        if entry.is_dir() and _QRELS_FOLDER.fullmatch(entry.name):
            inside = sorted(entry.iterdir())
            tables = {each: table for each in inside if (table := table_at(each, JUDGMENTS))}
            others = [each for each in inside if each not in tables]
            refuse_unread(entry, others, JUDGMENTS)
            for each, table in tables.items():
                add(each.name if each.is_dir() else stem(each), table)
            if aside := [each.name for each in others] + [name for table in tables.values() for name in table.aside]:
                warnings.append(f"{entry.name}: {sample_of(aside)} not read; files of judgments have other names.")
        elif is_table(entry, JUDGMENTS) and any(names.fullmatch(entry.name) for names in (_QRELS_FILE, _SPLIT_FILE)):
            add(stem(entry), Table(entry, (entry,)))
        elif entry.is_file() and _QRELS_FILE.fullmatch(entry.name):
            refuse_unread(entry.parent, [entry], JUDGMENTS)
        elif entry.is_file() and _SPLIT_FILE.fullmatch(entry.name):
            warnings.append(f"{entry.name} is not read; judgments end in {', '.join(JUDGMENTS)}.")
    return found, warnings
