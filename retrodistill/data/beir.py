"""Collections in BEIR's layout: a folder on disk, or one of BEIR's public names, downloaded once."""

from __future__ import annotations

import csv
import difflib
import shutil
import zipfile
import zlib
from collections.abc import Iterator
from functools import partial
from pathlib import Path

from retrodistill.core.errors import UserError
from retrodistill.core.files import cache_folder, file_digest, make_folder
from retrodistill.data.collection import Collection
from retrodistill.data.records import (
    Document,
    Judgment,
    Query,
    Source,
    document_of,
    id_of,
    query_of,
    read_lines,
    read_objects,
    relevance_of,
    split_name,
)
from retrodistill.data.stored import cached, make_once

URL = "https://public.ukp.informatik.tu-darmstadt.de/thakur/BEIR/datasets/{name}.zip"
# beir 2.2 has no list to import: these are the public ones of its README.
PUBLIC = (
    "arguana", "climate-fever", "cqadupstack", "dbpedia-entity", "fever", "fiqa", "germanquad", "hotpotqa", "msmarco",
    "msmarco-v2", "nfcorpus", "nq", "nq-train", "quora", "scidocs", "scifact", "trec-covid", "webis-touche2020",
)  # fmt: skip
FORUMS = (
    "android", "english", "gaming", "gis", "mathematica", "physics", "programmers", "stats", "tex", "unix",
    "webmasters", "wordpress",
)  # fmt: skip
_WANTED = '{"_id": ..., "text": ...}'
_HEADERS = {"query-id", "query_id", "qid", "corpus-id", "corpus_id", "score", "relevance"}


def load_folder(path: Path, name: str | None = None) -> Collection:
    """Load a folder with corpus.jsonl, queries.jsonl and qrels/<split>.tsv, each optionally as .gz.

    The files are read once, checked line by line, into the cache; the same files are opened from there ever after.
    Without qrels every query is unjudged; without queries and qrels too, the collection has documents only.

    Args:
        path: The folder.
        name: Name of the collection; the folder's name by default.

    Raises:
        UserError: A file is missing or malformed; the message has its name and the line.
    """
    corpus, queries = _jsonl(path, "corpus"), _jsonl(path, "queries")
    judged = _qrels_files(path)
    if corpus is None:
        raise UserError(
            f"{path} is not a BEIR folder: it has no corpus.jsonl{_sub_collections(path)}; wanted corpus.jsonl, "
            "queries.jsonl and qrels/<split>.tsv."
        )
    if queries is None and judged:
        raise UserError(f"{path} has judgments but no queries.jsonl; put it beside corpus.jsonl.")
    files = {"corpus": corpus, "queries": queries, **{f"qrels {split}": file for split, file in judged.items()}}
    try:
        digests = {what: file_digest(file) for what, file in files.items() if file is not None}
    except OSError as error:
        raise UserError(f"cannot read {error.filename or path}: {error.strerror}.") from error
    packed = sorted(what for what, file in files.items() if file is not None and file.suffix == ".gz")
    return cached(name or path.resolve().name, ("beir", digests, packed), lambda: _source(corpus, queries, judged))


def load_public(name: str) -> Collection:
    """Load one of BEIR's public collections, downloading it on first use into the cache.

    Args:
        name: Such as ``"scifact"`` or ``"cqadupstack/android"``.

    Raises:
        UserError: BEIR has no such collection, or it cannot be downloaded.
    """
    base, _, forum = name.partition("/")
    if base not in PUBLIC:
        nearest = difflib.get_close_matches(base, PUBLIC, n=1, cutoff=0.4)
        hint = f" Did you mean 'beir/{nearest[0]}'?" if nearest else ""
        raise UserError(f"BEIR has no public collection {base!r}.{hint} Public: {', '.join(PUBLIC)}.")
    if (base == "cqadupstack") != bool(forum) or (forum and forum not in FORUMS):
        if base != "cqadupstack":
            raise UserError(f"beir/{base} has no part {forum!r}; write beir/{base}.")
        came = f"no forum {forum!r}" if forum else "no documents of its own"
        raise UserError(f"beir/cqadupstack has {came}; write beir/cqadupstack/<forum> with one of {', '.join(FORUMS)}.")
    return load_folder(download(base) / forum, name.replace("/", "-"))


