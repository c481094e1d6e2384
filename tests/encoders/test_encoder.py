import json
import shutil
from pathlib import Path

import numpy as np
import pytest
import torch
from sentence_transformers import SentenceTransformer
from sentence_transformers.sentence_transformer.modules import Normalize, Pooling

from retrodistill.core.errors import UserError
from retrodistill.encoders import Encoder, load_encoder
from retrodistill.encoders.loading import load_bi_encoder

TEXTS = ["what star planet orbit", "bread and cheese", "violin", "", "  court  judge today. "]


@pytest.fixture
def encoder(tiny_model):
    return load_encoder(f"dense:{tiny_model}")


def prompted(tiny_model, **prompts):
    model = load_bi_encoder(tiny_model)
    model.prompts = prompts
    return model


class TestEncoding:
    def test_it_is_what_sentence_transformers_gives(self, encoder, tiny_model):
        model = SentenceTransformer(tiny_model, device="cpu")
        np.testing.assert_allclose(encoder.encode(TEXTS, "query"), model.encode_query(TEXTS), atol=1e-6)
        np.testing.assert_allclose(encoder.encode(TEXTS, "document"), model.encode_document(TEXTS), atol=1e-6)

    def test_prompts_are_applied_by_role(self, tiny_model):
        model = prompted(tiny_model, query="what is ", document="study of ")
        encoder = load_encoder(model)
        np.testing.assert_allclose(encoder.encode(TEXTS, "query"), model.encode_query(TEXTS), atol=1e-6)
        np.testing.assert_allclose(encoder.encode(TEXTS, "document"), model.encode_document(TEXTS), atol=1e-6)
        assert not np.allclose(encoder.encode(TEXTS, "query"), encoder.encode(TEXTS, "document"))

    def test_a_passage_prompt_is_a_document_prompt(self, tiny_model):
        model = prompted(tiny_model, query="what is ", passage="study of ")
        assert load_encoder(model).prompt("document") == "study of "
        np.testing.assert_allclose(
            load_encoder(model).encode(TEXTS, "document"), model.encode_document(TEXTS), atol=1e-6
        )

    def test_a_default_prompt_stands_in(self, tiny_model):
        model = prompted(tiny_model, **{"retrieval": "all about "})
        model.default_prompt_name = "retrieval"
        np.testing.assert_allclose(load_encoder(model).encode(TEXTS, "query"), model.encode_query(TEXTS), atol=1e-6)

    def test_a_router_sends_each_role_through_its_tower(self, tiny_model, tiny_static):
        from sentence_transformers.base.modules import Router

        train = [list(load_bi_encoder(folder)) for folder in (tiny_static, tiny_model)]
        model = SentenceTransformer(modules=[Router.for_query_document(*train)], device="cpu")
        encoder = load_encoder(model)
        words = ["star planet", "violin"]
        np.testing.assert_allclose(encoder.encode(words, "query"), model.encode_query(words), atol=1e-6)
        np.testing.assert_allclose(encoder.encode(words, "document"), model.encode_document(words), atol=1e-6)
        assert not np.allclose(model.encode_query(words), model.encode_document(words))

    def test_cosine_models_give_unit_vectors_even_without_a_normalizing_module(self, tiny_model):
        modules = [module for module in load_bi_encoder(tiny_model) if not isinstance(module, Normalize)]
        model = SentenceTransformer(modules=modules, similarity_fn_name="cosine", device="cpu")
        assert not np.allclose(np.linalg.norm(model.encode(TEXTS), axis=1), 1)
        np.testing.assert_allclose(np.linalg.norm(load_encoder(model).encode(TEXTS, "query"), axis=1), 1, atol=1e-5)

    def test_dot_models_keep_their_lengths(self, tiny_model):
        modules = [module for module in load_bi_encoder(tiny_model) if not isinstance(module, Normalize)]
        model = SentenceTransformer(modules=modules, similarity_fn_name="dot", device="cpu")
        np.testing.assert_allclose(load_encoder(model).encode(TEXTS, "query"), model.encode(TEXTS), atol=1e-6)

    def test_no_text_gives_no_vector_of_the_right_width(self, encoder):
        assert encoder.encode([], "query").shape == (0, 32)
        assert encoder.encode([], "query").dtype == np.float32

    def test_a_vector_that_is_not_finite_names_the_text(self, tiny_model):
        model = load_bi_encoder(tiny_model)
        with torch.no_grad():
            model[0].auto_model.embeddings.word_embeddings.weight[model.tokenizer.vocab["violin"]] = float("nan")
        with pytest.raises(UserError, match=r"gives a vector that is not finite for 'the violin'.$"):
            load_encoder(model).encode(["star", "the violin"], "query")

    def test_a_token_table_is_what_sentence_transformers_gives(self, tiny_static):
        model, encoder = SentenceTransformer(tiny_static, device="cpu"), load_encoder(f"static:{tiny_static}")
        np.testing.assert_allclose(encoder.encode(TEXTS, "query"), model.encode_query(TEXTS), atol=1e-6)
        model.prompts = {"query": "what is "}
        np.testing.assert_allclose(load_encoder(model).encode(TEXTS, "query"), model.encode_query(TEXTS), atol=1e-6)

    def test_an_empty_text_by_a_token_table_is_the_zero_vector(self, tiny_static):
        assert not load_encoder(f"static:{tiny_static}").encode([""], "query").any()


