"""``~`` in every path that a user types."""

import json
import shutil
from pathlib import Path

import pytest
import yaml

from retrodistill import Run, build_index, load_collection, load_index, read_run, write_run
from retrodistill.core.cache import cache_folder
from retrodistill.core.files import check_replaceable
from retrodistill.core.json_files import read_json, write_json
from retrodistill.data.conversations import load_rewrites, read_turns
from retrodistill.encoders import load_encoder
from retrodistill.evaluation.benchmark import sources
from retrodistill.rankers.loading import load_ranker
from retrodistill.recipes.job import open_job
from retrodistill.recipes.loading import load_recipe


@pytest.fixture
def home(tmp_path, monkeypatch, tiny_folder, tiny_model):
    """A home folder with a collection, a model, and a recipe; the working folder is another one."""
    monkeypatch.setenv("HOME", str(tmp_path / "home"))
    monkeypatch.setenv("USERPROFILE", str(tmp_path / "home"))
    shutil.copytree(tiny_folder, tmp_path / "home" / "tiny")
    shutil.copytree(tiny_model, tmp_path / "home" / "model")
    (tmp_path / "work").mkdir()
    monkeypatch.chdir(tmp_path / "work")
    yield tmp_path / "home"
    assert list(Path().iterdir()) == []  # no folder called ~


def test_collections(home):
    assert len(load_collection("~/tiny").documents) == 60
    assert sources(["~/tiny"])[0].load().name == "tiny"


def test_runs(home):
    write_run(Run.from_dict({"q0": {"d0": 1.0}}), "~/x.run")
    assert (home / "x.run").is_file()
    assert len(read_run("~/x.run")) == 1
    assert len(load_ranker("run:~/x.run").run) == 1


def test_files_of_queries(home):
    (home / "r.jsonl").write_text(json.dumps({"query_id": "q", "text": "x"}))
    turn = {"conversation_id": "c", "turn": 1, "utterance": "x", "rewrite": "y"}
    (home / "t.jsonl").write_text(json.dumps(turn))
    assert load_rewrites("~/r.jsonl").ids == ["q"]
    assert len(read_turns("~/t.jsonl")) == 1


def test_models_and_indexes(home, tiny):
    build_index(tiny, documents="dense:~/model").save("~/index")
    assert (home / "index").is_dir()
    assert len(load_index("~/index").search("heart", k=3)) == 3
    assert len(load_ranker("~/index")) == 60


def test_a_students_manifest_is_read(home):
    about = {"artifact": "student", "inputs": {}, "settings": {}, "about": {"query_space": "abc"}}
    write_json("~/model/retrodistill.json", about)
    assert read_json("~/model/retrodistill.json") == about
    assert load_encoder("dense:~/model").query_space == "abc"


def test_recipes_and_their_output(home):
    students = {"s": {"model": "static", "stages": [{"objectives": "leaf"}]}}
    content = {"name": "r", "collection": "~/tiny", "document_encoder": "dense:~/model", "students": students}
    (home / "r.yaml").write_text(yaml.safe_dump(content))
    assert open_job(load_recipe("~/r.yaml"), "~/out").out == home / "out"
    assert check_replaceable("~/student", "x") == home / "student"


def test_the_cache(home, monkeypatch):
    monkeypatch.setenv("RETRODISTILL_CACHE", "~/cache")
    assert cache_folder() == home / "cache"
