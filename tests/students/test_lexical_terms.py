"""Lexical terms: BM25's part of a sparse student's documents."""

from __future__ import annotations

import tempfile
from collections.abc import Callable
from pathlib import Path

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
from retrodistill.students.trimming import _cut_terms
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
    @pytest.fixture
    def train(self, student: SparseTextEncoder, tiny: Collection, tmp_path) -> Callable[[str], set[int]]:
        """Trains a stage on texts, and returns their terms."""
        queries = tiny.split("train")
        data = TrainingData(tiny, queries, load_ranker("bm25"), None, tmp_path / "out", own_documents=True)
        training = {"max_steps": 3, "batch_size": 4, "learning_rate": 1e-2}
        stage = {"objectives": "kl", "train": "head", "training": training}

        def train(on: str) -> set[int]:
            texts = {"queries": on == "queries", "titles": on == "titles", "sentences": 0}
            settings = {**stage, "texts": texts, "candidates": {"depth": 6, "sources": ["bm25"]}}
            run_stage(
                student.model, StageSettings.model_validate(settings), data, Path(tempfile.mkdtemp(dir=tmp_path)), ""
            )
            tokens = student.model.tokenizer(queries.texts if on == "queries" else title_texts(tiny).texts)
            return {token for ids in tokens["input_ids"] for token in ids}

        return train

    def test_documents_expand_to_terms_of_training_texts_only(
        self, student: SparseTextEncoder, tiny: Collection, train: Callable[[str], set[int]]
    ) -> None:
        texts = tiny.documents.texts
        before = student.encode(texts, "document")
        taught = train("queries") | train("titles")
        expansions, dropped = 0, 0
        after = student.encode(texts, "document")
        for row, text in enumerate(texts):
            own = set(student.model.tokenizer(text)["input_ids"])
            assert set(after[[row]].indices.tolist()) <= own | taught
            expansions += len(set(after[[row]].indices.tolist()) - own)
            dropped += len(set(before[[row]].indices.tolist()) - own - taught)
        assert expansions > 0
        assert dropped > 0

    def test_a_later_stage_adds_terms_and_takes_none(
        self, student: SparseTextEncoder, train: Callable[[str], set[int]]
    ) -> None:
        own = lexical_terms_of(student)
        assert own is not None
        assert own.expanded is None
        terms, found = {}, []
        for on in ("queries", "titles", "queries"):
            terms[on] = train(on) - set(student.model.tokenizer.all_special_ids)
            found.append(set(own.expanded.nonzero()[:, 0].tolist()))
        assert found[0] == terms["queries"]
        assert found[0] < found[1] <= terms["queries"] | terms["titles"]  # not all titles are training texts
        assert found[2] == found[1]

    def test_the_limit_is_saved_and_trimmed_and_scored(
        self, student: SparseTextEncoder, tiny: Collection, train: Callable[[str], set[int]], tmp_path
    ) -> None:
        train("queries")
        texts = tiny.documents.texts
        wanted = student.encode(texts, "document")
        student.model.save_pretrained(str(tmp_path / "saved"), create_model_card=False)
        loaded = load_sparse(str(tmp_path / "saved"))
        again = SparseTextEncoder(loaded, "sparse:again")
        assert abs(again.encode(texts, "document") - wanted).max() == 0
        with torch.no_grad():
            head = TermHead(again, stored_states(again, texts, "document"), texts)
            found = head.weights(head.parameters, torch.arange(again.dimension), np.arange(len(texts)))
        assert found.numpy() == pytest.approx(wanted.todense(), abs=5e-3)  # states are float16
        kept = np.arange(0, again.dimension, 2)
        module, limit = lexical_terms_of(again), lexical_terms_of(student).expanded  # type: ignore[union-attr]
        _cut_terms(module, torch.from_numpy(kept), {old: new for new, old in enumerate(range(again.dimension))})
        assert torch.equal(module.expanded, limit[kept])  # type: ignore[union-attr,index]

    def test_settings_without_a_limit_are_those_of_earlier_versions(self, student: SparseTextEncoder) -> None:
        own = lexical_terms_of(student)
        assert own is not None
        assert list(own.get_config_dict()) == ["dimension", "average", "special", "k1", "b"]
        assert list(own.state_dict()) == ["weight"]
