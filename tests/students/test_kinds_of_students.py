"""Every kind of student through a stage of a recipe: what moves, that it learns, that it resumes and comes back."""

from dataclasses import replace

import numpy as np
import pytest
import torch

from retrodistill.core.errors import UserError
from retrodistill.data import Collection, Texts
from retrodistill.encoders import load_encoder
from retrodistill.rankers.loading import load_ranker
from retrodistill.recipes.student_settings import StudentSettings
from retrodistill.recipes.students import build_student, train_student
from retrodistill.students.registry import as_student, get_kind, run_stage
from retrodistill.students.stored_states import head_of
from retrodistill.training.loss import DistillationLoss
from retrodistill.training.prepared import prepare, training_rows
from retrodistill.training.scoring import candidate_pairs
from retrodistill.training.settings import StageSettings
from retrodistill.training.training_data import StudentSnapshot, TrainingData

IN_BATCH = ["contrastive", "in-batch", "in-batch-margin-mse", "affinity"]
FAMILIES = ["kl", "margin-mse", "ranknet", "listmle", "sinkhorn", "taid", "lwf"]
KINDS = ["dense", "sparse", "inference-free", "multi-vector", "cross-encoder"]
WITH_HEAD = ["sparse", "inference-free", "multi-vector"]
SHORT = {"epochs": 1, "max_steps": 2, "batch_size": 4, "learning_rate": 1e-3, "warmup": 0}


@pytest.fixture
def data(tiny, tiny_model, tmp_path):
    space = load_encoder(f"dense:{tiny_model}")
    return TrainingData(tiny, tiny.split("train"), load_ranker("bm25"), space, tmp_path / "out")


def stage(train, objectives="kl", **more):
    given = {
        "objectives": objectives,
        "train": train,
        "texts": {"titles": False, "sentences": 0},
        "candidates": {"depth": "all"},
        "groups": {"documents": 4, "random": 4},
        "training": SHORT,
    }
    return StageSettings.model_validate({**given, **more})


@pytest.fixture
def chosen(tiny_model, tiny_cross_encoder):
    students = {
        "dense": {"model": f"dense:{tiny_model}", "documents": "student"},
        "sparse": {"model": f"sparse:{tiny_model}"},
        "inference-free": {"model": f"sparse:{tiny_model}", "queries": "inference-free"},
        "multi-vector": {"model": f"multi-vector:{tiny_model}", "dimension": 16},
        "cross-encoder": {"model": f"cross-encoder:{tiny_cross_encoder}"},
        "segments": {"model": f"cross-encoder:{tiny_model}"},
        "prett": {"model": f"prett:{tiny_cross_encoder}", "join": 1, "dimension": 16},
        "tk": {"model": f"tk:{tiny_model}", "dimension": 16},
    }

    def chosen(kind, *stages, **more):
        given = {**students[kind], "stages": list(stages), "control": None, **more}
        return StudentSettings.model_validate(given)

    return chosen


@pytest.fixture
def trained(chosen, data, tmp_path):
    """A student of a kind through one stage: the model, its weights before, and the history."""

    def trained(kind, one):
        model = build_student(chosen(kind, one), data)
        before = {name: value.detach().clone() for name, value in model.named_parameters()}
        return model, before, run_stage(model, one, data, tmp_path / "work", "training")

    return trained


def moved(before, model):
    return {name for name, value in model.named_parameters() if not torch.equal(before[name], value)}


@pytest.mark.slow
class TestBothTowers:
    @pytest.mark.parametrize("kind", KINDS)
    def test_every_kind_learns_its_lists(self, kind, trained):
        steps = {"epochs": 4, "batch_size": 8, "learning_rate": 3e-3, "warmup": 0}
        kl = {"name": "kl", "student_temperature": 0.05}
        if kind == "cross-encoder":  # noise at first: it has to learn to read
            kl, steps = {"name": "kl", "student_temperature": 0.2}, {**steps, "epochs": 12, "learning_rate": 1e-3}
        model, before, history = trained(kind, stage("both_encoders", kl, training=steps))
        first, last = (np.mean([one["loss"] for one in part]) for part in (history.losses[:5], history.losses[-5:]))
        assert last < 0.97 * first
        assert len(moved(before, model)) > 20
        assert {"step", "agreement"} <= set(history.monitors[-1])

    @pytest.mark.parametrize("kind", ["sparse", "multi-vector", "cross-encoder"])
    def test_any_list_objective_trains_any_kind(self, kind, trained):
        model, before, history = trained(kind, stage("both_encoders", FAMILIES))
        assert all(np.isfinite(history.losses[-1][name]) for name in FAMILIES)
        assert moved(before, model)


@pytest.mark.parametrize("kind", ["dense", "sparse", "multi-vector", "cross-encoder"])
def test_texts_that_a_student_cannot_read_are_not_trained_on(kind, chosen, data):
    one = stage("both_encoders")
    unread = Texts.from_pairs([("greek", "καλημέρα κόσμε"), ("blank", "\u200b")])
    data = replace(data, queries=unread + data.queries)
    student, of_kind = as_student(build_student(chosen(kind, one), data)), get_kind(kind)
    prepared = prepare(one, replace(data, student=StudentSnapshot(student, of_kind, data.space)))
    # of a model that reads pairs, a document tells the query's part as well
    left_out = {1} if kind == "cross-encoder" else {0, 1}
    assert {*training_rows(prepared, one), *prepared.held_out} == set(range(44)) - left_out


