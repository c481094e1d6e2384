"""Structured pruning: what a pruned layer computes, what is kept, how such students start, are saved, and load."""

from __future__ import annotations

import copy
import itertools
from dataclasses import replace

import numpy as np
import pytest
import torch
from backbones import backbone, bi_encoder
from sentence_transformers import SentenceTransformer
from sentence_transformers.base.modules import Router
from transformers import BertModel

import retrodistill as rd
from retrodistill.core.errors import UserError
from retrodistill.data import Collection
from retrodistill.data.texts import Texts
from retrodistill.encoders.any_encoder import load_encoder
from retrodistill.encoders.length_adaptive import LengthAdaptiveSettings
from retrodistill.encoders.loading import load_bi_encoder, load_cross_encoder, load_sparse
from retrodistill.encoders.pruned_layers import PrunedTransformer, heads_of, units_of
from retrodistill.encoders.token_dropping import keep_share, make_length_adaptive
from retrodistill.rankers.loading import load_ranker
from retrodistill.recipes.pace import start_model
from retrodistill.recipes.stage_teachers import student_manifest
from retrodistill.recipes.student_settings import StudentSettings
from retrodistill.recipes.students import build_student
from retrodistill.students import load_student
from retrodistill.students.pruning import Inputs, least_missed, prune
from retrodistill.training.training_data import TrainingData

TEXTS = ["what star planet orbit", "bread and cheese", "all about today"]
BOTH = [{"objectives": "kl", "train": "both_encoders"}]
NOTHING = Texts.from_pairs([])
STAGES = [{"objectives": "leaf", "training": {"max_steps": 2, "batch_size": 4}}]


@pytest.fixture
def sample(tiny):
    return [Inputs([text[:60] for text in tiny.documents.texts])]


@pytest.fixture
def model(tiny_model):
    """The tiny model with 8 heads of width 4, and larger weights, so that heads and units differ."""
    model = load_bi_encoder(tiny_model)
    torch.manual_seed(3)
    with torch.no_grad():
        for name, weights in model.named_parameters():
            if weights.ndim == 2 and "embed" not in name:
                weights.normal_(0, 0.3)
            elif name.endswith("bias"):
                weights.normal_(0, 0.1)
    for layer in model[0].auto_model.encoder.layer:
        layer.attention.self.attention_head_size, layer.attention.self.scaling = 4, 0.5
    model[0].auto_model.config.num_attention_heads = 8
    return model


@pytest.fixture
def data(tiny, tiny_model, tmp_path):
    space = load_encoder(f"dense:{tiny_model}")
    return TrainingData(tiny, tiny.split("train"), load_ranker("bm25"), space, tmp_path)


def activations(model, linear, texts):
    """(tokens, width) float64 inputs of a linear map, all texts in one batch."""
    seen = []
    hook = linear.register_forward_pre_hook(lambda _, given: seen.append(given[0]))
    features = model.preprocess(texts)
    with torch.no_grad():
        model(dict(features))
    hook.remove()
    return seen[0][features["attention_mask"].bool()].double().numpy()


def masked(model, parts, kept):
    """A model in which heads or units of a layer give nothing."""
    with torch.no_grad():
        mask = torch.zeros(parts.out.in_features)
        mask[parts.places(kept)] = 1
        parts.out.weight.mul_(mask)
    return model


class TestKeep:
    @pytest.mark.parametrize(("find", "kept"), [(heads_of, [0, 3, 6]), (units_of, [1, 5, 6, 40])])
    def test_the_output_is_that_of_the_model_whose_other_parts_give_nothing(self, model, find, kept):
        brute = copy.deepcopy(model)
        for layer in (0, 1):
            masked(brute, find(brute[0].auto_model)[layer], kept)
            find(model[0].auto_model)[layer].keep(kept)
        np.testing.assert_allclose(model.encode(TEXTS), brute.encode(TEXTS), atol=1e-5)

    @pytest.mark.parametrize("architecture", ["modernbert", "distilbert", "mpnet", "deberta-v2", "qwen3"])
    def test_units_of_other_architectures(self, architecture, tmp_path):
        model = load_bi_encoder(bi_encoder(architecture, tmp_path))
        brute, kept = copy.deepcopy(model), list(range(0, 64, 3))
        for layer in range(4):
            masked(brute, units_of(brute[0].auto_model)[layer], kept)
            units_of(model[0].auto_model)[layer].keep(kept)
        np.testing.assert_allclose(model.encode(TEXTS), brute.encode(TEXTS), atol=1e-5)

    @pytest.mark.parametrize("architecture", ["distilbert", "xlm-roberta"])
    def test_heads_of_other_architectures(self, architecture, tmp_path):
        model = load_bi_encoder(bi_encoder(architecture, tmp_path))
        brute = copy.deepcopy(model)
        for layer in range(4):
            masked(brute, heads_of(brute[0].auto_model)[layer], [1])
            heads_of(model[0].auto_model)[layer].keep([1])
        np.testing.assert_allclose(model.encode(TEXTS), brute.encode(TEXTS), atol=1e-5)


