"""Collections from hubs: Hugging Face datasets in BEIR's layout, and ir_datasets ids."""

from __future__ import annotations

import contextlib
import os
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypeAlias

import pyarrow as pa

from retrodistill.core.digests import file_digest
from retrodistill.core.errors import UserError, did_you_mean
from retrodistill.core.paths import path_of
from retrodistill.data.collection import Collection
from retrodistill.data.records import (
    DOCUMENT_COLUMNS,
    JUDGMENT_COLUMNS,
    QUERY_COLUMNS,
    Document,
    Judgment,
    Query,
    Source,
    document_of,
    id_of,
    judgment_of,
    query_of,
    split_name,
    text_of,
)
from retrodistill.data.stored import cached
from retrodistill.data.tables import Columns
from retrodistill.data.texts import ColumnDigest

if TYPE_CHECKING:
    from datasets import Dataset, IterableDataset

Rows: TypeAlias = "Dataset | IterableDataset"

_LARGE = 1 << 30  # bytes of files from which a repository is streamed
_BATCH = 1024
_IR_SPLITS = ("train", "dev", "test")


def load_huggingface(name: str, *, stream: bool = False) -> Collection:
    """Load a dataset repository such as ``"BeIR/scifact"``, or a folder with the same layout.

    It needs the configurations ``corpus`` (_id, title, text) and ``queries`` (_id, text). The judgments (query-id,
    corpus-id, score; splits train, validation or dev, test) are its configuration ``qrels`` or ``default``, or the
    repository ``<name>-qrels``. No code from a repository is run.

    A folder, and a repository of 1 GiB or more, is streamed: read once into the cache of collections, without the copy
    that the library would keep. `stream` does so for any repository, which then needs the hub whenever it is loaded.
    """
    if not name.strip():
        raise UserError("hf: names no dataset; write hf:<name or folder>, such as hf:BeIR/scifact.")
    from datasets import get_dataset_config_names, load_dataset, load_dataset_builder

    folder = path_of(name)
    place = str(folder) if folder.is_dir() else name
    with _huggingface_errors(name):
        configurations = get_dataset_config_names(place)
    absent = [wanted for wanted in ("corpus", "queries") if wanted not in configurations]
    if absent:
        raise UserError(
            f"hf:{name} has no configuration {absent[0]!r} (it has {', '.join(configurations)}); expected BEIR's "
            "layout: corpus, queries and qrels."
        )
    own = next((wanted for wanted in ("qrels", "default") if wanted in configurations), None)
    places: dict[str, tuple[str, str | None]] = {"corpus": (place, "corpus"), "queries": (place, "queries")}
    places["qrels"] = (place, own) if own else (f"{place}-qrels", None)
    with _huggingface_errors(name):
        files = {part: _data_files(load_dataset_builder(*where)) for part, where in places.items()}
        is_streamed = stream or folder.is_dir() or _size_of(files.values()) >= _LARGE
    loaded: dict[str, dict[str, Rows]] = {}
    for part, (repository, configuration) in places.items():
        with _huggingface_errors(repository):
            loaded[part] = dict(load_dataset(repository, configuration, streaming=is_streamed))
    corpus, queries = (_only_split(name, part, loaded[part]) for part in ("corpus", "queries"))
    key = ("streamed", files) if is_streamed else None
    return from_datasets(corpus, queries, loaded["qrels"], Path(os.path.abspath(name)).name, key)


