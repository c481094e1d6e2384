"""LoRA adapters of every kind of model load with the scores that they were saved with, and count in fingerprints."""

import json
import shutil

import numpy as np
import pytest
import torch
from backbones import backbone, bi_encoder
from safetensors.torch import load_file, save_file

import retrodistill as rd
from retrodistill.core.errors import UserError
from retrodistill.encoders import adapters, load_encoder
from retrodistill.encoders.loading import load_bi_encoder, load_cross_encoder, load_tokenizer
from retrodistill.encoders.names import content_of
from retrodistill.rankers import load_ranker
from retrodistill.runs.run import Run
from retrodistill.students import cross_encoder_student, dense_student, load_student, multi_vector_student
from retrodistill.students.sparse import sparse_student

peft = pytest.importorskip("peft")
pytest.importorskip("transformers", adapters.TRANSFORMERS)
TEXTS = ["star planet orbit", "court and judge", "the butter"]
PAIRS = [("what star", text) for text in TEXTS]
SHAPES = ("width", "architecture")


def louder(model):
    """New adapters change nothing, since B is 0: these do."""
    torch.manual_seed(1)
    for name, weights in model.named_parameters():
        if "lora_" in name:
            torch.nn.init.normal_(weights, std=0.3)
    return model.eval()


def lora(**settings):
    return peft.LoraConfig(**{"r": 2, "lora_alpha": 4, "target_modules": ["query", "value"], **settings})


def alone(base, folder, auto_class="AutoModel", **settings):
    """An adapter as peft saves it: over a plain model, without tokenizer and modules."""
    import transformers

    options = {"num_labels": 1} if "Sequence" in auto_class else {}
    model = getattr(transformers, auto_class).from_pretrained(base, **options)
    adapted = louder(peft.get_peft_model(model, lora(**settings)))
    adapted.save_pretrained(str(folder))
    return adapted


@pytest.fixture(scope="module")
def bases(tmp_path_factory):
    folder = tmp_path_factory.mktemp("bases")
    heads = {"masked": "ForMaskedLM", "pairs": "ForSequenceClassification"}
    return {
        "dense": bi_encoder("bert", folder / "dense"),
        "plain": str(folder / "dense" / "plain"),
        **{name: backbone("bert", folder / name, head) for name, head in heads.items()},
    }


@pytest.fixture
def saved(bases, tmp_path):
    """Folder of a bi-encoder with an adapter, as sentence-transformers saves it, and the model."""
    from sentence_transformers import SentenceTransformer

    model = SentenceTransformer(bases["dense"], device="cpu")
    model.add_adapter(lora())
    louder(model).save_pretrained(str(tmp_path / "adapter"), create_model_card=False)
    return tmp_path / "adapter", model


def edit(folder, **changes):
    file = folder / "adapter_config.json"
    file.write_text(json.dumps({**json.loads(file.read_text()), **changes}))