class TestLeastMissed:
    @pytest.fixture
    def regression(self):
        """(rows, 6) activations of which some say the same, their inner products with a ridge, and a map."""
        random = np.random.default_rng(0)
        rows = random.standard_normal((50, 6))
        rows[:, 4] = rows[:, 1] + 0.01 * random.standard_normal(50)
        return rows, rows.T @ rows + 1e-6 * np.eye(6), random.standard_normal((6, 3))

    @staticmethod
    def missed(rows, weights, kept):
        """Sum of squares that the best map of some columns misses."""
        wanted = rows @ weights
        return float(((wanted - rows[:, kept] @ np.linalg.lstsq(rows[:, kept], wanted, rcond=None)[0]) ** 2).sum())

    def test_the_first_to_go_is_the_one_that_least_squares_misses_least(self, regression):
        rows, gram, weights = regression
        best = min(itertools.combinations(range(6), 5), key=lambda kept: self.missed(rows, weights, list(kept)))
        assert tuple(least_missed(gram, weights, 1, 5)) == best

    def test_each_step_is_the_best_of_what_is_left(self, regression):
        rows, gram, weights = regression
        left = list(range(6))
        while len(left) > 2:
            left = list(
                min(itertools.combinations(left, len(left) - 1), key=lambda kept: self.missed(rows, weights, [*kept]))
            )
            assert least_missed(gram, weights, 1, len(left)).tolist() == left

    def test_of_two_that_say_the_same_one_goes_although_both_are_large(self, regression):
        _, gram, weights = regression
        weights[[1, 4]] *= 10
        assert len({1, 4} & set(least_missed(gram, weights, 1, 5).tolist())) == 1

    def test_groups_go_together(self, regression):
        rows, gram, weights = regression
        pairs = itertools.combinations(range(3), 2)
        best = min(
            pairs, key=lambda kept: self.missed(rows, weights, [place + 2 * k for k in kept for place in (0, 1)])
        )
        assert tuple(least_missed(gram, weights, 2, 2)) == best


