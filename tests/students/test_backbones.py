"""Students of every kind from transformers of other architectures than BERT, ModernBERT above all."""

import numpy as np
import pytest
import torch
import yaml
from backbones import ARCHITECTURES, LONGEST, backbone, bi_encoder
from transformers import AlbertConfig, AlbertModel, AutoModel

import retrodistill as rd
from retrodistill.core.errors import UserError
from retrodistill.encoders import load_encoder
from retrodistill.encoders.divided_layers import from_states, knows_distances, make_divisible, states_before
from retrodistill.encoders.layers import keep_layers, longest_text
from retrodistill.encoders.loading import load_bi_encoder
from retrodistill.encoders.modules import exit_model
from retrodistill.rankers import load_ranker
from retrodistill.students import cross_encoder_student, dense_student, load_student
from retrodistill.students.cross_encoder import CrossEncoderStudent
from retrodistill.students.dense_variants import embeddings_by_exit, multi_exit
from retrodistill.students.late_interaction import StoredDocuments, late_interaction
from retrodistill.students.prett import PreTT, prett_student
from retrodistill.students.static import _frame
from retrodistill.students.tk import tk_student

TEXTS = ["the comet and the moon today", "court", "bread and butter and olive and pepper today"]
ENCODERS = [name for name in ARCHITECTURES if name != "qwen3"]
SLOW = pytest.mark.slow


def mostly_slow(*names):
    """ModernBERT, and the others among the slow tests."""
    return [name if name == "modernbert" else pytest.param(name, marks=SLOW) for name in names]


APART = ["modernbert", "distilbert", "roberta", "mpnet", "deberta-v2"]  # one of each way to tell positions
STEPS = {"max_steps": 2, "batch_size": 4}


@pytest.fixture(scope="module")
def made(tmp_path_factory):
    """Folder of a model by architecture and head; a bi-encoder without a head."""
    folders = {}

    def made(architecture, head=None):
        key = architecture, head
        if key not in folders:
            folder = tmp_path_factory.mktemp("model")
            folders[key] = bi_encoder(architecture, folder) if head is None else backbone(*key[:1], folder, head)
        return folders[key]

    return made


def louder(model):
    """Larger weights and gains that are not 1, so that a score depends on all that it is made of."""
    torch.manual_seed(2)
    with torch.no_grad():
        for name, weights in model.named_parameters():
            if weights.ndim == 2 and "embed" not in name:
                weights.mul_(5)
            elif name.endswith("norm.weight"):
                weights.uniform_(0.5, 2)
    return model.eval()


class TestLayers:
    @pytest.mark.parametrize("architecture", mostly_slow(*APART))
    def test_parts_of_a_transformer_are_its_layers(self, made, architecture):
        model = louder(load_bi_encoder(made(architecture)))
        transformer, ids = model[0].auto_model, model.tokenizer(TEXTS[:1], return_tensors="pt")["input_ids"]
        mask = torch.ones_like(ids, dtype=torch.bool)
        with torch.no_grad():
            whole = transformer(ids, output_hidden_states=True)
            make_divisible(transformer)
            for layer in range(4):
                states = states_before(transformer, layer, ids, mask)
                torch.testing.assert_close(states, whole.hidden_states[layer])
                torch.testing.assert_close(from_states(transformer, layer, states, mask)[0], whole[0])

    def test_who_sees_distances(self, made):
        seen = {}
        for name in APART:
            transformer = AutoModel.from_pretrained(made(name, "Model"))
            make_divisible(transformer)
            seen[name] = knows_distances(transformer)
        assert seen == {"modernbert": True, "distilbert": False, "roberta": False, "mpnet": True, "deberta-v2": True}

    def test_positions_for_padding_are_no_positions_of_tokens(self, made):
        longest = {name: longest_text(AutoModel.from_pretrained(made(name, "Model"))) for name in APART}
        reserved = {"roberta": LONGEST - 2, "mpnet": LONGEST - 2}
        assert longest == {**dict.fromkeys(APART, LONGEST), **reserved}
        with pytest.raises(UserError, match="1 to 78"):
            dense_student(made("roberta"), max_length=79)

    @pytest.mark.parametrize("architecture", mostly_slow("modernbert", "distilbert", "qwen3"))
    def test_a_cut_model_loads_with_fewer_layers(self, made, architecture, tmp_path):
        student = dense_student(made(architecture), layers=2)
        student.save_pretrained(str(tmp_path), create_model_card=False)
        loaded = load_bi_encoder(str(tmp_path))
        assert loaded[0].auto_model.config.num_hidden_layers == 2
        np.testing.assert_allclose(loaded.encode(TEXTS), student.encode(TEXTS), atol=1e-6)

    def test_layers_that_are_one_layer_again_and_again_are_not_cut(self):
        sizes = {"hidden_size": 8, "embedding_size": 8, "num_attention_heads": 2, "intermediate_size": 8}
        albert = AlbertModel(AlbertConfig(vocab_size=10, num_hidden_layers=3, **sizes))
        with pytest.raises(UserError, match="AlbertModel has no stack of 3 layers"):
            keep_layers(albert, 2)


