"""Lexical terms: BM25's part of a sparse student's documents."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from retrodistill.core.errors import UserError
from retrodistill.data import Collection
from retrodistill.data.pseudo_queries import title_texts
from retrodistill.encoders.loading import load_sparse
from retrodistill.encoders.sparse import SparseTextEncoder
from retrodistill.rankers.loading import load_ranker
from retrodistill.students.lexical_terms import LexicalTerms, lexical_terms_of
from retrodistill.students.registry import run_stage
from retrodistill.students.sparse import sparse_student
from retrodistill.students.sparse_training import TermHead
from retrodistill.students.stored_states import head_of, stored_states
from retrodistill.training.settings import StageSettings
from retrodistill.training.training_data import TrainingData


@pytest.fixture
def student(tiny: Collection, tiny_model: str) -> SparseTextEncoder:
    made = sparse_student(tiny_model, tiny.documents, queries="inference-free", lexical_terms=True)
    return SparseTextEncoder(made, "sparse:student")


class TestTheModule:
    def test_it_adds_bm25s_saturation_of_each_own_token(self) -> None:
        module = LexicalTerms(6, average=3.0, special=[0], k1=1.2, b=0.5)
        with torch.no_grad():
            module.weight[4] = 2.0
        features = {
            "input_ids": torch.tensor([[0, 3, 4, 4, 0], [5, 0, 0, 0, 0]]),
            "attention_mask": torch.tensor([[1, 1, 1, 1, 0], [1, 0, 0, 0, 0]]),
            "sentence_embedding": torch.full((2, 6), 0.25),
        }
        found = module(features)["sentence_embedding"].detach().numpy()
        length = 1.2 * (1 - 0.5 + 0.5 * 4 / 3)
        by_hand = np.full((2, 6), 0.25)
        by_hand[0, 3] += 2.2 / (1 + length)
        by_hand[0, 4] += 2.0 * 2 * 2.2 / (2 + length)
        by_hand[1, 5] += 2.2 / (1 + 1.2 * (1 - 0.5 + 0.5 / 3))
        assert found == pytest.approx(by_hand, abs=1e-6)

    def test_special_tokens_never_have_weight_nor_learn_one(self) -> None:
        module = LexicalTerms(4, average=2.0, special=[0])
        features = {
            "input_ids": torch.tensor([[0, 1]]),
            "attention_mask": torch.tensor([[1, 1]]),
            "sentence_embedding": torch.zeros(1, 4),
        }
        found = module(features)["sentence_embedding"]
        found.sum().backward()
        assert float(found[0, 0].detach()) == 0
        assert float(module.weight.grad[0]) == 0  # type: ignore[index]
        assert float(module.weight.grad[1]) > 0  # type: ignore[index]


class TestStudents:
    def test_a_folder_loads_back_with_the_same_weights(
        self, student: SparseTextEncoder, tiny: Collection, tmp_path
    ) -> None:
        own = lexical_terms_of(student)
        assert own is not None
        with torch.no_grad():
            own.weight.mul_(torch.rand(len(own.weight), generator=torch.manual_seed(0)))
        student.model.save_pretrained(str(tmp_path / "student"), create_model_card=False)
        loaded = SparseTextEncoder(load_sparse(str(tmp_path / "student")), "sparse:loaded")
        texts = tiny.documents.texts[:5]
        assert np.array_equal(loaded.encode(texts, "document").todense(), student.encode(texts, "document").todense())

    def test_stored_states_give_the_weights_that_the_model_gives(
        self, student: SparseTextEncoder, tiny: Collection
    ) -> None:
        texts = tiny.documents.texts
        with torch.no_grad():
            head_of(student).linear.bias.add_(1.0)  # so that the head finds terms besides
            head = TermHead(student, stored_states(student, texts, "document"), texts)
            found = head.weights(head.parameters, torch.arange(student.dimension), np.arange(len(texts)))
        wanted = student.encode(texts, "document").todense()
        assert (wanted > 0).sum(axis=1).mean() > 10
        assert found.numpy() == pytest.approx(wanted, abs=5e-3)  # states are float16

    def test_queries_through_a_model_are_refused(self, tiny: Collection, tiny_model: str) -> None:
        with pytest.raises(UserError, match="set lexical_terms: false"):
            sparse_student(tiny_model, tiny.documents, queries="model", lexical_terms=True)


class TestTraining:
    def test_documents_expand_to_terms_of_training_texts_only(
        self, student: SparseTextEncoder, tiny: Collection, tmp_path
    ) -> None:
        training = {"max_steps": 3, "batch_size": 4, "learning_rate": 1e-2}
        stage = {"objectives": "kl", "train": "head", "texts": {"titles": True, "sentences": 0}, "training": training}
        settings = StageSettings.model_validate({**stage, "candidates": {"depth": 6, "sources": ["bm25"]}})
        queries = tiny.split("train")
        data = TrainingData(tiny, queries, load_ranker("bm25"), None, tmp_path / "out", own_documents=True)
        texts = tiny.documents.texts
        before = student.encode(texts, "document")
        run_stage(student.model, settings, data, tmp_path / "work", "")
        tokenizer = student.model.tokenizer
        taught = {
            token for text in [*queries.texts, *title_texts(tiny).texts] for token in tokenizer(text)["input_ids"]
        }
        expansions, dropped = 0, 0
        after = student.encode(texts, "document")
        for row, text in enumerate(texts):
            own = set(tokenizer(text)["input_ids"])
            assert set(after[[row]].indices.tolist()) <= own | taught
            expansions += len(set(after[[row]].indices.tolist()) - own)
            dropped += len(set(before[[row]].indices.tolist()) - own - taught)
        assert expansions > 0
        assert dropped > 0
