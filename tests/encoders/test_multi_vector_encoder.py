import numpy as np
import pytest
import torch
from sentence_transformers import MultiVectorEncoder

from retrodistill.core.errors import UserError
from retrodistill.encoders.any_encoder import MULTI_VECTOR, load_encoder
from retrodistill.encoders.multi_vector import Tokens, principal_directions, token_encoder

TEXTS = ["heart and artery", "the orbit of a planet today.", "violin"]


@pytest.fixture(scope="module")
def saved(tiny_tokens, tmp_path_factory):
    folder = tmp_path_factory.mktemp("multi") / "tokens"
    tiny_tokens.save_pretrained(str(folder), create_model_card=False)
    return str(folder)


class TestTokens:
    def test_texts_by_row(self):
        tokens = Tokens.of([np.ones((2, 3)), np.zeros((0, 3)), np.full((1, 3), 5)], 3)
        assert (len(tokens), tokens.dimension, tokens.lengths.tolist()) == (3, 3, [2, 0, 1])
        np.testing.assert_array_equal(tokens[2], [[5, 5, 5]])

    def test_a_slice_shares_the_vectors(self):
        tokens = Tokens.of([np.full((size, 2), size) for size in (1, 3, 2)], 2)
        cut = tokens.slice(1, 3)
        assert cut.bounds.tolist() == [0, 3, 5]
        assert np.shares_memory(cut.vectors, tokens.vectors)
        np.testing.assert_array_equal(cut[0], tokens[1])

    def test_none(self):
        assert len(Tokens.of([], 4)) == 0
        assert Tokens.of([], 4).vectors.shape == (0, 4)


class TestEncoding:
    @pytest.mark.parametrize("role", ["query", "document"])
    def test_as_the_library_does_for_the_role(self, tiny_multi, tiny_tokens, role):
        wanted = getattr(tiny_tokens, f"encode_{role}")(TEXTS, convert_to_numpy=True)
        found = tiny_multi.encode(TEXTS, role)
        assert found.lengths.tolist() == [len(one) for one in wanted]
        for row, one in enumerate(wanted):
            np.testing.assert_allclose(found[row], one, atol=1e-6)

    def test_vectors_are_of_unit_length(self, tiny_multi):
        np.testing.assert_allclose(np.linalg.norm(tiny_multi.encode(TEXTS, "query").vectors, axis=1), 1, atol=1e-5)

    def test_no_text(self, tiny_multi):
        assert tiny_multi.encode([], "query").vectors.shape == (0, 32)

    def test_similarity_is_maxsim(self, tiny_multi):
        assert tiny_multi.similarity == "maxsim"

    def test_a_vector_that_is_not_finite(self, tiny_model):
        model = token_encoder(tiny_model)
        with torch.no_grad():
            model[0].auto_model.embeddings.word_embeddings.weight[model.tokenizer.vocab["violin"]] = torch.nan
        with pytest.raises(UserError, match=r"gives a token vector that is not finite for 'violin'"):
            load_encoder(model).encode(TEXTS, "document")


class TestContracts:
    def test_expanding_queries_moves_no_document(self, tiny_model):
        plain, expanded = (load_encoder(token_encoder(tiny_model)) for _ in range(2))
        expanded.model[0].query_expansion = {"strategy": "fixed", "attend": True, "length": 16}
        assert expanded.fingerprint("document") == plain.fingerprint("document")
        assert expanded.fingerprint("query") != plain.fingerprint("query")
        assert expanded.encode(["heart"], "query").lengths.tolist() == [16]

    def test_cutting_documents_moves_no_query(self, tiny_model):
        plain = load_encoder(token_encoder(tiny_model))
        cut = load_encoder(token_encoder(tiny_model, document_length=4))
        assert cut.fingerprint("query") == plain.fingerprint("query")
        assert cut.fingerprint("document") != plain.fingerprint("document")
        assert cut.encode(TEXTS, "document").lengths.max() == 4


