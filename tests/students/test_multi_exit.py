import json

import numpy as np
import pytest
import torch
from losses import groups_loss, stored_loss
from sentence_transformers import SentenceTransformer
from sentence_transformers.base.modules import Transformer
from sentence_transformers.sentence_transformer.modules import Normalize, Pooling
from torch.nn.functional import kl_div, log_softmax, normalize
from transformers import BertConfig, BertModel

from retrodistill.core.errors import UserError
from retrodistill.encoders.encoder import Encoder
from retrodistill.encoders.loading import load_bi_encoder
from retrodistill.encoders.modules import exit_model, exits_of
from retrodistill.students.dense import fit_exit_maps
from retrodistill.students.dense_variants import (
    MultiExitLoss,
    embeddings_by_exit,
    in_batch_similarities,
    multi_exit,
    multi_exit_kl,
)
from retrodistill.training.loss import Term
from retrodistill.training.settings import TrainingSettings
from retrodistill.training.trainer import TextColumns, train

TEXTS = ["what star planet", "violin chord and melody", "bread", "judge"]
MASK = torch.tensor([[True, True, True, False], [True, False, True, True], [True, False, False, False]])
KL = Term("kl", student_temperature=0.1, teacher_temperature=0.5)


def scores(seed):
    return torch.randn(3, 4, generator=torch.Generator().manual_seed(seed))


@pytest.fixture(scope="module")
def four_layers(tiny_model, tmp_path_factory):
    """Folder of a bi-encoder with four layers and the tiny model's tokenizer."""
    folder = tmp_path_factory.mktemp("four")
    source = load_bi_encoder(tiny_model)
    torch.manual_seed(1)
    config = BertConfig(
        vocab_size=len(source.tokenizer), hidden_size=32, num_hidden_layers=4, num_attention_heads=2,
        intermediate_size=64, max_position_embeddings=64, initializer_range=0.2,
    )  # fmt: skip
    BertModel(config).save_pretrained(str(folder / "bert"))
    source.tokenizer.save_pretrained(str(folder / "bert"))
    modules = [Transformer(str(folder / "bert"), max_seq_length=64), Pooling(32), Normalize()]
    model = SentenceTransformer(modules=modules, device="cpu", prompts={"query": "what "})
    model.save_pretrained(str(folder / "model"), create_model_card=False)
    return str(folder / "model")


@pytest.fixture
def model(four_layers):
    return multi_exit(load_bi_encoder(four_layers), [1, 3]).eval()


def encoded(model, **how):
    return model.encode(TEXTS, **how)


