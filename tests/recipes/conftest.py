import copy
from pathlib import Path

import pytest
import yaml

from retrodistill.recipes import load_recipe, parse_recipe
from retrodistill.recipes.pace import StagePace
from retrodistill.training.trainer import Pace

QUICK = {"epochs": 2, "batch_size": 32, "learning_rate": 0.01}


@pytest.fixture
def content(tiny_folder, tiny_model):
    """A static student: alignment, then KL to an ensemble over the whole corpus."""
    return {
        "name": "small",
        "collection": str(tiny_folder),
        "document_encoder": f"dense:{tiny_model}",
        "teacher": [{"model": "bm25", "weight": 0.3}, {"model": f"dense:{tiny_model}", "weight": 0.7}],
        "students": {
            "student": {
                "model": "static",
                "stages": [
                    {"objectives": "leaf", "training": dict(QUICK)},
                    {"objectives": "kl", "candidates": {"depth": "all"}, "training": dict(QUICK)},
                ],
            }
        },
        "evaluation": {"latency_queries": 0, "examples": 2},
    }


@pytest.fixture
def dense_content(content, tiny_model):
    """A dense student that searches the space, one stage of KL to lists."""
    changed = copy.deepcopy(content)
    changed["students"]["student"] = {
        "model": f"dense:{tiny_model}",
        "layers": 1,
        "control": None,
        "stages": [
            {
                "objectives": "kl",
                "texts": {"titles": False, "sentences": 0},
                "candidates": {"depth": 10},
                "training": {"epochs": 1, "batch_size": 16, "learning_rate": 1e-3},
            }
        ],
    }
    return changed


@pytest.fixture
def given_pace(monkeypatch):
    """Plans train nothing to see how long a step takes: test_pace.py has what that does."""
    monkeypatch.setattr("retrodistill.recipes.pace._measured", lambda *_: StagePace(Pace(0.01), 0.001))


@pytest.fixture
def write_recipe(tmp_path):
    def write(content, name="recipe"):
        path = tmp_path / f"{name}.yaml"
        path.write_text(yaml.safe_dump(content))
        return path

    return write


@pytest.fixture
def small_recipe(tiny_model):
    """``(path, collection folder, run of training queries) -> Recipe``: the tiny model, and a few steps."""

    def small(path, folder, run):
        content = load_recipe(path).model_dump(mode="json")
        model = f"dense:{tiny_model}"
        content |= {"collection": str(folder), "document_encoder": model}
        if content["parallel"]:
            content["parallel"] = str(Path(run).with_name("pairs.tsv"))
            Path(content["parallel"]).write_text("star and planet\tStern und Planet\nbread and cheese\tBrot und Käse\n")
        for member in [*content["teacher"], *content["ensemble"]]:
            if member["model"] != "bm25":
                member["model"] = f"run:{run}" if member["model"].startswith("run:") else model
        for student in content["students"].values():
            kind = student["model"].partition(":")[0]
            student["model"] = "static" if kind == "static" else f"{kind}:{tiny_model}"
            student["lexical_dim"] = 16 if student["lexical_dim"] else None
            student["max_length"] = 32 if student["max_length"] else None
            student["dimension"] = 16 if isinstance(student["dimension"], int) else student["dimension"]
            student["join"] = 1 if student["join"] else None
            student["layers"] = 1 if student["layers"] else None
            if student.get("keep"):
                student["keep"] |= {"heads": 1, "units": 16}
            student["exits"] = [1] if student["exits"] else []
            for stage in student["stages"]:
                stage["matryoshka"] = [16, 8] if stage["matryoshka"] else []
                stage["exit_weights"] = {1: 0.5} if stage["exit_weights"] else {}
                stage["training"] |= {"max_steps": 3}
                for member in stage["teacher"]:
                    member["model"] = model if member["model"].startswith("dense:") else member["model"]
                stage["candidates"] |= {"random": min(stage["candidates"]["random"], 5)}
        if content["index"]["learn"]:
            content["index"] |= {"factory": "OPQ4,PQ4x4"}  # 60 documents do not train 8-bit codes
            content["index"]["learn"] |= {"steps": 3}
        cuts = [16, 8] if content["evaluation"]["truncations"] else []
        content["evaluation"] |= {"latency_queries": 0, "truncations": cuts}
        return parse_recipe(content)

    return small
