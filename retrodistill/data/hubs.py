"""Collections from elsewhere: Hugging Face datasets in BEIR's layout, and ir_datasets ids."""

from __future__ import annotations

import contextlib
import difflib
from collections.abc import Callable, Iterator, Mapping
from functools import partial
from pathlib import Path
from types import ModuleType
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
    text_of,
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


_SPLITS = ("train", "dev", "test")


def load_irdatasets(dataset_id: str) -> Collection:
    """Load an ir_datasets collection.

    Such an id carries the split in its name. An id with judgments of its own is that one split, called by the last
    part of the id that is train, dev (validation) or test, and test if none is. An id without judgments is a parent:
    each id one level below it that has judgments becomes a split, by its last part. Queries are those of the id and
    of its splits together.

    Args:
        dataset_id: Such as ``"beir/scifact"`` (its splits) or ``"beir/scifact/test"`` (that one).

    Raises:
        UserError: The package is absent, the id unknown, or the data cannot be had.
    """
    package = _package()
    dataset = _open(package, dataset_id)
    if not dataset.has_docs():
        raise UserError(
            f"ir_datasets:{dataset_id} has no documents; name one that has, such as ir_datasets:beir/scifact."
        )
    key = ("ir_datasets", dataset_id, getattr(package, "__version__", None))
    return cached(dataset_id.replace("/", "-"), key, partial(_ir_source, package, dataset_id, dataset))


def _package() -> ModuleType:
    try:
        import ir_datasets
    except ImportError as error:
        raise UserError(
            "ir_datasets:... needs the package ir_datasets, which is not installed; "
            "pip install 'retrodistill[ir-datasets]'."
        ) from error
    return ir_datasets


def _open(package: Any, dataset_id: str) -> Any:
    try:
        return package.load(dataset_id)
    except KeyError as error:
        nearest = difflib.get_close_matches(dataset_id, list(package.registry), n=1, cutoff=0.4)
        hint = f" Did you mean {nearest[0]!r}?" if nearest else ""
        raise UserError(f"ir_datasets has no id {dataset_id!r}.{hint} See https://ir-datasets.com.") from error


def _ir_source(package: Any, dataset_id: str, dataset: Any) -> Source:
    splits = _splits(package, dataset_id, dataset)
    asked = [part for part in (dataset, *splits.values()) if part.has_queries()]
    where = f"ir_datasets:{dataset_id}"
    return Source(
        documents=partial(_guarded, dataset_id, partial(_ir_documents, dataset, f"{where}, document")),
        queries=partial(_guarded, dataset_id, partial(_ir_queries, asked, f"{where}, query")),
        qrels={
            name: partial(_guarded, dataset_id, partial(_ir_judgments, part, f"{where}, judgment of {name}"))
            for name, part in splits.items()
        },
        where={"documents": f"{where}, document", "queries": f"{where}, query"},
    )


def _splits(package: Any, dataset_id: str, dataset: Any) -> dict[str, Any]:
    if dataset.has_qrels():
        parts = [split_name(part) for part in reversed(dataset_id.split("/"))]
        return {next((part for part in parts if part in _SPLITS), "test"): dataset}
    found: dict[str, Any] = {}
    for below in sorted(package.registry):
        parent, _, last = below.rpartition("/")
        if parent == dataset_id and (part := _open(package, below)).has_qrels():
            # Two ids may mean dev (dev, validation): the second keeps its own name.
            found[last if split_name(last) in found else split_name(last)] = part
    return found


def _ir_documents(dataset: Any, where: str) -> Iterator[Document]:
    for place, row in enumerate(dataset.docs_iter(), start=1):
        # default_text is title and text joined: used only where a document has other fields (abstract, body).
        title = (getattr(row, "title", None) or "") if hasattr(row, "text") else ""
        body = row.text if hasattr(row, "text") else row.default_text()
        yield Document(
            place,
            id_of(row.doc_id, "doc_id", where, place),
            text_of(title, "title", where, place),
            text_of(body or "", "text", where, place),
        )


def _ir_queries(datasets: list[Any], where: str) -> Iterator[Query]:
    seen: dict[str, str] = {}
    place = 0
    for dataset in datasets:
        for row in dataset.queries_iter():
            place += 1
            text = text_of(row.text if hasattr(row, "text") else row.default_text(), "text", where, place)
            query = Query(place, id_of(row.query_id, "query_id", where, place), text)
            # A parent and its splits share queries. An id with two texts goes on, to be refused as a duplicate.
            if seen.get(query.id) != text:
                seen[query.id] = text
                yield query


def _ir_judgments(dataset: Any, where: str) -> Iterator[Judgment]:
    for place, row in enumerate(dataset.qrels_iter(), start=1):
        yield Judgment(
            place,
            id_of(row.query_id, "query_id", where, place),
            id_of(row.doc_id, "doc_id", where, place),
            relevance_of(row.relevance, where, place),
        )


def _guarded(dataset_id: str, rows: Callable[[], Iterator[Any]]) -> Iterator[Any]:
    try:
        yield from rows()
    except (OSError, RuntimeError) as error:  # ir_datasets downloads while iterating
        first = (str(error).splitlines() or [""])[0][:200]
        raise UserError(
            f"cannot read ir_datasets:{dataset_id} ({type(error).__name__}: {first}); check the network and "
            "https://ir-datasets.com for what this one needs."
        ) from error
