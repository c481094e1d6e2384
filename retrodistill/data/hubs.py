"""Collections from hubs: Hugging Face datasets in BEIR's layout, and ir_datasets ids."""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Iterable, Iterator, Mapping
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pyarrow as pa

from retrodistill.core.errors import UserError, did_you_mean
from retrodistill.data import records
from retrodistill.data.collection import Collection
from retrodistill.data.records import Document, Judgment, Query, Source, id_of, judgment_of, split_name, text_of
from retrodistill.data.stored import cached
from retrodistill.data.texts import column_digest

if TYPE_CHECKING:
    from datasets import Dataset

_ID_COLUMNS = {"_id": ("_id", "id")}
_JUDGMENT_COLUMNS = {
    "query_id": ("query-id", "query_id"),
    "document_id": ("corpus-id", "corpus_id", "document_id"),
    "score": ("score", "relevance"),
}
_JUDGED = {name for names in _JUDGMENT_COLUMNS.values() for name in names}
_BATCH = 1024
_IR_SPLITS = ("train", "dev", "test")


def load_huggingface(name: str) -> Collection:
    """Load a dataset repository such as ``"BeIR/scifact"``, or a folder with the same layout.

    It needs the configurations ``corpus`` (_id, title, text) and ``queries`` (_id, text). The judgments (query-id,
    corpus-id, score; splits train, validation or dev, test) are its configuration ``qrels`` or ``default``, or the
    repository ``<name>-qrels``. No code from a repository is run.
    """
    if not name.strip():
        raise UserError("hf: names no dataset; write hf:<name or folder>, such as hf:BeIR/scifact.")
    from datasets import get_dataset_config_names

    with _huggingface_errors(name):
        configurations = get_dataset_config_names(name)
    absent = [wanted for wanted in ("corpus", "queries") if wanted not in configurations]
    if absent:
        raise UserError(
            f"hf:{name} has no configuration {absent[0]!r} (it has {', '.join(configurations)}); expected BEIR's "
            "layout: corpus, queries and qrels."
        )
    own = next((wanted for wanted in ("qrels", "default") if wanted in configurations), None)
    qrels = _load_splits(name, own) if own else _load_splits(f"{name}-qrels", None)
    return from_datasets(_load_one(name, "corpus"), _load_one(name, "queries"), qrels, Path(name).name)


def from_datasets(corpus: Dataset, queries: Dataset, qrels: Mapping[str, Dataset], name: str) -> Collection:
    """Build a collection from datasets in memory, which are copied to the cache once and memory-mapped from there.

    Args:
        corpus: Columns _id, text and optionally title; others become fields.
        queries: Columns _id and text.
        qrels: For each split, columns query-id, corpus-id, score. The split 'validation' becomes 'dev'.
        name: Short name of the collection.
    """
    if len(corpus) == 0:
        raise UserError(f"{name}: the corpus is empty; give at least one document.")
    if len(queries) == 0 and any(len(rows) for rows in qrels.values()):
        raise UserError(f"{name}: there are judgments but no queries; give the judged queries.")
    by_split = {split_name(split): rows for split, rows in qrels.items()}
    if len(by_split) < len(qrels):
        raise UserError(f"{name}: two of the splits {', '.join(qrels)} are both 'dev'; keep one of them.")
    parts = {"corpus": corpus, "queries": queries, **{f"qrels {split}": rows for split, rows in by_split.items()}}
    read = {"corpus": corpus.column_names, "queries": ("_id", "id", "text")}  # the others are judgments
    digests = {part: _digests(rows, read.get(part, _JUDGED)) for part, rows in parts.items()}
    return cached(name, ("datasets", digests), lambda: _dataset_source(corpus, queries, by_split, name))


