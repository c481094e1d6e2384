import numpy as np
import pytest
from sentence_transformers import SentenceTransformer

from retrodistill.core.errors import UserError
from retrodistill.encoders.loading import load_bi_encoder
from retrodistill.students import dense_student

TEXTS = ["what star planet orbit", "bread and cheese"]


class TestStarting:
    def test_without_settings_it_is_the_model(self, tiny_model):
        np.testing.assert_array_equal(
            dense_student(tiny_model).encode(TEXTS), load_bi_encoder(tiny_model).encode(TEXTS)
        )

    def test_its_first_layers(self, tiny_model):
        student = dense_student(tiny_model, layers=1)
        np.testing.assert_array_equal(student.encode(TEXTS), load_bi_encoder(tiny_model, layers=1).encode(TEXTS))

    def test_a_maximum_length_cuts_texts(self, tiny_model):
        student = dense_student(tiny_model, max_length=4)
        np.testing.assert_allclose(student.encode("star planet orbit violin"), student.encode("star planet"), atol=1e-6)

    def test_a_similarity(self, tiny_model):
        assert str(dense_student(tiny_model, similarity="dot").similarity_fn_name) == "dot"


class TestTheProjection:
    def test_it_stands_before_the_normalization(self, tiny_model):
        student = dense_student(tiny_model, dimension=8)
        assert [type(module).__name__ for module in student] == ["Transformer", "Pooling", "Dense", "Normalize"]
        assert student.encode(TEXTS).shape == (2, 8)
        np.testing.assert_allclose(np.linalg.norm(student.encode(TEXTS), axis=1), 1, atol=1e-5)

    def test_it_is_a_linear_map_of_the_pooled_vector(self, tiny_model):
        student, model = dense_student(tiny_model, dimension=8), load_bi_encoder(tiny_model)
        pooled = SentenceTransformer(modules=list(model)[:2], device="cpu").encode(TEXTS)
        mapped = pooled @ student[2].linear.weight.detach().numpy().T
        expected = mapped / np.linalg.norm(mapped, axis=1, keepdims=True)
        np.testing.assert_allclose(student.encode(TEXTS), expected, atol=1e-5)

    def test_it_is_saved_inside_the_model(self, tiny_model, tmp_path):
        student = dense_student(tiny_model, dimension=48, layers=1)
        student.save_pretrained(str(tmp_path / "student"), create_model_card=False)
        again = SentenceTransformer(str(tmp_path / "student"), device="cpu")
        np.testing.assert_array_equal(again.encode(TEXTS), student.encode(TEXTS))
        assert again.encode(TEXTS).shape == (2, 48)

    def test_it_follows_the_seed(self, tiny_model):
        one, same, other = (dense_student(tiny_model, dimension=8, seed=seed).encode(TEXTS) for seed in (0, 0, 1))
        np.testing.assert_array_equal(one, same)
        assert not np.allclose(one, other)

    def test_the_models_own_width_adds_nothing(self, tiny_model):
        assert len(dense_student(tiny_model, dimension=32)) == 3

    def test_prompts_and_similarity_are_kept(self, tiny_model, tmp_path):
        model = load_bi_encoder(tiny_model)
        model.prompts = {"query": "what ", "document": ""}
        model.similarity_fn_name = "dot"
        model.save_pretrained(str(tmp_path / "prompted"), create_model_card=False)
        student = dense_student(str(tmp_path / "prompted"), dimension=8)
        assert student.prompts["query"] == "what "
        assert str(student.similarity_fn_name) == "dot"
        assert [type(module).__name__ for module in student] == ["Transformer", "Pooling", "Dense"]


class TestMistakes:
    @pytest.mark.parametrize("length", [0, 65])
    def test_a_length_that_the_model_cannot_read(self, tiny_model, length):
        with pytest.raises(UserError, match=rf"^max_length={length}: model {tiny_model} reads 1 to 64 tokens.$"):
            dense_student(tiny_model, max_length=length)

    def test_a_length_for_a_token_table(self, tiny_static):
        with pytest.raises(UserError, match=r"not a transformer"):
            dense_student(tiny_static, max_length=16)

    def test_too_many_layers(self, tiny_model):
        with pytest.raises(UserError, match=r"^layers=9: the model has 2; choose 1 to 2.$"):
            dense_student(tiny_model, layers=9)