class TestTheContract:
    def test_two_loads_and_a_copied_folder_are_one_space(self, encoder, tiny_model, tmp_path):
        copy = shutil.copytree(tiny_model, tmp_path / "elsewhere")
        for folder in (tiny_model, copy):
            assert load_encoder(f"dense:{folder}").fingerprint("query") == encoder.fingerprint("query")
            assert load_encoder(f"dense:{folder}").document_space == encoder.document_space

    def test_saving_and_loading_changes_nothing(self, tiny_model, tiny_static, tmp_path):
        for folder in (tiny_model, tiny_static):
            model = load_bi_encoder(folder)
            model.save_pretrained(str(tmp_path / Path(folder).name), create_model_card=False)
            again = load_encoder(f"dense:{tmp_path / Path(folder).name}")
            assert again.document_space == load_encoder(model).document_space

    def test_one_weight_makes_another_space(self, encoder, tiny_model):
        model = load_bi_encoder(tiny_model)
        with torch.no_grad():
            next(iter(model.parameters())).view(-1)[0] += 1e-3
        assert load_encoder(model).document_space != encoder.document_space

    def test_a_prompt_counts_for_its_role_only(self, encoder, tiny_model):
        asked = load_encoder(prompted(tiny_model, query="what "))
        assert asked.document_space == encoder.document_space
        assert asked.fingerprint("query") != encoder.fingerprint("query")

    def test_the_maximum_length_counts(self, encoder, tiny_model):
        model = load_bi_encoder(tiny_model)
        model.max_seq_length = 16
        assert load_encoder(model).document_space != encoder.document_space

    def test_the_similarity_counts(self, encoder, tiny_model):
        model = load_bi_encoder(tiny_model)
        model.similarity_fn_name = "dot"
        assert load_encoder(model).document_space != encoder.document_space

    def test_the_pooling_counts_though_it_has_no_weights(self, encoder, tiny_model):
        modules = list(load_bi_encoder(tiny_model))
        model = SentenceTransformer(modules=[modules[0], Pooling(32, "cls"), modules[2]], device="cpu")
        assert load_encoder(model).document_space != encoder.document_space

    def test_it_is_plain_json(self, encoder):
        assert json.loads(json.dumps(encoder.contract("query"))) == encoder.contract("query")

    def test_half_precision_objects_have_one_too(self, tiny_model):
        assert len(load_encoder(load_bi_encoder(tiny_model).bfloat16()).weights_digest) == 16


class TestLoading:
    def test_objects_are_taken_as_they_are(self, encoder, tiny_model):
        model = load_bi_encoder(tiny_model)
        assert load_encoder(encoder) is encoder
        assert load_encoder(model).model is model

    def test_what_is_no_model(self):
        with pytest.raises(UserError, match=r"^an encoder cannot be made from int; give 'dense:NAME' "):
            load_encoder(5)

    @pytest.mark.parametrize("name", ["bm25", "cross-encoder:x", "run:x.run"])
    def test_kinds_that_do_not_encode(self, name):
        with pytest.raises(UserError, match=rf"^model {name} is not an encoder; "):
            load_encoder(name)

    def test_a_transformer_is_not_static(self, tiny_model):
        with pytest.raises(UserError, match=rf"is not a token table but Transformer; name it 'dense:{tiny_model}'.$"):
            load_encoder(f"static:{tiny_model}")

    def test_a_model_that_ranks_by_distance(self, tiny_model):
        model = load_bi_encoder(tiny_model)
        model.similarity_fn_name = "euclidean"
        with pytest.raises(UserError, match=r"uses similarity 'euclidean'; a retriever uses cosine or dot.$"):
            Encoder(model, "dense:x").encode(["a"], "query")
