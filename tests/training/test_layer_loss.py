"""Objectives over layers in a stage of a recipe, for every kind of student that has layers."""

from dataclasses import replace

import numpy as np
import pytest
import torch

from retrodistill.core.errors import UserError
from retrodistill.encoders import load_encoder
from retrodistill.encoders.loading import load_bi_encoder
from retrodistill.rankers.loading import load_ranker
from retrodistill.recipes.student_settings import StudentSettings
from retrodistill.recipes.students import build_student
from retrodistill.students.registry import run_stage
from retrodistill.training.layer_loss import LayerLoss, Transformers, layer_pairs
from retrodistill.training.loss import Term
from retrodistill.training.settings import StageSettings
from retrodistill.training.training_data import TrainingData

NAMES = ["hidden-states", "attention", "self-attention-relations"]
SHORT = {"epochs": 1, "max_steps": 3, "batch_size": 4, "learning_rate": 1e-2, "warmup": 0}
LISTS = {"candidates": {"depth": 4, "sources": ["bm25"]}, "groups": {"documents": 2}}
TEXTS = ["star planet", "bread"]


@pytest.fixture
def data(tiny, tiny_model, tmp_path):
    space = load_encoder(f"dense:{tiny_model}")
    return TrainingData(tiny, tiny.split("train"), load_ranker("bm25"), space, tmp_path / "out")


def trained(model, stage, data, **more):
    """A student through one stage: itself, and the history."""
    one = StageSettings.model_validate({"texts": {"sentences": 1}, "training": SHORT, **stage})
    settings = StudentSettings.model_validate({"model": model, "stages": [one], "control": None, **more})
    data = replace(data, own_documents=settings.documents == "student")
    student = build_student(settings, data)
    return student, run_stage(student, one, data, data.folder / str(hash(str((stage, more)))), "training")


class Nothing(torch.nn.Module):
    """A loss without terms of its own that runs the model."""

    def __init__(self, model):
        super().__init__()
        self.model = model

    def forward(self, features, labels):
        for column in features:
            self.model(column)
        return {}


def loss_of(student, teacher, *terms):
    return LayerLoss(student, Nothing(student), terms, Transformers(student[0].auto_model, teacher[0].auto_model))


def value_of(loss, student, texts=TEXTS):
    return loss([student.preprocess(texts)], torch.arange(len(texts)))


class TestLoss:
    def test_it_compares_the_layers_of_the_map_over_the_tokens_of_each_text(self, tiny_model):
        teacher, student = load_bi_encoder(tiny_model), load_bi_encoder(tiny_model, layers=1)
        with torch.no_grad():
            student[0].auto_model.encoder.layer[0].output.dense.weight.mul_(1.5)
        student.eval()
        parts = value_of(loss_of(student, teacher, Term("hidden-states", weight=3.0)), student)
        ours, theirs = [], []
        for text in TEXTS:  # one at a time, so that nothing is padded
            features = student.preprocess([text])
            inputs = {name: features[name] for name in ("input_ids", "attention_mask")}
            for states, model in ((ours, student), (theirs, teacher)):
                states.append(model[0].auto_model(**inputs).last_hidden_state[0])
        wanted = ((torch.cat(ours) - torch.cat(theirs)) ** 2).mean()
        assert float(parts["hidden-states"]) == pytest.approx(3 * float(wanted), rel=1e-4)
        parts["hidden-states"].backward()
        assert all(one.grad is None for one in teacher.parameters())

    @pytest.mark.parametrize("name", NAMES)
    def test_a_whole_copy_of_the_teacher_has_nothing_to_learn(self, name, tiny_model):
        teacher, student = (load_bi_encoder(tiny_model).eval() for _ in range(2))
        parts = value_of(loss_of(student, teacher, Term(name, layers="uniform")), student)
        assert float(parts[name]) == pytest.approx(0, abs=1e-6)

    def test_the_teacher_is_no_part_of_the_loss(self, tiny_model):
        teacher, student = load_bi_encoder(tiny_model), load_bi_encoder(tiny_model, layers=1)
        loss = loss_of(student, teacher, Term("hidden-states"))
        assert {id(one) for one in loss.parameters()} == {id(one) for one in student.parameters()}

    def test_several_passes_are_averaged(self, tiny_model):
        teacher, student = load_bi_encoder(tiny_model), load_bi_encoder(tiny_model, layers=1).eval()
        loss = loss_of(student, teacher, Term("attention", layers={1: 2}))
        one, other = (float(value_of(loss, student, [text])["attention"]) for text in TEXTS)
        both = loss([student.preprocess([text]) for text in TEXTS], torch.arange(1))
        assert float(both["attention"]) == pytest.approx((one + other) / 2, rel=1e-5)