class TestPrune:
    @pytest.mark.parametrize("find", [heads_of, units_of])
    def test_the_output_map_is_the_ridge_regression_on_what_it_gave(self, model, sample, find):
        whole = copy.deepcopy(model)
        prune(model, sample, **{"heads" if find is heads_of else "units": 5})
        before, after = (find(each[0].auto_model)[0] for each in (whole, model))
        rows = activations(whole, before.out, sample[0].texts)
        into, smaller = (each.into[0].weight.detach() for each in (before, after))
        kept = [int(torch.all(into == row, dim=1).nonzero()[0]) for row in smaller]
        weights, bias = before.out.weight.detach().double().numpy().T, before.out.bias.detach().double().numpy()
        centered, wanted = rows - rows.mean(axis=0), rows @ weights + bias
        ridge = np.sqrt(1e-3 * (centered**2).sum() / centered.shape[1])  # towards the map as it was
        inputs = np.concatenate([centered[:, kept], ridge * np.eye(len(kept))])
        outputs = np.concatenate([wanted - wanted.mean(axis=0), ridge * weights[kept]])
        solved = np.linalg.lstsq(inputs, outputs, rcond=None)[0]
        np.testing.assert_allclose(after.out.weight.detach().numpy().T, solved, atol=1e-4)
        np.testing.assert_allclose(
            after.out.bias.detach().numpy(), wanted.mean(axis=0) - rows[:, kept].mean(axis=0) @ solved, atol=1e-4
        )

    def test_a_map_without_a_bias_gets_none(self, sample, tmp_path):
        model = load_bi_encoder(bi_encoder("modernbert", tmp_path))
        whole = copy.deepcopy(model)
        prune(model, sample, units=32)
        out = model[0].auto_model.layers[0].mlp.Wo
        assert out.bias is None
        rows = activations(whole, whole[0].auto_model.layers[0].mlp.Wo, sample[0].texts)
        wanted = rows @ whole[0].auto_model.layers[0].mlp.Wo.weight.detach().double().numpy().T
        missed = activations(model, out, sample[0].texts) @ out.weight.detach().double().numpy().T - wanted
        assert (missed**2).sum() < 0.5 * (wanted**2).sum()

    def test_the_fit_brings_vectors_closer(self, model, sample):
        whole = model.encode(TEXTS)
        cosines = []
        for refit in (False, True):
            pruned = copy.deepcopy(model)
            prune(pruned, sample, heads=4, units=16, refit=refit)
            cosines.append((pruned.encode(TEXTS) * whole).sum(axis=1).mean())
        assert cosines[0] < cosines[1]

    def test_a_layer_sees_what_the_pruned_ones_before_it_give(self, model, sample):
        whole = copy.deepcopy(model)
        prune(model, sample, units=8)
        first = copy.deepcopy(whole)
        layer, parts = first[0].auto_model.encoder.layer[0], units_of(model[0].auto_model)[0]
        layer.intermediate.dense, layer.output.dense = parts.into[0], parts.out
        second = activations(first, units_of(first[0].auto_model)[1].out, sample[0].texts)
        gram = np.cov(second.T, bias=True) * len(second)
        gram += np.eye(64) * 1e-3 * np.trace(gram) / 64
        weights = units_of(whole[0].auto_model)[1].out.weight.detach().double().numpy().T
        kept = least_missed(gram, weights, 1, 8)
        into = units_of(whole[0].auto_model)[1].into[0].weight
        torch.testing.assert_close(units_of(model[0].auto_model)[1].into[0].weight, into[kept.tolist()])

    def test_keeping_all_changes_nothing(self, model, sample):
        before = {name: weights.clone() for name, weights in model.state_dict().items()}
        prune(model, sample, heads=8, units=64)
        assert type(model[0]) is not PrunedTransformer
        assert all(torch.equal(weights, before[name]) for name, weights in model.state_dict().items())

    def test_without_texts_the_largest_weights_are_kept(self, model):
        whole = copy.deepcopy(model)
        prune(model, [], units=0.25)
        out = units_of(whole[0].auto_model)[0].out.weight
        kept = sorted(out.norm(dim=0).argsort(descending=True)[:16].tolist())
        torch.testing.assert_close(units_of(model[0].auto_model)[0].out.weight, out[:, kept])

    def test_texts_are_read_in_batches_of_any_size(self, model, sample, monkeypatch):
        other = copy.deepcopy(model)
        prune(model, sample, heads=4, units=16)
        monkeypatch.setattr("retrodistill.students.pruning._BATCH", 7)
        prune(other, sample, heads=4, units=16)
        np.testing.assert_allclose(model.encode(TEXTS), other.encode(TEXTS), atol=1e-4)

    def test_training_mode_and_gradients_are_as_before(self, model, sample):
        prune(model.train(), sample, heads=4, units=16)
        assert model.training
        assert all(weights.requires_grad for weights in model.parameters())
        model(dict(model.preprocess(TEXTS)))["sentence_embedding"].sum().backward()


