"""Every script in examples/ runs, on the tiny collection with the tiny model."""

from __future__ import annotations

import importlib.util
from pathlib import Path

import pytest

import retrodistill as rd

EXAMPLES = Path(__file__).parent.parent / "examples"


def load(name: str):
    spec = importlib.util.spec_from_file_location(f"example_{name}", EXAMPLES / f"{name}.py")
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


@pytest.fixture
def model(tiny_model):
    return f"dense:{tiny_model}"


class TestExamples:
    def test_none_is_without_a_test(self):
        assert {path.stem for path in EXAMPLES.glob("*.py")} == {
            "distil_static",
            "distil_from_ensemble",
            "recorded_teacher",
            "own_corpus",
            "learned_index",
        }

    def test_distil_static(self, tiny_folder, model, tmp_path):
        index = load("distil_static").main(str(tiny_folder), model, str(tmp_path))
        assert len(rd.load_index(tmp_path / "index")) == len(index) == 60

    def test_distil_from_ensemble(self, tiny_folder, model, tmp_path):
        target = load("distil_from_ensemble").main(str(tiny_folder), model, str(tmp_path))
        assert rd.read_run(tmp_path / "target.run").fingerprint == target.fingerprint

    def test_recorded_teacher(self, tiny, tiny_folder, model, tmp_path):
        rd.write_run(rd.mine(tiny, "train", ["bm25"], 20), tmp_path / "teacher.run")
        means = load("recorded_teacher").main(str(tmp_path / "teacher.run"), str(tiny_folder), model, str(tmp_path))
        assert set(means) == {"teacher", "student"}

    def test_own_corpus(self, model, tmp_path):
        found = load("own_corpus").main(str(tmp_path / "shop"), model)
        assert len(found) == 2

    def test_learned_index(self, tiny_folder, model, tmp_path):
        means = load("learned_index").main(str(tiny_folder), model, str(tmp_path), "OPQ4,PQ4x4")
        assert set(means) == {"exact", "opq", "learned"}
        assert len(rd.load_index(tmp_path / "index")) == 60
