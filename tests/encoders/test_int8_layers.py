"""Layers in the numbers of an int8 graph against ONNX Runtime, and a stage that trains in them."""

from dataclasses import replace

import numpy as np
import pytest
import torch
from sentence_transformers.sentence_transformer.modules import StaticEmbedding

from retrodistill.core.errors import UserError
from retrodistill.encoders import load_encoder
from retrodistill.encoders.int8_layers import int8_layers, rounded_activations, rounded_weights
from retrodistill.encoders.loading import load_bi_encoder
from retrodistill.recipes.student_settings import StudentSettings
from retrodistill.recipes.students import build_student
from retrodistill.students.registry import run_stage
from retrodistill.training.settings import StageSettings
from retrodistill.training.training_data import TrainingData

TEXTS = ["what star", "bread and cheese", "court and judge"]


def drawn(*shape):
    return torch.randn(*shape, generator=torch.Generator().manual_seed(0), requires_grad=True)


class TestRounding:
    def test_weights_have_a_scale_for_each_output_and_none_of_zero(self):
        weight = torch.tensor([[1.27, -0.634, 0.004], [0.0, 0.0, 0.0], [-127.0, 63.4, 0.6]])
        found = rounded_weights(weight)
        torch.testing.assert_close(found, torch.tensor([[1.27, -0.63, 0.0], [0.0, 0.0, 0.0], [-127.0, 63.0, 1.0]]))

    def test_activations_are_those_of_onnx_for_each_text_alone(self):
        onnx = pytest.importorskip("onnx")
        runtime = pytest.importorskip("onnxruntime")
        names = ["levels", "scale", "zero"]
        node = onnx.helper.make_node("DynamicQuantizeLinear", ["x"], names)
        kinds = [onnx.TensorProto.UINT8, onnx.TensorProto.FLOAT, onnx.TensorProto.UINT8]
        shapes = [[None, None], [], []]
        outputs = [onnx.helper.make_tensor_value_info(*one) for one in zip(names, kinds, shapes, strict=True)]
        inputs = [onnx.helper.make_tensor_value_info("x", onnx.TensorProto.FLOAT, [None, None])]
        opsets = [onnx.helper.make_opsetid("", 20)]
        graph = onnx.helper.make_model(onnx.helper.make_graph([node], "one", inputs, outputs), opset_imports=opsets)
        graph.ir_version = 10
        session = runtime.InferenceSession(graph.SerializeToString(), providers=["CPUExecutionProvider"])
        values = drawn(4, 3, 5).detach() * torch.tensor([1.0, 7.0, 0.1, 3.0])[:, None, None]
        values[1] = values[1].abs() + 2  # 0 is a level, too
        for row, own in enumerate(rounded_activations(values)):
            levels, scale, zero = session.run(None, {"x": values[row].numpy()})
            np.testing.assert_allclose(own, (levels.astype("f4") - zero) * scale, rtol=1e-5, atol=1e-6)

    @pytest.mark.parametrize("rounded", [rounded_weights, rounded_activations])
    def test_gradients_pass_as_if_nothing_was_rounded(self, rounded):
        values, factors = drawn(3, 4), torch.arange(12.0).view(3, 4)
        (rounded(values) * factors).sum().backward()
        assert torch.equal(values.grad, factors)
        assert (rounded(torch.zeros(2, 3)) == 0).all()


class TestModel:
    def test_layers_are_themselves_again_also_after_an_error(self, tiny_model):
        model = load_bi_encoder(tiny_model)
        before, kinds = model.encode(TEXTS), [type(module) for module in model.modules()]

        def failing():
            with int8_layers(model):
                assert not np.array_equal(model.encode(TEXTS), before)
                raise ZeroDivisionError

        with pytest.raises(ZeroDivisionError):
            failing()
        assert [type(module) for module in model.modules()] == kinds
        np.testing.assert_array_equal(model.encode(TEXTS), before)

    def test_a_token_table_has_no_such_matrices(self, tiny_static):
        model = load_encoder(f"static:{tiny_static}").model
        assert isinstance(model[0], StaticEmbedding)
        with (
            pytest.raises(UserError, match=r"^quantize_weights is about the matrices of a transformer"),
            int8_layers(model),
        ):
            pass


class TestStage:
    @pytest.fixture
    def data(self, tiny, tiny_model, tmp_path):
        space = load_encoder(f"dense:{tiny_model}")
        from retrodistill.rankers.loading import load_ranker

        return TrainingData(tiny, tiny.split("train"), load_ranker("bm25"), space, tmp_path / "out")

    @pytest.mark.parametrize("train", ["query_encoder", "both_encoders"])
    def test_it_learns_what_rounds_well(self, train, data, tiny_model, tmp_path):
        stage = {
            "objectives": "leaf" if train == "query_encoder" else "kl",
            "train": train,
            "quantize_weights": "int8",
            "candidates": {} if train == "query_encoder" else {"depth": 4, "sources": ["bm25"]},
            "groups": {"documents": 2},
            "training": {"max_steps": 3, "batch_size": 8, "learning_rate": 1e-3, "warmup": 0},
        }
        one = StageSettings.model_validate(stage)
        documents = "frozen" if train == "query_encoder" else "student"
        given = {"model": f"dense:{tiny_model}", "stages": [one], "control": None, "documents": documents}
        settings = StudentSettings.model_validate(given)
        data = replace(data, own_documents=documents == "student")
        model = build_student(settings, data)
        kinds = [type(module) for module in model.modules()]
        before = [value.detach().clone() for value in model.parameters()]
        history = run_stage(model, one, data, tmp_path / "work", "training")
        assert [type(module) for module in model.modules()] == kinds
        assert any(not torch.equal(*pair) for pair in zip(before, model.parameters(), strict=True))
        if train == "query_encoder":  # a whole copy of its teacher has to learn the rounding alone
            assert history.losses[0]["leaf"] > 0

    def test_what_is_stored_of_a_student_is_not_rounded(self, data, tiny_model, tmp_path):
        """A student that encodes its own documents has them in the store, by the digest of its weights."""
        from retrodistill.encoders.embeddings import embed

        stage = {"objectives": "leaf", "quantize_weights": "int8", "training": {"max_steps": 1, "batch_size": 4}}
        one = StageSettings.model_validate(stage)
        settings = StudentSettings.model_validate(
            {"model": f"dense:{tiny_model}", "layers": 1, "documents": "student", "stages": [one], "control": None}
        )
        data = replace(data, own_documents=True)
        model = build_student(settings, data)
        texts = data.collection.documents.texts
        wanted = model.encode(texts, normalize_embeddings=True)
        start = load_encoder(build_student(settings, data))
        run_stage(model, one, data, tmp_path / "work", "training")
        np.testing.assert_allclose(embed(start, texts, "document"), wanted, atol=1e-5)

    def test_another_precision_would_round_otherwise(self):
        stage = {"objectives": "leaf", "quantize_weights": "int8", "training": {"precision": "bfloat16"}}
        with pytest.raises(ValueError, match=r"leave training.precision at float32"):
            StageSettings.model_validate(stage)

    @pytest.mark.parametrize("more", [{"train": "head"}, {"train": "lexical"}, {"lora": {}}])
    def test_what_does_not_fit(self, more):
        with pytest.raises(
            ValueError, match=r"quantize_weights is about the matrices of a transformer that is trained whole"
        ):
            StageSettings.model_validate({"objectives": "kl", "quantize_weights": "int8", **more})
