import shutil
import time
from pathlib import Path

import pytest
import torch

from retrodistill.core.errors import UserError
from retrodistill.encoders import loading
from retrodistill.encoders.loading import load_bi_encoder, load_cross_encoder, packaged_minilm


@pytest.fixture
def copied(tiny_model, tmp_path):
    return Path(shutil.copytree(tiny_model, tmp_path / "copy"))


class TestFolders:
    def test_a_folder_loads_in_float32(self, tiny_model):
        assert {tensor.dtype for tensor in load_bi_encoder(tiny_model).parameters()} == {torch.float32}

    def test_a_half_precision_checkpoint_too(self, tiny_model, tmp_path):
        load_bi_encoder(tiny_model).half().save_pretrained(str(tmp_path / "half"), create_model_card=False)
        assert {tensor.dtype for tensor in load_bi_encoder(str(tmp_path / "half")).parameters()} == {torch.float32}

    def test_a_missing_folder(self, tmp_path):
        with pytest.raises(
            UserError, match=rf"^no model folder {tmp_path}/none; give an existing folder or a hub name"
        ):
            load_bi_encoder(f"{tmp_path}/none")

    def test_a_folder_that_is_no_model(self, tmp_path):
        with pytest.raises(UserError, match=rf"^folder {tmp_path} is not a sentence-transformers model"):
            load_bi_encoder(str(tmp_path))

    def test_weights_that_are_cut_short(self, copied):
        weights = copied / "model.safetensors"
        weights.write_bytes(weights.read_bytes()[:2000])
        with pytest.raises(UserError, match=r"model.safetensors is cut short") as caught:
            load_bi_encoder(str(copied))
        assert "\n" not in str(caught.value)

    def test_only_the_first_layers(self, tiny_model):
        assert load_bi_encoder(tiny_model, layers=1)[0].auto_model.config.num_hidden_layers == 1


class TestCrossEncoders:
    def test_they_give_raw_logits(self, tiny_cross_encoder):
        model = load_cross_encoder(tiny_cross_encoder)
        features = model.preprocess([("star", "planet orbit")])
        with torch.inference_mode():
            logit = model.model(**{key: features[key] for key in ("input_ids", "attention_mask", "token_type_ids")})
        assert model.predict([("star", "planet orbit")])[0] == pytest.approx(logit.logits.item(), abs=1e-6)

    def test_two_labels_are_no_ranker(self, tiny_cross_encoder, tmp_path):
        from sentence_transformers import CrossEncoder

        CrossEncoder(tiny_cross_encoder, num_labels=2, model_kwargs={"ignore_mismatched_sizes": True}).save_pretrained(
            str(tmp_path / "two")
        )
        with pytest.raises(UserError, match=r"gives 2 scores per pair; a ranker gives one"):
            load_cross_encoder(str(tmp_path / "two"))


class TestTheHub:
    def test_a_name_that_cannot_be_found_offline_is_one_line_at_once(self):
        start = time.monotonic()
        with pytest.raises(UserError, match=r"^model 'nobody/none' is not a folder here") as error:
            load_bi_encoder("nobody/none")
        assert "\n" not in str(error.value)
        assert time.monotonic() - start < 10

    def test_an_unreachable_hub_is_asked_once(self, monkeypatch):
        import requests
        from huggingface_hub import constants

        asked = []

        def unreachable(url, timeout):
            asked.append(timeout)
            raise requests.ConnectionError

        monkeypatch.setattr(constants, "HF_HUB_OFFLINE", False)
        monkeypatch.setattr(requests, "head", unreachable)
        with pytest.raises(UserError, match=r"the hub does not provide it"):
            load_bi_encoder("nobody/none")
        assert asked == [5]
        assert constants.HF_HUB_OFFLINE is False

    def test_a_name_that_no_hub_could_have(self):
        with pytest.raises(UserError, match=r"the hub does not provide it"):
            load_bi_encoder("what is this?")


class TestThePackagedMiniLM:
    @pytest.fixture
    def package(self, tmp_path, monkeypatch):
        """A package of the same shape, with weights of our own."""
        folder = tmp_path / "fake_minilm"
        (folder / "model").mkdir(parents=True)
        (folder / "__init__.py").touch()
        (folder / "model" / "model.safetensors").write_bytes(b"weights")
        monkeypatch.syspath_prepend(str(tmp_path))
        monkeypatch.setattr(loading, "_PACKAGE", "fake_minilm")
        return folder

    def test_the_published_bytes_are_taken(self, package, monkeypatch):
        import hashlib

        monkeypatch.setattr(loading, "PACKAGED_SHA256", hashlib.sha256(b"weights").hexdigest())
        assert packaged_minilm() == package / "model"

    def test_other_bytes_are_refused_by_every_name_of_it(self, package):
        for name in ("all-MiniLM-L6-v2", "sentence-transformers/all-MiniLM-L6-v2"):
            with pytest.raises(
                UserError,
                match=r"^packaged all-MiniLM-L6-v2: its weights have sha256 9a129038d9a0\.\.\., not 53aa51172d14",
            ):
                load_bi_encoder(name)

    def test_without_the_package_the_line_says_which_extra_carries_it(self, monkeypatch):
        monkeypatch.setattr(loading, "_PACKAGE", "no_such_package_here")
        assert packaged_minilm() is None
        with pytest.raises(UserError, match=r"or install 'retrodistill\[demo\]'"):
            load_bi_encoder("all-MiniLM-L6-v2")