class TestPairs:
    def test_maps_by_name(self):
        assert layer_pairs("uniform", 3, 6) == [(1, 2), (2, 4), (3, 6)]
        assert layer_pairs("uniform", 4, 6) == [(1, 2), (2, 3), (3, 4), (4, 6)]
        assert layer_pairs("last", 3, 6) == [(3, 6)]
        assert layer_pairs({3: 6, 0: 0}, 3, 6) == [(0, 0), (3, 6)]

    @pytest.mark.parametrize("layers", [{4: 6}, {1: 7}, {}])
    def test_layers_that_are_not_there(self, layers):
        with pytest.raises(UserError, match=r"^layers: .*up to 3, and a teacher's, up to 6"):
            layer_pairs(layers, 3, 6)


class TestStages:
    @pytest.mark.parametrize("name", NAMES)
    def test_a_cut_student_comes_closer_to_its_teacher(self, name, data, tiny_model):
        stage = {"objectives": ["leaf", name], "training": {**SHORT, "epochs": 8, "max_steps": 0}}
        _, history = trained(f"dense:{tiny_model}", stage, data, layers=1)
        values = [entry[name] for entry in history.losses]
        assert 0 < np.mean(values[-3:]) < 0.9 * np.mean(values[:3])
        assert all(torch.isfinite(one).all() for one in data.space.model.parameters())

    def test_alone_on_single_texts(self, data, tiny_model):
        _, history = trained(f"dense:{tiny_model}", {"objectives": "hidden-states"}, data, layers=1)
        assert list(history.losses[-1])[-1] == "hidden-states"
        assert "agreement" in history.monitors[-1]

    @pytest.mark.parametrize("kind", ["dense", "sparse", "multi-vector"])
    def test_on_both_sides(self, kind, data, tiny_model):
        more = {"dense": {"documents": "student"}, "multi-vector": {"dimension": 8}}.get(kind, {})
        stage = {"objectives": ["kl", *NAMES], "train": "both_encoders", **LISTS}
        _, history = trained(f"{kind}:{tiny_model}", stage, data, layers=1, **more)
        assert all(history.losses[-1][name] > 0 for name in NAMES)

    def test_of_pairs_by_a_teacher_that_reads_pairs(self, data, tiny_cross_encoder):
        stage = {"objectives": ["kl", *NAMES], "train": "both_encoders", **LISTS}
        model = f"cross-encoder:{tiny_cross_encoder}"
        taught = replace(data, teacher=load_ranker(model))
        _, history = trained(model, stage, taught, layers=1)
        assert all(history.losses[-1][name] > 0 for name in NAMES)
        with pytest.raises(UserError, match=r"'hidden-states' needs a teacher that is a transformer and reads pairs"):
            trained(model, stage, data, layers=1)

    def test_with_truncations_exits_and_pruned_heads(self, data, tiny_model):
        stage = {"objectives": ["leaf", "hidden-states", "self-attention-relations"]}
        for more, in_stage in (
            ({}, {"matryoshka": [16]}),
            ({"exits": [1]}, {}),
            ({"keep": {"heads": 1, "units": 8}}, {}),
        ):
            _, history = trained(f"dense:{tiny_model}", {**stage, **in_stage}, data, **more)
            assert history.losses[-1]["self-attention-relations"] >= 0

    def test_what_does_not_fit(self, data, tiny_model, tmp_path):
        cases = [
            ("static", {}, {}, r"layers of a transformer, and this student has 0"),
            (
                f"dense:{tiny_model}",
                {},
                {"length_adaptive": {"layers": [1], "keep": 0.5, "fewest": 2}},
                r"a length_adaptive student drops some",
            ),
            (f"dense:{tiny_model}", {"layers": {"2": 2}}, {"layers": 1}, r"^layers: 2: 2; give pairs"),
        ]
        for model, term, more, message in cases:
            with pytest.raises(UserError, match=message) as error:
                trained(model, {"objectives": [{"name": "hidden-states", **term}]}, data, **more)
            assert "\n" not in str(error.value)
        pruned = {"keep": {"heads": 1, "units": 64}}
        with pytest.raises(UserError, match=r"attention of 1 heads, the teacher's of 2"):
            trained(f"dense:{tiny_model}", {"objectives": "attention"}, data, **pruned)
        with pytest.raises(UserError, match=r"'attention' compares attention, which layer 0 has not"):
            trained(f"dense:{tiny_model}", {"objectives": [{"name": "attention", "layers": {0: 0}}]}, data, layers=1)
        with pytest.raises(ValueError, match=r"layers is for objectives that compare layers, which kl does not"):
            StageSettings.model_validate({"objectives": [{"name": "kl", "layers": "last"}]})
        with pytest.raises(ValueError, match=r"attention compares layers, which train: head does not train"):
            StageSettings.model_validate({"objectives": ["kl", "attention"], "train": "head"})