class TestFolders:
    def test_fewer_units_are_a_stock_model(self, model, sample, tmp_path):
        prune(model, sample, units=10)
        model.save_pretrained(str(tmp_path / "folder"), create_model_card=False)
        plain = SentenceTransformer(str(tmp_path / "folder"), device="cpu")
        assert plain[0].auto_model.config.intermediate_size == 10
        np.testing.assert_array_equal(plain.encode(TEXTS), model.encode(TEXTS))

    def test_fewer_heads_load_here_and_where_code_is_trusted(self, model, sample, tmp_path):
        folder = str(tmp_path / "folder")
        prune(model, sample, heads=3, units=10)
        model.save_pretrained(folder, create_model_card=False)
        for again in (load_bi_encoder(folder), SentenceTransformer(folder, device="cpu", trust_remote_code=True)):
            assert again[0].auto_model.encoder.layer[0].attention.self.query.weight.shape == (12, 32)
            np.testing.assert_array_equal(again.encode(TEXTS), model.encode(TEXTS))
            assert type(again[0].auto_model) is BertModel  # whose class other processes find
        with pytest.raises(ValueError, match="trust_remote_code"):
            SentenceTransformer(folder, device="cpu")

    def test_a_pruned_folder_can_be_cut_and_pruned_again(self, model, sample, tmp_path):
        prune(model, sample, heads=4, units=32)
        model.save_pretrained(str(tmp_path / "once"), create_model_card=False)
        again = load_bi_encoder(str(tmp_path / "once"), layers=1)
        prune(again, sample, heads=2, units=0.5)
        again.save_pretrained(str(tmp_path / "twice"), create_model_card=False)
        twice = load_bi_encoder(str(tmp_path / "twice"))
        assert (len(heads_of(twice[0].auto_model)[0]), len(units_of(twice[0].auto_model)[0])) == (2, 16)
        np.testing.assert_array_equal(twice.encode(TEXTS), again.encode(TEXTS))

    @pytest.mark.parametrize(
        ("head", "load"), [("ForMaskedLM", load_sparse), ("ForSequenceClassification", load_cross_encoder)]
    )
    def test_models_with_a_head_of_their_own(self, head, load, sample, tmp_path):
        model = load(backbone("bert", tmp_path / "plain", head))
        prune(model, sample, heads=1, units=16)
        model.save_pretrained(str(tmp_path / "folder"), create_model_card=False)
        again = load(str(tmp_path / "folder"))
        for name, weights in again.state_dict().items():
            torch.testing.assert_close(weights, model.state_dict()[name], atol=0, rtol=0)

    def test_a_folder_without_its_key(self, tiny_model, sample, tmp_path):
        model = load_bi_encoder(tiny_model)
        prune(model, sample, heads=1)
        del model[0].auto_model.config.kept_attention_heads
        model.save_pretrained(str(tmp_path / "folder"), create_model_card=False)
        with pytest.raises(UserError, match=r"needs kept_attention_heads in its config.json"):
            load_bi_encoder(str(tmp_path / "folder"))


class TestStudents:
    @pytest.mark.parametrize(
        "settings",
        [
            {"model": "dense"},
            {"model": "dense", "initialize": "fitted", "layers": 1},
            {"model": "dense", "exits": [1], "project_exits": True},
            {"model": "dense", "documents": "student", "lexical_dim": 16},
            {"model": "sparse", "queries": "inference-free", "lexical_terms": True},
            {"model": "sparse", "head": "vdr"},
            {"model": "multi-vector", "dimension": 16},
            {"model": "cross-encoder"},
            {"model": "cross-encoder", "head": "cls"},
        ],
        ids=str,
    )
    def test_of_each_kind_train_and_load(self, tiny, tiny_model, settings, tmp_path):
        student = {**settings, "model": f"{settings['model']}:{tiny_model}", "keep": {"heads": 1, "units": 0.5}}
        training = {"max_steps": 1, "batch_size": 4}
        arguments = {"document_encoder": f"dense:{tiny_model}", "training": training, "out": tmp_path / "student"}
        trained = rd.distill(tiny, "bm25", student=student, **arguments)
        again = load_student(tmp_path / "student")
        transformers = [each for each in again.model.modules() if isinstance(each, PrunedTransformer)]
        assert [len(units_of(each.auto_model)[0]) for each in transformers] == [32]
        assert len(heads_of(transformers[0].auto_model)[0]) == 1
        assert again.fingerprint("query") == trained.fingerprint("query")

    def test_what_is_read_is_what_they_will_read(self, data, tiny_model, monkeypatch):
        read = {}
        monkeypatch.setattr("retrodistill.students.pruning.prune", lambda model, sample, **_: read.update(now=sample))

        def roles(**settings):
            name = settings.pop("kind", "dense")
            keep = {"units": 8, "texts": 10}
            settings = {"model": f"{name}:{tiny_model}", "keep": keep, "stages": BOTH, **settings}
            build_student(StudentSettings(**settings), data)
            return [(inputs.role, len(inputs.texts)) for inputs in read["now"]]

        assert roles(stages=STAGES) == [("query", 10)]
        assert roles(documents="student") == [("query", 5), ("document", 5)]
        assert roles(kind="sparse", queries="inference-free") == [("document", 10)]
        assert roles(kind="cross-encoder") == [(None, 10)]
        (sentence, own), (_, other) = read["now"][0].texts[0], read["now"][0].texts[5]
        assert sentence.strip(".") in own
        assert other != own

    def test_a_plan_prunes_to_the_same_size_without_texts(self, data, tiny_model, monkeypatch):
        settings = StudentSettings(model=f"dense:{tiny_model}", keep={"heads": 1, "units": 8}, stages=STAGES)
        size = sum(weights.numel() for weights in build_student(settings, data).parameters())
        monkeypatch.setattr("retrodistill.students.pruning._activations", None)  # not called
        assert sum(weights.numel() for weights in start_model(settings, data).parameters()) == size

    def test_manifests_of_others_do_not_change(self, data, tiny_model):
        def settings(**keep):
            given = StudentSettings(model=f"dense:{tiny_model}", stages=STAGES, **keep)
            return student_manifest(given, data).settings

        assert "keep" not in settings()
        assert settings(keep={"units": 8})["keep"] == {"heads": None, "units": 8, "texts": 1024}

    def test_without_queries_and_titles_there_are_sentences(self, data, tiny, tiny_model):
        bare = replace(data, collection=Collection.from_parts("bare", dict(tiny.bodies), {}, {}), queries=NOTHING)
        settings = StudentSettings(model=f"dense:{tiny_model}", keep={"units": 8}, stages=STAGES)
        assert len(units_of(build_student(settings, bare)[0].auto_model)[0]) == 8


