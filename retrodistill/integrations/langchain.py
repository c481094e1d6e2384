"""LangChain: a retriever over anything that searches, and the encoders of both sides for other vector stores."""

from __future__ import annotations

from typing import Any

from retrodistill.core.errors import UserError
from retrodistill.encoders.any_encoder import DENSE
from retrodistill.indexes.base import load_sides
from retrodistill.integrations.searching import Searcher
from retrodistill.rankers.protocol import DEPTH, check_queries

try:
    from langchain_core.callbacks import AsyncCallbackManagerForRetrieverRun, CallbackManagerForRetrieverRun
    from langchain_core.documents import Document
    from langchain_core.embeddings import Embeddings
    from langchain_core.retrievers import BaseRetriever
    from langchain_core.runnables import run_in_executor
    from pydantic import PrivateAttr
except ImportError as error:
    raise UserError(f"LangChain needs {error.name}; pip install 'retrodistill[langchain]'.") from error


class RetrodistillRetriever(BaseRetriever):
    """Documents of an index, an exported store, or another ranker.

    ``retriever.invoke(query)`` gives `langchain_core.documents.Document` objects, best first: `page_content` is the
    text, and `metadata` has ``id``, ``score`` (raw, higher is better), ``title``, ``passage_id`` in an index of
    passages, and the document's fields. ``invoke``, ``ainvoke``, ``batch`` and ``abatch`` also take `k` and `filter`.

    Attributes:
        index: The folder of an index, an exported store (``qdrant:PLACE#NAME``, ``pgvector:ADDRESS#NAME``), or an
            `Index`; with a collection, also a name such as ``rerank:TEACHER@bm25``.
        collection: Where texts and fields are read if the index does not store them.
        queries: Query encoder, by default the index's own.
        k: Number of documents.
        filter: Only documents whose fields match: a mapping, a condition such as ``year>=2020``, or a list of them.

    Raises:
        UserError: The index cannot be opened or searched, or there are no texts; in a search, an empty query or an
            argument that does not fit.
    """

    index: Any
    collection: Any = None
    queries: Any = None
    k: int = DEPTH
    filter: Any = None
    _searcher: Searcher = PrivateAttr()

    def model_post_init(self, context: Any, /) -> None:
        """Open the index."""
        super().model_post_init(context)
        self._searcher = Searcher(self.index, self.collection, self.queries)

    def _get_relevant_documents(
        self, query: str, *, run_manager: CallbackManagerForRetrieverRun, k: int | None = None, filter: Any = None
    ) -> list[Document]:
        found = self._searcher.documents(query, self.k if k is None else k, self.filter if filter is None else filter)
        return [Document(id=each.id, page_content=each.text, metadata=each.metadata) for each in found]

    async def _aget_relevant_documents(
        self, query: str, *, run_manager: AsyncCallbackManagerForRetrieverRun, k: int | None = None, filter: Any = None
    ) -> list[Document]:
        manager = run_manager.get_sync()
        return await run_in_executor(None, self._get_relevant_documents, query, run_manager=manager, k=k, filter=filter)


class RetrodistillEmbeddings(Embeddings):
    """Vectors of documents and of queries, each by its encoder and with its prompt, for a vector store of your own.

    Vectors of cosine models have length 1, so that any store may compare them by inner product.

    Args:
        documents: Name or object of a dense document encoder.
        queries: Query encoder in the same space, such as a student; by default the document encoder.

    Raises:
        UserError: An encoder is not found or not dense, or the queries belong to another space.
    """

    def __init__(self, documents: Any, queries: Any = None) -> None:
        self.documents, self.queries, self.space = load_sides(documents, queries, DENSE)

    def embed_documents(self, texts: list[str]) -> list[list[float]]:
        """A vector for each text."""
        return self.documents.encode(texts, "document").tolist()

    def embed_query(self, text: str) -> list[float]:
        """The vector of a query, which must not be empty."""
        check_queries([text])
        return self.queries.encode([text], "query")[0].tolist()