def test_documents_that_the_document_encoder_cannot_read_are_no_candidates(data):
    documents = {"greek": "ένα ένα δύο ένα", **dict(data.collection.documents)}
    queries = {"q": "star ένα δύο", **dict(data.queries)}
    collection = Collection.from_parts("mixed", documents, queries, {})
    assert "greek" in load_ranker("bm25").search(collection.queries, collection, 5).to_dict()["q"]
    one = stage("both_encoders", candidates={"depth": 5, "random": 60})
    data = replace(data, collection=collection, queries=collection.queries)
    pool = candidate_pairs(one, data, collection.queries).run
    assert set(pool.document_ids) == set(collection.documents.ids) - {"greek"}


class TestHead:
    @pytest.mark.parametrize("kind", WITH_HEAD)
    def test_only_the_head_moves_and_the_loss_falls(self, kind, trained):
        steps = {"epochs": 10, "batch_size": 8, "learning_rate": 2e-2, "warmup": 0}
        model, before, history = trained(kind, stage("head", training=steps))
        assert history.losses[-1]["loss"] < 0.9 * history.losses[0]["loss"]
        head = head_of(as_student(model)).linear
        names = {name for name, value in model.named_parameters() if value is head.weight or value is head.bias}
        if kind == "inference-free":
            names |= {name for name in before if name.endswith("sub_modules.query.0.weight")}
        assert moved(before, model) == names
        assert all(parameter.requires_grad for parameter in model.parameters())  # for a stage behind this one

    @pytest.mark.parametrize("kind", WITH_HEAD)
    def test_any_list_objective_trains_one(self, kind, trained):
        model, before, history = trained(kind, stage("head", FAMILIES))
        assert all(np.isfinite(history.losses[-1][name]) for name in FAMILIES)
        assert moved(before, model)

    @pytest.mark.parametrize("kind", WITH_HEAD)
    def test_controls_find_each_texts_own_document_in_its_group(self, kind, trained):
        titles = {"titles": True, "sentences": 0}
        model, before, history = trained(kind, stage("head", IN_BATCH, texts=titles))
        assert min(history.losses[-1][name] for name in IN_BATCH) > 0
        assert moved(before, model)

    def test_it_is_refused_where_there_is_none(self, chosen, data, tiny_model, tmp_path):
        one = stage("head")
        model = build_student(chosen("multi-vector", one, dimension=None), data)
        with pytest.raises(UserError, match=r"^model multi-vector:student has no projection after its transformer"):
            run_stage(model, one, data, tmp_path / "work", "training")
        model = build_student(chosen("dense", stage("both_encoders")), data)
        with pytest.raises(UserError, match="query_encoder or both_encoders"):
            run_stage(model, one, data, tmp_path / "work", "training")

    def test_regularizers_of_a_student_without_term_weights_are_refused(self, chosen, data, tmp_path):
        model = build_student(chosen("dense", stage("both_encoders")), data)
        one = stage("both_encoders", regularizers=[{"name": "l1", "weight": 1.0}])
        with pytest.raises(UserError, match=r"'l1' sees term weights"):
            run_stage(model, one, data, tmp_path / "work", "training")


class TestStudentsOfARecipe:
    @pytest.mark.parametrize("kind", KINDS)
    def test_they_come_back_from_their_folder_with_equal_scores(self, kind, chosen, data, tmp_path):
        settings = chosen(kind, stage("head" if kind in WITH_HEAD else "both_encoders"))
        made = train_student("student", settings, data, tmp_path / "student")
        again = train_student("student", settings, data, tmp_path / "student")
        texts = ["star planet orbit", "judge"]
        assert made.encoder.fingerprint("query") == again.encoder.fingerprint("query")
        assert made.documents is made.encoder
        if kind == "cross-encoder":
            pairs = [(text, "a star") for text in texts]
            np.testing.assert_array_equal(made.encoder.score(pairs), again.encoder.score(pairs))
            return
        for role in ("query", "document"):
            found = [one.encoder.encode(texts, role) for one in (made, again)]
            found = [getattr(one, "vectors", one) for one in found]
            assert (abs(found[0] - found[1])).max() == 0

    def test_a_sparse_one_tells_its_terms_and_products(self, chosen, data, tmp_path):
        made = train_student("student", chosen("inference-free", stage("head")), data, tmp_path / "student")
        about = made.encoder.student.about["sparsity"]
        vectors = made.encoder.encode(data.collection.documents.texts, "document")
        assert about["terms"] == pytest.approx(np.diff(vectors.indptr).mean())
        asked = made.encoder.encode(data.queries.texts, "query")
        products = (asked != 0).astype(float) @ (vectors != 0).astype(float).T
        assert about["flops"] == pytest.approx(products.mean())

    @pytest.mark.parametrize("kind", ["inference-free", "multi-vector", "segments", "cross-encoder", "prett", "tk"])
    def test_a_killed_training_goes_on_to_equal_weights(self, kind, chosen, data, tmp_path, monkeypatch):
        train = "both_encoders" if kind in ("cross-encoder", "segments") else "head"
        one = stage(train, training={**SHORT, "max_steps": 6})
        models = [build_student(chosen(kind, one), data) for _ in range(2)]
        run_stage(models[0], one, data, tmp_path / "whole", "training")
        forward, calls = DistillationLoss.forward, []

        def killed(self, *arguments, **options):
            calls.append(0)
            if len(calls) == 5:
                raise KeyboardInterrupt
            return forward(self, *arguments, **options)

        monkeypatch.setattr(DistillationLoss, "forward", killed)
        with pytest.raises(KeyboardInterrupt):
            run_stage(models[1], one, data, tmp_path / "cut", "training")
        monkeypatch.setattr(DistillationLoss, "forward", forward)
        model = build_student(chosen(kind, one), data)
        history = run_stage(model, one, data, tmp_path / "cut", "training")
        assert history.steps == 6
        for left, right in zip(models[0].parameters(), model.parameters(), strict=True):
            torch.testing.assert_close(left, right, rtol=0, atol=0)
