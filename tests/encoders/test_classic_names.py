import json

import pytest
import torch
from sentence_transformers import SentenceTransformer, SparseEncoder
from sentence_transformers.base.modules import Dense
from sentence_transformers.sentence_transformer.modules import Normalize, Pooling
from sparse_models import inference_free, splade

from retrodistill.encoders.classic_names import write_classic_names
from retrodistill.encoders.loading import load_bi_encoder

TEXTS = ["whale shark reef", "the moon in orbit " * 40]


def rewritten(model, folder):
    model.save_pretrained(str(folder), create_model_card=False)
    write_classic_names(folder)
    return folder


def types(folder):
    return [module["type"] for module in json.loads((folder / "modules.json").read_text())]


class TestDense:
    @pytest.fixture
    def model(self, tiny_model):
        transformer, pooling = list(load_bi_encoder(tiny_model))[:2]
        size = pooling.get_embedding_dimension()
        return SentenceTransformer(modules=[transformer, pooling, Dense(size, 8), Normalize()], device="cpu")

    def test_names_and_settings_are_those_of_version_3(self, model, tmp_path):
        folder = rewritten(model, tmp_path / "model")
        assert types(folder) == [
            f"sentence_transformers.models.{kind}" for kind in ("Transformer", "Pooling", "Dense", "Normalize")
        ]
        length = model.max_seq_length
        assert json.loads((folder / "sentence_bert_config.json").read_text()) == {
            "max_seq_length": length,
            "do_lower_case": False,
        }
        pooling = json.loads((folder / "1_Pooling" / "config.json").read_text())
        assert pooling["pooling_mode_mean_tokens"] is True
        assert pooling["pooling_mode_cls_token"] is False
        # what Dense(**settings) takes there
        assert json.loads((folder / "2_Dense" / "config.json").read_text()).keys() == {
            "in_features", "out_features", "bias", "activation_function",
        }  # fmt: skip

    def test_this_version_reads_the_same_model(self, model, tmp_path):
        again = SentenceTransformer(str(rewritten(model, tmp_path / "model")), device="cpu")
        assert again.max_seq_length == model.max_seq_length
        torch.testing.assert_close(
            again.encode(TEXTS, convert_to_tensor=True), model.encode(TEXTS, convert_to_tensor=True)
        )

    def test_a_map_between_other_features_stays_as_it_is(self, tiny_model, tmp_path):
        transformer, pooling = list(load_bi_encoder(tiny_model))[:2]
        size = pooling.get_embedding_dimension()
        hand_over = Dense(size, size, module_output_name="cls_token_embeddings")
        several = Pooling(size, ["cls", "mean_sqrt_len_tokens"])
        model = SentenceTransformer(modules=[transformer, pooling, hand_over, several], device="cpu")
        folder = rewritten(model, tmp_path / "model")
        assert json.loads((folder / "2_Dense" / "config.json").read_text())["module_output_name"] == (
            "cls_token_embeddings"
        )
        again = SentenceTransformer(str(folder), device="cpu")
        torch.testing.assert_close(
            again.encode(TEXTS, convert_to_tensor=True), model.encode(TEXTS, convert_to_tensor=True)
        )


class TestStatic:
    def test_the_table_has_a_folder_of_its_own(self, tiny_static, tmp_path):
        model = load_bi_encoder(tiny_static)
        folder = rewritten(model, tmp_path / "model")
        assert types(folder)[0] == "sentence_transformers.models.StaticEmbedding"
        assert (folder / "0_StaticEmbedding" / "tokenizer.json").is_file()
        assert not (folder / "model.safetensors").exists()
        again = SentenceTransformer(str(folder), device="cpu")
        torch.testing.assert_close(
            again.encode(TEXTS, convert_to_tensor=True), model.encode(TEXTS, convert_to_tensor=True)
        )


class TestSparse:
    @pytest.mark.parametrize("make", [splade, inference_free])
    def test_this_version_reads_the_same_model(self, make, tmp_path):
        model = make(tmp_path / "start")
        again = SparseEncoder(str(rewritten(model, tmp_path / "model")), device="cpu")
        for role in ("encode_query", "encode_document"):
            found, wanted = (getattr(one, role)(TEXTS).to_dense() for one in (again, model))
            torch.testing.assert_close(found, wanted)

    def test_the_routes_have_the_names_of_version_5(self, tmp_path):
        folder = rewritten(inference_free(tmp_path / "start"), tmp_path / "model")
        assert types(folder) == ["sentence_transformers.models.Router"]
        router = json.loads((folder / "router_config.json").read_text())
        assert {name.rpartition(".")[0] for name in router["types"].values()} == {
            "sentence_transformers.sparse_encoder.models"
        }
        assert "route_mappings" not in router["parameters"]


def test_twice_is_as_once(tiny_model, tmp_path):
    folder = rewritten(load_bi_encoder(tiny_model), tmp_path / "model")
    before = {path: path.read_bytes() for path in folder.rglob("*.json")}
    write_classic_names(folder)
    assert {path: path.read_bytes() for path in folder.rglob("*.json")} == before


def test_a_folder_without_modules_is_left_alone(tmp_path):
    write_classic_names(tmp_path)
    assert list(tmp_path.iterdir()) == []