class TestExits:
    def test_the_last_layer_is_always_one(self, model):
        assert exits_of(model) == [1, 3, 4]

    def test_at_the_deepest_nothing_changes(self, model, four_layers):
        before = load_bi_encoder(four_layers)
        for how in ({}, {"task": "query"}, {"task": "document"}, {"task": "exit-4"}):
            np.testing.assert_array_equal(encoded(model, **how), encoded(before))

    @pytest.mark.parametrize("layer", [1, 3])
    def test_another_is_what_its_first_layers_alone_give(self, model, four_layers, layer):
        alone = encoded(load_bi_encoder(four_layers, layers=layer))
        np.testing.assert_allclose(encoded(exit_model(model, layer)), alone, atol=1e-6)
        np.testing.assert_allclose(encoded(model, task=f"exit-{layer}"), alone, atol=1e-5)
        assert not np.allclose(alone, encoded(model), atol=1e-2)

    def test_all_come_of_one_run(self, model):
        found = embeddings_by_exit(model, model.preprocess(TEXTS))
        assert list(found) == [1, 3, 4]
        for layer, embeddings in found.items():
            np.testing.assert_allclose(embeddings.detach(), encoded(exit_model(model, layer)), atol=1e-5)

    def test_a_model_of_one_exit_is_ordinary(self, model):
        alone = exit_model(model, 3)
        assert [type(module).__name__ for module in alone] == ["Transformer", "Pooling", "Normalize"]
        assert alone[0].auto_model.config.num_hidden_layers == 3
        assert len(alone[0].auto_model.encoder.layer) == 3
        assert alone.prompts["query"] == "what "
        assert len(model[0].auto_model.encoder.layer) == 4

    def test_it_is_an_encoder_like_any_other(self, model):
        encoder = Encoder(model, "dense:exits")
        assert encoder.dimension == 32
        np.testing.assert_allclose(encoder.encode(TEXTS, "document"), encoded(model), atol=1e-6)
        whole, cut = (Encoder(one, "dense:one").document_space for one in (model, exit_model(model, 1)))
        assert whole != cut

    def test_projections_are_each_exits_own_and_start_as_the_identity(self, four_layers):
        plain, projected = (multi_exit(load_bi_encoder(four_layers), [1, 2], project=one) for one in (False, True))
        for layer in (1, 2, 4):
            np.testing.assert_allclose(
                encoded(exit_model(projected, layer)), encoded(exit_model(plain, layer)), atol=1e-6
            )
        with torch.no_grad():
            dense = next(module for module in projected[1].sub_modules["exit-1"] if hasattr(module, "linear"))
            dense.linear.weight.copy_(torch.randn(32, 32, generator=torch.Generator().manual_seed(0)))
        assert not np.allclose(encoded(exit_model(projected, 1)), encoded(exit_model(plain, 1)), atol=0.1)
        np.testing.assert_allclose(encoded(exit_model(projected, 2)), encoded(exit_model(plain, 2)), atol=1e-6)
        kinds = ["Transformer", "Pooling", "Dense", "Normalize"]
        assert [type(module).__name__ for module in exit_model(projected, 1)] == kinds

    @pytest.mark.parametrize("exits", [[], [0], [5], [2, 2]])
    def test_layers_that_there_are_not(self, four_layers, exits):
        with pytest.raises(UserError, match=r"the model has layers 1 to 4; name some of them, each once"):
            multi_exit(load_bi_encoder(four_layers), exits)

    def test_the_last_layer_is_the_student_itself_and_left_out_with_a_word(self, four_layers, monkeypatch):
        said = []
        monkeypatch.setattr("retrodistill.students.dense_variants.log", said.append)
        assert exits_of(multi_exit(load_bi_encoder(four_layers), [1, 4])) == [1, 4]
        assert len(said) == 1
        assert "layer 4 is the model's last one" in said[0]
        multi_exit(load_bi_encoder(four_layers), [1])
        assert len(said) == 1

    def test_an_exit_that_there_is_not(self, model, four_layers):
        with pytest.raises(UserError, match=r"^exit=2: the model has exits 1, 3, 4\.$"):
            exit_model(model, 2)
        with pytest.raises(UserError, match=r"^exit=2: the model has no exits\.$"):
            exit_model(load_bi_encoder(four_layers), 2)

    def test_a_token_table_has_none(self, tiny_static):
        with pytest.raises(UserError, match="exits are made in a transformer"):
            multi_exit(load_bi_encoder(tiny_static), [1])

    def test_a_model_that_changes_its_last_layers_output_is_refused(self, four_layers):
        source = load_bi_encoder(four_layers)
        source[0].auto_model.encoder.register_forward_hook(_doubled_first_dimension)
        with pytest.raises(UserError, match=r"^exits=\[1\]: BertModel changes the output of its last layer"):
            multi_exit(source, [1])


def _doubled_first_dimension(module, given, output):
    scale = torch.ones(32)
    scale[0] = 5.0
    output.last_hidden_state = output.last_hidden_state * scale
    return output


class TestFolders:
    def test_one_folder_of_stock_modules_has_all_exits(self, model, tmp_path):
        model.save_pretrained(str(tmp_path / "model"), create_model_card=False)
        listed = json.loads((tmp_path / "model" / "modules.json").read_text())
        routed = json.loads((tmp_path / "model" / "1_Router" / "router_config.json").read_text())
        kinds = [*(one["type"] for one in listed), *routed["types"].values()]
        assert all(kind.startswith("sentence_transformers.") for kind in kinds)
        again = SentenceTransformer(str(tmp_path / "model"), device="cpu")
        assert exits_of(again) == [1, 3, 4]
        np.testing.assert_array_equal(encoded(again), encoded(model))
        np.testing.assert_array_equal(encoded(again, task="exit-1"), encoded(model, task="exit-1"))

    @pytest.mark.parametrize("layer", [1, 3, 4])
    def test_the_exit_is_chosen_at_load(self, model, tmp_path, layer):
        model.save_pretrained(str(tmp_path / "model"), create_model_card=False)
        found = load_bi_encoder(f"{tmp_path / 'model'}@exit-{layer}")
        np.testing.assert_array_equal(encoded(found), encoded(exit_model(model, layer)))
        found.save_pretrained(str(tmp_path / "exit"), create_model_card=False)
        np.testing.assert_array_equal(
            encoded(SentenceTransformer(str(tmp_path / "exit"), device="cpu")), encoded(found)
        )


