"""The student at the start of a stage: it proposes candidates and shows what it still has to learn."""

from __future__ import annotations

import hashlib
from functools import cached_property
from typing import Any

import numpy as np

from retrodistill.core.errors import UserError
from retrodistill.core.files import digest
from retrodistill.data.collection import Collection
from retrodistill.data.texts import Texts
from retrodistill.encoders.embeddings import embed
from retrodistill.encoders.encoder import Encoder
from retrodistill.encoders.vectors import exact_search
from retrodistill.rankers.protocol import Ranker, pair_texts
from retrodistill.runs.run import Run
from retrodistill.training.list_settings import CURRENT_STUDENT


class StudentSnapshot:
    """A student before a stage.

    Args:
        student: The student.
        kind: Its kind, of `retrodistill.students.registry`: says whether and how it searches.
        space: Encodes the documents that it searches; None where it encodes them itself.
        stored: (corpus, d) document vectors in the space's place.
    """

    def __init__(
        self,
        student: Any,
        kind: Any,
        space: Encoder | None = None,
        stored: np.ndarray | None = None,
    ) -> None:
        self.student, self.kind, self.space, self.stored = student, kind, space, stored

    @cached_property
    def fingerprint(self) -> str:
        """Digest of its documents and of its weights at the first call, before training changes them."""
        documents = (self.space or self.student).fingerprint("document")
        stored = None if self.stored is None else hashlib.blake2b(self.stored.tobytes(), digest_size=8).hexdigest()
        return digest(self.student.fingerprint("query"), documents, stored)

    def vectors(self, collection: Collection) -> np.ndarray:
        """(corpus, d) vectors of a dense student's documents.

        Raises:
            UserError: It has another width than the documents that it is to search.
        """
        if not self.kind.is_dense:
            raise UserError(f"{self.student.name} has no dense vectors.")
        documents, texts = self.stored, collection.documents.texts
        if documents is None and self.space is None:
            self.kind.store_documents(self.student, texts)
        if documents is None:
            documents = embed(self.space or self.student, texts, "document")
        if documents.shape[1] != self.student.dimension:
            raise UserError(
                f"the student has {self.student.dimension} dimensions, the stored documents {documents.shape[1]}; set "
                "student.dimension to 'space'."
            )
        return documents

    def search(self, collection: Collection, queries: Texts, k: int) -> Run:
        """The k documents of each query that it ranks highest.

        Raises:
            UserError: It scores pairs and cannot search.
        """
        corpus = collection.documents
        k = min(k, len(corpus))
        if self.kind.is_dense:
            asked = embed(self.student, queries.texts, "query")
            rows, scores = exact_search(asked, self.vectors(collection), k)
            return Run.from_matrix(queries.ids, corpus.ids, rows, scores, name=CURRENT_STUDENT)
        if self.kind.can_search:
            ranker: Ranker = self.kind.ranker(self.student, None)
            return ranker.search(queries, collection, k).renamed(CURRENT_STUDENT)
        raise UserError(f"{self.student.name} scores pairs and cannot search; take candidates from bm25 or dense.")

    def ranks(self, collection: Collection, queries: Texts, candidates: Run, k: int) -> Run:
        """What it ranks highest: of the corpus where it can search, of the candidates where it scores pairs."""
        if self.kind.can_search:
            return self.search(collection, queries, k)
        pairs = list(zip(*pair_texts(queries, collection, candidates), strict=True))
        return candidates.with_scores(self.student.score(pairs).astype(np.float64), CURRENT_STUDENT).top(k)