class TestTeachers:
    def test_a_bi_encoder_has_the_vectors_that_it_had(self, bases, saved):
        folder, model = saved
        wanted = model.encode(TEXTS)
        assert abs(wanted - load_bi_encoder(bases["dense"]).encode(TEXTS)).max() > 0.05
        np.testing.assert_allclose(load_encoder(f"dense:{folder}").encode(TEXTS, "document"), wanted, atol=1e-5)

    def test_an_adapter_alone_takes_pooling_and_tokenizer_of_its_base(self, bases, tmp_path):
        whole = load_bi_encoder(bases["dense"])
        adapted = alone(bases["dense"], tmp_path / "alone")
        whole[0].model = adapted.base_model.model
        found = load_encoder(f"dense:{tmp_path / 'alone'}").encode(TEXTS, "document")
        np.testing.assert_allclose(found, whole.encode(TEXTS), atol=1e-5)
        assert load_tokenizer(str(tmp_path / "alone")).get_vocab() == load_tokenizer(bases["dense"]).get_vocab()

    @pytest.mark.parametrize("base", ["plain", "pairs"])
    def test_a_cross_encoder_scores_with_the_head_that_was_trained(self, bases, tiny, tmp_path, base):
        adapted = alone(bases[base], tmp_path / "alone", "AutoModelForSequenceClassification", task_type="SEQ_CLS")
        wanted = load_cross_encoder(bases["pairs"])
        wanted[0].model = adapted.base_model.model
        ranker = load_ranker(f"cross-encoder:{tmp_path / 'alone'}")
        np.testing.assert_allclose(ranker.logits(PAIRS), wanted.predict(PAIRS), atol=1e-5)
        pool = Run.from_dict({"q0": {"d0": 1.0, "d1": 2.0}})
        assert set(rd.score(tiny, pool, [ranker])[0].to_dict()["q0"]) == {"d0", "d1"}

    def test_a_masked_language_model_is_a_sparse_encoder(self, bases, tmp_path):
        from sentence_transformers import SparseEncoder

        adapted = alone(bases["masked"], tmp_path / "alone", "AutoModelForMaskedLM")
        wanted = SparseEncoder(bases["masked"], device="cpu")
        wanted[0].model = adapted.base_model.model
        found = load_encoder(f"sparse:{tmp_path / 'alone'}").encode(TEXTS, "document").toarray()
        np.testing.assert_allclose(found, wanted.encode(TEXTS, convert_to_sparse_tensor=False), atol=1e-5)

    def test_a_multi_vector_encoder(self, bases, tmp_path):
        model = multi_vector_student(bases["dense"], TEXTS, dimension=8)
        model.save_pretrained(str(tmp_path / "base"), create_model_card=False)
        model[0].auto_model.add_adapter(lora())
        louder(model).save_pretrained(str(tmp_path / "adapter"), create_model_card=False)
        assert not (tmp_path / "adapter" / "config.json").exists()
        wanted = load_encoder(model).encode(TEXTS, "document").vectors
        found = load_encoder(f"multi-vector:{tmp_path / 'adapter'}").encode(TEXTS, "document").vectors
        np.testing.assert_allclose(found, wanted, atol=1e-5)

    def test_a_base_is_found_from_the_adapters_folder(self, bases, saved, tmp_path):
        folder, model = saved
        shutil.copytree(bases["dense"], folder.parent / "base")
        edit(folder, base_model_name_or_path="../base")
        files = sorted(file.name for file in folder.rglob("*"))
        np.testing.assert_allclose(load_bi_encoder(str(folder)).encode(TEXTS), model.encode(TEXTS), atol=1e-5)
        assert sorted(file.name for file in folder.rglob("*")) == files


class TestVersions:
    def test_a_transformers_that_loads_other_weights_is_refused(self, saved, monkeypatch):
        monkeypatch.setattr(adapters, "version", lambda _: "5.17.1")
        with pytest.raises(UserError, match=r"LoRA adapter, which transformers 5\.17\.1 loads with other weights"):
            load_bi_encoder(str(saved[0]))


class TestFingerprints:
    def test_of_adapters_weights_scale_and_base(self, saved, bases, tmp_path):
        folder, _ = saved
        base = shutil.copytree(bases["plain"], tmp_path / "base")
        edit(folder, base_model_name_or_path=str(base))
        names = (f"dense:{folder}", content_of(f"dense:{folder}"))

        def state():
            return load_encoder(names[0]).fingerprint("document"), content_of(names[0])

        states = [state()]
        assert state() == states[0]
        weights = load_file(folder / "adapter_model.safetensors")
        save_file({key: value + 0.1 for key, value in weights.items()}, folder / "adapter_model.safetensors")
        states.append(state())
        edit(folder, lora_alpha=8)
        states.append(state())
        weights = load_file(base / "model.safetensors")
        save_file({key: value + 0.1 for key, value in weights.items()}, base / "model.safetensors", {"format": "pt"})
        states.append(state())
        assert len({vectors for vectors, _ in states}) == len({content for _, content in states}) == 4

    def test_what_only_training_reads_does_not_count(self, saved):
        folder, _ = saved
        before = load_encoder(f"dense:{folder}").fingerprint("document")
        edit(folder, lora_dropout=0.5, peft_version="0.1", inference_mode=False)
        assert load_encoder(f"dense:{folder}").fingerprint("document") == before