class TestExits:
    def test_of_a_model_with_a_final_normalization_are_its_first_layers(self, made, tmp_path):
        model = multi_exit(louder(load_bi_encoder(made("modernbert"))), [1, 3], project=True)
        features = model.preprocess(TEXTS)
        with torch.no_grad():
            together = embeddings_by_exit(model, features)
        model.save_pretrained(str(tmp_path / "exits"), create_model_card=False)
        for layer in (1, 3):
            exit_model(model, layer).save_pretrained(str(tmp_path / f"{layer}"), create_model_card=False)
            for name in (f"dense:{tmp_path / 'exits'}@exit-{layer}", f"dense:{tmp_path / str(layer)}"):
                alone = load_encoder(name).encode(TEXTS, "query")
                np.testing.assert_allclose(alone, together[layer].numpy(), atol=1e-4)


class TestPreTT:
    @pytest.mark.parametrize("architecture", mostly_slow(*APART))
    def test_without_layers_apart_it_is_the_cross_encoder(self, made, architecture):
        whole = louder(cross_encoder_student(made(architecture, "ForSequenceClassification")))
        start = louder(cross_encoder_student(made(architecture, "ForSequenceClassification")))
        query = "what star"
        length = len(whole.tokenizer(query)["input_ids"])  # documents' positions then follow the query's
        settings = {"query_length": length, "document_length": 40, "precision": "float32"}
        late = late_interaction(PreTT(start[0].auto_model, start.tokenizer, join=0, **settings), "cpu").eval()
        pairs = [(query, text) for text in TEXTS]
        np.testing.assert_allclose(late.predict(pairs), whole.predict(pairs), atol=1e-4)

    @pytest.mark.parametrize("architecture", mostly_slow(*APART))
    @pytest.mark.parametrize("head", ["segments", "cls"])
    def test_stored_documents_score_as_pairs_do_alone_and_in_a_batch(self, made, architecture, head, tmp_path):
        source = made(architecture) if head == "segments" else made(architecture, "ForSequenceClassification")
        model = louder(prett_student(source, TEXTS, dimension=16))
        model.save_pretrained(str(tmp_path), create_model_card=False)
        student = CrossEncoderStudent(load_student(tmp_path).model, "prett:student")
        pairs = [("what star", text) for text in TEXTS]
        wanted = [model.predict([pair])[0] for pair in pairs]
        np.testing.assert_allclose(
            student.score([("a longer query about law", "court"), *pairs])[1:], wanted, atol=2e-3
        )
        np.testing.assert_allclose(StoredDocuments(student, TEXTS).score("what star", np.arange(3)), wanted, atol=2e-3)
        assert np.ptp(wanted) > 1e-3

    @pytest.mark.parametrize("start", [lambda name: prett_student(name, TEXTS), lambda name: tk_student(name, TEXTS)])
    def test_a_decoder_is_refused(self, made, start):
        with pytest.raises(UserError, match=r"does not read pairs|no tokens that begin and end a text"):
            start(made("qwen3"))


KINDS = {
    "cut and fitted": ("dense", {"layers": 2, "initialize": "fitted"}, {}),
    "both encoders": ("dense", {"documents": "student"}, {"train": "both_encoders"}),
    "exits": ("dense", {"exits": [1, 2], "project_exits": True}, {}),
    "hybrid": ("dense", {"lexical_dim": 16, "documents": "student"}, {"train": "lexical"}),
    "static": ("static", {}, {}),
    "static words": ("static", {"initialize": "words"}, {}),
    "sparse": ("sparse", {"queries": "inference-free", "lexical_terms": True}, {"train": "head"}),
    "splade": ("sparse", {"from": "ForMaskedLM"}, {"train": "both_encoders"}),
    "vdr": ("sparse", {"head": "vdr"}, {"train": "both_encoders"}),
    "colbert": ("multi-vector", {"dimension": 16, "expansion": 8}, {"train": "both_encoders"}),
    "crisp": ("multi-vector", {"dimension": 16, "clusters": "C4x8"}, {"train": "head"}),
    "cross-encoder": ("cross-encoder", {"from": "ForSequenceClassification"}, {}),
    "segments": ("cross-encoder", {"layers": 3}, {}),
    "prett": ("prett", {"dimension": 16}, {"train": "head"}),
    "prett whole": ("prett", {"from": "ForSequenceClassification"}, {"train": "both_encoders"}),
    "tk": ("tk", {"layers": 2, "dimension": 16}, {"train": "head"}),
}
OTHERS = [(name, kind) for name in ENCODERS[2:] for kind in ("both encoders", "sparse", "segments", "prett", "tk")]
OTHERS += [("qwen3", kind) for kind in ("both encoders", "cut and fitted", "static words", "colbert", "cross-encoder")]


