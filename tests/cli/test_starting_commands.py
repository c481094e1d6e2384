import json
import os
from types import SimpleNamespace

import pytest

from retrodistill.cli import doctor
from retrodistill.recipes.loading import load_recipe


class TestInit:
    def test_writes_a_recipe_and_says_what_is_there(self, call, tiny_folder, tmp_path):
        status, out, _ = call("init", tiny_folder, "--out", tmp_path / "mine.yaml", "--goal", "size")
        assert status == 0
        assert "documents: 60" in out
        assert load_recipe(tmp_path / "mine.yaml").collection == str(tiny_folder)
        status, _, error = call("init", tiny_folder, "--out", tmp_path / "mine.yaml")
        assert status == 2
        assert "--force" in error

    def test_as_json(self, call, tiny_folder, tmp_path):
        status, out, _ = call("init", tiny_folder, "--out", tmp_path / "mine.yaml", "--json")
        assert status == 0
        assert json.loads(out)["documents"] == 60


@pytest.fixture(scope="module")
def facts():
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(doctor, "cache_folder", lambda: doctor.Path("/no/such/cache"))
        return doctor.machine_facts()


class TestDoctor:
    def test_as_text_and_json(self, call):
        status, out, _ = call("doctor")
        assert status == 0
        assert f"{os.cpu_count()} cores" in out
        status, out, _ = call("doctor", "--json")
        assert {"versions", "extras", "hardware", "threads", "cache", "trouble"} <= json.loads(out).keys()

    def test_a_cache_that_does_not_exist_yet(self, facts):
        assert facts["cache"]["bytes"] == 0
        assert facts["cache"]["free_bytes"] > 0

    @pytest.mark.parametrize(
        ("change", "words"),
        [
            ({"writable": False}, "cannot be written"),
            ({"free_bytes": 10**9}, "1.0 GB is free"),
            ({"disk": "nfs4"}, "nfs4"),
        ],
    )
    def test_a_cache_with_trouble(self, facts, change, words):
        cache = {"writable": True, "free_bytes": 10**12, "disk": "ext4", "folder": "cache"}
        lines = list(doctor.known_trouble({**facts, "cache": {**cache, **change}}))
        assert any(words in line and "RETRODISTILL_CACHE" in line for line in lines)
        assert not any(words in line for line in doctor.known_trouble({**facts, "cache": cache}))

    def test_a_library_outside_its_range_and_one_that_is_absent(self, facts, monkeypatch):
        monkeypatch.setattr(doctor.metadata, "requires", lambda _: ["numpy<1.0", "nobody-has-this>=2"])
        lines = list(doctor.known_trouble(facts))
        assert any("numpy" in line and "<1.0" in line for line in lines)
        assert any("'nobody-has-this>=2'" in line for line in lines)

    def test_a_gpu_that_torch_does_not_see(self, facts, monkeypatch):
        monkeypatch.setattr(doctor, "shutil", SimpleNamespace(which=lambda name: f"/usr/bin/{name}"))
        without = {**facts, "hardware": {**facts["hardware"], "gpu": None}}
        assert any("nvidia-smi" in line for line in doctor.known_trouble(without))
