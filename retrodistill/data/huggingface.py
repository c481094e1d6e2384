"""Collections as Hugging Face datasets in BEIR's layout: from the hub, a folder, or objects in memory."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator, Mapping
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

from retrodistill.core.errors import UserError
from retrodistill.data.collection import Collection
from retrodistill.data.records import (
    Document,
    Judgment,
    Query,
    Source,
    document_of,
    fields_named,
    id_of,
    query_of,
    relevance_of,
    split_name,
)
from retrodistill.data.stored import cached
from retrodistill.data.texts import column_digest

if TYPE_CHECKING:
    from datasets import Dataset

_ID = {"_id": ("_id", "id")}
_JUDGMENT = {
    "query_id": ("query-id", "query_id"),
    "document_id": ("corpus-id", "corpus_id", "document_id"),
    "score": ("score", "relevance"),
}
_BATCH = 1024


def load_huggingface(name: str) -> Collection:
    """Load a dataset repository, or a folder laid out like one.

    It has the configurations ``corpus`` (_id, title, text) and ``queries`` (_id, text). The judgments (query-id,
    corpus-id, score; one split each for train, validation or dev, test) are its configuration ``qrels`` or
    ``default``, or the repository ``<name>-qrels``. No code of a repository is run.

    Args:
        name: Such as ``"BeIR/scifact"``, or the path of a folder.

    Raises:
        UserError: It is not there, cannot be reached, or has another layout.
    """
    if not name.strip():
        raise UserError("hf: names no dataset; write hf:<name or folder>, such as hf:BeIR/scifact.")
    from datasets import get_dataset_config_names

    with _library_errors(name):
        configurations = get_dataset_config_names(name)
    absent = [wanted for wanted in ("corpus", "queries") if wanted not in configurations]
    if absent:
        raise UserError(
            f"hf:{name} has no configuration {absent[0]!r} (it has {', '.join(configurations)}); wanted BEIR's "
            "layout: corpus, queries and qrels."
        )
    own = next((wanted for wanted in ("qrels", "default") if wanted in configurations), None)
    judged = _loaded(name, own) if own else _loaded(f"{name}-qrels", None)
    return from_datasets(_only(name, "corpus"), _only(name, "queries"), judged, Path(name).name)


def from_datasets(corpus: Dataset, queries: Dataset, qrels: Mapping[str, Dataset], name: str) -> Collection:
    """Build a collection from datasets in memory.

    Their content is copied once into the cache, under its digest, and memory-mapped from there.

    Args:
        corpus: Columns _id, text and optionally title.
        queries: Columns _id and text.
        qrels: By split, columns query-id, corpus-id, score. The split 'validation' is called 'dev'.
        name: Short name of the collection.

    Raises:
        UserError: A column is absent, or a row is not what it should be; the message has its number, from 1.
    """
    if len(corpus) == 0:
        raise UserError(f"{name}: the corpus is empty; give at least one document.")
    if len(queries) == 0 and any(len(rows) for rows in qrels.values()):
        raise UserError(f"{name}: the queries are empty and yet there are judgments; give the queries they judge.")
    by_split = {split_name(split): rows for split, rows in qrels.items()}
    if len(by_split) < len(qrels):
        raise UserError(f"{name}: two of the splits {', '.join(qrels)} are both 'dev'; keep one of them.")
    parts = {"corpus": corpus, "queries": queries, **{f"qrels {split}": rows for split, rows in by_split.items()}}
    digests = {part: _digest(rows, f"{name}, {part}") for part, rows in parts.items()}
    return cached(name, ("datasets", digests), lambda: _source(corpus, queries, by_split, name))


def _source(corpus: Dataset, queries: Dataset, qrels: Mapping[str, Dataset], name: str) -> Source:
    corpus_row, query_row = f"{name}, corpus, row", f"{name}, queries, row"
    return Source(
        documents=partial(_documents, corpus, corpus_row),
        queries=partial(_queries, queries, query_row),
        qrels={split: partial(_judgments, rows, f"{name}, qrels {split}, row") for split, rows in qrels.items()},
        where={"documents": corpus_row, "queries": query_row},
    )


def _documents(rows: Dataset, where: str) -> Iterator[Document]:
    for place, record in _records(rows, _ID, where):
        yield document_of(record, where, place)


def _queries(rows: Dataset, where: str) -> Iterator[Query]:
    for place, record in _records(rows, _ID, where):
        yield query_of(record, where, place)


def _judgments(rows: Dataset, where: str) -> Iterator[Judgment]:
    for place, record in _records(rows, _JUDGMENT, where):
        yield Judgment(
            place,
            id_of(record["query_id"], "query-id", where, place),
            id_of(record["document_id"], "corpus-id", where, place),
            relevance_of(record["score"], where, place),
        )


def _records(rows: Dataset, wanted: Mapping[str, tuple[str, ...]], where: str) -> Iterator[tuple[int, dict[str, Any]]]:
    renamed = {given: name for name, given in fields_named(rows.column_names, wanted, where).items()}
    place = 0
    for batch in _tables(rows):
        for record in batch.to_pylist():
            place += 1
            yield place, {renamed.get(name, name): value for name, value in record.items()}


def _tables(rows: Dataset) -> Iterator[Any]:
    """Arrow tables of the rows, in order, with selections and filters applied."""
    return rows.with_format("arrow").iter(batch_size=_BATCH)


def _digest(rows: Dataset, where: str) -> dict[str, str]:
    """Digest of each column that may be read; `Dataset` has a fingerprint, but of its history, not of its content."""
    names = [name for name in rows.column_names if name in {"_id", "id", "title", "text"} | _judgment_columns()]
    import pyarrow as pa

    try:
        return {
            name: f"{rows.features[name]} "
            + column_digest(piece.cast(pa.string()) for table in _tables(rows) for piece in table[name].chunks)
            for name in names
        }
    except (pa.ArrowInvalid, pa.ArrowNotImplementedError) as error:
        raise UserError(
            f"{where}: its columns {names} hold lists or structures; wanted strings and numbers."
        ) from error


def _judgment_columns() -> set[str]:
    return {name for names in _JUDGMENT.values() for name in names}


def _loaded(name: str, configuration: str | None) -> dict[str, Dataset]:
    from datasets import load_dataset

    with _library_errors(name):
        return dict(load_dataset(name, configuration))


def _only(name: str, configuration: str) -> Dataset:
    splits = _loaded(name, configuration)
    if len(splits) == 1:
        return next(iter(splits.values()))
    if configuration in splits:
        return splits[configuration]
    raise UserError(f"hf:{name}: configuration {configuration!r} has the splits {', '.join(splits)}; wanted one.")


@contextlib.contextmanager
def _library_errors(name: str) -> Iterator[None]:
    from datasets.exceptions import DatasetNotFoundError

    try:
        yield
    except DatasetNotFoundError as error:
        raise UserError(
            f"there is no Hugging Face dataset {name!r} (or it is private); check the name, or that the folder exists."
        ) from error
    except (OSError, ValueError, RuntimeError) as error:  # covers errors of the hub and of the network
        first = (str(error).splitlines() or [""])[0][:200]
        raise UserError(
            f"cannot load the Hugging Face dataset {name!r} ({type(error).__name__}: {first}); check the name "
            "and the network, or give a folder."
        ) from error
