import numpy as np
import pytest
import torch

from retrodistill.core.errors import UserError
from retrodistill.encoders.any_encoder import load_encoder
from retrodistill.encoders.multi_vector import MultiVectorModel
from retrodistill.students.multi_vector import multi_vector_student
from retrodistill.students.stored_states import head_of


@pytest.fixture
def corpus(tiny):
    return tiny.documents.texts


def products(model, texts):
    tokens = MultiVectorModel(model, "multi-vector:s").encode(texts, "document").vectors
    return tokens @ tokens.T


class TestStart:
    def test_the_projection_keeps_the_products_of_tokens_better_than_chance(self, tiny_model, corpus):
        whole, cut = (multi_vector_student(tiny_model, corpus, dimension=size) for size in (None, 16))
        error = np.abs(products(cut, corpus[:5]) - products(whole, corpus[:5])).mean()
        basis = np.linalg.qr(np.random.default_rng(0).standard_normal((32, 16)))[0].T
        head_of(MultiVectorModel(cut, "multi-vector:s")).linear.weight.data.copy_(torch.tensor(basis))
        assert error < 0.7 * np.abs(products(cut, corpus[:5]) - products(whole, corpus[:5])).mean()

    def test_token_vectors_are_unit_vectors_of_the_width(self, tiny_model, corpus):
        tokens = MultiVectorModel(multi_vector_student(tiny_model, corpus, dimension=16), "m").encode(
            corpus[:3], "query"
        )
        assert tokens.dimension == 16
        np.testing.assert_allclose(np.linalg.norm(tokens.vectors, axis=1), 1, atol=1e-5)

    def test_layers_and_length_are_cut(self, tiny_model, corpus):
        model = multi_vector_student(tiny_model, corpus, dimension=8, layers=1, max_length=6)
        assert len(model[0].auto_model.encoder.layer) == 1
        assert MultiVectorModel(model, "m").encode(corpus[:3], "document").lengths.max() == 6

    def test_expansion_fills_queries_and_no_documents(self, tiny_model, corpus):
        model = MultiVectorModel(multi_vector_student(tiny_model, corpus, expansion=12), "m")
        assert model.encode(["a star", "the judge and the jury"], "query").lengths.tolist() == [12, 12]
        assert model.encode(["a star"], "document").lengths.tolist() == [4]

    def test_it_starts_again_from_its_folder(self, tiny_model, corpus, tmp_path):
        model = multi_vector_student(tiny_model, corpus, dimension=16, expansion=12)
        model.save_pretrained(str(tmp_path / "saved"), create_model_card=False)
        again = multi_vector_student(str(tmp_path / "saved"), corpus)
        found = [MultiVectorModel(one, "m").encode(["a star"], "query").vectors for one in (model, again)]
        np.testing.assert_array_equal(*found)
        loaded = load_encoder(f"multi-vector:{tmp_path / 'saved'}")
        np.testing.assert_array_equal(loaded.encode(["a star"], "query").vectors, found[0])


class TestMistakes:
    def test_a_width_that_the_transformer_does_not_have(self, tiny_model, corpus):
        with pytest.raises(UserError, match=r"^dimension=64: tokens by .* have 32; choose from 1 to 32"):
            multi_vector_student(tiny_model, corpus, dimension=64)

    def test_another_width_than_a_trained_ones(self, tiny_model, corpus, tmp_path):
        multi_vector_student(tiny_model, corpus, dimension=16).save_pretrained(
            str(tmp_path / "saved"), create_model_card=False
        )
        with pytest.raises(UserError, match=r"^dimension=8: model .* has token vectors of 16"):
            multi_vector_student(str(tmp_path / "saved"), corpus, dimension=8)

    def test_a_token_table(self, tiny_static, corpus):
        with pytest.raises(UserError, match=r"has no contextual tokens"):
            multi_vector_student(tiny_static, corpus)
