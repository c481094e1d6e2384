import tomllib
from importlib import metadata
from pathlib import Path

import pytest

from retrodistill.core.errors import UserError
from retrodistill.core.json_files import read_json
from retrodistill.core.manifest import Manifest, hardware, library_versions

MANIFEST = Manifest("index", {"documents": "abc"}, {"factory": "Flat", "seed": 0}, {"seconds": 1.5})


class TestManifest:
    def test_goes_through_a_folder_unchanged(self, tmp_path):
        MANIFEST.write(tmp_path)
        assert Manifest.read(tmp_path) == MANIFEST
        assert MANIFEST.matches(tmp_path)

    def test_records_versions_hardware_and_time(self, tmp_path):
        MANIFEST.write(tmp_path, "student.json")
        content = read_json(tmp_path / "student.json")
        assert content["fingerprint"] == MANIFEST.fingerprint
        assert content["versions"] == library_versions()
        assert {"python", "torch", "faiss-cpu", "numpy"} <= set(content["versions"])
        assert content["hardware"] == hardware()
        assert content["hardware"]["cores"] >= 1
        assert content["created"].endswith("+00:00")

    def test_a_clone_that_nobody_installed_knows_its_version(self, monkeypatch):
        def none(name):
            raise metadata.PackageNotFoundError(name)

        project = tomllib.loads((Path(__file__).parents[1] / "pyproject.toml").read_text())["project"]
        monkeypatch.setattr(metadata, "version", none)
        versions = library_versions()
        assert (versions["retrodistill"], versions["numpy"]) == (project["version"], "absent")

    def test_what_is_only_good_to_know_does_not_decide_a_match(self, tmp_path):
        MANIFEST.write(tmp_path)
        assert Manifest("index", {"documents": "abc"}, {"seed": 0, "factory": "Flat"}, {"seconds": 9}).matches(tmp_path)

    @pytest.mark.parametrize(
        "other",
        [
            Manifest("student", MANIFEST.inputs, MANIFEST.settings),
            Manifest("index", {"documents": "abd"}, MANIFEST.settings),
            Manifest("index", MANIFEST.inputs, {"factory": "Flat", "seed": 1}),
            Manifest("index", MANIFEST.inputs, {"factory": "Flat", "seed": 0, "more": None}),
        ],
    )
    def test_another_input_or_setting_does_not_match(self, other, tmp_path):
        MANIFEST.write(tmp_path)
        assert not other.matches(tmp_path)

    def test_settings_read_back_from_json_still_match(self, tmp_path):
        manifest = Manifest("index", {}, {"depth": (1, 2), "rate": 0.1})
        manifest.write(tmp_path)
        assert Manifest.read(tmp_path).fingerprint == manifest.fingerprint


class TestRefusals:
    def test_nothing_there(self, tmp_path):
        assert not MANIFEST.matches(tmp_path)
        with pytest.raises(UserError, match=r"no file .*manifest.json"):
            Manifest.read(tmp_path)

    @pytest.mark.parametrize(
        ("content", "message"),
        [
            ("{", "is not JSON"),
            ("[]", "is not a retrodistill manifest: it is not a JSON object"),
            ('{"artifact": "index"}', "is not a retrodistill manifest: it lacks 'inputs'"),
        ],
    )
    def test_a_file_that_is_no_manifest(self, content, message, tmp_path):
        (tmp_path / "manifest.json").write_text(content)
        with pytest.raises(UserError, match=message):
            MANIFEST.matches(tmp_path)
