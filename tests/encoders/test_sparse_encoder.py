import json
import subprocess
import sys

import numpy as np
import pytest
import torch
from scipy.sparse import csr_array
from sentence_transformers import SparseEncoder
from sentence_transformers.base.modules import Router
from sentence_transformers.sparse_encoder.modules import SparseStaticEmbedding
from sparse_models import VOCABULARY, inference_free, masked_model, saved, splade

from retrodistill.core.errors import UserError
from retrodistill.encoders import load_encoder
from retrodistill.encoders.any_encoder import SPARSE
from retrodistill.encoders.loading import load_sparse
from retrodistill.encoders.space import EmbeddingSpace
from retrodistill.encoders.sparse import SparseTextEncoder, TokenWeights

TEXTS = ["what star planet star", "the court [SEP] unheard-of zebra.", "", "whale " * 100]


@pytest.fixture(scope="module")
def models(tmp_path_factory):
    """Names of a SPLADE model and of one with inference-free queries, saved."""
    folder = tmp_path_factory.mktemp("sparse")
    return {
        "splade": saved(splade(folder / "bert"), folder / "splade"),
        "free": saved(inference_free(folder / "other"), folder / "free"),
    }


def dense(model, texts, role):
    return model.encode(list(texts), task=role, show_progress_bar=False).to_dense().numpy()


class TestEncoding:
    @pytest.mark.parametrize("role", ["query", "document"])
    @pytest.mark.parametrize("kind", ["splade", "free"])
    def test_it_gives_the_models_own_values(self, models, kind, role):
        encoder = load_encoder(models[kind])
        found = encoder.encode(TEXTS, role)
        assert isinstance(found, csr_array)
        assert found.dtype == np.float32
        assert found.has_sorted_indices
        assert found.nnz == np.count_nonzero(found.data) > 0
        np.testing.assert_allclose(found.toarray(), dense(encoder.model, TEXTS, role), rtol=1e-6)

    def test_no_text_gives_no_row(self, models):
        assert load_encoder(models["splade"]).encode([], "document").shape == (0, len(VOCABULARY))
        assert load_encoder(models["free"]).encode([], "query").shape == (0, len(VOCABULARY))

    def test_blocks_do_not_change_the_vectors(self, models, monkeypatch):
        encoder = load_encoder(models["splade"])
        whole = encoder.encode(TEXTS, "document")
        monkeypatch.setattr("retrodistill.encoders.sparse._BLOCK", 3)
        np.testing.assert_allclose(encoder.encode(TEXTS, "document").toarray(), whole.toarray(), rtol=1e-5)

    def test_prompts_are_applied_by_role(self, tmp_path):
        model = inference_free(tmp_path / "bert", prompts={"query": "what ", "document": "all about "})
        encoder = load_encoder(model)
        plain = load_encoder(inference_free(tmp_path / "plain"))
        for role, text in (("query", "what star"), ("document", "all about star")):
            np.testing.assert_allclose(
                encoder.encode(["star"], role).toarray(), plain.encode([text], role).toarray(), rtol=1e-5
            )

    def test_cosine_models_give_unit_vectors(self, tmp_path):
        model = inference_free(tmp_path / "bert")
        model.similarity_fn_name = "cosine"
        encoder = load_encoder(model)
        for role in ("query", "document"):
            lengths = np.linalg.norm(encoder.encode(TEXTS[:2], role).toarray(), axis=1)
            np.testing.assert_allclose(lengths, 1, rtol=1e-6)
        assert encoder.encode([""], "query").nnz == 0

    def test_weights_that_are_not_finite_name_the_text(self, tmp_path):
        weights = torch.ones(len(VOCABULARY))
        weights[VOCABULARY.index("court")] = torch.nan
        encoder = load_encoder(inference_free(tmp_path / "bert", weights))
        with pytest.raises(UserError, match=r"gives a weight that is not finite for 'the court'\.$"):
            encoder.encode(["star", "the court"], "query")


