"""Retrievers: what finds documents for queries and returns a run."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any, Protocol, runtime_checkable

from retrodistill.core.errors import UserError
from retrodistill.data.collection import Collection
from retrodistill.data.texts import Texts
from retrodistill.encoders.any_model import load_text_model
from retrodistill.encoders.contract import TextModel
from retrodistill.encoders.embeddings import embed
from retrodistill.encoders.encoder import Encoder
from retrodistill.encoders.multi_vector import MultiVectorModel
from retrodistill.encoders.names import PAIR_KINDS, ModelName, parse_model_name
from retrodistill.encoders.sparse import SparseTextEncoder
from retrodistill.encoders.two_sided import TwoSided
from retrodistill.encoders.vector_files import bound
from retrodistill.encoders.vectors import check_finite, exact_search, flat_index
from retrodistill.rankers.bm25 import BM25
from retrodistill.rankers.multi_vector import MultiVectorRetriever
from retrodistill.rankers.sparse import SparseRetriever
from retrodistill.runs.formats import read_run
from retrodistill.runs.run import Run

Queries = str | Sequence[str] | Mapping[str, str] | Texts
DEPTH = 10  # documents per query where nobody says how many


@runtime_checkable
class Retriever(Protocol):
    """Finds documents of a collection."""

    name: str

    def retrieve(self, collection: Collection, queries: Texts, k: int) -> Run:
        """The best k documents of each query, fewer where the ranker finds fewer."""
        ...

    def query_fn(self, collection: Collection, k: int) -> Callable[[str], Any]:
        """A function that answers one query text the way a server would, nothing cached: for timing."""
        ...

    def bytes_per_document(self, collection: Collection) -> float | None:
        """Bytes that serving keeps per document; None where nothing is known."""
        ...


class LexicalRetriever:
    """BM25 over the whole collection."""

    name = "bm25"

    def retrieve(self, collection: Collection, queries: Texts, k: int) -> Run:
        """The k best documents that share a term with the query."""
        rows, scores = BM25(collection.documents).search(queries.texts, k)
        return Run.from_matrix(queries.ids, collection.documents.ids, rows, scores, name=self.name)

    def query_fn(self, collection: Collection, k: int) -> Callable[[str], Any]:
        """Tokenizes, scores and cuts."""
        ranker = BM25(collection.documents)
        return lambda text: ranker.search([text], k)

    def bytes_per_document(self, collection: Collection) -> float | None:
        """Of the inverted index."""
        return BM25(collection.documents).bytes_per_document


class DenseRetriever(TwoSided[Encoder]):
    """Exact inner-product search with one encoder for both sides, or two."""

    def retrieve(self, collection: Collection, queries: Texts, k: int) -> Run:
        """The k documents of highest inner product."""
        ids = collection.documents.ids
        vectors = embed(bound(self.documents, collection), collection.documents.texts, "document")
        check_finite(vectors, ids, self.documents.name)
        rows, scores = exact_search(embed(bound(self.queries, collection), queries.texts, "query"), vectors, k)
        return Run.from_matrix(queries.ids, ids, rows, scores, name=self.name)

    def query_fn(self, collection: Collection, k: int) -> Callable[[str], Any]:
        """Encodes and searches a flat index."""
        index = flat_index(embed(bound(self.documents, collection), collection.documents.texts, "document"))
        encoder = bound(self.queries, collection)
        return lambda text: index.search(encoder.encode([text], "query"), k)

    def bytes_per_document(self, collection: Collection) -> float | None:
        """float32 vectors."""
        return 4.0 * self.documents.dimension


class RecordedRetriever:
    """A run that was made before, by whomever."""

    def __init__(self, run: Run) -> None:
        self.run, self.name = run, run.name

    def retrieve(self, collection: Collection, queries: Texts, k: int) -> Run:
        """The k best recorded documents of each query; queries that were not recorded have none."""
        self.run.require({*collection.queries.ids, *queries.ids}, collection.documents.ids)
        return self.run.select(queries.ids).top(k)

    def query_fn(self, collection: Collection, k: int) -> Callable[[str], Any]:
        """There is none.

        Raises:
            UserError: Always: a recorded run cannot be timed.
        """
        raise UserError(f"run {self.name} is recorded and answers no new query; it has no latency.")

    def bytes_per_document(self, collection: Collection) -> float | None:
        """Unknown."""
        return None


def load_retriever(source: Any) -> Retriever:
    """A retriever from a model name (``bm25``, ``dense:...``, ``sparse:...``, ``run:FILE``...) or an object.

    Objects: a `Retriever` (an index too), a `Run`, an encoder, a sentence-transformers model.

    Raises:
        UserError: A name whose kind cannot search on its own.
    """
    if isinstance(source, Retriever):
        return source
    if isinstance(source, Run):
        return RecordedRetriever(source)
    if not isinstance(source, (str, Path, ModelName)):
        return _of_encoder(load_text_model(source))
    name = source if isinstance(source, ModelName) else parse_model_name(str(source))
    if name.kind == "bm25":
        return LexicalRetriever()
    if name.kind == "run":
        return RecordedRetriever(read_run(name.name))
    if name.kind not in PAIR_KINDS:
        return _of_encoder(load_text_model(name))
    raise UserError(
        f"model {name} scores pairs and cannot search a corpus; mine candidates with bm25, dense, static, sparse "
        "or run, and use it as a teacher."
    )


def _of_encoder(encoder: TextModel) -> Retriever:
    if isinstance(encoder, SparseTextEncoder):
        return SparseRetriever(encoder)
    if isinstance(encoder, MultiVectorModel):
        return MultiVectorRetriever(encoder)
    return DenseRetriever(encoder)  # type: ignore[arg-type]  # the kind that is left


def check_k(k: int, documents: int) -> None:
    """Refuse to ask for more documents than there are.

    Raises:
        UserError: k is below 1 or above the number of documents.
    """
    if not 1 <= k <= documents:
        raise UserError(f"k={k}: the corpus has {documents} documents; choose k from 1 to {documents}.")


def wanted_depth(k: int | None, documents: int) -> int:
    """The k that is asked for, or 10 where none is: all documents where there are fewer.

    Raises:
        UserError: k is below 1 or above the number of documents, or there is no document.
    """
    k = min(DEPTH, documents) if k is None and documents else k or 0
    check_k(k, documents)
    return k


def as_queries(queries: Queries) -> Texts:
    """One text, several (their ids are "0", "1"...), or queries with ids: checked, as queries with ids.

    Raises:
        UserError: A query has no text, or is none.
    """
    if not isinstance(queries, Texts):
        listed = [queries] if isinstance(queries, str) else queries
        pairs = list(listed.items() if isinstance(listed, Mapping) else enumerate(listed))
        for id_, text in pairs:
            if not isinstance(text, str):
                raise UserError(f"query {id_!r} is {type(text).__name__}; give texts, or a mapping of ids to texts.")
        queries = Texts.from_pairs((str(id_), text) for id_, text in pairs)
    check_queries(queries.texts)
    return queries


def check_queries(texts: list[str]) -> None:
    """Refuse empty queries.

    Raises:
        UserError: A query has no text; its place is named.
    """
    empty = [place for place, text in enumerate(texts) if not text.strip()]
    if empty:
        raise UserError(f"query {empty[0] + 1} of {len(texts)} is empty; a query needs at least one word.")