class TestLoading:
    def test_by_name_it_lies_in_the_same_space(self, saved, tiny_multi):
        loaded = load_encoder(f"multi-vector:{saved}")
        assert loaded.document_space == tiny_multi.document_space
        np.testing.assert_allclose(
            loaded.encode(TEXTS, "document").vectors, tiny_multi.encode(TEXTS, "document").vectors, atol=1e-6
        )

    def test_an_object_is_taken_as_it_is(self, tiny_tokens, tiny_multi):
        assert tiny_multi.model is tiny_tokens
        assert load_encoder(tiny_multi) is tiny_multi

    def test_a_bi_encoder_is_refused_rather_than_given_a_random_projection(self, tiny_model):
        with pytest.raises(UserError, match=r"is not a multi-vector encoder: its tokens were not trained .* 'dense:"):
            load_encoder(f"multi-vector:{tiny_model}")

    @pytest.mark.parametrize("source", ["dense:somewhere", "bm25"])
    def test_another_kind(self, source):
        with pytest.raises(UserError, match=r"is not a multi-vector encoder; give 'multi-vector:NAME'.$"):
            load_encoder(source, MULTI_VECTOR)

    def test_another_object(self):
        with pytest.raises(UserError, match=r"^an encoder cannot be made from dict; give 'multi-vector:NAME'"):
            load_encoder({}, MULTI_VECTOR)


class TestUntrained:
    def test_it_is_the_transformer_and_nothing_after_it(self, tiny_model, tiny_multi):
        from sentence_transformers import SentenceTransformer

        dense = SentenceTransformer(tiny_model, device="cpu")
        raw = dense.encode(TEXTS, output_value="token_embeddings")
        for row, one in enumerate(raw):
            wanted = torch.nn.functional.normalize(one, dim=-1).numpy()
            np.testing.assert_allclose(tiny_multi.encode(TEXTS, "document")[row], wanted, atol=1e-5)

    def test_principal_directions_keep_more_than_random_ones(self, tiny_model, tiny, tiny_multi):
        texts = tiny.documents.texts
        whole = tiny_multi.encode(texts, "document").vectors

        def lost(projected):
            return np.abs(projected @ projected.T - whole @ whole.T).mean()

        fitted = load_encoder(token_encoder(tiny_model, 8, texts=texts)).encode(texts, "document")
        random = load_encoder(token_encoder(tiny_model, 8, seed=1)).encode(texts, "document")
        assert fitted.dimension == random.dimension == 8
        assert lost(fitted.vectors) < lost(random.vectors)

    def test_principal_directions_are_those_of_a_decomposition(self):
        vectors = np.random.default_rng(0).standard_normal((50, 6)).astype(np.float32) * [5, 3, 1, 1, 0.5, 0.1]
        rows = np.linalg.svd(vectors)[2]
        found = principal_directions(vectors)
        np.testing.assert_allclose(np.abs(np.sum(found * rows, axis=1)), 1, atol=1e-4)

    def test_a_projected_one_saves_and_loads(self, tiny_model, tmp_path):
        model = token_encoder(tiny_model, 8, seed=1)
        model.save_pretrained(str(tmp_path / "m"), create_model_card=False)
        again = MultiVectorEncoder(str(tmp_path / "m"), device="cpu")
        found, wanted = (one.encode_query("star", convert_to_numpy=True) for one in (again, model))
        np.testing.assert_allclose(found, wanted, atol=1e-6)

    @pytest.mark.parametrize("dimension", [0, 33])
    def test_dimensions_that_there_are_not(self, tiny_model, dimension):
        with pytest.raises(UserError, match=rf"^dimension={dimension}: tokens by .* have 32; choose from 1 to 32.$"):
            token_encoder(tiny_model, dimension)

    def test_a_static_table_has_no_contextual_tokens(self, tiny_static):
        with pytest.raises(UserError, match=r"is StaticEmbedding and has no contextual tokens"):
            token_encoder(tiny_static)
