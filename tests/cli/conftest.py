import pytest
import yaml


@pytest.fixture(scope="session")
def quick(tiny_folder, tiny_model, tmp_path_factory):
    """A small recipe file."""
    content = {
        "name": "quick",
        "collection": str(tiny_folder),
        "document_encoder": f"dense:{tiny_model}",
        "students": {
            "student": {
                "model": "static",
                "control": None,
                "stages": [{"objectives": "leaf", "training": {"epochs": 1, "learning_rate": 0.01}}],
            }
        },
        "evaluation": {"latency_queries": 2, "examples": 1},
    }
    path = tmp_path_factory.mktemp("recipes") / "quick.yaml"
    path.write_text(yaml.safe_dump(content))
    return path
