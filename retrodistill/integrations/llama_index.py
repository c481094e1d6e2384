"""LlamaIndex: a retriever over anything that searches, and the encoders of both sides for other vector stores."""

from __future__ import annotations

import asyncio
from typing import Any

from retrodistill.core.errors import UserError
from retrodistill.encoders.any_encoder import DENSE
from retrodistill.indexes.base import load_sides
from retrodistill.integrations.searching import Found, Searcher
from retrodistill.rankers.protocol import DEPTH, check_queries

try:
    from llama_index.core.base.base_retriever import BaseRetriever
    from llama_index.core.bridge.pydantic import PrivateAttr
    from llama_index.core.embeddings import BaseEmbedding
    from llama_index.core.schema import NodeWithScore, QueryBundle, TextNode
except ImportError as error:
    raise UserError(f"LlamaIndex needs {error.name}; pip install 'retrodistill[llama-index]'.") from error

_NOT_FOR_MODELS = ["id", "score", "passage_id"]  # metadata that prompts of LlamaIndex leave out


class RetrodistillRetriever(BaseRetriever):
    """Documents of an index, an exported store, or another ranker, as nodes.

    ``retriever.retrieve(query)`` gives `NodeWithScore` objects, best first: the node's text, its raw score (higher is
    better), and as metadata ``id``, ``score``, ``title``, ``passage_id`` in an index of passages, and the document's
    fields.

    Args:
        index: The folder of an index, an exported store (``qdrant:PLACE#NAME``, ``pgvector:ADDRESS#NAME``), or an
            `Index`; with a collection, also a name such as ``rerank:TEACHER@bm25``.
        collection: Where texts and fields are read if the index does not store them.
        queries: Query encoder, by default the index's own.
        similarity_top_k: Number of documents.
        filter: Only documents whose fields match: a mapping, a condition such as ``year>=2020``, or a list of them.
        options: Those of LlamaIndex's `BaseRetriever`, such as `callback_manager`.

    Raises:
        UserError: The index cannot be opened or searched, or there are no texts; in a search, an empty query or an
            argument that does not fit.
    """

    def __init__(
        self,
        index: Any,
        collection: Any = None,
        queries: Any = None,
        *,
        similarity_top_k: int = DEPTH,
        filter: Any = None,
        **options: Any,
    ) -> None:
        super().__init__(**options)
        self._searcher = Searcher(index, collection, queries)
        self.similarity_top_k, self.filter = similarity_top_k, filter

    def _retrieve(self, query_bundle: QueryBundle) -> list[NodeWithScore]:
        found = self._searcher.documents(query_bundle.query_str, self.similarity_top_k, self.filter)
        return [NodeWithScore(node=_node(each), score=each.score) for each in found]

    async def _aretrieve(self, query_bundle: QueryBundle) -> list[NodeWithScore]:
        return await asyncio.to_thread(self._retrieve, query_bundle)


def _node(found: Found) -> TextNode:
    return TextNode(
        id_=found.id,
        text=found.text,
        metadata=found.metadata,
        excluded_llm_metadata_keys=_NOT_FOR_MODELS,
        excluded_embed_metadata_keys=_NOT_FOR_MODELS,
    )


class RetrodistillEmbedding(BaseEmbedding):
    """Vectors of documents and of queries, each by its encoder and with its prompt, for a vector store of your own.

    Args:
        documents: Name or object of a dense document encoder.
        queries: Query encoder in the same space, such as a student; by default the document encoder.
        options: Those of LlamaIndex's `BaseEmbedding`, such as `embed_batch_size`.

    Raises:
        UserError: An encoder is not found or not dense, or the queries belong to another space.
    """

    _documents: Any = PrivateAttr()
    _queries: Any = PrivateAttr()

    def __init__(self, documents: Any, queries: Any = None, **options: Any) -> None:
        document_encoder, query_encoder, _ = load_sides(documents, queries, DENSE)
        super().__init__(**{"model_name": query_encoder.name, **options})
        self._documents, self._queries = document_encoder, query_encoder

    @classmethod
    def class_name(cls) -> str:
        """Name in LlamaIndex's events."""
        return "RetrodistillEmbedding"

    def _get_query_embedding(self, query: str) -> list[float]:
        check_queries([query])
        return self._queries.encode([query], "query")[0].tolist()

    def _get_text_embedding(self, text: str) -> list[float]:
        return self._get_text_embeddings([text])[0]

    def _get_text_embeddings(self, texts: list[str]) -> list[list[float]]:
        return self._documents.encode(texts, "document").tolist()

    async def _aget_query_embedding(self, query: str) -> list[float]:
        return await asyncio.to_thread(self._get_query_embedding, query)

    async def _aget_text_embedding(self, text: str) -> list[float]:
        return await asyncio.to_thread(self._get_text_embedding, text)

    async def _aget_text_embeddings(self, texts: list[str]) -> list[list[float]]:
        return await asyncio.to_thread(self._get_text_embeddings, texts)
