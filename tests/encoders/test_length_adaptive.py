import json
import math

import numpy as np
import pytest
import torch
from backbones import bi_encoder
from sentence_transformers import SentenceTransformer

from retrodistill.core.errors import UserError
from retrodistill.data import load_collection
from retrodistill.encoders import load_encoder
from retrodistill.encoders.encoder import Encoder
from retrodistill.encoders.length_adaptive import LengthAdaptiveSettings, length_adaptive_settings
from retrodistill.encoders.loading import load_bi_encoder
from retrodistill.encoders.modules import keep_first_layers, save_pretrained
from retrodistill.encoders.token_dropping import attention_received, keep_share, make_length_adaptive
from retrodistill.indexes import build_index, load_index

LONG = "the comet and the moon and a star and a planet in orbit with a violin and a chord and bread and cheese today"
TEXTS = [LONG, "court", "bread and butter and olive and pepper and a judge and a jury today", ""]


def settings(**more):
    return LengthAdaptiveSettings(**{"layers": [1, 3], "keep": [0.5, 0.25], "by": "attention", "fewest": 2, **more})


@pytest.fixture(scope="module")
def made(tmp_path_factory):
    """Folder of a tiny bi-encoder by architecture, with four layers."""
    folders = {}

    def made(architecture):
        if architecture not in folders:
            folders[architecture] = bi_encoder(architecture, tmp_path_factory.mktemp("model"))
        return folders[architecture]

    return made


def adaptive(folder, **more):
    """Length-adaptive; tokens differ in the attention that they receive, by larger weights, and in norm, by gains."""
    model = load_bi_encoder(folder)
    torch.manual_seed(2)
    with torch.no_grad():
        for name, weights in model.named_parameters():
            if weights.ndim == 2 and "embed" not in name:
                weights.mul_(5)
            elif name.lower().replace("_", "").endswith("layernorm.weight"):
                weights.uniform_(0.5, 2)
    make_length_adaptive(model, settings(**more))
    return model.eval()


@pytest.fixture
def model(made):
    return adaptive(made("bert"))


def by_hand(model, text, keep, by):
    """The vector of one text, layer by layer."""
    said, transformer = length_adaptive_settings(model), model[0].auto_model
    states = transformer.embeddings(model.tokenizer(text, return_tensors="pt")["input_ids"])
    whole = states.shape[1]
    for number, layer in enumerate(transformer.encoder.layer, start=1):
        own = layer.attention.self
        queries, keys = (part(states)[0].reshape(states.shape[1], 2, 16) for part in (own.query, own.key))
        weights = torch.einsum("ihd,jhd->hij", queries, keys).div(4).softmax(dim=2)
        states = layer(states)
        if number in said.layers:
            scores = weights.sum(dim=(0, 1)) if by == "attention" else states[0].norm(dim=1)
            share = keep ** ((said.layers.index(number) + 1) / len(said.layers))
            count = min(whole, max(said.fewest, math.ceil(share * whole)))
            rest = sorted(range(1, states.shape[1]), key=lambda place: -float(scores[place]))
            states = states[:, sorted([0, *rest[: count - 1]])]
    return torch.nn.functional.normalize(states.mean(dim=1), dim=1)[0]


