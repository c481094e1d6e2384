import json

import numpy as np
import pytest

from retrodistill.core.errors import UserError
from retrodistill.encoders import load_encoder
from retrodistill.recipes import parse_recipe, run_recipe


@pytest.fixture
def place(tiny, tiny_model, tmp_path):
    """A folder of document vectors by an API."""
    folder, encoder = tmp_path / "api", load_encoder(f"dense:{tiny_model}")
    folder.mkdir()
    write(folder, "documents", tiny.documents.ids, encoder.encode(tiny.documents.texts, "document"))
    (folder / "about.json").write_text(json.dumps({"model": "acme/embed-1"}))
    return folder


def write(folder, name, ids, vectors):
    np.save(folder / f"{name}.npy", vectors)
    (folder / f"{name}.ids.txt").write_text("".join(f"{one}\n" for one in ids))


def recipe(place, tiny_folder, tiny_model, **texts):
    stage = {
        "objectives": "leaf",
        "texts": {"queries": False, "titles": False, "sentences": 0, "documents": True, **texts},
        "training": {"epochs": 2, "learning_rate": 1e-3},
    }
    student = {"model": "static", "initialize": "fitted", "tokenizer": f"dense:{tiny_model}", "stages": [stage]}
    return parse_recipe(
        {
            "name": "vectors",
            "collection": str(tiny_folder),
            "document_encoder": f"vectors:{place}",
            "students": {"student": student},
            "evaluation": {"latency_queries": 2},
        }
    )


class TestDocumentsByAnApi:
    def test_a_student_without_any_query_vector(self, place, tiny_folder, tiny_model, tmp_path):
        found = run_recipe(recipe(place, tiny_folder, tiny_model), tmp_path / "out")
        assert [system.name for system in found.systems] == ["bm25", "control", "student"]
        assert any("no vectors for the test queries" in note for note in found.notes)
        manifest = json.loads((tmp_path / "out/students/student/retrodistill.json").read_text())
        assert manifest["about"]["query_space"] == load_encoder(f"vectors:{place}").document_space

    def test_with_the_test_queries_vectors_the_teacher_is_measured_and_not_timed(
        self, place, tiny, tiny_folder, tiny_model, tmp_path
    ):
        test = tiny.split("test")
        write(place, "queries", test.ids, load_encoder(f"dense:{tiny_model}").encode(test.texts, "query"))
        found = run_recipe(recipe(place, tiny_folder, tiny_model), tmp_path / "out")
        teacher = next(system for system in found.systems if system.name == "teacher")
        assert teacher.query_ms is None
        assert next(system for system in found.systems if system.name == "student").retention > 0

    def test_texts_without_vectors_are_reported_before_work(self, place, tiny_folder, tiny_model, tmp_path):
        with pytest.raises(UserError, match=r"has no vectors for 35 of 95 queries \('q0', 'q1', 'q2' and 32 more\)"):
            run_recipe(recipe(place, tiny_folder, tiny_model, queries=True), tmp_path / "out")
        assert not (tmp_path / "out").exists()