def from_datasets(
    corpus: Rows, queries: Rows, qrels: Mapping[str, Rows], name: str, key: tuple[object, ...] | None = None
) -> Collection:
    """Build a collection from datasets, which are copied to the cache once and memory-mapped from there.

    Each is a `Dataset`, or an `IterableDataset`, which is read in batches and has to give the same rows each time.

    Args:
        corpus: Columns _id, text and optionally title, under any of their usual names; others become fields.
        queries: Columns _id and text.
        qrels: For each split, columns query-id, corpus-id, score. The split 'validation' becomes 'dev'.
        name: Short name of the collection.
        key: JSON-like values that determine the content, such as digests of files; by default the content itself,
            which takes one more pass.
    """
    if _is_empty(corpus):
        raise UserError(f"{name}: the corpus is empty; give at least one document.")
    if _is_empty(queries) and not all(_is_empty(rows) for rows in qrels.values()):
        raise UserError(f"{name}: there are judgments but no queries; give the judged queries.")
    by_split = {split_name(split): rows for split, rows in qrels.items()}
    if len(by_split) < len(qrels):
        raise UserError(f"{name}: two of the splits {', '.join(qrels)} are both 'dev'; keep one of them.")
    parts = {"corpus": corpus, "queries": queries, **{f"qrels {split}": rows for split, rows in by_split.items()}}
    if key is None:
        columns = {"corpus": None, "queries": QUERY_COLUMNS}  # the others are judgments
        digests = {part: _digests(rows, columns.get(part, JUDGMENT_COLUMNS)) for part, rows in parts.items()}
        key = ("datasets", digests)
    return cached(name, key, lambda: _dataset_source(corpus, queries, by_split, name))


def _dataset_source(corpus: Rows, queries: Rows, qrels: Mapping[str, Rows], name: str) -> Source:
    def parsed(rows: Rows, columns: Columns, parse: Callable[..., Any], where: str) -> Iterator[Any]:
        records_in_order = (record for table in _tables(rows) for record in table.to_pylist())
        for place, record in enumerate(records_in_order, start=1):
            yield parse(columns.renamed(record), where, place)

    corpus_row, query_row = f"{name}, corpus, row", f"{name}, queries, row"
    return Source(
        documents=partial(parsed, corpus, DOCUMENT_COLUMNS, document_of, corpus_row),
        queries=partial(parsed, queries, QUERY_COLUMNS, query_of, query_row),
        qrels={
            split: partial(parsed, rows, JUDGMENT_COLUMNS, judgment_of, f"{name}, qrels {split}, row")
            for split, rows in qrels.items()
        },
        where={"documents": corpus_row, "queries": query_row},
    )


def _is_empty(rows: Rows) -> bool:
    return next(iter(rows.take(1)), None) is None


def _tables(rows: Rows) -> Iterator[Any]:
    """Arrow tables of the rows, in order, with selections and filters applied."""
    return rows.with_format("arrow").iter(batch_size=_BATCH)


def _digests(rows: Rows, columns: Columns | None) -> dict[str, str]:
    """Digest of each column that is read, by name and type; all for None.

    The library's fingerprint covers the history, not the content.
    """
    read = None if columns is None else {name for pair in columns.names.items() for name in (pair[0], *pair[1])}
    digests: dict[str, ColumnDigest] = {}
    for table in _tables(rows):
        for name in table.column_names:
            if read is None or name in read:
                column = digests.setdefault(f"{name} {table[name].type}", ColumnDigest())
                column.update(map(_as_strings, table[name].chunks))
    return {name: column.hexdigest() for name, column in digests.items()}


def _as_strings(values: pa.Array) -> pa.Array:
    if pa.types.is_nested(values.type) or pa.types.is_binary(values.type) or pa.types.is_large_binary(values.type):
        return pa.array(map(repr, values.to_pylist()), pa.string())
    return values.cast(pa.string())


def _data_files(builder: Any) -> dict[str, list[list[str]]]:
    """By split, each file's place and digest; the place of a file on the hub has the revision, which is its digest."""
    return {
        str(split): [[str(file), file_digest(file) if Path(file).is_file() else ""] for file in files]
        for split, files in (builder.config.data_files or {}).items()
    }


def _size_of(parts: Iterable[Mapping[str, Sequence[Sequence[str]]]]) -> int:
    """Bytes of files on the hub."""
    from huggingface_hub import HfFileSystem

    hub = HfFileSystem()
    files = [place for part in parts for files in part.values() for place, _ in files if place.startswith("hf://")]
    return sum(hub.info(file)["size"] for file in files)


def _only_split(name: str, configuration: str, splits: Mapping[str, Rows]) -> Rows:
    """The only split of a configuration, or the one with the configuration's name."""
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
        record = {"query-id": row.query_id, "corpus-id": row.doc_id, "score": row.relevance}
        yield judgment_of(record, where, place)


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