class TestKinds:
    def test_a_token_alone_stands_between_the_special_tokens_of_its_tokenizer(self, made):
        frames = {name: _frame(load_bi_encoder(made(name)).tokenizer) for name in ("modernbert", "qwen3")}
        assert frames == {"modernbert": ([2], [3]), "qwen3": ([], [0])}

    @pytest.mark.slow
    @pytest.mark.parametrize(("architecture", "kind"), [*(("modernbert", kind) for kind in KINDS), *OTHERS])
    def test_trains_saves_and_loads(self, made, tiny, tmp_path, architecture, kind):
        name, given, training = KINDS[kind]
        settings, encoder = dict(given), f"dense:{made(architecture)}"
        source = made(architecture, settings.pop("from", None))
        model = name if name == "static" else f"{name}:{source}"
        out, training = tmp_path / "student", {**STEPS, **training}
        student = rd.distill(
            tiny, "bm25", student={"model": model, **settings}, document_encoder=encoder, training=training, out=out
        )
        other = load_student(out)
        assert other.fingerprint("query") == student.fingerprint("query")
        if name in ("cross-encoder", "prett", "tk"):
            pairs = [("what star", text) for text in TEXTS]
            found, again = student.score(pairs), other.score(pairs)
        else:
            found, again = (each.encode(TEXTS, "document") for each in (student, other))
            found, again = (getattr(each, "vectors", each) for each in (found, again))
            found, again = (each.toarray() if hasattr(each, "toarray") else each for each in (found, again))
        assert np.isfinite(found).all()
        np.testing.assert_array_equal(found, again)

    @pytest.mark.slow
    def test_a_recipe_plans_trains_indexes_and_writes_cards(self, made, tiny_folder, tmp_path):
        from retrodistill.recipes import run_recipe
        from retrodistill.recipes.plan import plan_recipe

        stage = {"objectives": "kl", "training": STEPS}
        students = {
            "dense": {"model": f"dense:{made('modernbert')}", "layers": 2, "stages": [stage]},
            "sparse": {
                "model": f"sparse:{made('modernbert')}",
                "queries": "inference-free",
                "documents": "student",
                "stages": [{**stage, "train": "head"}],
            },
        }
        written = {
            "name": "modern",
            "collection": str(tiny_folder),
            "document_encoder": f"dense:{made('modernbert')}",
            "teacher": f"cross-encoder:{made('modernbert', 'ForSequenceClassification')}",
            "students": students,
            "evaluation": {"latency_queries": 0},
        }
        recipe = tmp_path / "modern.yaml"
        recipe.write_text(yaml.safe_dump(written))
        steps = plan_recipe(recipe, tmp_path / "out").to_json()["steps"]
        trained = [step for step in steps if step["unit"] == "steps"]
        assert len(trained) == 2
        assert all(step["memory_bytes"] > 0 for step in trained)
        results = run_recipe(recipe, tmp_path / "out")
        assert {"dense", "sparse"} <= {system.name for system in results.systems}
        assert "kl" in (tmp_path / "out" / "students" / "dense" / "README.md").read_text()

    @pytest.mark.parametrize("architecture", mostly_slow(*ENCODERS))
    def test_teachers_score(self, made, tiny, architecture):
        run = rd.mine(tiny, "test", ["bm25"], depth=3)
        pairs = load_ranker(f"cross-encoder:{made(architecture, 'ForSequenceClassification')}")
        dense = load_ranker(f"dense:{made(architecture)}")
        scores = rd.score(tiny, run, [pairs, dense])
        assert all(np.isfinite(list(scores[0].to_dict()["t0"].values())))
        assert all(abs(score) <= 1.001 for score in scores[1].to_dict()["t0"].values())
