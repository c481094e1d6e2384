"""Maps behind cut transformers: the regression itself, and where it is refused."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from retrodistill.core.errors import UserError
from retrodistill.encoders.any_encoder import load_encoder
from retrodistill.encoders.embeddings import embed
from retrodistill.encoders.loading import load_bi_encoder
from retrodistill.rankers.loading import load_ranker
from retrodistill.recipes.student_settings import StudentSettings
from retrodistill.recipes.students import build_student
from retrodistill.students import dense_student
from retrodistill.students.dense import fit_map
from retrodistill.training.training_data import TrainingData

STAGES = [{"objectives": "leaf"}]


@pytest.fixture
def texts(tiny):
    return [text[:60] for text in tiny.documents.texts]


def dense_map(model):
    return next(module for module in model if type(module).__name__ == "Dense").linear.weight.detach().numpy()


class TestFitMap:
    def test_it_is_the_ridge_regression_on_the_spaces_unit_vectors(self, tiny_model, texts):
        model, vectors = dense_student(tiny_model, mapped=True), 3.0 * load_bi_encoder(tiny_model).encode(texts)
        fit_map(model.train(), texts, vectors)
        assert model.training
        given = torch.nn.Sequential(*list(model)[:-2])  # before the map and the normalization
        model.eval()
        with torch.no_grad():
            before = given(dict(model.preprocess(texts)))["sentence_embedding"].double().numpy()
        gram, wanted = before.T @ before, vectors.astype(float) / np.linalg.norm(vectors, axis=1, keepdims=True)
        by_hand = np.linalg.solve(gram + 0.01 * np.trace(gram) / 32 * np.eye(32), before.T @ wanted)
        np.testing.assert_allclose(dense_map(model).T, by_hand, atol=1e-3)

    def test_vectors_may_be_narrower(self, tiny_model, texts):
        model, vectors = dense_student(tiny_model, dimension=8), load_bi_encoder(tiny_model).encode(texts)[:, :8]
        started = (model.encode(texts) * vectors).sum(axis=1).mean()
        fit_map(model, texts, vectors)
        assert (model.encode(texts) * vectors).sum(axis=1).mean() > started

    def test_a_student_without_a_map_or_texts(self, tiny_model, texts):
        with pytest.raises(UserError, match=r"^the student has no map to fit; make it with a dimension of its own"):
            fit_map(dense_student(tiny_model), texts, np.zeros((60, 32)))
        with pytest.raises(UserError, match=r"^a map is fitted to texts, and there are none"):
            fit_map(dense_student(tiny_model, mapped=True), [], np.zeros((0, 32)))


class TestInRecipes:
    def test_a_student_starts_nearer_to_a_space_that_is_not_its_own(self, tiny, tiny_model, tiny_static, tmp_path):
        space = load_encoder(f"static:{tiny_static}")
        data = TrainingData(tiny, tiny.split("train"), load_ranker("bm25"), space, tmp_path)
        asked = tiny.split("test").texts
        wanted, found = embed(space, asked, "query"), {}
        for start in ("teacher", "fitted"):
            chosen = StudentSettings(model=f"dense:{tiny_model}", dimension="space", initialize=start, stages=STAGES)
            found[start] = (build_student(chosen, data).encode(asked) * wanted).sum(axis=1).mean()
        assert found["fitted"] > found["teacher"] + 0.1

    @pytest.mark.parametrize(
        "given", [{"initialize": "words"}, {"initialize": "fitted", "lexical_dim": 8, "documents": "student"}]
    )
    def test_other_starts_are_for_static_students(self, given):
        with pytest.raises(ValueError, match=r"initialize.* is for static"):
            StudentSettings(model="dense:x", stages=[{"objectives": "kl", "train": "query_encoder"}], **given)
