"""Stages that train adapters: what moves, by how much rank, that they are merged, resumed, and refused."""

import json

import numpy as np
import pytest
import torch

import retrodistill as rd
from retrodistill.core.errors import UserError
from retrodistill.encoders.adapters import LoraShape, has_adapters, training_adapters
from retrodistill.encoders.loading import load_bi_encoder
from retrodistill.students import cross_encoder_student, dense_student, load_student
from retrodistill.training.settings import StageSettings

pytest.importorskip("peft")
RATE = {"max_steps": 4, "batch_size": 8, "learning_rate": 0.05}
LORA = {"rank": 2, "alpha": 4}


def distilled(collection, model, name, out, lora=LORA, **stage):
    stages = [{"objectives": "kl", "training": RATE, "lora": lora, **stage}]
    given = {"model": name, "stages": stages}
    return rd.distill(collection, "bm25", student=given, document_encoder=f"dense:{model}", out=out)


def moved(student, start):
    """Differences of the weights that changed, by name."""
    before = dict(start.named_parameters())
    assert before.keys() == dict(student.named_parameters()).keys()
    differences = {name: (weights - before[name]).detach() for name, weights in student.named_parameters()}
    return {name: difference for name, difference in differences.items() if difference.abs().max() > 1e-6}


class TestTraining:
    @pytest.mark.slow
    def test_only_linear_layers_move_by_their_rank_and_are_merged(self, tiny, tiny_model, tmp_path):
        student = distilled(tiny, tiny_model, f"dense:{tiny_model}", tmp_path / "out").model
        found = moved(student, load_bi_encoder(tiny_model))
        assert len(found) == 2 * 6  # query, key, value, and three of what follows, in two layers
        assert {int(torch.linalg.matrix_rank(change, atol=1e-5)) for change in found.values()} <= {1, 2}
        config = json.loads((tmp_path / "out" / "config.json").read_text())
        assert config["model_type"] == "bert"

    @pytest.mark.slow
    def test_the_modules_that_are_named(self, tiny, tiny_model, tmp_path):
        lora = {**LORA, "modules": ["query", "attention.output.dense"]}
        student = distilled(tiny, tiny_model, f"dense:{tiny_model}", tmp_path / "out", lora).model
        ends = {name.split("layer.")[1][2:] for name in moved(student, load_bi_encoder(tiny_model))}
        assert ends == {"attention.self.query.weight", "attention.output.dense.weight"}

    @pytest.mark.slow
    def test_a_head_in_the_transformer_is_trained_whole(self, tiny, tiny_model, tiny_cross_encoder, tmp_path):
        name = f"cross-encoder:{tiny_cross_encoder}"
        student = distilled(tiny, tiny_model, name, tmp_path / "out", train="both_encoders").model
        found = moved(student, cross_encoder_student(tiny_cross_encoder))
        assert {name for name in found if "classifier" in name} == {
            "0.model.classifier.weight",
            "0.model.classifier.bias",
        }
        assert not any("embeddings" in name for name in found)

    @pytest.mark.slow
    @pytest.mark.parametrize("kind", ["sparse", "multi-vector", "prett", "tk", "cross-encoder"])
    def test_every_kind_with_a_transformer(self, tiny, tiny_model, tmp_path, kind):
        student = distilled(tiny, tiny_model, f"{kind}:{tiny_model}", tmp_path / "out", train="both_encoders")
        assert not has_adapters(student.model)
        assert not any("lora" in name for name, _ in load_student(tmp_path / "out").model.named_parameters())

    @pytest.mark.slow
    def test_a_stage_resumes_from_its_checkpoint(self, tiny, tiny_model, tmp_path, monkeypatch):
        from retrodistill.training import trainer

        name = f"dense:{tiny_model}"
        whole = distilled(tiny, tiny_model, name, tmp_path / "whole")
        check, steps = trainer._check_weights, []

        def killed(model, what, step, rate):
            steps.append(step)
            if step == 3:
                raise KeyboardInterrupt
            check(model, what, step, rate)

        monkeypatch.setattr(trainer, "_check_weights", killed)
        with pytest.raises(KeyboardInterrupt):
            distilled(tiny, tiny_model, name, tmp_path / "killed")
        monkeypatch.setattr(trainer, "_check_weights", check)
        assert list((tmp_path / "killed").parent.rglob("adapted.safetensors"))
        again = distilled(tiny, tiny_model, name, tmp_path / "killed")
        np.testing.assert_array_equal(again.encode(["star"], "query"), whole.encode(["star"], "query"))


class TestAdapters:
    def test_new_ones_change_nothing_and_their_parameters_are_counted(self, tiny_model):
        model, shape = dense_student(tiny_model), LoraShape(3, 6.0, modules=["query", "intermediate.dense"])
        before, count = model.encode(["star"]), shape.parameters(model)
        with training_adapters(model, shape, 0):
            np.testing.assert_array_equal(model.encode(["star"]), before)
            trained = sum(weights.numel() for weights in model.parameters() if weights.requires_grad)
        assert trained == count == 2 * 3 * ((32 + 32) + (32 + 64))
        assert all(weights.requires_grad for weights in model.parameters())


class TestRefusals:
    def test_parts_without_a_transformer(self):
        with pytest.raises(ValueError, match="train: head does not train"):
            StageSettings(objectives="kl", train="head", lora={})

    def test_a_static_student(self, tiny, tiny_model, tmp_path):
        with pytest.raises(UserError, match="static student has none"):
            distilled(tiny, tiny_model, "static", tmp_path / "out")

    def test_modules_that_are_not_there(self, tiny, tiny_model, tmp_path):
        with pytest.raises(UserError, match="no linear layer is named wqkv; there are query, key, value, dense"):
            distilled(tiny, tiny_model, f"dense:{tiny_model}", tmp_path / "out", {"modules": ["wqkv"]})

    def test_stages_without_adapters_have_the_manifests_of_before(self):
        assert "lora" not in StageSettings(objectives="kl").model_dump()
