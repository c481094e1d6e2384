"""A multi-vector encoder as a ranker: MaxSim of stored token vectors."""

from __future__ import annotations

from collections.abc import Iterator, Sequence

import numpy as np

from retrodistill.data.collection import Collection
from retrodistill.data.texts import Texts
from retrodistill.encoders.embeddings import TokenVectors, embed
from retrodistill.encoders.maxsim import best_documents, maxsim
from retrodistill.encoders.multi_vector import MultiVectorModel, Tokens
from retrodistill.rankers.protocol import Stage, distinct, pair_positions
from retrodistill.rankers.two_sided import TwoSidedRanker
from retrodistill.runs.run import Run

_BLOCK = 256  # documents whose token vectors are in memory at once


class MultiVectorRanker(TwoSidedRanker[MultiVectorModel]):
    """MaxSim of token vectors; search is exact."""

    can_score_corpus = is_cheap = False

    def search(self, queries: Texts, collection: Collection, k: int) -> Run:
        """The k documents of highest MaxSim."""
        tokens = embed(self.queries, queries.texts, "query", self.root)
        rows, scores = best_documents(tokens, self._blocks(collection), min(k, len(collection.documents)))
        if self.queries.similarity == "meanmaxsim":
            scores = scores / tokens.lengths[:, None]
        return Run.from_matrix(queries.ids, collection.documents.ids, rows, scores, name=self.name)

    def score(self, queries: Texts, collection: Collection, pairs: Run) -> Run:
        """The pairs with MaxSim, one query's documents at a time."""
        rows, columns = pair_positions(queries, collection, pairs)
        places, texts = distinct(rows, queries)
        tokens = embed(self.queries, texts, "query", self.root)
        document_places, document_texts = distinct(columns, collection.documents)
        store = TokenVectors(self.documents, "document", self.root)
        store.fill(document_texts)
        scores = np.empty(len(pairs), dtype=np.float32)
        for place in range(len(texts)):
            own = np.flatnonzero(places == place)
            documents = store.gather([document_texts[row] for row in document_places[own]])
            scores[own] = maxsim(tokens.slice(place, place + 1), documents)[0]
        if self.queries.similarity == "meanmaxsim":
            scores /= tokens.lengths[places]
        return pairs.with_scores(scores, self.name)

    def timed_stages(self, collection: Collection, k: int) -> Sequence[Stage]:
        """Encoding of queries, and MaxSim with every document, whose token vectors are in memory."""
        documents = list(self._blocks(collection))
        return lambda texts: self.queries.encode(texts, "query"), lambda tokens: best_documents(tokens, documents, k)

    def bytes_per_document(self, collection: Collection) -> float | None:
        """float16 token vectors."""
        tokens = sum(len(block.vectors) for _, block in self._blocks(collection))
        return 2.0 * self.documents.dimension * tokens / len(collection.documents)

    def _blocks(self, collection: Collection) -> Iterator[tuple[int, Tokens]]:
        texts = collection.documents
        store = TokenVectors(self.documents, "document", self.root)
        store.fill(texts.texts)
        for start in range(0, len(texts), _BLOCK):
            yield start, store.gather(texts.slice(start, start + _BLOCK))
