"""Every script in examples/ runs, on the tiny collection with the tiny model."""

from __future__ import annotations

import ast
import importlib.util
import subprocess
import sys
from pathlib import Path

import pytest

import retrodistill as rd
from retrodistill.core.manifest import Manifest
from retrodistill.exports.onnx import export_onnx
from retrodistill.students.registry import save_student

EXAMPLES = Path(__file__).parent.parent / "examples"


def load(name: str):
    spec = importlib.util.spec_from_file_location(f"example_{name}", EXAMPLES / f"{name}.py")
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


@pytest.fixture
def model(tiny_model):
    return f"dense:{tiny_model}"


@pytest.mark.slow
class TestExamples:
    def test_each_has_a_test(self):
        assert {path.stem for path in EXAMPLES.glob("*.py")} == {
            "distill_static",
            "distill_from_ensemble",
            "recorded_teacher",
            "own_corpus",
            "learned_index",
            "distill_dense",
            "distill_multi_vector",
            "distill_sparse",
            "distill_reranker",
            "search_without_torch",
        }

    @pytest.mark.parametrize("path", sorted(EXAMPLES.glob("*.py")), ids=lambda path: path.stem)
    def test_each_is_a_page_that_says_what_it_shows_and_needs_nothing_but_the_package(self, path):
        tree = ast.parse(path.read_text(encoding="utf-8"))
        assert ast.get_docstring(tree)
        assert len(path.read_text(encoding="utf-8").splitlines()) <= 70
        imported = [node.module for node in ast.walk(tree) if isinstance(node, ast.ImportFrom)]
        imported += [alias.name for node in ast.walk(tree) if isinstance(node, ast.Import) for alias in node.names]
        without = {"faiss", "numpy", "onnxruntime", "tokenizers"} if path.stem == "search_without_torch" else set()
        assert {name.partition(".")[0] for name in imported} <= {"retrodistill", *without, *sys.stdlib_module_names}

    def test_distill_static(self, tiny_folder, model, tmp_path):
        index = load("distill_static").main(str(tiny_folder), model, str(tmp_path))
        assert len(rd.load_index(tmp_path / "index")) == len(index) == 60

    def test_distill_dense(self, tiny_folder, model, tmp_path):
        results = load("distill_dense").main(str(tiny_folder), model, str(tmp_path / "out"), "1")
        assert list(results)[-4:] == ["control", "control@exit-1", "student", "student@exit-1"]

    def test_distill_multi_vector(self, tiny_folder, tiny_model, tmp_path):
        results = load("distill_multi_vector").main(str(tiny_folder), tiny_model, str(tmp_path / "out"), "16")
        assert results["unclustered"]["bytes"] >= results["student"]["bytes"] > 0

    def test_distill_sparse(self, tiny_folder, tiny_model, tmp_path):
        results = load("distill_sparse").main(str(tiny_folder), tiny_model, str(tmp_path / "out"))
        assert list(results)[-2:] == ["control", "student"]

    def test_distill_from_ensemble(self, tiny_folder, model, tmp_path):
        target = load("distill_from_ensemble").main(str(tiny_folder), model, str(tmp_path))
        assert rd.read_run(tmp_path / "target.run").fingerprint == target.fingerprint

    def test_recorded_teacher(self, tiny, tiny_folder, model, tmp_path):
        rd.write_run(rd.mine(tiny, "train", ["bm25"], 20), tmp_path / "teacher.run")
        means = load("recorded_teacher").main(str(tmp_path / "teacher.run"), str(tiny_folder), model, str(tmp_path))
        assert set(means) == {"teacher", "student"}

    def test_own_corpus(self, model, tmp_path):
        results = load("own_corpus").main(str(tmp_path / "shop"), model)
        assert len(results) == 2

    def test_learned_index(self, tiny_folder, model, tmp_path):
        means = load("learned_index").main(str(tiny_folder), model, str(tmp_path), "OPQ4,PQ4x4")
        assert set(means) == {"exact", "opq", "learned"}
        assert len(rd.load_index(tmp_path / "index")) == 60

    @pytest.mark.parametrize("kind", ["static", "trimmed", "dense"])
    def test_search_without_torch(self, kind, tiny, model, tiny_static, tmp_path):
        student, name = tmp_path / "student", model if kind == "dense" else f"static:{tiny_static}"
        if kind == "static":
            save_student(rd.load_encoder(name).model, Manifest("student"), student)
        elif kind == "trimmed":
            rd.trim(name, tiny, dimension=0.9, precision="int8", out=student)
            name = f"static:{student}"
        else:
            export_onnx(model, student)
        index = rd.build_index(tiny, name)
        index.save(tmp_path / "index")
        command = [sys.executable, str(EXAMPLES / "search_without_torch.py")]
        subprocess.run([*command, "prepare", tmp_path / "index"], check=True)
        done = subprocess.run(
            [*command, tmp_path / "index", student, "coral reef"], capture_output=True, text=True, check=True
        )
        found = ast.literal_eval(done.stdout[: done.stdout.index("}") + 1])
        wanted = index.search(["coral reef"], k=5).to_dict()["0"]
        assert list(found) == list(wanted)
        assert list(found.values()) == pytest.approx(list(wanted.values()), abs=1e-5)

    @pytest.mark.parametrize("kind", ["tk", "prett", "cross-encoder"])
    def test_distill_reranker(self, kind, tiny_folder, model, tmp_path):
        means = load("distill_reranker").main(str(tiny_folder), model, model.replace("dense", kind), str(tmp_path))
        assert set(means) == {"bm25", "teacher", "student"}
        assert min(values["ndcg@10"] for values in means.values()) > 0
