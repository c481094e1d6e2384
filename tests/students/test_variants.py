"""Stages of students with exits, of Matryoshka, clustered and VDR students: what the loss is made of."""

import numpy as np
import pytest
import torch
from losses import groups_loss, stored_loss
from torch.nn.functional import normalize

from retrodistill.core.errors import UserError
from retrodistill.encoders import load_encoder
from retrodistill.encoders.modules import exit_model
from retrodistill.encoders.multi_vector import MultiVectorModel
from retrodistill.encoders.sparse import SparseTextEncoder
from retrodistill.encoders.vectors import leading
from retrodistill.rankers.loading import load_ranker
from retrodistill.recipes.student_settings import StudentSettings, control_of
from retrodistill.recipes.students import build_student
from retrodistill.students.clustering import TokenClusters, with_clusters, without_clusters
from retrodistill.students.dense import loss_of_variants
from retrodistill.students.multi_vector import TokenScorer, multi_vector_student
from retrodistill.students.registry import as_student, run_stage
from retrodistill.students.sparse_training import TermScorer
from retrodistill.students.vdr import own_token_queries, vocabulary_pooling
from retrodistill.training.loss import DistillationLoss, Term
from retrodistill.training.settings import StageSettings
from retrodistill.training.training_data import TrainingData

TEXTS = ["what star planet", "violin chord and melody", "bread", "judge"]
SHORT = {"epochs": 1, "max_steps": 3, "batch_size": 8, "learning_rate": 1e-3, "warmup": 0}
LISTS = {"candidates": {"depth": "all"}, "groups": {"documents": 4, "random": 4}}
TITLES = {"titles": True, "sentences": 0}


@pytest.fixture
def data(tiny, tiny_model, tmp_path):
    space = load_encoder(f"dense:{tiny_model}")
    return TrainingData(tiny, tiny.split("train"), load_ranker("bm25"), space, tmp_path / "out")


def settings(model, stage, **more):
    given = {"texts": TITLES, "training": SHORT, **stage}
    return StudentSettings.model_validate({"model": model, "stages": [given], **more})


@pytest.fixture
def trained(data, tmp_path):
    """A student through its one stage: settings, the model before it, the model behind it, and the history."""

    def trained(chosen):
        one = chosen.stages[0]
        own = TrainingData(**{**vars(data), "own_documents": chosen.documents == "student"})
        model, before = (build_student(chosen, data) for _ in range(2))
        return before, model, run_stage(model, one, own, tmp_path / "work", "training")

    return trained


def terms_of(history):
    return {name for name in history.losses[-1] if name not in ("step", "loss", "learning_rate", "grad_norm", "epoch")}


class TestMatryoshka:
    @pytest.mark.parametrize("kind", ["static", "dense"])
    def test_each_truncation_has_every_term(self, kind, trained, tiny_model):
        model = "static" if kind == "static" else f"dense:{tiny_model}"
        stage = {"objectives": ["leaf", "kl"], "matryoshka": [16, 8], **LISTS}
        _, _, history = trained(settings(model, stage))
        assert {f"{name}{cut}" for name in ("leaf", "kl") for cut in ("", "@16", "@8")} <= terms_of(history)

    def test_of_both_towers_too(self, trained, tiny_model):
        stage = {"objectives": ["kl", "lwf", "taid"], "train": "both_encoders", "matryoshka": [8], **LISTS}
        _, _, history = trained(settings(f"dense:{tiny_model}", stage, documents="student"))
        assert {"kl", "kl@8", "lwf", "lwf@8", "taid", "taid@8"} <= terms_of(history)

    def test_leading_dimensions_learn_the_teachers_leading_dimensions(self, trained, data):
        steps = {**SHORT, "max_steps": 0, "epochs": 20, "learning_rate": 1e-2}
        before, model, _ = trained(settings("static", {"objectives": "leaf", "matryoshka": [4], "training": steps}))
        texts = data.queries.texts
        teacher = leading(data.space.encode(texts, "query"), 4, unit=True)
        cosines = [
            (leading(as_student(one).encode(texts, "query"), 4, unit=True) * teacher).sum() for one in (before, model)
        ]
        assert cosines[1] > cosines[0]

    def test_without_any_the_loss_is_the_plain_one(self, tiny_model):
        encoder = load_encoder(f"dense:{tiny_model}")
        loss = loss_of_variants(encoder, StageSettings(objectives="leaf"), lambda *_: _leaf(encoder))
        assert isinstance(loss, DistillationLoss)

    def test_more_dimensions_than_there_are(self, trained, tiny_model):
        with pytest.raises(UserError, match=r"^truncation to 64 dimensions: the vectors have 32"):
            trained(settings(f"dense:{tiny_model}", {"objectives": "leaf", "matryoshka": [64]}))


