"""Haystack: a retriever component over anything that searches. Filters are in Haystack's syntax.

Haystack reports the runs of pipelines to its makers unless HAYSTACK_TELEMETRY_ENABLED is ``false``. This module sets
the variable to that, unless it is set or Haystack was imported before.
"""

from __future__ import annotations

import os
from collections.abc import Mapping
from functools import cached_property
from typing import Any

import pyarrow as pa

from retrodistill.core.errors import UserError
from retrodistill.data.filters import Filter, parse_filter
from retrodistill.integrations.searching import Searcher
from retrodistill.rankers.protocol import DEPTH

os.environ.setdefault("HAYSTACK_TELEMETRY_ENABLED", "false")
try:
    from haystack import Document, component, default_from_dict, default_to_dict
except ImportError as error:
    raise UserError(f"Haystack needs {error.name}; pip install 'retrodistill[haystack]'.") from error

_COMPARISONS = ("==", "!=", ">", ">=", "<", "<=", "in", "not in")


@component
class RetrodistillRetriever:
    """Documents of an index, an exported store, or another ranker.

    A document's `content` is its text, its `score` is raw (higher is better), and its `meta` has ``id``, ``score``,
    ``title``, ``passage_id`` in an index of passages, and the document's fields. The index is opened by `warm_up`,
    which a pipeline and `run` call.

    Args:
        index: The folder of an index, an exported store (``qdrant:PLACE#NAME``, ``pgvector:ADDRESS#NAME``), or an
            `Index`; with a collection, also a name such as ``rerank:TEACHER@bm25``.
        collection: Where texts and fields are read if the index does not store them.
        queries: Query encoder, by default the index's own.
        filters: Haystack filters, see `filter_of`. Those of a run replace them.
        top_k: Number of documents.

    Raises:
        UserError: In `warm_up` or `run`: the index cannot be opened or searched, there are no texts, the query is
            empty, or an argument does not fit.
    """

    def __init__(
        self,
        index: Any,
        collection: Any = None,
        queries: Any = None,
        *,
        filters: dict[str, Any] | None = None,
        top_k: int = DEPTH,
    ) -> None:
        self.index, self.collection, self.queries = index, collection, queries
        self.filters, self.top_k = filters, top_k

    @cached_property
    def _searcher(self) -> Searcher:
        return Searcher(self.index, self.collection, self.queries)

    def warm_up(self) -> None:
        """Open the index, once."""
        _ = self._searcher

    def to_dict(self) -> dict[str, Any]:
        """The component for a pipeline's file; index, collection and queries must be names."""
        named = {"index": self.index, "collection": self.collection, "queries": self.queries}
        for argument, value in named.items():
            if not isinstance(value, str | os.PathLike | None):
                raise UserError(f"{argument} is {type(value).__name__}, which a pipeline cannot save; give its name.")
            named[argument] = None if value is None else os.fspath(value)
        return default_to_dict(self, **named, filters=self.filters, top_k=self.top_k)

    @classmethod
    def from_dict(cls, data: dict[str, Any]) -> RetrodistillRetriever:
        """The component that `to_dict` described."""
        return default_from_dict(cls, data)

    @component.output_types(documents=list[Document])
    def run(
        self, query: str, filters: dict[str, Any] | None = None, top_k: int | None = None
    ) -> dict[str, list[Document]]:
        """The best documents of a query.

        Args:
            query: Not empty.
            filters: Haystack filters, in place of the component's own.
            top_k: Number of documents, in place of the component's own.
        """
        searcher = self._searcher
        chosen = self.filters if filters is None else filters
        filter = filter_of(chosen, searcher.schema) if chosen else None
        found = searcher.documents(query, self.top_k if top_k is None else top_k, filter)
        documents = [Document(id=each.id, content=each.text, meta=each.metadata, score=each.score) for each in found]
        return {"documents": documents}


def filter_of(filters: Any, schema: pa.Schema) -> Filter:
    """A filter of this package from Haystack's, which has the same comparisons.

    Fields may have the prefix ``meta.``; ``id`` is the document's. Unlike in Haystack, ``!=`` and ``not in`` are false
    for a document without the field, as everywhere in this package. ``== None`` and ``!= None`` are for such documents.

    Raises:
        UserError: ``NOT``, which this package does not have, an unknown field or operator, or a value of another type.
    """
    if not isinstance(filters, Mapping) or "operator" not in filters:
        raise UserError(
            f"filters {filters!r}: Haystack's have an 'operator', with 'field' and 'value' or 'conditions'."
        )
    operator = filters["operator"]
    if "field" in filters:
        return _comparison(filters, operator, schema)
    if operator not in ("AND", "OR") or not isinstance(filters.get("conditions"), list):
        raise UserError(
            f"filters: {operator!r} is not AND or OR with 'conditions'; in place of NOT, use != or 'not in'."
        )
    return Filter(tuple(filter_of(part, schema) for part in filters["conditions"]), is_any=operator == "OR")


def _comparison(condition: Mapping[str, Any], operator: Any, schema: pa.Schema) -> Filter:
    name, value = str(condition["field"]).removeprefix("meta."), condition.get("value")
    name = "document_id" if name == "id" and name not in schema.names else name
    if operator not in _COMPARISONS:
        raise UserError(f"filters: unknown operator {operator!r}; use one of {', '.join(_COMPARISONS)}.")
    if value is None and operator in ("==", "!="):
        return parse_filter({name: {"null": operator == "=="}}, schema)
    return parse_filter({name: {operator: value}}, schema)