def _dataset_source(corpus: Dataset, queries: Dataset, qrels: Mapping[str, Dataset], name: str) -> Source:
    corpus_row, query_row = f"{name}, corpus, row", f"{name}, queries, row"

    def judgments(split: str) -> Iterator[Judgment]:
        where = f"{name}, qrels {split}, row"
        for place, row in _records(qrels[split], _JUDGMENT_COLUMNS, where):
            yield judgment_of(row["query_id"], row["document_id"], row["score"], where, place)

    return Source(
        documents=lambda: (
            records.document_of(row, corpus_row, n) for n, row in _records(corpus, _ID_COLUMNS, corpus_row)
        ),
        queries=lambda: (records.query_of(row, query_row, n) for n, row in _records(queries, _ID_COLUMNS, query_row)),
        qrels={split: partial(judgments, split) for split in qrels},
        where={"documents": corpus_row, "queries": query_row},
    )


def _records(rows: Dataset, wanted: Mapping[str, tuple[str, ...]], where: str) -> Iterator[tuple[int, dict[str, Any]]]:
    """Yield (row number from 1, row), with columns found under any of their usual names."""
    renamed = {}
    for field_name, names in wanted.items():
        column = next((name for name in names if name in rows.column_names), None)
        if column is None:
            had = f"no column {names[0]!r} among {rows.column_names}"
            raise UserError(f"{where}: {had}; rename the column that holds it.")
        renamed[column] = field_name
    records_in_order = (record for table in _tables(rows) for record in table.to_pylist())
    for place, record in enumerate(records_in_order, start=1):
        yield place, {renamed.get(name, name): value for name, value in record.items()}


def _tables(rows: Dataset) -> Iterator[Any]:
    """Arrow tables of the rows, in order, with selections and filters applied."""
    return rows.with_format("arrow").iter(batch_size=_BATCH)


def _digests(rows: Dataset, read: Iterable[str]) -> dict[str, str]:
    """Digest of each column that is read; the library's fingerprint covers the history, not the content."""
    return {
        name: f"{rows.features[name]} "
        + column_digest(_as_strings(piece) for table in _tables(rows) for piece in table[name].chunks)
        for name in rows.column_names
        if name in read
    }


def _as_strings(values: pa.Array) -> pa.Array:
    if pa.types.is_nested(values.type) or pa.types.is_binary(values.type) or pa.types.is_large_binary(values.type):
        return pa.array(map(repr, values.to_pylist()), pa.string())
    return values.cast(pa.string())


def _load_splits(name: str, configuration: str | None) -> dict[str, Dataset]:
    from datasets import load_dataset

    with _huggingface_errors(name):
        return dict(load_dataset(name, configuration))


def _load_one(name: str, configuration: str) -> Dataset:
    """The only split of a configuration, or the one with the configuration's name."""
    splits = _load_splits(name, configuration)
    if len(splits) == 1:
        return next(iter(splits.values()))
    if configuration in splits:
        return splits[configuration]
    raise UserError(f"hf:{name}: configuration {configuration!r} has the splits {', '.join(splits)}; expected one.")


@contextlib.contextmanager
def _huggingface_errors(name: str) -> Iterator[None]:
    from datasets.exceptions import DatasetNotFoundError

    try:
        yield
    except DatasetNotFoundError as error:
        raise UserError(
            f"there is no Hugging Face dataset {name!r} (or it is private); check the name, or that the folder exists."
        ) from error
    except (OSError, ValueError, RuntimeError) as error:  # includes errors of the hub and of the network
        raise UserError(
            f"cannot load the Hugging Face dataset {name!r} ({type(error).__name__}: {_first_line(error)}); check the "
            "name and the network, or give a folder."
        ) from error


def load_irdatasets(dataset_id: str) -> Collection:
    """Load an ir_datasets collection.

    An id with judgments becomes a single split. Its name is the last part of the id that is train, dev (or
    validation) or test, and test if there is none. For an id without judgments, each id one level below it that has
    judgments becomes a split, named by its last part. The queries are those of the id and of its splits together.
    Thus ``"beir/scifact"`` has all its splits, ``"beir/scifact/test"`` only this one.
    """
    try:
        import ir_datasets
    except ImportError as error:
        raise UserError(
            "ir_datasets:... needs the package ir_datasets, which is not installed; "
            "pip install 'retrodistill[ir-datasets]'."
        ) from error
    dataset = _open_ir(ir_datasets, dataset_id)
    if not dataset.has_docs():
        raise UserError(
            f"ir_datasets:{dataset_id} has no documents; name one that has, such as ir_datasets:beir/scifact."
        )
    key = ("ir_datasets", dataset_id, getattr(ir_datasets, "__version__", None))
    return cached(dataset_id.replace("/", "-"), key, partial(_ir_source, ir_datasets, dataset_id, dataset))


