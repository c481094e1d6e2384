import numpy as np
import pytest
import torch
from sentence_transformers import SparseEncoder
from sparse_models import masked_model, splade

from retrodistill.core.errors import UserError
from retrodistill.encoders.any_encoder import load_encoder
from retrodistill.encoders.sparse import SparseTextEncoder
from retrodistill.students.sparse import sparse_student, sparsity
from retrodistill.students.static import inverse_document_frequencies
from retrodistill.students.stored_states import head_of


@pytest.fixture
def student(tiny, tiny_model):
    return SparseTextEncoder(sparse_student(tiny_model, tiny.documents, queries="inference-free"), "sparse:student")


def terms_of(student, vector):
    return set(student.model.tokenizer.convert_ids_to_tokens([int(term) for term in vector.indices]))


class TestStartFromABiEncoder:
    def test_documents_weigh_their_own_tokens(self, student, tiny):
        texts = tiny.documents.texts
        vectors = student.encode(texts, "document")
        kept, others = [], []
        for row, text in enumerate(texts):
            own = set(student.model.tokenizer.tokenize(text))
            found = terms_of(student, vectors[[row]])
            kept.append(len(found & own) / len(own))
            others.append(len(found - own))
        assert np.mean(kept) > 0.9
        assert np.mean(others) < 0.8 * np.mean([vectors.shape[1]])  # a random transformer tells tokens apart badly

    def test_a_tokens_mean_state_has_weight_one_and_special_tokens_none(self, student, tiny):
        head = head_of(student).linear
        vectors = student.encode(tiny.documents.texts, "document")
        assert np.median(vectors.data) == pytest.approx(1, abs=0.3)
        assert set(vectors.indices).isdisjoint(student.model.tokenizer.all_special_ids)
        assert torch.isfinite(head.weight).all()

    def test_with_a_double_logarithm_too(self, tiny, tiny_model):
        model = sparse_student(tiny_model, tiny.documents, activation="log1p_relu")
        student = SparseTextEncoder(model, "sparse:student")
        weights = student.encode(tiny.documents.texts, "document")
        assert np.median(weights.data) == pytest.approx(1, abs=0.3)
        pooling = next(module for module in model.modules() if type(module).__name__ == "SpladePooling")
        pooling.activation_function = "relu"
        once = student.encode(tiny.documents.texts, "document")
        assert (once.indices == weights.indices).all()
        np.testing.assert_allclose(np.log1p(once.data), weights.data, rtol=1e-4)

    def test_queries_are_inverse_document_frequencies(self, student, tiny):
        weights = student.token_weights("query").weights
        backend = student.token_weights("query").tokenizer
        expected = inverse_document_frequencies(backend, tiny.documents).astype("f4")
        special = student.model.tokenizer.all_special_ids
        assert (weights[special] == 0).all()
        other = np.setdiff1d(np.arange(len(weights)), special)
        np.testing.assert_array_equal(weights[other], expected[other])

    def test_queries_by_the_model_go_the_documents_way(self, tiny, tiny_model):
        student = SparseTextEncoder(sparse_student(tiny_model, tiny.documents), "sparse:student")
        assert not student.is_inference_free
        found = [student.encode(["a star"], role) for role in ("query", "document")]
        assert abs(found[0] - found[1]).max() == 0

    def test_it_saves_and_loads_without_this_package(self, student, tmp_path):
        student.model.save_pretrained(str(tmp_path / "saved"), create_model_card=False)
        loaded = SparseEncoder(str(tmp_path / "saved"), device="cpu")
        texts = ["star planet orbit", "the judge"]
        for role in ("query", "document"):
            found = loaded.encode(texts, task=role, convert_to_sparse_tensor=False).numpy()
            np.testing.assert_array_equal(found, student.encode(texts, role).toarray())
        assert load_encoder(f"sparse:{tmp_path / 'saved'}").is_inference_free

    def test_length_and_layers_are_cut(self, tiny, tiny_model):
        model = sparse_student(tiny_model, tiny.documents, layers=1, max_length=5)
        student = SparseTextEncoder(model, "sparse:student")
        assert len(model[0].auto_model.encoder.layer) == 1
        long, short = "star planet orbit moon comet", "star planet orbit"
        assert abs(student.encode([long], "document") - student.encode([short], "document")).max() < 1e-6


class TestStartFromOthers:
    def test_a_masked_language_model_gives_its_own_head(self, tiny, tmp_path):
        source = masked_model(tmp_path / "masked")
        model = sparse_student(str(source), tiny.documents, queries="inference-free")
        student = SparseTextEncoder(model, "sparse:student")
        plain = SparseTextEncoder(SparseEncoder(str(source), device="cpu"), "sparse:plain")
        found = [one.encode(["a star", "court"], "document") for one in (student, plain)]
        assert abs(found[0] - found[1]).max() == 0
        assert student.is_inference_free
        with pytest.raises(UserError, match=r"^model sparse:student has its term head inside the transformer"):
            head_of(student)

    def test_a_sparse_encoder_starts_as_it_is(self, tiny, tmp_path):
        splade(tmp_path / "bert").save_pretrained(str(tmp_path / "splade"), create_model_card=False)
        student = SparseTextEncoder(sparse_student(str(tmp_path / "splade"), tiny.documents), "sparse:student")
        source = load_encoder(f"sparse:{tmp_path / 'splade'}")
        assert student.fingerprint("document") == source.fingerprint("document")

    def test_an_activation_replaces_that_of_a_sparse_encoder(self, student, tiny, tmp_path):
        student.model.save_pretrained(str(tmp_path / "saved"), create_model_card=False)
        for activation, wanted in ((None, "relu"), ("log1p_relu", "log1p_relu")):
            again = sparse_student(
                str(tmp_path / "saved"), tiny.documents, queries="inference-free", activation=activation
            )
            poolings = [module for module in again.modules() if type(module).__name__ == "SpladePooling"]
            assert [pooling.activation_function for pooling in poolings] == [wanted]

    def test_a_token_table_is_refused(self, tiny, tiny_static):
        with pytest.raises(UserError, match=r"is StaticEmbedding and has no contextual tokens"):
            sparse_student(tiny_static, tiny.documents)

    def test_inference_free_queries_do_not_turn_into_a_model(self, student, tiny, tmp_path):
        student.model.save_pretrained(str(tmp_path / "saved"), create_model_card=False)
        with pytest.raises(UserError, match=r"has inference-free queries; set the student's queries to that"):
            sparse_student(str(tmp_path / "saved"), tiny.documents)

    def test_nothing_there_is_told(self, tiny):
        with pytest.raises(UserError, match=r"^no model folder \./nowhere"):
            sparse_student("./nowhere", tiny.documents)


class TestSparsity:
    def test_products_are_counted_over_pairs(self, student, tiny):
        found = sparsity(student, tiny.documents, tiny.split("train"))
        asked = student.encode(tiny.split("train").texts, "query").toarray() != 0
        held = student.encode(tiny.documents.texts, "document").toarray() != 0
        assert found["terms"] == pytest.approx(held.sum(axis=1).mean())
        assert found["query_terms"] == pytest.approx(asked.sum(axis=1).mean())
        pairs = [(query & document).sum() for query in asked for document in held]
        assert found["flops"] == pytest.approx(np.mean(pairs))
