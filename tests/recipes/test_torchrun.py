"""Two processes with the settings that torchrun gives them: every kind of student trains, in one launch."""

import json
import os

import pytest
from children import MAIN, Child

from retrodistill.core.errors import UserError
from retrodistill.core.json_files import read_json
from retrodistill.recipes import parse_recipe
from retrodistill.recipes.job import open_job

BOTH = {"train": "both_encoders"}
STAGE = {
    "objectives": "kl",
    "texts": {"titles": False, "sentences": 0},
    "candidates": {"depth": 10},
    "groups": {"documents": 4, "random": 2},
    "training": {"max_steps": 2, "batch_size": 4, "learning_rate": 1e-3, "warmup": 0},
}


@pytest.fixture
def students(tiny_model, tiny_cross_encoder):
    """Every kind, and both ways of training where a kind has two."""
    kinds = {
        "static": ({"model": "static"}, {"objectives": "leaf", "candidates": {}, "groups": {}}),
        "dense": ({"model": f"dense:{tiny_model}", "layers": 1}, {}),
        "dense-documents": ({"model": f"dense:{tiny_model}", "documents": "student"}, BOTH),
        "sparse": ({"model": f"sparse:{tiny_model}"}, BOTH),
        "sparse-head": ({"model": f"sparse:{tiny_model}", "queries": "model"}, {"train": "head"}),
        "separate-model": (
            {"model": f"sparse:{tiny_model}", "queries": "separate-model", "lexical_terms": True},
            {"train": "query_encoder", "regularizers": [{"name": "anti-zero", "weight": 0.001, "side": "query"}]},
        ),
        "inference-free": ({"model": f"sparse:{tiny_model}", "queries": "inference-free"}, {"train": "head"}),
        "multi-vector": ({"model": f"multi-vector:{tiny_model}", "dimension": 16}, BOTH),
        "multi-vector-head": ({"model": f"multi-vector:{tiny_model}", "dimension": 16}, {"train": "head"}),
        "cross-encoder": ({"model": f"cross-encoder:{tiny_cross_encoder}"}, BOTH),
        "prett": ({"model": f"prett:{tiny_cross_encoder}", "join": 1, "dimension": 16}, {"train": "head"}),
        "tk": ({"model": f"tk:{tiny_model}", "dimension": 16}, {"train": "head"}),
    }
    return {name: {**given, "control": None, "stages": [{**STAGE, **stage}]} for name, (given, stage) in kinds.items()}


@pytest.mark.slow
@pytest.mark.xdist_group("children")
def test_every_kind_trains_and_one_process_writes(content, students, write_recipe, tmp_path):
    content["students"] = students
    content["evaluation"] = {"latency_queries": 0, "examples": 0, "depth": 10, "rerank": 5}
    command = ["run", write_recipe(content), "--out", tmp_path / "out", "--json"]
    given = {"WORLD_SIZE": "2", "MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(20000 + os.getpid() % 20000)}
    ranks = [{**given, "RANK": rank, "LOCAL_RANK": rank} for rank in ("0", "1")]
    (status, out, said), other = (
        process.wait() for process in [Child(MAIN, *command, environment=rank) for rank in ranks]
    )
    assert (status, *other[:2]) == (0, 0, ""), f"{said[-3000:]}\n{other[2][-3000:]}"
    results = json.loads(out)
    assert results == read_json(tmp_path / "out" / "results.json")
    measured = {system["name"]: system["ndcg@10"] for system in results["systems"]}
    assert {name: 0 <= measured[name] <= 1 for name in students} == dict.fromkeys(students, True)
    for name in students:
        about = json.loads((tmp_path / "out" / "students" / name / "retrodistill.json").read_text())["about"]
        assert about["steps"] == 2, name
    assert not (tmp_path / "out" / ".training").exists()


def test_a_query_encoder_of_an_index_is_refused_before_training(content, tmp_path, monkeypatch):
    del content["students"]
    encoder = {"objectives": {"name": "kl", "target_std": 2.0}, "candidates": {"depth": "all"}}
    content["index"] = {"factory": "OPQ4,PQ4x4", "learn": {"steps": 2}, "encoder": encoder}
    open_job(parse_recipe(content), tmp_path)
    monkeypatch.setenv("WORLD_SIZE", "2")
    with pytest.raises(UserError, match=r"index\.encoder trains in one process"):
        open_job(parse_recipe(content), tmp_path)