class TestStudents:
    def test_start_merged_and_save_whole_folders(self, saved, tmp_path, monkeypatch):
        folder, model = saved
        student = dense_student(str(folder))
        assert not any("lora" in name for name, _ in student.named_parameters())
        assert all(weights.requires_grad for weights in student.parameters())
        student.save_pretrained(str(tmp_path / "student"), create_model_card=False)
        wanted = model.encode(TEXTS)
        monkeypatch.setattr("importlib.util.find_spec", lambda name: None)  # without peft
        np.testing.assert_allclose(load_bi_encoder(str(tmp_path / "student")).encode(TEXTS), wanted, atol=1e-5)

    def test_layers_are_cut_after_merging(self, saved):
        folder, model = saved
        student = dense_student(str(folder), layers=1)
        ids = model.tokenizer(TEXTS, return_tensors="pt", padding=True)["input_ids"]
        wanted = model[0].auto_model(ids, output_hidden_states=True).hidden_states[1]
        torch.testing.assert_close(student[0].auto_model(ids)[0], wanted, atol=1e-5, rtol=0)

    @pytest.mark.slow
    def test_of_every_kind(self, saved, tiny):
        folder, _ = saved
        starts = [
            sparse_student(str(folder), tiny.documents, queries="inference-free"),
            multi_vector_student(str(folder), TEXTS, dimension=8),
            cross_encoder_student(str(folder)),
        ]
        assert not any("lora" in name for model in starts for name, _ in model.named_parameters())

    @pytest.mark.slow
    def test_a_distilled_one_loads_where_the_adapter_is_gone(self, saved, tiny, tmp_path):
        folder, _ = saved
        name, out = f"dense:{folder}", tmp_path / "out"
        training = {"max_steps": 2, "batch_size": 4}
        student = rd.distill(tiny, "bm25", student=name, document_encoder=name, training=training, out=out)
        before = student.encode(TEXTS, "query")
        shutil.rmtree(folder)
        np.testing.assert_array_equal(load_student(out).encode(TEXTS, "query"), before)


class TestRefusals:
    def test_without_peft_the_extra_is_named(self, saved, monkeypatch):
        monkeypatch.setattr("importlib.util.find_spec", lambda name: None)
        with pytest.raises(UserError, match=r"retrodistill\[lora\]"):
            load_encoder(f"dense:{saved[0]}")

    @pytest.mark.parametrize("base", ["/no/such/base", "no-such/base"])
    def test_a_base_that_is_missing_is_named(self, saved, base):
        edit(saved[0], base_model_name_or_path=base)
        with pytest.raises(UserError, match=f"base model {base}, which is not a folder here"):
            load_encoder(f"dense:{saved[0]}")

    def test_another_kind_of_adapter(self, saved):
        edit(saved[0], peft_type="PREFIX_TUNING")
        with pytest.raises(UserError, match="PREFIX_TUNING, and only LoRA"):
            load_encoder(f"dense:{saved[0]}")

    @pytest.mark.parametrize("is_alone", [False, True])
    def test_code_of_a_base_does_not_run_by_itself(self, bases, saved, tmp_path, is_alone):
        folder, base = saved[0], shutil.copytree(bases["plain"], tmp_path / "base")
        config = json.loads((base / "config.json").read_text())
        config |= {"model_type": "of-its-own", "auto_map": {"AutoConfig": "its_code.Config"}}
        (base / "config.json").write_text(json.dumps(config))
        if is_alone:
            alone(bases["plain"], folder := tmp_path / "alone")
        edit(folder, base_model_name_or_path=str(base))
        with pytest.raises(UserError, match=r"brings its own code \(its_code\.py\)"):
            load_encoder(f"dense:{folder}")

    @pytest.mark.parametrize("is_alone", [False, True])
    @pytest.mark.parametrize("change", ["layers", *(pytest.param(one, marks=pytest.mark.slow) for one in SHAPES)])
    def test_a_base_of_another_shape(self, bases, saved, tmp_path, change, is_alone):
        from transformers import AutoConfig, AutoModel

        folder, other = saved[0], tmp_path / "other"
        if is_alone:
            alone(bases["plain"], folder := tmp_path / "alone")
        if change == "architecture":
            other = backbone("distilbert", other)
        else:
            changes = {"num_hidden_layers": 2} if change == "layers" else {"hidden_size": 16}
            AutoModel.from_config(AutoConfig.from_pretrained(bases["plain"], **changes)).save_pretrained(str(other))
            shutil.copy(f"{bases['plain']}/tokenizer.json", other)
            shutil.copy(f"{bases['plain']}/tokenizer_config.json", other)
        edit(folder, base_model_name_or_path=str(other))
        with pytest.raises(UserError, match=f"{other}|not a sentence-transformers model"):
            load_encoder(f"dense:{folder}")
