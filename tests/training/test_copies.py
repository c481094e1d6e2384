"""Documents with equal texts under several ids count as one document in training."""

from dataclasses import replace

import numpy as np
import pytest
import torch

from retrodistill.candidates.mining import distinct_documents
from retrodistill.data import Collection, Qrels, Texts
from retrodistill.data.collection import of_originals
from retrodistill.data.pseudo_queries import title_texts
from retrodistill.rankers.corpus import Products
from retrodistill.rankers.recorded import JudgmentRanker
from retrodistill.runs import Run
from retrodistill.training.groups import draw_groups
from retrodistill.training.lists import graded_positions, lists_from_run, lists_over_corpus
from retrodistill.training.loss import DistillationLoss, Term
from retrodistill.training.scorers import StoredVectorScorer
from retrodistill.training.settings import GroupSettings
from retrodistill.training.texts import training_texts

DOCUMENTS = {
    "a": ("Hearts", "the heart is red"),
    "b": ("Food", "olive and bread"),
    "copy-of-a": ("Hearts", "the heart is red"),
    "c": ("Sky", "stars and moons"),
    "copy-of-c": ("Sky", "stars and moons"),
}


@pytest.fixture
def collection():
    queries = {"q": "heart", "r": "star"}
    return Collection.from_parts(
        "copies", DOCUMENTS, queries, {"train": {"q": {"copy-of-a": 2, "a": 0}, "r": {"c": 1}}}
    )


class TestTexts:
    def test_originals_are_the_first_of_equal_texts(self, collection):
        assert collection.documents.originals.tolist() == [0, 1, 0, 3, 3]
        assert collection.documents.copies.tolist() == [False, False, True, False, True]
        whole = Texts(collection.documents.table.combine_chunks().slice(1, 3))  # offsets of a slice do not start at 0
        assert whole.originals.tolist() == [0, 1, 2]
        assert whole.copies is None
        assert Texts.from_pairs([]).originals.tolist() == []

    def test_loading_counts_copies_but_not_empty_texts(self, collection):
        assert [warning for warning in collection.warnings if "'copy-of-a', 'copy-of-c'" in warning and "2" in warning]
        empty = Collection.from_parts("e", {"a": "", "b": "", "c": "x"}, {}, {})
        assert not [warning for warning in empty.warnings if "another" in warning]


class TestCandidates:
    def test_a_query_has_the_best_of_equal_texts_once(self, collection):
        run = Run.from_dict({"q": {"copy-of-a": 5.0, "a": 1.0, "b": 3.0}, "r": {"copy-of-c": 2.0, "unknown": 1.0}})
        found = distinct_documents(run, collection.documents)
        assert found.to_dict() == {"q": {"a": 5.0, "b": 3.0}, "r": {"c": 2.0, "unknown": 1.0}}
        assert distinct_documents(found, collection.documents) is found

    def test_copies_of_a_relevant_document_are_relevant(self, collection):
        labels, documents = collection.relevance("train"), collection.documents
        assert of_originals(labels, documents).to_dict() == {"q": {"a": 2}, "r": {"c": 1}}
        assert graded_positions(collection.queries, documents, labels) == {0: {0: 2}, 1: {3: 1}}
        pairs = Run.from_dict({"q": dict.fromkeys(DOCUMENTS, 0.0)})
        found = JudgmentRanker("train").score(collection.queries, collection, pairs).to_dict()["q"]
        assert found == {"a": 2.0, "copy-of-a": 2.0, "b": 0.0, "c": 0.0, "copy-of-c": 0.0}
        assert Qrels.from_dict(collection.relevance("train").to_dict()).to_dict()["q"]["a"] == 0  # as they are


class TestLists:
    def test_a_copy_is_hidden_and_positive_with_its_original(self, collection):
        texts = training_texts(collection, Texts.from_pairs([]), titles=True, sentences=0)
        assert texts.sources.tolist() == [0, 1, 0, 3, 3]
        run = Run.from_dict({id_: {"copy-of-a": 3.0, "a": 2.0, "b": 1.0} for id_ in texts.texts.ids})
        hidden = lists_from_run(run, texts.texts, collection.documents, texts.sources)
        assert hidden.sizes.tolist() == [1, 1, 1, 2, 2]
        batch = lists_from_run(run, texts.texts, collection.documents, texts.sources, hide_source=False).batch(
            np.arange(5)
        )
        assert batch.mask.sum(dim=1).tolist() == [2] * 5
        assert batch.positives.tolist() == [0, 1, 0, -1, -1]

    def test_the_whole_corpus_has_each_text_once(self, collection):
        vectors = np.eye(5, dtype=np.float32)
        lists = lists_over_corpus(Products(vectors, vectors), np.array([0, 1, -1, -1, -1]))
        lists = replace(lists, copies=collection.documents.copies)
        assert lists.sizes.tolist() == [2, 2, 3, 3, 3]
        assert lists.batch(np.arange(5)).mask.sum(dim=1).tolist() == [2, 2, 3, 3, 3]

    def test_random_documents_of_groups_are_no_copies(self, collection):
        vectors = np.eye(5, dtype=np.float32)
        run = Run.from_dict({"q": {"a": 2.0, "b": 1.0}, "r": {"b": 2.0, "a": 1.0}})
        lists = lists_from_run(run, collection.queries, collection.documents, np.full(2, -1))
        lists = replace(lists, teacher=Products(vectors[:2], vectors))
        groups = draw_groups(lists, GroupSettings(documents=2, random=5), 0)
        for epoch in range(5):
            groups.start_epoch(epoch)
            assert not np.isin(groups.documents(np.arange(2)), [2, 4]).any()


class TestInBatch:
    def loss(self, collection, texts):
        run = Run.from_dict({id_: {"a": 2.0, "b": 1.0, "c": 0.5} for id_ in texts.texts.ids})
        lists = lists_from_run(run, texts.texts, collection.documents, texts.sources, hide_source=False)
        vectors = np.random.default_rng(0).standard_normal((5, 4)).astype(np.float32)
        term = Term("in-batch")
        return DistillationLoss(torch.nn.Linear(4, 4), [term], StoredVectorScorer(True, vectors), lists), lists

    def test_copies_are_not_each_others_negatives(self, collection):
        texts = training_texts(collection, Texts.from_pairs([]), titles=True, sentences=0)
        loss, lists = self.loss(collection, texts)
        batch = lists.batch(np.array([0, 2, 1]))  # the titles of a, of its copy, and of b
        inputs = loss._list_inputs(torch.ones(3, 4), batch, None)
        assert inputs["own_shared"].int().tolist() == [[1, 1, 0], [1, 1, 0], [0, 0, 1]]

    def test_nor_are_the_sources_of_equal_queries(self):
        documents = {"a": ("News", "the heart is red"), "b": ("News", "olive and bread"), "c": ("Sky", "stars")}
        collection = Collection.from_parts("titles", documents, {}, {})
        assert len(title_texts(collection)) == 3
        texts = training_texts(collection, Texts.from_pairs([]), titles=True, sentences=0)
        loss, lists = self.loss(collection, texts)
        inputs = loss._list_inputs(torch.ones(3, 4), lists.batch(np.arange(3)), None)
        assert inputs["own_shared"].int().tolist() == [[1, 1, 0], [1, 1, 0], [0, 0, 1]]
