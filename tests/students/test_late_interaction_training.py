"""PreTT and TK through a stage of a recipe: any list objective, frozen or whole."""

import numpy as np
import pytest
import torch

from retrodistill.encoders import load_encoder
from retrodistill.rankers.loading import load_ranker
from retrodistill.recipes.student_settings import StudentSettings
from retrodistill.recipes.students import build_student
from retrodistill.students.registry import run_stage
from retrodistill.training.settings import StageSettings
from retrodistill.training.training_data import TrainingData

FAMILIES = ["kl", "margin-mse", "ranknet", "listmle", "sinkhorn", "taid", "lwf", "contrastive"]
KINDS = ["prett", "tk"]
SHORT = {"epochs": 1, "max_steps": 2, "batch_size": 4, "learning_rate": 1e-3, "warmup": 0}


@pytest.fixture
def data(tiny, tiny_model, tmp_path):
    space = load_encoder(f"dense:{tiny_model}")
    return TrainingData(tiny, tiny.split("train"), load_ranker("bm25"), space, tmp_path / "out")


@pytest.fixture
def model(data, tiny_model, tiny_cross_encoder):
    def model(kind, stage):
        given = {"prett": {"model": f"prett:{tiny_cross_encoder}", "join": 1}, "tk": {"model": f"tk:{tiny_model}"}}
        settings = {**given[kind], "dimension": 16, "stages": [stage], "control": None}
        return build_student(StudentSettings.model_validate(settings), data)

    return model


def stage(train, objectives="kl", titles=False, **training):
    return StageSettings.model_validate(
        {
            "objectives": objectives,
            "train": train,
            "texts": {"titles": titles, "sentences": 0},
            "candidates": {"depth": "all"},
            "groups": {"documents": 4, "random": 2},
            "training": {**SHORT, **training},
        }
    )


class TestObjectives:
    @pytest.mark.parametrize("train", ["head", "both_encoders"])
    @pytest.mark.parametrize("kind", KINDS)
    def test_any_of_lists_trains_it(self, kind, train, model, data, tmp_path):
        one = stage(train, FAMILIES, titles=True)
        student = model(kind, one)
        before = {name: weights.detach().clone() for name, weights in student.named_parameters()}
        history = run_stage(student, one, data, tmp_path / "work", "training")
        assert all(np.isfinite(history.losses[-1][name]) for name in FAMILIES)
        still = {name for name, weights in student.named_parameters() if torch.equal(before[name], weights)}
        below = {id(weights) for weights in student[0].lower_parameters()}
        lower = {name for name, weights in student.named_parameters() if id(weights) in below}
        assert still == (lower if train == "head" else set())
        assert {"step", "agreement"} <= set(history.monitors[-1])


class TestLearning:
    def test_tk_agrees_with_its_teacher_soon(self, model, data, tmp_path):
        one = stage("head", max_steps=40, epochs=8, batch_size=8, learning_rate=1e-2)
        history = run_stage(model("tk", one), one, data, tmp_path / "work", "training")
        first, last = (np.mean([each["loss"] for each in part]) for part in (history.losses[:5], history.losses[-5:]))
        assert last < 0.9 * first
