"""Search of large corpora, a block of documents at a time: memory does not grow with the corpus."""

from __future__ import annotations

from collections.abc import Iterator

import numpy as np
import pyarrow as pa

from retrodistill.core.progress import bar
from retrodistill.data.collection import Collection
from retrodistill.data.texts import Texts
from retrodistill.encoders.embeddings import EmbeddingStore, embed
from retrodistill.encoders.encoder import Encoder
from retrodistill.encoders.vector_files import VectorFile, bound
from retrodistill.encoders.vectors import check_finite, exact_search
from retrodistill.rankers.dense import DenseRanker
from retrodistill.rankers.protocol import Ranker
from retrodistill.runs.run import Run

HELD = (
    200_000  # documents; vectors of smaller corpora go through the embedding store and are held while they are searched
)
BLOCK = 16_384  # documents


def retrieve(retriever: Ranker, collection: Collection, queries: Texts, k: int) -> Run:
    """The best k documents of each query; exact dense search of a large corpus goes through it block by block."""
    if type(retriever) is not DenseRanker or len(collection.documents) <= HELD:
        return retriever.search(queries, collection, k)
    return stream(retriever, collection, queries, k)


def stream(retriever: DenseRanker, collection: Collection, queries: Texts, k: int) -> Run:
    """As `DenseRanker.retrieve`, holding one block of texts and vectors, and the best k of each query.

    Vectors that are in the embedding store are taken from there; others are made and not kept, for a store of millions
    would be merged over and over.
    """
    import faiss

    documents = collection.documents
    k = min(k, len(documents))
    asked = embed(bound(retriever.queries, collection), queries.texts, "query")
    best = faiss.ResultHeap(len(asked), k, keep_max=True)
    with bar(len(documents), f"searching ({retriever.name})", "documents") as progress:
        for start, vectors in _blocks(bound(retriever.documents, collection), documents):
            ids = documents.table["id"].slice(start, len(vectors)).to_pylist()
            check_finite(vectors, ids, retriever.documents.name)
            rows, scores = exact_search(asked, vectors, k)
            best.add_result(scores, rows + start)
            progress.update(len(vectors))
    best.finalize()
    used = np.unique(best.I[best.I >= 0])
    named = dict(zip(used.tolist(), documents.table["id"].take(pa.array(used)).to_pylist(), strict=True))
    return Run.from_matrix(queries.ids, named, best.I, best.D, name=retriever.name)  # type: ignore[arg-type]


def _blocks(encoder: Encoder, documents: Texts) -> Iterator[tuple[int, np.ndarray]]:
    """Place of the first document, and vectors, of each block."""
    made = encoder.is_static or isinstance(encoder, VectorFile)
    store = None if made else EmbeddingStore(encoder, "document")
    for start in range(0, len(documents), BLOCK):
        texts = documents.slice(start, start + BLOCK)
        if store is not None and not store.missing(texts):
            yield start, store.gather(texts)
        else:
            yield start, encoder.encode(texts, "document")
