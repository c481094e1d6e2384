"""What all frameworks share: something that answers queries, and the texts and fields of the documents it finds."""

from __future__ import annotations

import itertools
import os
import threading
from collections.abc import Iterator
from typing import Any, NamedTuple

import pyarrow as pa

from retrodistill.core.errors import UserError
from retrodistill.core.paths import path_of
from retrodistill.data import Collection, Texts, load_collection
from retrodistill.data.fields import to_json
from retrodistill.data.texts import GENERATED
from retrodistill.indexes.base import Index
from retrodistill.indexes.columns import TEXTS
from retrodistill.rankers.protocol import check_queries
from retrodistill.runs.run import Run
from retrodistill.serving.opening import Served, is_job, open_place
from retrodistill.serving.systems import Hit, IndexSystem, hits_of

_BLOCK = 256  # queries that are searched at once


class Found(NamedTuple):
    """A document that a query found.

    Attributes:
        id: Of the document, or of its best passage in an index of passages.
        text: Without the title.
        score: Raw, higher is better.
        metadata: ``id`` (of the document), ``score``, ``title`` if it has one, ``passage_id`` in an index of passages,
            and the document's fields as JSON values. A field that has one of these four names is called
            ``field_NAME``.
    """

    id: str
    text: str
    score: float
    metadata: dict[str, Any]


class Searcher:
    """Answers queries for a framework. Any number of threads may use it; they take turns.

    Args:
        source: The folder of an index, an exported store (``qdrant:PLACE#NAME``, ``pgvector:ADDRESS#NAME``), or an
            `Index`; with a collection, also the name of anything that searches, such as ``bm25`` or
            ``rerank:TEACHER@bm25``.
        collection: Where texts and fields of documents are read: a collection, or what `load_collection` takes. Needed
            for texts if the index does not store them.
        queries: Query encoder of an index, in place of its own.
        texts: Whether texts will be read.

    Raises:
        UserError: It cannot be opened or cannot search, or nothing has the texts of the documents.
    """

    def __init__(
        self, source: str | os.PathLike[str] | Index, collection: Any = None, queries: Any = None, *, texts: bool = True
    ) -> None:
        self.name = source.name if isinstance(source, Index) else os.fspath(source)
        self._served = _opened(source, None if collection is None else load_collection(collection), queries)
        (self._system,) = self._served.systems.values()
        if not self._system.can_search:
            raise UserError(f"{self.name} holds no documents, so it cannot search; give an index.")
        if texts and not self._served.has_texts:
            raise UserError(
                f"{self.name} stores no texts of its documents; give the collection, or build the index with "
                "--store-texts (an export: --texts)."
            )
        self._turn = threading.Lock()

    @property
    def schema(self) -> pa.Schema:
        """Names and types of the fields that filters compare."""
        return self._system.schema

    def documents(self, query: str, k: int, filter: Any = None) -> list[Found]:
        """The best k documents of a query, or fewer if there are fewer or fewer pass the filter.

        Args:
            query: Not empty.
            k: At least 1.
            filter: A mapping or a `Filter` (see `retrodistill.data.filters`), a condition as on the command line, such
                as ``year>=2020``, or a list of conditions.

        Raises:
            UserError: An argument does not fit, or a document has no text.
        """
        check_queries([query])
        texts = Texts.from_pairs([(GENERATED, query)])  # the id of no document
        hits = [hit for run in self.runs(texts, k, filter) for hit in hits_of(run).get(GENERATED, [])]
        ids = [hit.passage_id or hit.document_id for hit in hits]
        with self._turn:
            records = self._served.records(self._system, ids)
        return list(itertools.starmap(self._found, zip(ids, hits, records, strict=True)))

    def runs(self, queries: Texts, k: int, filter: Any = None) -> Iterator[Run]:
        """A run for each block of queries, without texts of documents. Blank queries find nothing.

        `k` and `filter` are those of `documents`.
        """
        if k < 1:
            raise UserError(f"k={k}: give at least 1 document.")
        parsed = self._system.filter_of(filter)
        for start in range(0, len(queries), _BLOCK):
            block = queries.select(queries.ids[start : start + _BLOCK])
            with self._turn:
                run = self._system.find(block, min(k, self._system.size), parsed)
            yield run

    def _found(self, id_: str, hit: Hit, record: dict[str, Any]) -> Found:
        if "text" not in record:
            place = self.name if self._served.collection is None else f"collection {self._served.collection.name}"
            raise UserError(f"{place} has no text of document {id_!r}; give the collection that {self.name} is of.")
        own: dict[str, Any] = {"id": hit.document_id, "score": hit.score}
        own |= {} if hit.passage_id is None else {"passage_id": hit.passage_id}
        own |= {"title": record["title"]} if "title" in record else {}
        named = {
            f"field_{name}" if name in ("id", "score", "passage_id") else name: to_json(value)
            for name, value in record.items()
            if name not in TEXTS
        }
        return Found(id_, record["text"], hit.score, {**named, **own})


def _opened(source: str | os.PathLike[str] | Index, corpus: Collection | None, queries: Any) -> Served:
    """One system, with a collection if there is one."""
    if isinstance(source, Index):
        if queries is not None:
            raise UserError("an open index has its query encoder; leave queries out, or give the index's folder.")
        collection = None if corpus is None else source.as_indexed(corpus)
        return Served(source.name, {source.name: IndexSystem(source, source.name)}, collection)
    place = os.fspath(source)
    if is_job(path_of(place)):
        raise UserError(f"{place} holds a job; give one of its indexes: {place}/indexes/NAME.")
    served = open_place(place, corpus, queries, teacher=False)
    if queries is not None and all(system.index is None for system in served.systems.values()):
        raise UserError(f"queries is the query encoder of an index, and {place} is not one; leave it out.")
    return served
