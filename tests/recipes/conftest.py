import copy

import pytest
import yaml

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
        "evaluation": {"latency_queries": 2, "examples": 2},
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
def write_recipe(tmp_path):
    def write(content, name="recipe"):
        path = tmp_path / f"{name}.yaml"
        path.write_text(yaml.safe_dump(content))
        return path

    return write