class TestInferenceFreeQueries:
    def test_they_run_no_model(self, models, monkeypatch):
        encoder = load_encoder(models["free"])
        assert encoder.is_inference_free
        monkeypatch.setattr(type(encoder.model), "encode", None)
        row = encoder.encode(["star star planet"], "query").toarray()[0]
        weights = encoder.modules("query")[0].weight.detach().numpy()
        assert set(np.flatnonzero(row)) == {VOCABULARY.index("star"), VOCABULARY.index("planet")}
        assert row[VOCABULARY.index("star")] == weights[VOCABULARY.index("star")]  # once, however often it stands

    def test_a_query_tower_is_none(self, models):
        assert not load_encoder(models["splade"]).is_inference_free

    def test_the_same_to_the_bit_with_limits_zeros_and_signs(self, tmp_path):
        weights = torch.linspace(-1, 2, len(VOCABULARY))
        weights[VOCABULARY.index("star")] = 0
        model = inference_free(tmp_path / "bert", weights, length=6, max_active_dims=3)
        texts = ["star planet orbit court judge whale tide reef", "the of and star", *TEXTS]
        found = load_encoder(model).encode(texts, "query")
        np.testing.assert_array_equal(found.toarray(), dense(model, texts, "query"))
        assert np.diff(found.indptr).tolist() == [3, 3, 2, 3, 0, 1]

    def test_they_follow_weights_that_are_trained_on(self, tmp_path):
        encoder = load_encoder(inference_free(tmp_path / "bert"))
        before = encoder.encode(["star"], "query").data[0]
        with torch.no_grad():
            encoder.modules("query")[0].weight.mul_(2)
        assert encoder.encode(["star"], "query").data[0] == 2 * before

    def test_from_a_folder_they_need_no_torch(self, models, tmp_path):
        encoder = load_encoder(models["free"])
        table = encoder.token_weights("query")
        table.write(tmp_path)
        (tmp_path / "settings.json").write_text(json.dumps(table.settings()))
        code = (
            "import sys, json; from pathlib import Path; from retrodistill.encoders.sparse import TokenWeights\n"
            "place = Path(sys.argv[1]); settings = json.loads((place / 'settings.json').read_text())\n"
            "found = TokenWeights.read(place, settings).encode(json.loads(sys.argv[2]))\n"
            "print(json.dumps([found.indices.tolist(), found.data.tolist(), found.indptr.tolist()]))\n"
            "print(*sorted({'torch', 'transformers', 'sentence_transformers'} & set(sys.modules)))"
        )
        arguments = [sys.executable, "-c", code, str(tmp_path), json.dumps(TEXTS)]
        arrays, loaded = subprocess.run(arguments, capture_output=True, text=True, check=True).stdout.split("\n")[:2]
        assert loaded == ""
        wanted = encoder.encode(TEXTS, "query")
        assert json.loads(arrays) == [wanted.indices.tolist(), wanted.data.tolist(), wanted.indptr.tolist()]

    def test_the_tokenizer_is_copied_once(self, models, monkeypatch):
        encoder = load_encoder(models["free"])
        encoder.encode(["star"], "query")
        monkeypatch.setattr("retrodistill.encoders.sparse.own_tokenizer", None)
        assert encoder.encode(["star"], "query").nnz == 1

    def test_more_tokens_than_weights_are_refused(self, tmp_path):
        model = inference_free(tmp_path / "bert", torch.ones(20))
        with pytest.raises(UserError, match=r"its tokenizer has 84 tokens, its weights 20; give one weight per token"):
            load_encoder(model).encode(["star"], "query")

    def test_a_reader_without_limit_does_not_cut(self, models):
        from tokenizers import Tokenizer

        tokenizer = Tokenizer.from_file(f"{models['splade'].partition(':')[2]}/tokenizer.json")
        tokenizer.no_truncation()
        found = TokenWeights(tokenizer, np.ones(len(VOCABULARY), dtype=np.float32)).encode(["star " * 100 + "court"])
        assert found.nnz == 2


