"""Hybrid students: the loss sees what the saved model gives."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from losses import over_corpus
from sentence_transformers import SentenceTransformer

from retrodistill.core.errors import UserError
from retrodistill.encoders.any_encoder import load_encoder
from retrodistill.encoders.embeddings import EmbeddingStore
from retrodistill.encoders.encoder import Encoder
from retrodistill.students.dense import dense_student
from retrodistill.students.hybrid import (
    LexicalHalfScorer,
    dense_half,
    dense_map,
    hybrid_student,
    is_hybrid,
    lexical_table,
    store_vectors,
    token_bags,
)
from retrodistill.students.stored_states import only_trained
from retrodistill.training.loss import DistillationLoss, Term


@pytest.fixture
def hybrid(tiny, tiny_model):
    return hybrid_student(dense_student(tiny_model), 16, tiny.documents)


@pytest.fixture
def loss(hybrid, tiny):
    dense = dense_half(hybrid, "dense:student")
    texts = tiny.split("train")
    scores = np.random.default_rng(0).standard_normal((len(texts), len(tiny.documents))).astype(np.float32)
    scorer = LexicalHalfScorer(
        hybrid,
        dense.encode(texts.texts, "query"),
        dense.encode(tiny.documents.texts, "document"),
        token_bags(hybrid, tiny.documents.texts),
    )
    return DistillationLoss(
        hybrid,
        [Term("kl")],
        scorer,
        over_corpus(scores, np.full(len(texts), -1)),
    )


class TestModel:
    def test_a_vector_is_the_dense_half_beside_the_root_mean_sum_of_rows(self, hybrid, tiny):
        text = tiny.documents.texts[0]
        dense = dense_half(hybrid, "dense:student").encode([text], "document")[0]
        ids = hybrid.tokenizer(text)["input_ids"]
        lexical = lexical_table(hybrid).detach().numpy()[ids].sum(axis=0) / np.sqrt(len(ids))
        expected = np.concatenate([dense, lexical])
        assert hybrid.encode(text) == pytest.approx(expected / np.linalg.norm(expected), abs=1e-6)

    def test_it_saves_and_loads_as_a_stock_folder(self, hybrid, tiny, tmp_path):
        hybrid.save_pretrained(str(tmp_path / "hybrid"), create_model_card=False)
        loaded = SentenceTransformer(str(tmp_path / "hybrid"))
        assert is_hybrid(loaded)
        assert loaded.get_embedding_dimension() == 48
        assert np.array_equal(loaded.encode(tiny.documents.texts[:3]), hybrid.encode(tiny.documents.texts[:3]))

    def test_its_dense_half_is_the_model_it_started_from(self, hybrid, tiny_model):
        start = load_encoder(f"dense:{tiny_model}")
        assert dense_half(hybrid, "dense:student").fingerprint("document") == start.fingerprint("document")

    def test_special_tokens_start_at_zero(self, hybrid):
        assert not lexical_table(hybrid)[hybrid.tokenizer.all_special_ids].any()

    def test_an_odd_sum_of_widths_is_refused(self, tiny, tiny_model):
        with pytest.raises(UserError, match="sum must be even"):
            hybrid_student(dense_student(tiny_model), 15, tiny.documents)

    def test_a_plain_model_has_no_dense_half(self, tiny_model):
        with pytest.raises(UserError, match="no lexical half"):
            dense_half(dense_student(tiny_model), "dense:plain")


class TestLoss:
    def test_its_document_vectors_are_the_models(self, loss, hybrid, tiny):
        assert loss.scorer.document_vectors() == pytest.approx(hybrid.encode(tiny.documents.texts), abs=1e-5)

    def test_its_value_is_the_objective_on_encoded_vectors(self, loss, hybrid, tiny):
        texts = tiny.split("train").texts[:4]
        features = hybrid.preprocess(texts)
        value = loss([features], torch.arange(4))["kl"]
        scores = torch.from_numpy(hybrid.encode(texts) @ hybrid.encode(tiny.documents.texts).T)
        targets = torch.from_numpy(loss._lists.teacher.queries[:4])
        teacher = torch.softmax(targets, dim=1)
        expected = (teacher * (teacher.log() - torch.log_softmax(scores / 0.05, dim=1))).sum(dim=1).mean()
        assert value.item() == pytest.approx(expected.item(), abs=1e-4)

    def test_its_gradient_is_that_of_finite_differences(self, loss, hybrid, tiny):
        features = hybrid.preprocess(tiny.split("train").texts[:4])
        table = lexical_table(hybrid)
        loss([features], torch.arange(4))["kl"].backward()
        token = int(features["input_ids"][0, 1])
        step = 1e-2
        values = []
        for sign in (1, -1):
            with torch.no_grad():
                table[token, 0] += sign * step
                values.append(loss([features], torch.arange(4))["kl"].item())
                table[token, 0] -= sign * step
        assert table.grad[token, 0].item() == pytest.approx((values[0] - values[1]) / (2 * step), rel=0.05, abs=1e-3)

    def test_only_the_table_and_the_map_learn(self, loss, hybrid):
        with only_trained(hybrid, loss.scorer.trained):
            learning = [name for name, parameter in hybrid.named_parameters() if parameter.requires_grad]
        assert [name.split(".", 1)[1] for name in learning] == ["emb_layer.weight", "linear.weight"]


class TestStoredVectors:
    def test_they_are_what_the_model_encodes(self, hybrid, tiny):
        student = Encoder(hybrid, "dense:hybrid")
        with torch.no_grad():
            dense_map(hybrid).add_(0.1 * torch.randn(32, 32))
        store_vectors(student, tiny.documents.texts, "document")
        stored = EmbeddingStore(student, "document")
        assert not stored.missing(tiny.documents.texts)
        assert stored.gather(tiny.documents.texts) == pytest.approx(
            student.encode(tiny.documents.texts, "document"), abs=1e-5
        )


def loss_of(hybrid, tiny, name, sources):
    dense = dense_half(hybrid, "dense:student")
    texts = tiny.split("train")
    scores = np.random.default_rng(0).standard_normal((len(texts), len(tiny.documents))).astype(np.float32)
    scorer = LexicalHalfScorer(
        hybrid,
        dense.encode(texts.texts, "query"),
        dense.encode(tiny.documents.texts, "document"),
        token_bags(hybrid, tiny.documents.texts),
    )
    return DistillationLoss(
        hybrid,
        [Term(name)],
        scorer,
        over_corpus(scores, sources, hide_source=False),
    )


def value_of(loss, hybrid, texts):
    features = hybrid.preprocess(texts)
    return float(next(iter(loss([features], torch.arange(len(texts))).values())).detach())


class TestTermsThatNeedMoreThanScores:
    def test_without_forgetting_is_zero_until_the_student_moves(self, hybrid, tiny):
        texts = tiny.split("train").texts[:4]
        loss = loss_of(hybrid, tiny, "lwf", np.full(42, -1))
        assert value_of(loss, hybrid, texts) == pytest.approx(0, abs=1e-6)
        with torch.no_grad():
            lexical_table(hybrid).add_(torch.randn(lexical_table(hybrid).shape, generator=torch.manual_seed(0)))
        assert value_of(loss, hybrid, texts) > 1e-3

    def test_in_batch_negatives_are_the_other_texts_own_documents(self, hybrid, tiny):
        texts, own = tiny.split("train").texts[:4], np.arange(42) % 60
        found = value_of(loss_of(hybrid, tiny, "in-batch", own), hybrid, texts)
        scores = hybrid.encode(texts) @ hybrid.encode(tiny.documents.texts[:4]).T / 0.05
        by_hand = np.mean([np.log(np.exp(row - row[place]).sum()) for place, row in enumerate(scores)])
        assert found == pytest.approx(by_hand, rel=1e-4)

    def test_in_batch_margins_are_the_teachers(self, hybrid, tiny):
        texts, own = tiny.split("train").texts[:4], np.arange(42) % 60
        loss = loss_of(hybrid, tiny, "in-batch-margin-mse", own)
        found = value_of(loss, hybrid, texts)
        term = loss.terms[0]
        teacher = loss._lists.teacher.queries[:4, :4] / term.teacher_temperature
        scores = hybrid.encode(texts) @ hybrid.encode(tiny.documents.texts[:4]).T / term.student_temperature
        off = ~np.eye(4, dtype=bool)
        margins = (np.diag(scores)[:, None] - scores) - (np.diag(teacher)[:, None] - teacher)
        assert found == pytest.approx(float((margins[off] ** 2).mean()), rel=1e-4)
