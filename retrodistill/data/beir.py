"""Collections in BEIR's layout: a local folder, or one of BEIR's public collections, downloaded once."""

from __future__ import annotations

import csv
import shutil
import zipfile
import zlib
from collections.abc import Callable, Iterator, Mapping
from functools import partial
from pathlib import Path
from typing import Any, TypeVar

from retrodistill.core.errors import UserError, did_you_mean
from retrodistill.core.files import cache_folder, file_digest, make_folder
from retrodistill.data import records
from retrodistill.data.collection import Collection
from retrodistill.data.records import Judgment, Source, read_lines, read_objects, split_name
from retrodistill.data.stored import cached, make_once

URL = "https://public.ukp.informatik.tu-darmstadt.de/thakur/BEIR/datasets/{name}.zip"
# The public collections in the README of beir 2.2, which has no list to import.
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

_Record = TypeVar("_Record")


def load_folder(path: Path, name: str | None = None) -> Collection:
    """Load a folder with corpus.jsonl, queries.jsonl and qrels/<split>.tsv, each optionally as .gz.

    The files are checked line by line and copied to the cache once; later calls open the copy. Without qrels, every
    query is unjudged; without queries and qrels, the collection has only documents. The default name is the folder's.
    """
    corpus, queries, qrels = _jsonl(path, "corpus"), _jsonl(path, "queries"), _qrels_files(path)
    if corpus is None:
        below = sorted(file.parent.name for file in path.glob("*/corpus.jsonl*"))
        advice = f" (but its folders {', '.join(below)} do: name one of them)" if below else ""
        raise UserError(
            f"{path} is not a BEIR folder: it has no corpus.jsonl{advice}; expected corpus.jsonl, "
            "queries.jsonl and qrels/<split>.tsv."
        )
    if queries is None and qrels:
        raise UserError(f"{path} has judgments but no queries.jsonl; put it next to corpus.jsonl.")
    files = {"corpus": corpus} | {f"qrels {split}": file for split, file in qrels.items()}
    if queries:
        files["queries"] = queries
    try:
        digests = {what: file_digest(file) for what, file in files.items()}
    except OSError as error:
        raise UserError(f"cannot read {error.filename or path}: {error.strerror}.") from error
    compressed = sorted(what for what, file in files.items() if file.suffix == ".gz")
    return cached(name or path.resolve().name, ("beir", digests, compressed), lambda: _source(corpus, queries, qrels))


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
    folder = make_folder(cache_folder() / "beir") / base
    make_once(folder, partial(_fetch, base, folder))
    return load_folder(folder / forum, name.replace("/", "-"))


def _fetch(name: str, folder: Path, temporary: Path) -> None:
    try:
        from beir import util  # imports torch, so import it only for a download
    except ModuleNotFoundError as error:  # beir 2.2 imports requests without declaring it
        raise UserError(f"downloading beir/{name} needs the package {error.name}; pip install {error.name}.") from error

    advice = f"check the network, or unzip {URL.format(name=name)} to {folder}"
    try:
        unzipped = Path(util.download_and_unzip(URL.format(name=name), str(temporary)))
    except (zipfile.BadZipFile, zlib.error, EOFError) as error:
        raise UserError(f"the download of beir/{name} is not a whole zip file ({error}); {advice}.") from error
    except OSError as error:  # includes the exceptions of requests; their texts are pages long, so name only the type
        raise UserError(f"cannot download beir/{name} ({type(error).__name__}); {advice}.") from error
    if not unzipped.is_dir():
        raise UserError(f"the download of beir/{name} holds no folder {name!r}; {advice}.")
    (temporary / f"{name}.zip").unlink()
    for file in unzipped.iterdir():
        shutil.move(file, temporary / file.name)
    unzipped.rmdir()


def _source(corpus: Path, queries: Path | None, qrels: dict[str, Path]) -> Source:
    no_queries = "there is no queries.jsonl: queries can only be drawn from the documents."
    return Source(
        documents=partial(_records, corpus, records.document_of, "document", "expected one JSON object per line"),
        queries=partial(_records, queries, records.query_of, "query", "expected one JSON object per line, or no file")
        if queries
        else lambda: iter(()),
        qrels={split: partial(_judgments, file) for split, file in qrels.items()},
        where={"documents": f"{corpus}, line", "queries": f"{queries}, line"},
        warnings=() if queries else (no_queries,),
    )


def _records(
    path: Path, parse: Callable[[Mapping[str, Any], str, int], _Record], what: str, advice: str
) -> Iterator[_Record]:
    place = 0
    for place, record in read_objects(path, _WANTED):
        yield parse(record, f"{path}, line", place)
    if not place:
        raise UserError(f"{path} is empty: it holds no {what}; {advice}.")


def _judgments(path: Path) -> Iterator[Judgment]:
    where = f"{path}, line"
    for place, line in read_lines(path):
        # beir reads these with the csv module, which unquotes. Parsing line by line keeps a stray quote in its line.
        row = next(csv.reader([line], delimiter="\t")) if '"' in line else line.split("\t")
        if len(row) != 3:
            raise UserError(
                f"{where} {place}: {len(row)} columns between tabs ({line[:60]!r}); expected 3: query-id, "
                "corpus-id, score."
            )
        query, document, score = (value.strip() for value in row)
        if place == 1 and {query.lower(), document.lower(), score.lower()} & _HEADERS:
            continue
        yield records.judgment_of(query, document, score, where, place)


def _jsonl(path: Path, stem: str) -> Path | None:
    return next((file for end in (".jsonl", ".jsonl.gz") if (file := path / f"{stem}{end}").is_file()), None)


def _qrels_files(path: Path) -> dict[str, Path]:
    files: dict[str, Path] = {}
    for file in sorted([*path.glob("qrels/*.tsv"), *path.glob("qrels/*.tsv.gz")]):
        split = split_name(file.name.partition(".tsv")[0])
        if split in files:
            raise UserError(f"{files[split]} and {file} are both the split {split!r}; keep one of them.")
        files[split] = file
    return files