class TestVectors:
    @pytest.mark.parametrize("by", ["attention", "norm"])
    @pytest.mark.parametrize("keep", [0.7, 0.25])
    def test_are_those_of_a_loop_over_texts_and_layers(self, made, by, keep):
        model = adaptive(made("bert"), by=by)
        found = keep_share(model, keep).encode(TEXTS)
        with torch.no_grad():
            expected = torch.stack([by_hand(model, text, keep, by) for text in TEXTS])
        np.testing.assert_allclose(found, expected, atol=1e-5)

    def test_of_all_tokens_are_the_models_own_to_the_bit(self, made, model):
        plain = adaptive(made("bert"))
        del plain[0].auto_model.config.length_adaptive
        expected = plain.encode(TEXTS)
        np.testing.assert_array_equal(model.encode(TEXTS), expected)
        half = keep_share(model, 0.5)
        for whole in (keep_share(model, 1), keep_share(half, 1)):
            np.testing.assert_array_equal(whole.encode(TEXTS), expected)
            assert type(whole[0]).__module__.startswith("sentence_transformers.")

    @pytest.mark.parametrize("architecture", ["bert", "distilbert", "roberta", "xlm-roberta"])
    @pytest.mark.parametrize("by", ["attention", "norm"])
    def test_do_not_depend_on_the_batch(self, made, architecture, by):
        half = keep_share(adaptive(made(architecture), by=by), 0.5)
        together, alone = half.encode(TEXTS), np.concatenate([half.encode([text]) for text in TEXTS])
        np.testing.assert_allclose(together, alone, atol=1e-5)
        whole = keep_share(half, 1).encode(TEXTS)
        assert (together[0] * whole[0]).sum() < 0.9999

    def test_do_not_depend_on_the_form_of_the_mask(self, made):
        model = adaptive(made("bert"), by="norm")
        expected = keep_share(model, 0.25).encode(TEXTS)
        model[0].auto_model.set_attn_implementation("eager")  # numbers are added instead of a mask of bools
        np.testing.assert_allclose(keep_share(model, 0.25).encode(TEXTS), expected, atol=1e-5)

    def test_short_texts_keep_all_tokens(self, made):
        model = adaptive(made("bert"), fewest=16)
        half = keep_share(model, 0.5)
        np.testing.assert_allclose(half.encode(TEXTS[1:2]), model.encode(TEXTS[1:2]), atol=1e-6)

    def test_the_first_token_stays(self, made):
        model = adaptive(made("bert"), fewest=1)
        model[1].pooling_mode = "cls"
        vectors = keep_share(model, 0.25).encode(TEXTS, output_value="token_embeddings")
        assert len({tuple(vector.tolist()) for vector in vectors[0]}) == math.ceil(0.25 * len(vectors[0])) + 1
        assert not torch.equal(vectors[0][0], vectors[0].mean(dim=0))

    def test_later_layers_get_fewer_tokens(self, model):
        widths = []
        for layer in model[0].auto_model.encoder.layer:
            layer.register_forward_pre_hook(lambda _, given: widths.append(given[0].shape[1]))
        model.encode(TEXTS)
        tokens = widths[0]
        widths.clear()
        keep_share(model, 0.25).encode(TEXTS)
        assert widths == [tokens, math.ceil(tokens / 2), math.ceil(tokens / 2), math.ceil(tokens / 4)]

    def test_gradients_reach_the_first_layer(self, model):
        half = keep_share(model, 0.5)
        half(half.preprocess(TEXTS))["sentence_embedding"][:, 0].sum().backward()
        assert half[0].auto_model.embeddings.word_embeddings.weight.grad.abs().sum() > 0


class TestAttention:
    def test_that_each_token_receives(self):
        query, key = (torch.randn(2, 3, 5, 4, generator=torch.Generator().manual_seed(seed)) for seed in (0, 1))
        lengths = torch.tensor([5, 3])
        seen = (torch.arange(5) < lengths[:, None])[:, None, None, :].expand(2, 1, 5, 5)
        added = torch.zeros(2, 1, 5, 5).masked_fill(~seen, torch.finfo(torch.float32).min)
        for text, length in enumerate(lengths):
            weights = (query[text, :, :length] @ key[text, :, :length].mT / 2).softmax(dim=2)
            for mask in (seen, added):
                received = attention_received(query, key, mask)[text]
                torch.testing.assert_close(received[:length], weights.sum(dim=(0, 1)))
                assert not received[length:].any()

    def test_of_every_token_without_a_mask(self):
        query, key = (torch.randn(1, 2, 4, 8, generator=torch.Generator().manual_seed(seed)) for seed in (0, 1))
        expected = (0.1 * query @ key.mT).softmax(dim=3).sum(dim=(1, 2))
        torch.testing.assert_close(attention_received(query, key, None, 0.1), expected)


class TestFolders:
    def test_without_this_package_the_model_keeps_all_tokens(self, model, tmp_path):
        save_pretrained(model, tmp_path)
        found = SentenceTransformer(str(tmp_path), device="cpu")
        np.testing.assert_array_equal(found.encode(TEXTS), model.encode(TEXTS))

    def test_the_share_is_chosen_at_load(self, model, tmp_path):
        save_pretrained(model, tmp_path / "model")
        found = load_bi_encoder(f"{tmp_path / 'model'}@keep-0.3")
        np.testing.assert_array_equal(found.encode(TEXTS), keep_share(model, 0.3).encode(TEXTS))

    def test_a_chosen_share_is_saved(self, model, tmp_path):
        half = keep_share(model, 0.5)
        save_pretrained(half, tmp_path / "half")
        found = load_bi_encoder(str(tmp_path / "half"))
        np.testing.assert_array_equal(found.encode(TEXTS), half.encode(TEXTS))
        again = load_bi_encoder(f"{tmp_path / 'half'}@keep-0.25")
        np.testing.assert_array_equal(again.encode(TEXTS), keep_share(model, 0.25).encode(TEXTS))

    @pytest.mark.parametrize("said", [{"layers": [1], "keep": [2.0]}, [1, 2], {"layers": [1], "keep": [0.5], "new": 1}])
    def test_settings_that_are_none(self, model, tmp_path, said):
        save_pretrained(model, tmp_path)
        config = json.loads((tmp_path / "config.json").read_text())
        (tmp_path / "config.json").write_text(json.dumps({**config, "length_adaptive": said}))
        with pytest.raises(UserError, match=r"length_adaptive"):
            load_bi_encoder(f"{tmp_path}@keep-0.5")


