"""A fingerprint holds everything that decides a vector or a score, and what an earlier version saved still loads."""

import json
import shutil
from pathlib import Path
from types import SimpleNamespace

import pytest

from retrodistill.core.errors import UserError
from retrodistill.core.manifest import Manifest
from retrodistill.encoders import load_encoder
from retrodistill.encoders.contract import searched_space
from retrodistill.encoders.loading import load_bi_encoder
from retrodistill.encoders.modules import configurations, tokenizers_digest
from retrodistill.encoders.names import content_of
from retrodistill.encoders.space import EmbeddingSpace, contract_at
from retrodistill.indexes import build_index, load_index
from retrodistill.rankers import Ensemble, load_ranker
from retrodistill.rankers.bm25 import BM25Ranker
from retrodistill.runs.run import Run
from retrodistill.students import load_student, save_student

SAVED = Path(__file__).parents[1] / "fixtures" / "saved_at_0.1.0"


def edit(file, change):
    content = json.loads(file.read_text())
    change(content)
    file.write_text(json.dumps(content))


def other_case(folder):
    def change(content):
        kinds = content["normalizer"]
        content["normalizer"] = {**kinds, "lowercase": not kinds.get("lowercase", True)}

    for file in folder.rglob("tokenizer.json"):
        edit(file, change)
    for file in folder.rglob("tokenizer_config.json"):
        edit(file, lambda content: content.update(do_lower_case=not content.get("do_lower_case", True)))


def other_activation(folder):
    for file in folder.rglob("config.json"):
        edit(file, lambda content: "hidden_act" in content and content.update(hidden_act="relu"))


def other_heads(folder):
    edit(folder / "config.json", lambda content: content.update(num_attention_heads=1))


CHANGES = {"tokenizer": other_case, "activation": other_activation, "heads": other_heads}


class TestWhatIsChangedInPlace:
    @pytest.mark.parametrize("change", CHANGES)
    def test_a_bi_encoder_has_another_fingerprint_and_its_index_refuses_it(self, tiny, tiny_model, tmp_path, change):
        folder = shutil.copytree(tiny_model, tmp_path / "model")
        before = load_encoder(f"dense:{folder}")
        build_index(tiny, before).save(tmp_path / "index")
        CHANGES[change](folder)
        after = load_encoder(f"dense:{folder}")
        assert before.weights_digest == after.weights_digest
        for role in ("query", "document"):
            assert before.fingerprint(role) != after.fingerprint(role)
        with pytest.raises(UserError, match="tokenizer" if change == "tokenizer" else "hidden_act|num_attention_heads"):
            load_index(tmp_path / "index")

    @pytest.mark.parametrize(
        ("kind", "change"),
        [(kind, "tokenizer") for kind in ("static", "hybrid", "sparse", "vdr", "multi-vector", "pooled", "prett", "tk")]
        + [(kind, "activation") for kind in ("hybrid", "sparse", "vdr", "multi-vector", "prett", "tk")],
    )
    def test_a_student_has_another_fingerprint(self, kind, change, tmp_path):
        folder = shutil.copytree(SAVED / kind, tmp_path / kind)
        before = load_student(folder).fingerprint("document")
        CHANGES[change](folder)
        assert load_student(folder).fingerprint("document") != before

    @pytest.mark.parametrize("change", CHANGES)
    def test_a_cross_encoder_has_another_fingerprint(self, tiny, tiny_cross_encoder, tmp_path, change):
        folder = shutil.copytree(tiny_cross_encoder, tmp_path / "model")
        before = load_ranker(f"cross-encoder:{folder}").fingerprint(tiny)
        CHANGES[change](folder)
        assert load_ranker(f"cross-encoder:{folder}").fingerprint(tiny) != before

    def test_an_index_refuses_its_student_with_another_tokenizer_not_one_trained_again(
        self, tiny, tiny_model, tiny_static, tmp_path
    ):
        documents = load_encoder(f"dense:{tiny_model}")
        manifest = Manifest("student", about=searched_space(documents))
        student = save_student(load_bi_encoder(tiny_static), manifest, tmp_path / "student")
        build_index(tiny, documents, student).save(tmp_path / "index")
        other = load_bi_encoder(tiny_static)
        other[0].embedding.weight.data.add_(1.0)
        save_student(other, manifest, tmp_path / "student")
        assert len(load_index(tmp_path / "index").search("star", k=3).to_dict()["0"]) == 3
        save_student(load_bi_encoder(tiny_static), manifest, tmp_path / "student")
        other_case(tmp_path / "student")
        with pytest.raises(UserError, match="tokenizer"):
            load_index(tmp_path / "index")

    def test_the_content_of_what_a_name_means(self, tiny_model, tmp_path):
        folder = shutil.copytree(tiny_model, tmp_path / "model")
        before = content_of(f"dense:{folder}")
        assert before == content_of(str(folder)) == content_of(f"dense:{folder}@exit-2")
        (folder / "README.md").write_text("words")
        assert content_of(f"dense:{folder}") == before
        other_activation(folder)
        assert content_of(f"dense:{folder}") != before
        assert content_of("bm25") is content_of("dense:no-such-model") is None

    def test_adapters_count_with_their_scale(self):
        def module(scale):
            adapter = SimpleNamespace(to_dict=lambda: {"lora_alpha": scale, "base_model_name_or_path": str(scale)})
            config = SimpleNamespace(to_dict=lambda: {"hidden_act": "gelu", "transformers_version": str(scale)})
            return SimpleNamespace(config=config, peft_config={"default": adapter})

        assert configurations([module(8)]) == configurations([module(8)])
        assert configurations([module(8)]) != configurations([module(16)])

    def test_a_set_of_modules_with_adapters_is_alike_in_all_processes(self):
        adapter = SimpleNamespace(to_dict=lambda: {"target_modules": {"value", "query", "key"}})
        module = SimpleNamespace(config=SimpleNamespace(to_dict=dict), peft_config={"default": adapter})
        assert configurations([module]) == [{"adapters": {"default": {"target_modules": ["key", "query", "value"]}}}]

    def test_what_decides_no_vector_changes_nothing(self, tiny_model, tmp_path):
        folder = shutil.copytree(tiny_model, tmp_path / "model")
        before = load_encoder(f"dense:{folder}").fingerprint("document")
        edit(folder / "config.json", lambda content: content.update(transformers_version="0", _name_or_path="x"))
        model = load_bi_encoder(str(folder))
        model.tokenizer(["a text"], truncation=True, max_length=3, padding="max_length")
        assert load_encoder(model).fingerprint("document") == before

    def test_tokenizers_for_words_count_too(self):
        tokenizers = [
            SimpleNamespace(get_vocab=lambda: ["star"], stop_words={word}, do_lower_case=lower)
            for word, lower in (("the", False), ("of", False), ("the", True))
        ]
        digests = {tokenizers_digest([SimpleNamespace(tokenizer=one)]) for one in tokenizers}
        assert len(digests) == 3


