"""Collections by their ir_datasets id; needs the optional package."""

from __future__ import annotations

import difflib
from collections.abc import Callable, Iterator
from functools import partial
from types import ModuleType
from typing import Any

from retrodistill.core.errors import UserError
from retrodistill.data.collection import Collection
from retrodistill.data.records import (
    Document,
    Judgment,
    Query,
    Source,
    id_of,
    relevance_of,
    split_name,
    text_of,
)
from retrodistill.data.stored import cached

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
    return cached(dataset_id.replace("/", "-"), key, partial(_source, package, dataset_id, dataset))


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


def _source(package: Any, dataset_id: str, dataset: Any) -> Source:
    splits = _splits(package, dataset_id, dataset)
    asked = [part for part in (dataset, *splits.values()) if part.has_queries()]
    where = f"ir_datasets:{dataset_id}"
    return Source(
        documents=partial(_guarded, dataset_id, partial(_documents, dataset, f"{where}, document")),
        queries=partial(_guarded, dataset_id, partial(_queries, asked, f"{where}, query")),
        qrels={
            name: partial(_guarded, dataset_id, partial(_judgments, part, f"{where}, judgment of {name}"))
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


def _documents(dataset: Any, where: str) -> Iterator[Document]:
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


def _queries(datasets: list[Any], where: str) -> Iterator[Query]:
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


def _judgments(dataset: Any, where: str) -> Iterator[Judgment]:
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