class TestTheDivergence:
    def test_is_torchs_from_the_deepest_to_each(self):
        given = [scores(seed) for seed in range(3)]
        expected = 0.0
        for weight, one in zip([0.5, 2.0], given[:2], strict=True):
            logs = [log_softmax(each / 0.3, dim=1) for each in (one, given[2])]
            expected = expected + weight * kl_div(*logs, log_target=True, reduction="batchmean")
        torch.testing.assert_close(multi_exit_kl(given, weights=[0.5, 2.0], temperature=0.3), expected)

    def test_masked_candidates_do_not_count(self):
        given = [scores(seed) for seed in range(2)]
        broken = [one.masked_fill(~MASK, torch.nan) for one in given]
        rows = []
        for row in range(2):  # the third list has a single candidate
            logs = [log_softmax(one[row, MASK[row]] / 0.05, dim=0) for one in given]
            rows.append(kl_div(*logs, log_target=True, reduction="sum"))
        torch.testing.assert_close(multi_exit_kl(broken, MASK), sum(rows) / 2)

    def test_the_deepest_does_not_learn(self):
        given = [scores(seed).requires_grad_(True) for seed in range(3)]
        multi_exit_kl(given).backward()
        assert given[2].grad is None
        assert all(one.grad.abs().sum() > 0 for one in given[:2])

    def test_nothing_to_teach(self):
        assert float(multi_exit_kl([scores(0)])) == 0.0
        assert float(multi_exit_kl([scores(0), scores(0)])) == pytest.approx(0.0, abs=1e-7)

    def test_what_does_not_fit(self):
        with pytest.raises(UserError, match="2 weights for 1 exits besides the deepest"):
            multi_exit_kl([scores(0), scores(1)], weights=[1.0, 1.0])
        with pytest.raises(UserError, match="of no exit"):
            multi_exit_kl([])
        with pytest.raises(UserError, match="both are"):
            multi_exit_kl([scores(0)[:2], scores(1)])


class TestSimilarities:
    def test_of_queries_with_all_documents_of_the_batch(self):
        columns = [torch.randn(3, 5, generator=torch.Generator().manual_seed(seed)) for seed in range(3)]
        found, mask = in_batch_similarities(columns, True)
        documents = torch.cat(columns[1:])
        expected = normalize(columns[0], dim=1) @ normalize(documents, dim=1).T
        torch.testing.assert_close(found, expected)
        assert mask.all()

    def test_of_single_texts_with_the_others(self):
        (column,) = columns = [torch.randn(3, 5, generator=torch.Generator().manual_seed(0))]
        found, mask = in_batch_similarities(columns, False)
        torch.testing.assert_close(found, column @ column.T)
        assert mask.equal(~torch.eye(3, dtype=torch.bool))


def stored(model, weight=1.0):
    targets = np.random.default_rng(0).standard_normal((4, 32)).astype("f4")
    return stored_loss(model, [Term("leaf", weight=weight)], embeddings=targets)


def grouped(model):
    targets = np.random.default_rng(0).standard_normal((3, 2)).astype("f4")
    return groups_loss(model, [KL], targets, np.ones((3, 2), dtype=bool), np.zeros(3, dtype=np.int64))