def _leaf(encoder):
    return stored_loss(encoder.model, [Term("leaf")], embeddings=np.zeros((4, encoder.dimension), "f4"))


class TestExits:
    def test_queries_against_stored_documents(self, trained, tiny_model):
        stage = {"objectives": ["leaf", "kl", "lwf"], **LISTS}
        before, model, history = trained(settings(f"dense:{tiny_model}", stage, exits=[1], project_exits=True))
        assert {"leaf", "leaf@exit-1", "kl", "kl@exit-1", "lwf", "lwf@exit-1", "exits"} <= terms_of(history)
        for layer in (1, 2):
            vectors = [exit_model(one, layer).encode(TEXTS) for one in (before, model)]
            assert np.abs(vectors[0] - vectors[1]).max() > 1e-4

    def test_weights_and_the_divergence_are_the_stages(self, trained, tiny_model):
        stage = {"objectives": "leaf", "exit_kl": 0, "exit_weights": {1: 0}}
        _, _, history = trained(settings(f"dense:{tiny_model}", stage, exits=[1]))
        assert "exits" not in terms_of(history)
        assert history.losses[-1]["leaf@exit-1"] == 0

    def test_with_leading_dimensions_at_each(self, trained, tiny_model):
        stage = {"objectives": "kl", "train": "both_encoders", "matryoshka": [8], **LISTS}
        _, _, history = trained(settings(f"dense:{tiny_model}", stage, exits=[1], documents="student"))
        assert {"kl", "kl@8", "kl@exit-1", "kl@8@exit-1", "exits"} <= terms_of(history)

    def test_the_student_of_the_stages_start_is_compared_exit_by_exit(self, tiny_model, data):
        chosen = settings(
            f"dense:{tiny_model}",
            {"objectives": ["kl", "lwf"], "train": "both_encoders"},
            exits=[1],
            documents="student",
        )
        model = build_student(chosen, data).eval()
        given = (np.eye(4, 2, dtype="f4"), np.ones((4, 2), bool), np.zeros(4, int), np.tile(np.arange(2), (4, 1)))

        def make(cut, alone):
            return groups_loss(model, [Term("kl"), Term("lwf")], *given, alone=alone)

        loss = loss_of_variants(as_student(model), chosen.stages[0], make)
        with torch.no_grad():
            for parameter in model.parameters():
                parameter.add_(0.1 * torch.randn(parameter.shape, generator=torch.Generator().manual_seed(0)))
        columns = [TEXTS, TEXTS[::-1], TEXTS[1:] + TEXTS[:1]]
        parts = loss([model.preprocess(column) for column in columns], torch.arange(4))
        assert float(parts["lwf"]) > 1e-6
        assert float(parts["lwf@exit-1"]) > 1e-6


class TestControls:
    @pytest.mark.parametrize(
        ("model", "stage", "more"),
        [
            ("static", {"matryoshka": [8]}, {}),
            ("dense", {}, {"exits": [1]}),
            ("multi-vector", {"train": "head"}, {"dimension": 16, "clusters": "C2x3"}),
            ("multi-vector", {"train": "both_encoders"}, {"clusters": "C50"}),
            ("sparse", {"train": "both_encoders"}, {}),
            ("sparse", {"train": "both_encoders", "own_tokens": 1.0}, {"head": "vdr"}),
        ],
    )
    def test_every_form_has_a_contrastive_one(self, model, stage, more, trained, tiny_model):
        name = model if model == "static" else f"{model}:{tiny_model}"
        _, _, history = trained(
            control_of(settings(name, {"objectives": "kl", **LISTS, **stage}, control="contrastive", **more))
        )
        assert history.losses[-1]["contrastive"] > 0
        assert "kl" not in terms_of(history)


