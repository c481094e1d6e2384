"""The loss on documents in int8 and in bits: what codes represent, where gradients go, and stages that have it."""

import numpy as np
import pytest
import torch
from losses import groups_loss, stored_loss
from torch.nn.functional import normalize

from retrodistill.core.errors import UserError
from retrodistill.encoders import load_encoder
from retrodistill.encoders.loading import load_bi_encoder
from retrodistill.encoders.vectors import leading
from retrodistill.indexes.factory import build_faiss
from retrodistill.rankers.loading import load_ranker
from retrodistill.recipes.student_settings import StudentSettings
from retrodistill.recipes.students import build_student
from retrodistill.students.coded_documents import CodedVectors, QuantizedLoss, straight_through
from retrodistill.students.dense_variants import LeadingVectors
from retrodistill.students.registry import run_stage
from retrodistill.training.lists import Lists
from retrodistill.training.loss import Term
from retrodistill.training.training_data import TrainingData

TEXTS = ["what star planet", "violin chord", "bread", "judge"]
GENERATOR = np.random.default_rng(0)
DOCUMENTS = GENERATOR.standard_normal((50, 32)).astype("f4")
SCORES = GENERATOR.standard_normal((4, 3)).astype("f4")
PLACES = np.array([[0, 1, 2], [4, 3, -1], [2, 0, 1], [3, 1, -1]], dtype=np.int32)
LISTS = Lists(PLACES, SCORES, np.full(4, -1), np.full(4, -1))
KL = Term("kl", student_temperature=0.1, teacher_temperature=0.5)


@pytest.fixture
def model(tiny_model):
    return load_bi_encoder(tiny_model).eval()


def test_one_document_has_no_codes():
    with pytest.raises(UserError, match="two or more documents, and there is 1"):
        CodedVectors(np.ones((1, 8), dtype=np.float32), "binary")


class TestStoredVectors:
    @pytest.mark.parametrize(("precision", "factory"), [("int8", "SQ8"), ("binary", "PQ32x1")])
    def test_are_what_the_index_of_the_codes_decodes(self, precision, factory):
        index = build_faiss(factory, DOCUMENTS)
        np.testing.assert_array_equal(CodedVectors(DOCUMENTS, precision)[:], index.reconstruct_n(0, 50))

    def test_rows_of_any_shape(self):
        coded = CodedVectors(DOCUMENTS, "binary")
        rows = np.array([[0, 3, 3], [49, 1, 0]])
        np.testing.assert_array_equal(coded[rows], coded[:][rows])

    def test_of_leading_dimensions(self):
        cut = LeadingVectors(DOCUMENTS, 8, unit=True)
        expected = CodedVectors(leading(DOCUMENTS, 8, unit=True), "int8")
        np.testing.assert_array_equal(CodedVectors(cut, "int8")[:], expected[:])

    def test_are_coded_block_by_block(self, monkeypatch):
        whole = CodedVectors(DOCUMENTS, "binary")[:]
        monkeypatch.setattr("retrodistill.students.coded_documents._BLOCK", 7)
        np.testing.assert_array_equal(CodedVectors(DOCUMENTS, "binary")[:], whole)


class TestStraightThrough:
    def test_a_bit_is_the_sign_at_the_mean_magnitude(self):
        vectors = torch.tensor([[3.0, -1.0], [0.0, 4.0]])
        assert straight_through(vectors, "binary").tolist() == [[2.0, -2.0], [-2.0, 2.0]]

    def test_int8_has_256_levels_of_each_dimension(self):
        vectors = torch.from_numpy(DOCUMENTS)
        coded = straight_through(vectors, "int8")
        step = (vectors.amax(0) - vectors.amin(0)) / 255
        levels = (coded - vectors.amin(0)) / step
        torch.testing.assert_close(levels, levels.round(), atol=1e-3, rtol=0)
        assert ((coded - vectors).abs() <= step / 2 + 1e-6).all()

    @pytest.mark.parametrize("precision", ["int8", "binary"])
    def test_the_gradient_is_that_of_the_vectors(self, precision):
        vectors = torch.from_numpy(DOCUMENTS).requires_grad_()
        weights = torch.from_numpy(GENERATOR.standard_normal((50, 32)).astype("f4"))
        (straight_through(vectors, precision) * weights).sum().backward()
        torch.testing.assert_close(vectors.grad, weights)

    def test_equal_vectors_are_their_own_int8_code(self):
        vectors = torch.full((3, 4), 0.7)
        torch.testing.assert_close(straight_through(vectors, "int8"), vectors)