def download(name: str) -> Path:
    """Folder of a public collection in the cache; downloaded and unzipped there if it is absent, whole or not at all.

    Raises:
        UserError: It cannot be downloaded, or the download is not a complete zip file.
    """
    home = make_folder(cache_folder() / "beir")
    folder = home / name
    make_once(folder, partial(_fetch, name, folder))
    return folder


def _fetch(name: str, folder: Path, temporary: Path) -> None:
    try:
        from beir import util  # imports torch, so import it only for a download
    except ModuleNotFoundError as error:  # beir 2.2 imports requests and does not declare it
        raise UserError(f"downloading beir/{name} needs the package {error.name}; pip install {error.name}.") from error

    wanted = f"check the network, or unzip {URL.format(name=name)} to {folder}"
    try:
        unzipped = Path(util.download_and_unzip(URL.format(name=name), str(temporary)))
    except (zipfile.BadZipFile, zlib.error, EOFError) as error:
        raise UserError(f"the download of beir/{name} is not a whole zip file ({error}); {wanted}.") from error
    except OSError as error:  # those of requests are OSErrors too
        raise UserError(f"cannot download beir/{name} ({_short(error)}); {wanted}.") from error
    if not unzipped.is_dir():
        raise UserError(f"the download of beir/{name} holds no folder {name!r}; {wanted}.")
    (temporary / f"{name}.zip").unlink()
    for file in unzipped.iterdir():
        shutil.move(file, temporary / file.name)
    unzipped.rmdir()


def _source(corpus: Path, queries: Path | None, judged: dict[str, Path]) -> Source:
    unasked = () if queries else ("there is no queries.jsonl: queries can only be drawn from the documents.",)
    return Source(
        documents=partial(_documents, corpus),
        queries=partial(_queries, queries) if queries else lambda: iter(()),
        qrels={split: partial(_judgments, file) for split, file in judged.items()},
        where={"documents": f"{corpus}, line", "queries": f"{queries}, line"},
        warnings=unasked,
    )


def _documents(path: Path) -> Iterator[Document]:
    where, place = f"{path}, line", 0
    for place, record in read_objects(path, _WANTED):
        yield document_of(record, where, place)
    if not place:
        raise UserError(f"{path} is empty: it holds no document; wanted one JSON object a line.")


def _queries(path: Path) -> Iterator[Query]:
    where, place = f"{path}, line", 0
    for place, record in read_objects(path, _WANTED):
        yield query_of(record, where, place)
    if not place:
        raise UserError(f"{path} is empty: it holds no query; wanted one JSON object a line, or no file at all.")


def _judgments(path: Path) -> Iterator[Judgment]:
    where = f"{path}, line"
    for place, line in read_lines(path):
        # beir reads these with the csv module, which unquotes; one line at a time, a stray quote stays in its line.
        row = next(csv.reader([line], delimiter="\t")) if '"' in line else line.split("\t")
        if len(row) != 3:
            raise UserError(
                f"{where} {place}: {len(row)} columns between tabs ({line[:60]!r}); wanted 3: query-id, "
                "corpus-id, score."
            )
        query, document, score = (value.strip() for value in row)
        if place == 1 and {query.lower(), document.lower(), score.lower()} & _HEADERS:
            continue
        relevance = relevance_of(score, where, place)
        yield Judgment(
            place, id_of(query, "query-id", where, place), id_of(document, "corpus-id", where, place), relevance
        )


def _jsonl(path: Path, stem: str) -> Path | None:
    return next((file for end in (".jsonl", ".jsonl.gz") if (file := path / f"{stem}{end}").is_file()), None)


def _qrels_files(path: Path) -> dict[str, Path]:
    found: dict[str, Path] = {}
    for file in sorted([*path.glob("qrels/*.tsv"), *path.glob("qrels/*.tsv.gz")]):
        split = split_name(file.name.partition(".tsv")[0])
        if split in found:
            raise UserError(f"{found[split]} and {file} are both the split {split!r}; keep one of them.")
        found[split] = file
    return found


def _sub_collections(path: Path) -> str:
    below = sorted(file.parent.name for file in path.glob("*/corpus.jsonl*"))
    return f" (but its folders {', '.join(below)} do: name one of them)" if below else ""


def _short(error: Exception) -> str:
    """The kind of a network error; its text is pages of nested representations."""
    return type(error).__name__