class TestOwnTokens:
    def test_one_side_keeps_its_own_tokens(self, trained, tiny_model):
        stage = {"objectives": "kl", "train": "both_encoders", "own_tokens": 2.0, **LISTS}
        _, _, history = trained(settings(f"sparse:{tiny_model}", stage, head="vdr"))
        assert {"kl", "kl@own-query", "kl@own-document"} <= terms_of(history)

    def test_its_scores_are_those_of_queries_that_need_no_model(self, data, tiny_model):
        stage = {"objectives": "kl", "train": "both_encoders", "own_tokens": 2.0}
        model = build_student(settings(f"sparse:{tiny_model}", stage, head="vdr"), data).eval()
        scores, columns = np.eye(4, 2, dtype="f4"), [TEXTS, TEXTS[::-1], TEXTS[1:] + TEXTS[:1]]
        terms = [Term("kl", student_temperature=1.0)]
        given = (scores, np.ones((4, 2), bool), np.zeros(4, int))
        scorer = TermScorer(cosine=False, own_tokens=2.0, pooling=vocabulary_pooling(model))
        loss = groups_loss(model, terms, *given, scorer=scorer)
        parts = loss([model.preprocess(column) for column in columns], torch.arange(4))
        student = as_student(model)
        documents = [torch.from_numpy(student.encode(column, "document").toarray()) for column in columns[1:]]
        light = SparseTextEncoder(own_token_queries(model), "sparse:light")  # what is measured beside the student
        query = torch.from_numpy(light.encode(TEXTS, "query").toarray())
        assert set(query.unique().tolist()) == {0.0, 1.0}
        products = torch.stack([(query * one).sum(dim=1) for one in documents], dim=1)
        mask = torch.ones(4, 2, dtype=torch.bool)
        expected = terms[0].value({"scores": products, "targets": torch.from_numpy(scores), "mask": mask})
        torch.testing.assert_close(parts["kl@own-query"], expected, atol=1e-4, rtol=1e-4)

    def test_another_head_is_refused(self, tiny_model, data):
        stage = {"objectives": "kl", "train": "both_encoders", **LISTS}
        model = build_student(settings(f"sparse:{tiny_model}", stage), data)
        asking = StageSettings.model_validate({**stage, "own_tokens": 1.0})
        with pytest.raises(UserError, match=r"^own_tokens is for sparse students of head: vdr"):
            run_stage(model, asking, data, data.folder / "work", "training")


class TestClusters:
    def test_the_start_that_a_clustered_student_is_compared_with_has_none(self, tiny, tiny_model):
        model = with_clusters(multi_vector_student(tiny_model, tiny.documents.texts, dimension=16), "C2x3").eval()
        scores = np.eye(4, 2, dtype="f4")
        terms = [Term("lwf", student_temperature=0.1)]
        loss = groups_loss(model, terms, scores, np.ones((4, 2), bool), np.zeros(4, int), scorer=TokenScorer())
        assert not any(isinstance(module, TokenClusters) for module in loss.start)
        columns = [TEXTS, TEXTS[::-1], TEXTS[1:] + TEXTS[:1]]
        given = [model.preprocess(text, task="document" if place else "query") for place, text in enumerate(columns)]
        assert float(loss(given, torch.arange(4))["lwf"]) > 1e-4  # clusters alone make the difference

    def test_a_model_without_them_stays_as_it_is(self, tiny, tiny_model):
        model = multi_vector_student(tiny_model, tiny.documents.texts)
        assert without_clusters(model) is model
        plain = without_clusters(with_clusters(model, "C2x3"))
        found = [MultiVectorModel(one, "multi-vector:s").encode(TEXTS, "document").vectors for one in (model, plain)]
        np.testing.assert_array_equal(*found)

    @pytest.mark.parametrize("task", ["query", "document"])
    def test_texts_without_padding_get_the_same_means_and_gradients(self, task):
        lengths = torch.tensor([5, 1, 9, 0, 3])
        tokens = normalize(torch.randn(18, 8, generator=torch.Generator().manual_seed(0)), dim=1)
        clusters, given = TokenClusters(2, 3), [tokens.clone().requires_grad_(True) for _ in range(2)]
        flat, counts = clusters.cluster_flat(given[0], lengths, task)
        padded = torch.nn.utils.rnn.pad_sequence(given[1].split(lengths.tolist()), batch_first=True)
        vectors, kept = clusters.cluster(padded, torch.arange(9) < lengths[:, None], task)
        torch.testing.assert_close(flat, vectors[kept])
        assert counts.tolist() == kept.sum(dim=1).tolist()
        for one in (flat, vectors[kept]):
            (one * torch.arange(8.0)).sum().backward()
        torch.testing.assert_close(given[0].grad, given[1].grad)

    def test_a_side_that_is_left_alone(self):
        tokens, lengths = torch.randn(6, 4), torch.tensor([2, 4])
        flat, counts = TokenClusters(None, 3).cluster_flat(tokens, lengths, "query")
        assert flat is tokens
        assert counts is lengths