class TestMistakes:
    def test_more_than_there_are(self, model, sample):
        with pytest.raises(UserError, match=r"^keep.heads=9: a layer of the model has 8 heads; choose 1 to 8.$"):
            prune(model, sample, heads=9)
        with pytest.raises(UserError, match=r"^keep.units=65: a layer of the model has 64 units; choose 1 to 64.$"):
            prune(model, sample, units=65)

    def test_a_token_table(self, tiny_static, sample):
        with pytest.raises(UserError, match=r"^a model of StaticEmbedding has no heads and units to remove"):
            prune(load_bi_encoder(tiny_static), sample, units=8)

    def test_a_transformer_for_each_side(self, model, sample):
        router = Router.for_query_document([copy.deepcopy(model[0])], [model[0]])
        with pytest.raises(UserError, match=r"^a model with several transformers is not pruned"):
            prune(SentenceTransformer(modules=[router, *list(model)[1:]], device="cpu"), sample, units=8)

    def test_a_transformer_that_drops_tokens(self, model, sample):
        make_length_adaptive(model, LengthAdaptiveSettings(layers=[1], keep=0.5))
        with pytest.raises(UserError, match=r"^a model that drops tokens is not pruned; start from it with all tokens"):
            prune(keep_share(model, 0.5), sample, units=8)

    @pytest.mark.parametrize("architecture", ["modernbert", "mpnet", "deberta-v2", "qwen3"])
    def test_heads_that_cannot_be_removed(self, architecture, sample, tmp_path):
        with pytest.raises(
            UserError, match=r"^keep.heads: attention heads of .*Model cannot be taken apart; leave that out"
        ):
            prune(load_bi_encoder(bi_encoder(architecture, tmp_path)), sample, heads=1)

    @pytest.mark.parametrize(
        ("keep", "problem"),
        [
            ({}, "keep needs a number of heads or of units"),
            ({"units": 0}, "keep.units=0: give a number from 1, or a share between 0 and 1"),
            ({"heads": 1.5}, "keep.heads=1.5: give a number from 1"),
            ({"heads": -1}, "keep.heads=-1: give a number from 1"),
        ],
    )
    def test_settings_that_keep_nothing_or_say_nothing(self, keep, problem):
        with pytest.raises(ValueError, match=problem):
            StudentSettings(model="dense:x", keep=keep, stages=STAGES)

    @pytest.mark.parametrize("kind", ["static", "prett:x", "tk:x"])
    def test_kinds_that_are_not_pruned(self, kind):
        with pytest.raises(
            ValueError, match="keep is for dense and sparse and multi-vector and cross-encoder students"
        ):
            StudentSettings(model=kind, keep={"units": 8}, stages=[{"objectives": "kl"}])

    def test_a_collection_without_texts_for_it(self, data, tiny_model):
        bare = replace(data, collection=Collection.from_parts("bare", {"a": "star"}, {}, {}), queries=NOTHING)
        settings = StudentSettings(model=f"cross-encoder:{tiny_model}", keep={"units": 8}, stages=BOTH)
        with pytest.raises(UserError, match=r"^keep: .* no queries, titles, or sentences; set split.train"):
            build_student(settings, bare)