class TestSpaces:
    def test_a_share_is_a_space_of_its_own(self, made, model):
        plain = adaptive(made("bert"))
        del plain[0].auto_model.config.length_adaptive
        whole, half, less, by_norm = (
            Encoder(each, "dense:x").document_space
            for each in (model, keep_share(model, 0.5), keep_share(model, 0.4), keep_share(_by_norm(model), 0.5))
        )
        assert whole == Encoder(plain, "dense:x").document_space
        assert len({whole, half, less, by_norm}) == 4

    def test_smaller_shares_that_it_could_keep_do_not_matter(self, made):
        first, second = (keep_share(adaptive(made("bert"), keep=keep), 0.5) for keep in ([0.5], [0.5, 0.1]))
        assert Encoder(first, "dense:x").document_space == Encoder(second, "dense:x").document_space

    def test_an_index_takes_queries_of_its_own_share(self, model, tmp_path, tiny_folder):
        save_pretrained(model, tmp_path / "model")
        corpus, name = load_collection(tiny_folder), f"dense:{tmp_path / 'model'}@keep-0.5"
        build_index(corpus, load_encoder(name), name="half").save(tmp_path / "index")
        index = load_index(tmp_path / "index")
        assert index.queries.name == name
        assert index.search("star planet", k=3).scores.shape == (3,)
        with pytest.raises(UserError, match="space"):
            load_index(tmp_path / "index", load_encoder(f"dense:{tmp_path / 'model'}"))


def _by_norm(model):
    model[0].auto_model.config.length_adaptive = settings(by="norm").model_dump()
    return model


class TestWithoutSettings:
    def test_a_model_is_not_length_adaptive_any_more(self, model, tiny_static):
        make_length_adaptive(model, None)
        assert length_adaptive_settings(model) is None
        make_length_adaptive(load_bi_encoder(tiny_static), None)


class TestMistakes:
    @pytest.mark.parametrize("architecture", ["modernbert", "mpnet", "deberta-v2", "qwen3"])
    def test_layers_that_see_distances(self, made, architecture):
        with pytest.raises(UserError, match=r"^length_adaptive: the layers of \w+ see how far apart tokens are"):
            make_length_adaptive(load_bi_encoder(made(architecture)), settings())

    @pytest.mark.parametrize(("layers", "match"), [([4], "1 to 3"), ([1, 9], "4 layers")])
    def test_layers_that_there_are_not(self, made, layers, match):
        with pytest.raises(UserError, match=match):
            make_length_adaptive(load_bi_encoder(made("bert")), settings(layers=layers))

    def test_a_model_of_one_layer(self, made):
        with pytest.raises(UserError, match="one layer"):
            make_length_adaptive(load_bi_encoder(made("bert"), layers=1), settings(layers=[1]))

    def test_a_model_that_was_cut_to_fewer_layers(self, model):
        keep_first_layers(model, 3)
        with pytest.raises(UserError, match="3 layers; name some of 1 to 2"):
            keep_share(model, 0.5)

    def test_a_model_that_drops_tokens_already(self, model):
        with pytest.raises(UserError, match=r"the model already keeps 0.5 of its tokens"):
            make_length_adaptive(keep_share(model, 0.5), settings())

    def test_a_token_table(self, tiny_static):
        with pytest.raises(UserError, match="StaticEmbedding has no layers"):
            make_length_adaptive(load_bi_encoder(tiny_static), settings())

    def test_attention_that_is_not_torchs(self, made):
        model = load_bi_encoder(made("bert"))
        model[0].auto_model.set_attn_implementation("eager")
        with pytest.raises(UserError, match="set by: norm"):
            make_length_adaptive(model, settings())

    def test_a_decoder(self, made):
        model = load_bi_encoder(made("bert"))
        model[0].auto_model.config.is_decoder = True
        with pytest.raises(UserError, match="tokens do not see all other tokens"):
            make_length_adaptive(model, settings())

    @pytest.mark.parametrize("keep", [0.2, 1.5])
    def test_shares_that_it_was_not_made_for(self, model, keep):
        with pytest.raises(UserError, match=rf"^keep-{keep}: the model was made for shares of its tokens from 0.25 to"):
            keep_share(model, keep)

    def test_a_model_that_drops_none(self, made):
        with pytest.raises(UserError, match=r"^keep-0.5: the model drops no tokens"):
            load_bi_encoder(f"{made('bert')}@keep-0.5")