class TestTheLoss:
    def test_is_the_same_loss_at_every_exit_and_the_divergence(self, model):
        loss = MultiExitLoss(model, dict.fromkeys([1, 3, 4], stored(model)), weights={1: 0.5}, kl_weight=2.0)
        parts = loss([model.preprocess(TEXTS)], torch.arange(4))
        exits = {layer: torch.from_numpy(encoded(exit_model(model, layer))) for layer in (1, 3, 4)}
        at = {
            layer: stored(model).compute_loss_from_embeddings([one], torch.arange(4))["leaf"]
            for layer, one in exits.items()
        }
        off = ~torch.eye(4, dtype=torch.bool)
        kl = multi_exit_kl([one @ one.T for one in exits.values()], off, [0.5, 1.0])
        expected = {"leaf@exit-1": 0.5 * at[1], "leaf@exit-3": at[3], "leaf": at[4], "exits": 2 * kl}
        assert parts.keys() == expected.keys()
        for name, value in expected.items():
            torch.testing.assert_close(parts[name], value, atol=1e-5, rtol=1e-4)

    def test_of_groups_of_documents(self, model):
        loss = MultiExitLoss(model, dict.fromkeys([1, 3, 4], grouped(model)), kl_weight=0)
        columns = [TEXTS[:3], TEXTS[1:], TEXTS[::-1][:3]]
        parts = loss([model.preprocess(column) for column in columns], torch.arange(3))
        alone = exit_model(model, 1).eval()
        expected = grouped(alone)([alone.preprocess(column) for column in columns], torch.arange(3))
        assert list(parts) == ["kl@exit-1", "kl@exit-3", "kl"]
        torch.testing.assert_close(parts["kl@exit-1"], expected["kl"], atol=1e-5, rtol=1e-4)

    def test_the_divergence_does_not_reach_layers_above_an_exit(self, model):
        loss = MultiExitLoss(model, dict.fromkeys([1, 3, 4], stored(model, weight=1e-30)))
        loss([model.preprocess(TEXTS)], torch.arange(4))["exits"].backward()
        reached = [
            any(float(one.grad.abs().max()) > 0 for one in layer.parameters() if one.grad is not None)
            for layer in model[0].auto_model.encoder.layer
        ]
        assert reached == [True, True, True, False]

    def test_losses_for_other_exits(self, model):
        with pytest.raises(UserError, match=r"losses for exits \[1, 2\]; the model has \[1, 3, 4\]"):
            MultiExitLoss(model, dict.fromkeys([1, 2], stored(model)))

    def test_trains_through_the_trainer(self, four_layers, tmp_path):
        model = multi_exit(load_bi_encoder(four_layers), [1], project=True)
        targets = encoded(model)  # what the deepest knows already
        loss = MultiExitLoss(model, dict.fromkeys([1, 4], stored_loss(model, [Term("leaf")], embeddings=targets)))
        before = np.square(encoded(exit_model(model, 1)) - targets).sum()
        settings = TrainingSettings(epochs=8, batch_size=4, learning_rate=3e-3)
        history = train(model, loss, TextColumns({"text": TEXTS}, range(4)), settings, tmp_path / "checkpoints")
        assert history.steps == 8
        assert {"leaf", "leaf@exit-1", "exits"} <= set(history.losses[0])
        assert np.square(encoded(exit_model(model, 1)) - targets).sum() < 0.7 * before
        picked = model[1].sub_modules["exit-1"][0].layer_weights
        assert picked.tolist() == [0.0, 1.0, 0.0, 0.0, 0.0]


class TestFittedMaps:
    WORDS = "star planet orbit violin chord melody bread cheese olive judge jury court heart artery wave coral"

    def texts(self, count):
        generator = np.random.default_rng(0)
        return [" ".join(generator.choice(self.WORDS.split(), size=generator.integers(2, 7))) for _ in range(count)]

    def test_they_are_the_ridge_regression_on_the_deepest_exit(self, four_layers):
        model, texts = multi_exit(load_bi_encoder(four_layers), [1], project=True), self.texts(200)
        plain = multi_exit(load_bi_encoder(four_layers), [1])
        pooled = torch.nn.Sequential(*list(exit_model(plain, 1))[:-1])  # without the last normalization
        with torch.no_grad():
            given = pooled(dict(plain.preprocess(texts)))["sentence_embedding"].double().numpy()
        wanted = plain.encode(texts).astype(np.float64)
        fit_exit_maps(model, texts)
        gram = given.T @ given
        by_hand = np.linalg.solve(gram + 0.01 * np.trace(gram) / 32 * np.eye(32), given.T @ wanted)
        found = next(module for module in exit_model(model, 1) if type(module).__name__ == "Dense").linear.weight
        np.testing.assert_allclose(found.detach().numpy().T, by_hand, atol=1e-4)

    def test_exits_come_nearer_on_other_texts_and_the_deepest_stays(self, four_layers):
        model = multi_exit(load_bi_encoder(four_layers), [1, 3], project=True)
        others = self.texts(260)[200:]
        deepest, before = model.encode(others), [model.encode(others, task=f"exit-{layer}") for layer in (1, 3)]
        fit_exit_maps(model.train(), self.texts(200))
        assert model.training
        np.testing.assert_array_equal(model.encode(others), deepest)
        for layer, vectors in zip((1, 3), before, strict=True):
            after = model.encode(others, task=f"exit-{layer}")
            assert (after * deepest).sum(axis=1).mean() > (vectors * deepest).sum(axis=1).mean() + 0.05

    def test_what_has_no_map_or_no_texts(self, model, four_layers):
        with pytest.raises(UserError, match=r"^exit 1 has no map of its own; make exits with project_exits"):
            fit_exit_maps(model, TEXTS)
        with pytest.raises(UserError, match=r"^a map is fitted to texts, and there are none"):
            fit_exit_maps(multi_exit(load_bi_encoder(four_layers), [1], project=True), [])