class TestContract:
    def test_it_is_the_same_before_and_after_the_first_text(self, tmp_path):
        encoder = load_encoder(splade(tmp_path / "bert"))
        before = encoder.dimension, encoder.contract("document")
        encoder.encode(["star"], "document")
        assert before == (encoder.dimension, encoder.contract("document"))
        assert encoder.dimension == len(VOCABULARY)

    def test_saving_and_loading_keep_it(self, models, tmp_path):
        loaded = load_encoder(models["free"])
        again = load_encoder(saved(loaded.model, tmp_path / "again"))
        for role in ("query", "document"):
            assert loaded.fingerprint(role) == again.fingerprint(role)

    def test_the_pooling_of_a_route_counts(self, tmp_path):
        one, other = (load_encoder(inference_free(tmp_path / kind, activation=kind)) for kind in ("relu", "log1p_relu"))
        assert one.document_space != other.document_space

    def test_other_query_weights_leave_the_documents_where_they_are(self, tmp_path):
        one = load_encoder(inference_free(tmp_path / "one"))
        other = load_encoder(inference_free(tmp_path / "other", torch.ones(len(VOCABULARY))))
        assert one.document_space == other.document_space
        assert one.fingerprint("query") != other.fingerprint("query")
        EmbeddingSpace.of(one).check_query_encoder(other)

    def test_how_many_terms_are_kept_counts(self, tmp_path):
        one = load_encoder(splade(tmp_path / "one"))
        other = load_encoder(splade(tmp_path / "other", max_active_dims=3))
        with pytest.raises(UserError, match=r"most_terms 3, expected None"):
            EmbeddingSpace.of(one).check_query_encoder(other)

    def test_another_vocabulary_of_the_same_size(self, tmp_path):
        swapped = [*VOCABULARY[:10], *reversed(VOCABULARY[10:])]
        from sentence_transformers.base.modules import Transformer
        from sentence_transformers.sparse_encoder.modules import SpladePooling

        bert = Transformer(str(masked_model(tmp_path / "swapped", swapped)), transformer_task="fill-mask")
        other = load_encoder(SparseEncoder(modules=[bert, SpladePooling()], device="cpu"))
        one = load_encoder(splade(tmp_path / "one"))
        assert one.contract("document")["weights"] == other.contract("document")["weights"]
        with pytest.raises(UserError, match=r"do not belong among documents by .*vocabulary '\w+', expected '\w+'"):
            EmbeddingSpace.of(one).check_query_encoder(other)


class TestLoading:
    def test_a_plain_masked_language_model_is_splade(self, tmp_path):
        encoder = load_encoder(f"sparse:{masked_model(tmp_path / 'bert')}")
        assert encoder.dimension == len(VOCABULARY)
        assert {tensor.dtype for tensor in encoder.model.parameters()} == {torch.float32}

    def test_a_dense_model_would_get_a_random_vocabulary(self, tiny_model):
        with pytest.raises(UserError, match=r"is not a sparse encoder: it has no weights for a vocabulary; train"):
            load_sparse(tiny_model)

    def test_an_encoder_comes_back_as_it_is(self, models):
        encoder = load_encoder(models["splade"])
        assert load_encoder(encoder) is encoder
        assert load_encoder(encoder.model).name == "sparse:in-memory"

    def test_other_kinds_are_refused(self, tiny_model):
        with pytest.raises(UserError, match=r"^model dense:x is not a sparse encoder; give 'sparse:NAME'"):
            load_encoder("dense:x", SPARSE)
        with pytest.raises(UserError, match=r"is not a sparse encoder; give 'sparse:NAME'"):
            load_encoder(load_encoder(f"dense:{tiny_model}"), SPARSE)

    def test_a_router_without_a_route_for_queries(self, tmp_path):
        parts = inference_free(tmp_path / "bert")[0].sub_modules["document"]
        model = SparseEncoder(modules=[Router({"document": list(parts)})], device="cpu")
        with pytest.raises(UserError, match=r"has no route for a query \(routes: document\)"):
            SparseTextEncoder(model, "sparse:x")

    def test_one_table_for_both_sides(self, models):
        tokenizer = load_encoder(models["splade"]).model.tokenizer
        model = SparseEncoder(modules=[SparseStaticEmbedding(tokenizer)], device="cpu")
        encoder = load_encoder(model)
        np.testing.assert_array_equal(encoder.encode(TEXTS, "document").toarray(), dense(model, TEXTS, "document"))