class TestOtherKeys:
    def test_bm25_with_another_version_of_its_libraries(self, tiny, monkeypatch):
        before = BM25Ranker().fingerprint(tiny)
        monkeypatch.setattr("retrodistill.rankers.bm25._versions", lambda: ["0", "0"])
        assert BM25Ranker().fingerprint(tiny) != before

    def test_an_ensemble_by_its_depth_and_only_if_its_members_are_known(self, tiny, tiny_model):
        run = load_ranker(Run.from_dict({"q0": {"d0": 1.0}}))
        known = [Ensemble([BM25Ranker(), run], depth=depth).fingerprint(tiny) for depth in (10, 20)]
        assert len({*known, ""}) == 3
        assert Ensemble([BM25Ranker(), build_index(tiny, f"dense:{tiny_model}")]).fingerprint(tiny) == ""


def earlier(space):
    """A space as an earlier version saved it: without tokenizer and configuration, and its fingerprint."""
    from retrodistill.core.digests import digest

    contract = contract_at(space.contract, 1)
    query_contract = contract_at(space.query_contract, 1)
    content = {**space.to_json(), "contract": contract, "query_contract": query_contract}
    return EmbeddingSpace.from_json({**content, "fingerprint": digest(contract)})


class TestAnEarlierVersion:
    def test_its_space_accepts_the_same_model_and_refuses_others(self, tiny_model):
        encoder = load_encoder(f"dense:{tiny_model}")
        old = earlier(EmbeddingSpace.of(encoder))
        assert old.differences(encoder) == []
        assert old.holds_documents_of(encoder)
        model = load_bi_encoder(tiny_model)
        model.prompts = {"query": "what "}
        assert old.differences(load_encoder(model)) == ["query prompt 'what ', expected ''"]
        model.max_seq_length = 16
        assert old.differences(load_encoder(model)) == ["max_length 16, expected 64"]

    def test_students_and_indexes_of_two_versions_belong_together(self, tiny_model, tiny_static, tmp_path):
        encoder = load_encoder(f"dense:{tiny_model}")
        new = EmbeddingSpace.of(encoder)
        old = earlier(new)
        manifests = {"new": searched_space(encoder), "old": {"query_space": old.fingerprint}}
        for name, about in manifests.items():
            student = save_student(load_bi_encoder(tiny_static), Manifest("student", about=about), tmp_path / name)
            assert new.differences(student) == old.differences(student) == []
        other = load_encoder(load_bi_encoder(tiny_static))
        for about in (searched_space(other), {"query_space": earlier(EmbeddingSpace.of(other)).fingerprint}):
            student = save_student(load_bi_encoder(tiny_static), Manifest("student", about=about), tmp_path / "other")
            assert new.differences(student)
            assert old.differences(student)


class TestEmptyPrompts:
    def test_a_role_prompt_that_is_empty_keeps_the_default_away(self, tiny_model):
        model = load_bi_encoder(tiny_model)
        model.prompts = {"query": "", "document": "", "passage": "passage: ", "other": "other: "}
        model.default_prompt_name = "other"
        encoder = load_encoder(model)
        assert (encoder.prompt("query"), encoder.prompt("document")) == ("", "")
        for role, encode in (("query", model.encode_query), ("document", model.encode_document)):
            assert encoder.encode(["star planet"], role) == pytest.approx(encode(["star planet"]), abs=1e-6)
        model.prompts = {"passage": "passage: ", "other": "other: "}
        assert (encoder.prompt("query"), encoder.prompt("document")) == ("other: ", "passage: ")
