"""Every objective and regularizer that `retrodistill methods` lists trains a stage as a recipe writes it."""

from dataclasses import replace

import pytest
import torch

from retrodistill.encoders import load_encoder
from retrodistill.encoders.concatenated import ConcatenatedEncoder
from retrodistill.encoders.multi_vector import MultiVectorModel, token_encoder
from retrodistill.objectives.registry import OBJECTIVES, REGULARIZERS, get_objective
from retrodistill.rankers.bi_encoder import MultiVectorRanker
from retrodistill.rankers.ensemble import soft_labels
from retrodistill.rankers.loading import load_ranker
from retrodistill.recipes.settings import Recipe
from retrodistill.recipes.student_settings import StudentSettings
from retrodistill.recipes.students import build_student
from retrodistill.students.registry import run_stage
from retrodistill.training.training_data import TrainingData

SHORT = {"epochs": 1, "max_steps": 2, "batch_size": 4, "learning_rate": 1e-2, "warmup": 0}
TEXTS = {"titles": True, "sentences": 1}


@pytest.fixture
def data(tiny, tiny_model, tmp_path):
    space = load_encoder(f"dense:{tiny_model}")
    return TrainingData(tiny, tiny.split("train"), load_ranker("bm25"), space, tmp_path / "out")


def student_of(name, model):
    """The settings of a student that learns an objective alone."""
    objective = get_objective(name)
    stage = {"objectives": [name], "texts": TEXTS, "candidates": {"depth": 6, "sources": ["bm25"]}, "training": SHORT}
    if objective.sees == "layers":
        return {"model": f"dense:{model}", "layers": 1, "stages": [stage]}
    if objective.sees == "tokens":
        stage |= {"objectives": ["kl", name], "train": "both_encoders", "groups": {"documents": 2}}
        return {"model": f"multi-vector:{model}", "dimension": 8, "stages": [stage]}
    if objective.needs("batch_targets", "own_scores"):
        stage |= {"objectives": ["margin-mse", name], "train": "both_encoders", "groups": {"documents": 2}}
        return {"model": f"dense:{model}", "documents": "student", "stages": [stage]}
    if objective.needs("labels"):
        stage["labels"] = "sigmoid"
    if objective.corrects_by_labels:
        stage["positives"] = "labels"
    if objective.needs("start_scores"):
        stage["objectives"] = ["kl", name]
    if objective.dot_only:
        return {"model": f"dense:{model}", "stages": [stage]}
    if objective.needs("teacher_widths"):
        return {"model": f"dense:{model}", "dimension": "space", "stages": [stage]}
    if objective.needs("classes"):
        stage["texts"] = {"sentences": 3, "documents": True}
    return {"model": "static", "stages": [stage]}


def trained(settings, data, folder):
    student = StudentSettings.model_validate({**settings, "control": None})
    several = "concat:dense:all-MiniLM-L6-v2+dense:all-mpnet-base-v2"  # as some objectives need; nothing is loaded
    Recipe.model_validate({"name": "one", "document_encoder": several, "students": {"student": student.model_dump()}})
    model = build_student(student, replace(data, own_documents=student.documents == "student"))
    before = [value.detach().clone() for value in model.parameters()]
    history = run_stage(
        model, student.stages[0], replace(data, own_documents=student.documents == "student"), folder, ""
    )
    return history, any(not torch.equal(*pair) for pair in zip(before, model.parameters(), strict=True))


@pytest.mark.parametrize("name", OBJECTIVES)
def test_every_objective_trains_a_stage_of_a_recipe(name, data, tiny_model, tiny_static, tmp_path):
    if name == "token-relations":
        teacher = MultiVectorModel(token_encoder(tiny_model), "multi-vector:teacher")
        data = replace(data, teacher=MultiVectorRanker(teacher))
    if get_objective(name).needs("teacher_widths"):
        members = [load_encoder(f"dense:{tiny_model}"), load_encoder(f"static:{tiny_static}")]
        data = replace(data, space=ConcatenatedEncoder("concat", members))
    if get_objective(name).needs("labels"):
        data = replace(data, teacher=soft_labels([data.teacher], "sigmoid", [1.0]))
    if get_objective(name).corrects_by_labels:
        data = replace(data, labels=data.collection.relevance("train"))
    if get_objective(name).dot_only:
        model = load_encoder(f"dense:{tiny_model}").model
        model.similarity_fn_name = "dot"
        while type(model[-1]).__name__ == "Normalize":
            del model[len(model) - 1]
        model.save_pretrained(str(tmp_path / "dot"))
        tiny_model = str(tmp_path / "dot")
    history, moved = trained(student_of(name, tiny_model), data, tmp_path / "work")
    assert history.steps == 2
    assert name in history.losses[-1]
    assert moved


@pytest.mark.parametrize("name", REGULARIZERS)
def test_every_regularizer_trains_a_stage_of_a_recipe(name, data, tiny_model, tmp_path):
    stage = {
        "objectives": ["kl"],
        "train": "both_encoders",
        "texts": TEXTS,
        "candidates": {"depth": 6, "sources": ["bm25"]},
        "groups": {"documents": 2},
        "regularizers": [{"name": name, "weight": 0.1, "warmup": 0}],
        "training": SHORT,
    }
    history, moved = trained({"model": f"sparse:{tiny_model}", "stages": [stage]}, data, tmp_path / "work")
    assert any(name in key for key in history.losses[-1])
    assert moved