class TestLoss:
    def test_of_stored_documents_is_the_loss_and_that_on_their_codes(self, model):
        coded = CodedVectors(DOCUMENTS, "binary")
        plain, on_codes = (stored_loss(model, [KL], documents=given, lists=LISTS) for given in (DOCUMENTS, coded))
        loss = QuantizedLoss(model, plain, on_codes, "binary")
        features = [model.preprocess(TEXTS)]
        parts = loss(features, torch.arange(4))
        assert list(parts) == ["kl", "kl@binary"]
        by_hand = stored_loss(model, [KL], documents=coded[:], lists=LISTS)(features, torch.arange(4))
        torch.testing.assert_close(parts["kl@binary"], by_hand["kl"])

    def test_of_encoded_documents_codes_them_and_not_the_queries(self, model):
        scores, mask = np.array([[2.0, 1.0], [0.5, 3.0]]), np.ones((2, 2))
        plain, on_codes = (groups_loss(model, [KL], scores, mask, [0, 0]) for _ in range(2))
        vectors = [normalize(torch.from_numpy(GENERATOR.standard_normal((2, 32)).astype("f4"))) for _ in range(3)]
        parts = QuantizedLoss(model, plain, on_codes, "binary").compute_loss_from_embeddings(vectors, torch.arange(2))
        signs = [vectors[0], *(normalize(one.sign()) for one in vectors[1:])]
        torch.testing.assert_close(parts["kl@binary"], plain.compute_loss_from_embeddings(signs, torch.arange(2))["kl"])
        torch.testing.assert_close(parts["kl"], plain.compute_loss_from_embeddings(vectors, torch.arange(2))["kl"])


STAGE = {
    "objectives": "kl",
    "candidates": {"depth": "all"},
    "texts": {"titles": True, "sentences": 0},
    "training": {"max_steps": 3, "batch_size": 8, "learning_rate": 1e-3, "warmup": 0},
}


class TestStages:
    @pytest.fixture
    def trained(self, tiny, tiny_model, tmp_path):
        space = load_encoder(f"dense:{tiny_model}")

        def trained(model, **changed):
            stage = {**STAGE, "quantize": "binary", **changed}
            own = stage.get("train") == "both_encoders"
            settings = StudentSettings.model_validate(
                {"model": model, "documents": "student" if own else "frozen", "stages": [stage]}
            )
            query = tiny.split("train")
            data = TrainingData(tiny, query, load_ranker("bm25"), space, tmp_path / "out", own_documents=own)
            return run_stage(build_student(settings, data), settings.stages[0], data, tmp_path / "work", "training")

        return trained

    def test_queries_of_a_static_student_learn_to_search_codes(self, trained):
        losses = trained("static", objectives=["leaf", "kl"]).losses[-1]
        assert {"leaf", "kl", "kl@binary"} <= set(losses)
        assert "leaf@binary" not in losses  # it sees no documents

    def test_both_encoders_learn_codes_at_every_truncation(self, trained):
        groups = {"documents": 4, "random": 2}
        losses = trained("static", train="both_encoders", matryoshka=[8], quantize="int8", groups=groups).losses[-1]
        assert {"kl", "kl@int8", "kl@8", "kl@int8@8"} <= set(losses)

    def test_training_for_bits_brings_their_scores_closer_to_the_teachers(self, trained):
        steps = {"epochs": 30, "batch_size": 128, "learning_rate": 3e-3}
        losses = [step["kl@binary"] for step in trained("static", training=steps).losses if "kl@binary" in step]
        assert losses[-1] < losses[0]


class TestSettings:
    @pytest.mark.parametrize(
        ("model", "stage", "message"),
        [
            ("static", {"objectives": "leaf", "quantize": "binary"}, "quantize is about documents"),
            ("sparse:x", {"objectives": "kl", "quantize": "int8", "train": "both_encoders"}, "quantize .* sparse"),
            ("static", {"objectives": "kl", "quantize": "int4"}, "'int8' or 'binary'"),
        ],
    )
    def test_stages_that_cannot_have_it(self, model, stage, message):
        with pytest.raises(ValueError, match=message):
            StudentSettings.model_validate({"model": model, "stages": [stage]})

    def test_a_stage_of_another_kind_is_refused_before_it_starts(self, tiny, tiny_model, tmp_path):
        plain = {"objectives": "kl", "train": "both_encoders"}
        settings = StudentSettings.model_validate({"model": f"sparse:{tiny_model}", "stages": [plain]})
        data = TrainingData(
            tiny, tiny.split("train"), load_ranker("bm25"), load_encoder(f"dense:{tiny_model}"), tmp_path
        )
        stage = settings.stages[0].model_copy(update={"quantize": "int8"})
        with pytest.raises(UserError, match="quantize codes vectors of dense and static students"):
            run_stage(build_student(settings, data), stage, data, tmp_path, "training")