def _open_ir(package: Any, dataset_id: str) -> Any:
    try:
        return package.load(dataset_id)
    except KeyError as error:
        hint = did_you_mean(dataset_id, package.registry)
        raise UserError(f"ir_datasets has no id {dataset_id!r}.{hint} See https://ir-datasets.com.") from error


def _ir_source(package: Any, dataset_id: str, dataset: Any) -> Source:
    splits = _ir_splits(package, dataset_id, dataset)
    with_queries = [part for part in (dataset, *splits.values()) if part.has_queries()]
    where = f"ir_datasets:{dataset_id}"
    return Source(
        documents=partial(_ir_rows, where, _ir_documents, dataset, "document"),
        queries=partial(_ir_rows, where, _ir_queries, with_queries, "query"),
        qrels={
            name: partial(_ir_rows, where, _ir_judgments, part, f"judgment of {name}") for name, part in splits.items()
        },
        where={"documents": f"{where}, document", "queries": f"{where}, query"},
    )


def _ir_splits(package: Any, dataset_id: str, dataset: Any) -> dict[str, Any]:
    if dataset.has_qrels():
        parts = [split_name(part) for part in reversed(dataset_id.split("/"))]
        return {next((part for part in parts if part in _IR_SPLITS), "test"): dataset}
    splits: dict[str, Any] = {}
    for below in sorted(package.registry):
        parent, _, last = below.rpartition("/")
        if parent == dataset_id and (part := _open_ir(package, below)).has_qrels():
            # Two ids can mean dev ("dev" and "validation"); the second keeps its own name.
            splits[last if split_name(last) in splits else split_name(last)] = part
    return splits


def _ir_documents(dataset: Any, where: str) -> Iterator[Document]:
    for place, row in enumerate(dataset.docs_iter(), start=1):
        # default_text() joins title and text, so it serves only documents with other fields (abstract, body).
        title = (getattr(row, "title", None) or "") if hasattr(row, "text") else ""
        body = row.text if hasattr(row, "text") else row.default_text()
        yield Document(
            place,
            id_of(row.doc_id, "doc_id", where, place),
            text_of(title, "title", where, place),
            text_of(body or "", "text", where, place),
            {name: getattr(row, name) for name in row._fields if name != "doc_id"},
        )


def _ir_queries(datasets: list[Any], where: str) -> Iterator[Query]:
    seen: dict[str, str] = {}
    rows = (row for dataset in datasets for row in dataset.queries_iter())
    for place, row in enumerate(rows, start=1):
        text = text_of(row.text if hasattr(row, "text") else row.default_text(), "text", where, place)
        query = Query(place, id_of(row.query_id, "query_id", where, place), text)
        # A parent and its splits share queries. One id with two texts is passed on and refused as a duplicate.
        if seen.get(query.id) != text:
            seen[query.id] = text
            yield query


def _ir_judgments(dataset: Any, where: str) -> Iterator[Judgment]:
    for place, row in enumerate(dataset.qrels_iter(), start=1):
        yield judgment_of(row.query_id, row.doc_id, row.relevance, where, place)


def _ir_rows(where: str, read: Callable[[Any, str], Iterator[Any]], part: Any, what: str) -> Iterator[Any]:
    """The rows of a part of the data set `where`, with its errors as a `UserError`; `what` is one row."""
    try:
        yield from read(part, f"{where}, {what}")
    except (OSError, RuntimeError) as error:  # ir_datasets downloads while iterating
        raise UserError(
            f"cannot read {where} ({type(error).__name__}: {_first_line(error)}); check the network and "
            "https://ir-datasets.com for what this dataset needs."
        ) from error


def _first_line(error: Exception) -> str:
    return (str(error).splitlines() or [""])[0][:200]
