"""LELP and token relations as objectives of a stage: a tiny student trains with each, and misfits are refused."""

from types import SimpleNamespace

import losses
import numpy as np
import pytest
import torch

from retrodistill.core.errors import UserError
from retrodistill.data.collection import Qrels
from retrodistill.encoders import load_encoder
from retrodistill.encoders.multi_vector import MultiVectorModel, token_encoder
from retrodistill.rankers.bi_encoder import MultiVectorRanker
from retrodistill.rankers.loading import load_ranker
from retrodistill.recipes.student_settings import StudentSettings
from retrodistill.recipes.students import build_student
from retrodistill.students.multi_vector import TokenScorer, multi_vector_student
from retrodistill.students.registry import run_stage
from retrodistill.training.loss import DistillationLoss, TeacherVectors, Term
from retrodistill.training.prepared import prepare
from retrodistill.training.settings import StageSettings
from retrodistill.training.stages import token_teacher
from retrodistill.training.training_data import TrainingData

SHORT = {"epochs": 1, "max_steps": 3, "batch_size": 8, "learning_rate": 1e-2, "warmup": 0}


@pytest.fixture
def data(tiny, tiny_model, tmp_path):
    space = load_encoder(f"dense:{tiny_model}")
    return TrainingData(tiny, tiny.split("train"), load_ranker("bm25"), space, tmp_path / "out")


def changed(data, **more):
    from dataclasses import replace

    return replace(data, **more)


def cosines(vectors):
    unit = vectors / np.linalg.norm(vectors, axis=1, keepdims=True)
    return unit @ unit.T


def trained(model, stage, data, **more):
    """A student through one stage: the history, and whether it moved."""
    one = StageSettings.model_validate({"training": SHORT, **stage})
    settings = StudentSettings.model_validate({"model": model, "stages": [one], "control": None, **more})
    student = build_student(settings, data)
    before = [value.detach().clone() for value in student.parameters()]
    history = run_stage(student, one, data, data.folder / "work", "training")
    return history, any(not torch.equal(*pair) for pair in zip(before, student.parameters(), strict=True))


class TestLelp:
    @pytest.mark.parametrize("model", ["static", "dense"])
    def test_a_student_in_the_teachers_space_learns_it(self, model, data, tiny_model):
        name = model if model == "static" else f"dense:{tiny_model}"
        stage = {"objectives": [{"name": "lelp", "parts": 2}, "leaf"], "texts": {"sentences": 3, "documents": True}}
        history, moved = trained(name, stage, data, **({"layers": 1} if model == "dense" else {}))
        assert moved
        assert history.losses[-1]["lelp"] > 0

    def test_classes_are_source_documents_or_labeled_ones_by_the_stage(self, data):
        queries = data.queries.ids
        labels = Qrels.from_dict({query: {"d5": 1, "d6": 2} for query in queries[:12]})
        stage = {"objectives": "lelp", "positives": "labels", "texts": {"titles": False, "sentences": 0}}
        one = StageSettings.model_validate(stage)
        prepared = prepare(one, changed(data, labels=labels))
        embeddings = data.space.encode(data.queries.texts[:12], "query")
        assert prepared.classes.directions.shape[:2] == (1, 2)  # all of them have document d6
        np.testing.assert_allclose(prepared.classes.centers[0], embeddings.mean(0), atol=1e-5)
        with pytest.raises(UserError, match=r"'lelp' needs .* more than parts=2"):
            prepare(StageSettings.model_validate({**stage, "positives": "source_document"}), data)

    def test_misfits_are_rejected_in_one_line(self, data, tiny_model):
        with pytest.raises(ValueError, match=r"no embedding to align") as error:
            trained(f"sparse:{tiny_model}", {"objectives": "lelp", "train": "both_encoders"}, data)
        stage = {"objectives": ["kl", "lelp"], "train": "both_encoders", "texts": {"documents": True}}
        with pytest.raises(UserError, match=r"'lelp' aligns single texts") as error:
            trained(f"dense:{tiny_model}", stage, changed(data, own_documents=True), documents="student")
        assert "\n" not in str(error.value)


class TestTokenRelations:
    STAGE = {  # noqa: RUF012 - never changed
        "objectives": ["kl", {"name": "token-relations", "weight": 3.0}],
        "train": "both_encoders",
        "texts": {"titles": False, "sentences": 0},
        "candidates": {"depth": 5, "sources": ["bm25"]},
        "groups": {"documents": 3},
    }

    @pytest.fixture
    def taught(self, data, tiny_model):
        encoder = MultiVectorModel(token_encoder(tiny_model), "multi-vector:teacher")
        return changed(data, teacher=MultiVectorRanker(encoder), own_documents=True)

    def test_a_multi_vector_student_learns_its_teachers_token_graph(self, taught, tiny_model):
        stage = {**self.STAGE, "training": {**SHORT, "epochs": 6, "max_steps": 0}}
        history, moved = trained(f"multi-vector:{tiny_model}", stage, taught, dimension=8)
        assert moved
        values = [entry["token-relations"] for entry in history.losses]
        assert 0 < np.mean(values[-5:]) < np.mean(values[:5])

    def test_it_is_the_mean_over_columns_of_the_token_graphs(self, taught, tiny_model):
        model = multi_vector_student(tiny_model, taught.collection.documents.texts, dimension=8).eval()
        student = MultiVectorModel(model, "multi-vector:student")
        run = SimpleNamespace(student=student, data=taught)
        lists = losses.groups(np.eye(2, dtype="f4"), [[True, True], [True, False]], [0, 0])
        scorer, teacher = TokenScorer(), TeacherVectors(tokens=token_teacher(run))
        columns = [["star planet", "judge jury"], ["a star", "court and judge"], ["bread", ""]]
        terms = [Term("token-relations", weight=2.0)]
        parts = DistillationLoss(model, terms, scorer, lists, teacher)(
            scorer.features(student, columns), torch.arange(2)
        )
        expected = []
        for place, texts in enumerate([columns[0], columns[1], columns[2][:1]]):  # the padded place counts nothing
            ours, theirs = (
                encoder.encode(texts, "document" if place else "query") for encoder in (student, taught.teacher.queries)
            )
            squares = []
            for row in range(len(texts)):
                graphs = [cosines(side[row]) for side in (ours, theirs)]
                squares += list(((graphs[0] - graphs[1]) ** 2)[np.triu_indices(len(graphs[0]), 1)])
            expected.append(np.mean(squares))
        value = parts["token-relations"]
        assert float(value.detach()) == pytest.approx(2 * np.mean(expected), rel=1e-3)
        value.backward()
        assert all(torch.isfinite(one.grad).all() for one in model.parameters() if one.grad is not None)
        assert float(model[1].linear.weight.grad.abs().sum()) > 0
        assert all(one.grad is None for one in taught.teacher.queries.model.parameters())

    def test_another_teacher_or_student_is_rejected_in_one_line(self, data, taught, tiny_model):
        with pytest.raises(UserError, match=r"'token-relations' needs a multi-vector teacher, and bm25 is not"):
            trained(f"multi-vector:{tiny_model}", self.STAGE, changed(data, own_documents=True), dimension=8)
        with pytest.raises(UserError, match=r"'token-relations' compares token vectors") as error:
            trained(f"dense:{tiny_model}", self.STAGE, taught, documents="student")
        assert "\n" not in str(error.value)
