"""Token tables of fewer dimensions and in int8, as the library and this package read them."""

import numpy as np
import pytest
import torch
from safetensors.torch import load_file
from sentence_transformers import SentenceTransformer
from sentence_transformers.sentence_transformer.modules import Normalize, StaticEmbedding
from tokenizers import Tokenizer, models, pre_tokenizers

from retrodistill.core.errors import UserError
from retrodistill.core.manifest import Manifest
from retrodistill.encoders import load_encoder
from retrodistill.encoders.encoder import Encoder
from retrodistill.students import save_student
from retrodistill.students.small_tables import quantized, reduce_dimension

WORDS = "star galaxy planet orbit violin cello melody the and what all about reef coral judge jury".split()  # noqa: SIM905
DOCUMENTS = [" ".join(np.random.default_rng(seed).choice(WORDS, 6)) for seed in range(60)]
QUERIES = ["what star", "all about violin melody", "the jury"]
TEXTS = [*DOCUMENTS, *QUERIES, ""]


@pytest.fixture
def model():
    """A table of rank 6 in 16 dimensions, and a little noise."""
    tokenizer = Tokenizer(models.WordLevel({word: place for place, word in enumerate(WORDS)}, unk_token="the"))
    tokenizer.pre_tokenizer = pre_tokenizers.Whitespace()
    draw = np.random.default_rng(0)
    rows = draw.standard_normal((len(WORDS), 6)) @ draw.standard_normal((6, 16))
    rows += 1e-3 * draw.standard_normal(rows.shape)
    table = StaticEmbedding(tokenizer, embedding_weights=torch.from_numpy(rows.astype(np.float32)))
    return SentenceTransformer(modules=[table, Normalize()], device="cpu", similarity_fn_name="cosine")


class TestFewerDimensions:
    def test_vectors_stay_in_their_space(self, model):
        small = reduce_dimension(model, 6, DOCUMENTS, QUERIES)
        assert small[0].embedding.weight.shape == (len(WORDS), 6)
        assert small.get_embedding_dimension() == 16
        np.testing.assert_allclose(small.encode(TEXTS), model.encode(TEXTS), atol=5e-3)

    def test_they_are_the_principal_ones_of_the_vectors_of_both_kinds_of_texts(self, model):
        small = reduce_dimension(model, 2, DOCUMENTS, QUERIES)
        vectors = [model.encode(texts) / np.sqrt(len(texts)) for texts in (DOCUMENTS, QUERIES)]
        best = np.linalg.svd(np.concatenate(vectors), full_matrices=False)[2][:2]
        found = small[1].linear.weight.detach().numpy().T
        np.testing.assert_allclose(found.T @ found, best.T @ best, atol=1e-4)

    def test_a_share_is_what_they_keep_of_the_squared_vectors(self, model):
        small = reduce_dimension(model, 0.9, DOCUMENTS, [])
        vectors = model.encode(DOCUMENTS)
        kept = np.cumsum(np.linalg.svd(vectors)[1] ** 2) / len(DOCUMENTS)
        assert small[0].embedding_dim == np.searchsorted(kept, 0.9) + 1
        assert reduce_dimension(model, 1 - 1e-12, DOCUMENTS, [])[0].embedding_dim == 15

    def test_a_text_without_tokens_has_a_vector_of_zeros(self, model):
        assert not reduce_dimension(model, 3, DOCUMENTS, QUERIES).encode([""]).any()

    @pytest.mark.parametrize("dimension", [16, 17, 384])
    def test_not_fewer_is_refused(self, model, dimension):
        with pytest.raises(UserError, match=f"dimension={dimension}.*16; choose 1 to 15"):
            reduce_dimension(model, dimension, DOCUMENTS, QUERIES)

    def test_other_models_are_refused(self, tiny_model, model):
        with pytest.raises(UserError, match="not a plain token table"):
            reduce_dimension(SentenceTransformer(tiny_model), 4, DOCUMENTS, QUERIES)
        with pytest.raises(UserError, match="not a plain token table"):
            reduce_dimension(reduce_dimension(model, 8, DOCUMENTS, QUERIES), 4, DOCUMENTS, QUERIES)


class TestPrecision:
    def test_codes_times_scales_are_within_half_a_step(self):
        rows = np.random.default_rng(0).standard_normal((50, 8)).astype(np.float32) * np.arange(50)[:, None]
        codes, scales = quantized(rows)
        assert (np.abs(codes).max(axis=1)[1:] == 127).all()
        assert (np.abs(rows - codes * scales[:, None]) <= scales[:, None] * 0.5001).all()
        assert not codes[0].any()  # zeros stay zeros, and divide by nothing

    def test_the_library_reads_what_is_stored(self, model, tmp_path):
        encoder = save_student(model, Manifest("student"), tmp_path / "small", "int8")
        stored = load_file(tmp_path / "small" / "0_StaticEmbedding" / "model.safetensors")
        assert stored["embeddings"].dtype == torch.int8
        plain = SentenceTransformer(str(tmp_path / "small"), device="cpu")
        assert plain[0].embedding.weight.dtype == torch.float32
        rows = stored["embeddings"].float() * stored["weights"][:, None]
        torch.testing.assert_close(plain[0].embedding.weight.detach(), rows)
        np.testing.assert_allclose(plain.encode(TEXTS), model.encode(TEXTS), atol=0.01)
        np.testing.assert_allclose(encoder.encode(TEXTS, "query"), plain.encode(TEXTS), atol=1e-6)

    def test_it_can_be_saved_again_and_trained(self, model, tmp_path):
        encoder = save_student(model, Manifest("student"), tmp_path / "small", "int8")
        assert encoder.model[0].embedding.weight.requires_grad
        again = save_student(encoder.model, Manifest("student"), tmp_path / "again", "int8")
        np.testing.assert_allclose(again.encode(TEXTS, "query"), encoder.encode(TEXTS, "query"), atol=1e-6)


class TestTheEncoder:
    @pytest.fixture
    def small(self, model, tmp_path):
        reduced = reduce_dimension(model, 5, DOCUMENTS, QUERIES)
        save_student(reduced, Manifest("student"), tmp_path / "small", "int8")
        return load_encoder(f"static:{tmp_path / 'small'}")

    def test_it_gives_the_librarys_vectors_without_its_overhead(self, small, tmp_path, monkeypatch):
        expected = SentenceTransformer(str(tmp_path / "small"), device="cpu").encode(TEXTS)
        monkeypatch.setattr(Encoder, "_run", lambda *_, **__: pytest.fail("the library encoded"))
        np.testing.assert_allclose(small.encode(TEXTS, "query"), expected, atol=1e-6)
        monkeypatch.setattr("retrodistill.encoders.encoder._PART", 7)
        np.testing.assert_allclose(small.encode(TEXTS, "query"), expected, atol=1e-6)

    @pytest.mark.parametrize("options", [{"bias": True}, {"activation_function": torch.nn.Tanh()}])
    def test_other_maps_are_the_librarys_to_compute(self, model, options):
        from sentence_transformers.base.modules import Dense

        torch.manual_seed(0)
        settings = {"bias": False, "activation_function": torch.nn.Identity(), **options}
        changed = SentenceTransformer(modules=[model[0], Dense(16, 4, **settings), Normalize()], device="cpu")
        changed.similarity_fn_name = "cosine"
        np.testing.assert_allclose(Encoder(changed, "m").encode(QUERIES, "query"), changed.encode(QUERIES), atol=1e-6)
