"""Searching by stored hidden states gives what a student's index gives."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest

from retrodistill.data import Collection
from retrodistill.encoders.embeddings import SparseStore, TokenVectors
from retrodistill.encoders.multi_vector import MultiVectorModel
from retrodistill.encoders.sparse import SparseTextEncoder
from retrodistill.indexes import build_index
from retrodistill.indexes.inverted import InvertedSettings
from retrodistill.indexes.multi_vector import MultiVectorSettings
from retrodistill.runs.run import Run
from retrodistill.students.multi_vector import multi_vector_student
from retrodistill.students.registry import as_student, kind_of
from retrodistill.students.sparse import sparse_student
from retrodistill.students.stored_states import stored_states


def same(found: Run, wanted: Run, tolerance: float) -> bool:
    """The same documents at the top with nearly the same scores."""
    ours, theirs = found.to_dict(), wanted.to_dict()
    return set(ours) == set(theirs) and all(
        np.allclose(sorted(ours[query].values()), sorted(theirs[query].values()), rtol=tolerance, atol=tolerance)
        for query in theirs
    )


class TestStoredSearch:
    def test_tokens_rank_as_their_index_ranks(self, tiny: Collection, tiny_model: str) -> None:
        student = as_student(multi_vector_student(tiny_model, tiny.documents.texts, dimension=8))
        assert isinstance(student, MultiVectorModel)
        index = build_index(tiny, student, settings=MultiVectorSettings(codec="float32"))
        found = kind_of(student.model).exhaustive(student, "student").search(tiny.queries, tiny, 3)
        assert same(found, index.search(tiny.queries, tiny, 3), 2e-3)

    @pytest.mark.parametrize("queries", ["inference-free", "model"])
    def test_terms_rank_as_their_index_ranks(self, tiny: Collection, tiny_model: str, queries: Any) -> None:
        student = as_student(sparse_student(tiny_model, tiny.documents, queries=queries))
        assert isinstance(student, SparseTextEncoder)
        index = build_index(tiny, student, settings=InvertedSettings(bits=None))
        found = kind_of(student.model).exhaustive(student, "student").search(tiny.queries, tiny, 3)
        assert same(found, index.search(tiny.queries, tiny, 3), 2e-3)


class TestStoredDocuments:
    @pytest.mark.parametrize("kind", ["sparse", "multi-vector"])
    def test_an_index_is_built_from_stored_states(
        self, tiny: Collection, tiny_model: str, kind: str, monkeypatch
    ) -> None:
        corpus = tiny.documents
        made = (
            sparse_student(tiny_model, corpus, queries="inference-free", lexical_terms=True)
            if kind == "sparse"
            else multi_vector_student(tiny_model, corpus.texts, dimension=12)
        )
        student = as_student(made)
        assert isinstance(student, (SparseTextEncoder, MultiVectorModel))
        stored_states(student, corpus.texts, "document")
        wanted = student.encode(corpus.texts, "document")
        kind_of(student.model).store_documents(student, corpus.texts)
        monkeypatch.setattr(type(student), "encode", None)  # nothing is encoded again
        if isinstance(student, SparseTextEncoder):
            found = SparseStore(student, "document").gather(corpus.texts)
            assert found.todense() == pytest.approx(wanted.todense(), abs=5e-3)
        else:
            index = build_index(tiny, student, settings=MultiVectorSettings(codec="float32"))
            assert len(index) == len(corpus)
            found = TokenVectors(student, "document").gather(corpus.texts)
            assert found.bounds.tolist() == wanted.bounds.tolist()
            assert found.vectors == pytest.approx(wanted.vectors, abs=5e-3)

    def test_without_states_nothing_is_stored(self, tiny: Collection, tiny_model: str) -> None:
        student = as_student(multi_vector_student(tiny_model, tiny.documents.texts, dimension=7))
        assert isinstance(student, MultiVectorModel)
        texts = [f"{text} again" for text in tiny.documents.texts]
        kind_of(student.model).store_documents(student, texts)
        assert len(TokenVectors(student, "document").missing(texts)) == len(texts)
