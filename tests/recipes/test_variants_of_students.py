"""Forms of a student in a job: what is trained once, what is measured, and that each loads again."""

import json
from typing import ClassVar

import numpy as np
import pytest

from retrodistill.core.errors import UserError
from retrodistill.encoders import load_encoder
from retrodistill.indexes import load_index
from retrodistill.recipes import parse_recipe, run_recipe
from retrodistill.recipes.plan import plan_recipe

pytestmark = [pytest.mark.usefixtures("given_pace"), pytest.mark.slow]

STAGE = {
    "objectives": "kl",
    "train": "head",
    "texts": {"titles": False, "sentences": 0},
    "candidates": {"depth": "all"},
    "groups": {"documents": 4, "random": 4},
    "training": {"max_steps": 2, "batch_size": 8, "learning_rate": 1e-2},
}


@pytest.fixture
def recipe(tiny_folder, tiny_model):
    """A recipe of one student on the tiny collection."""

    def recipe(student, **evaluation):
        return {
            "name": "small",
            "collection": str(tiny_folder),
            "document_encoder": f"dense:{tiny_model}",
            "teacher": "bm25",
            "students": {"student": {"model": f"{student.pop('kind')}:{tiny_model}", "control": None, **student}},
            "evaluation": {"latency_queries": 0, "examples": 1, **evaluation},
        }

    return recipe


@pytest.fixture
def job(recipe, tmp_path):
    """Runs a job of one student."""
    return lambda student, **evaluation: run_recipe(parse_recipe(recipe(student, **evaluation)), tmp_path / "out")


class TestAClusteredStudent:
    @pytest.fixture
    def clustered(self, job):
        lwf = {**STAGE, "objectives": ["kl", "lwf"]}
        return lambda: job(
            {"kind": "multi-vector", "dimension": 16, "clusters": "C2x4", "clustered_from": 2, "stages": [STAGE, lwf]}
        )

    def test_stands_beside_the_unclustered_and_the_pooled_one(self, clustered, tmp_path, monkeypatch):
        trained = []
        from retrodistill.recipes import students

        run = students.run_stage
        monkeypatch.setattr(students, "run_stage", lambda *given: trained.append(given[-1]) or run(*given))
        results = clustered()
        assert [one.name for one in results.systems] == ["bm25", "teacher", "unclustered", "pooled", "student"]
        assert trained == ["unclustered, stage 1 of 2", "unclustered, stage 2 of 2", "student, stage 2 of 2"]
        sizes = {one.name: one.bytes_per_document for one in results.systems}
        assert sizes["unclustered"] > 2 * sizes["student"]
        (note,) = [note for note in results.notes if note.startswith("vectors per document: ")]
        counts = {part.split()[0]: float(part.split()[1]) for part in note.split(": ")[1].split(", ")}
        assert counts["pooled"] <= 4
        assert counts["student"] <= 4 < counts["unclustered"]
        compared = {one["b"] for one in results.comparisons if one["a"] == "student"}
        assert {"unclustered", "pooled"} <= compared
        clustered()
        assert len(trained) == 3

    def test_a_plan_lists_all_three_and_counts_what_they_share_once(self, recipe, write_recipe, tmp_path):
        stages = [STAGE, {**STAGE, "objectives": ["kl", "lwf"]}]
        student = {"kind": "multi-vector", "dimension": 16, "clusters": "C2x4", "clustered_from": 2, "stages": stages}
        steps = [
            one["step"] for one in plan_recipe(write_recipe(recipe(student)), tmp_path / "out").to_json()["steps"][1:]
        ]
        assert steps[1:] == [
            "unclustered, stage 1: teacher bm25",
            "unclustered, stage 1: train",
            "unclustered, stage 2: teacher bm25, the same texts and pairs as unclustered, stage 1",
            "unclustered, stage 2: train",
            "unclustered: save",
            "pooled: also measured",
            "student, stage 1: the same as unclustered, stage 1",
            "student, stage 2: teacher bm25, the same texts and pairs as unclustered, stage 1",
            "student, stage 2: train",
            "student: save",
            "index students' documents",
            "measure students and what they are compared with",
        ]

    def test_folder_and_index_hold_the_means(self, clustered, tmp_path, tiny):
        clustered()
        student = load_encoder(f"multi-vector:{tmp_path / 'out' / 'students' / 'student'}")
        index = load_index(tmp_path / "out" / "indexes" / "student")
        vectors = student.encode(tiny.documents.texts, "document")
        np.testing.assert_array_equal(index.store.lengths, vectors.lengths)
        assert student.encode(["what star planet orbit"], "query").lengths.tolist() == [2]
        load_index(tmp_path / "out" / "indexes" / "pooled").search("star planet", k=3)


class TestExits:
    def test_a_plan_lists_them_and_the_truncations(self, recipe, write_recipe, tmp_path):
        leaf = {"objectives": "leaf", "texts": STAGE["texts"], "training": STAGE["training"]}
        student = {"kind": "dense", "exits": [1], "stages": [leaf]}
        steps = plan_recipe(write_recipe(recipe(student, truncations=[8, 32])), tmp_path / "out").to_json()["steps"][1:]
        besides = [one["step"] for one in steps if one["step"].endswith("also measured")]
        assert besides == ["student@exit-1: also measured", "student@8: also measured"]

    def test_each_is_measured_and_loads_by_its_name(self, job, tmp_path, tiny_model):
        leaf = {"objectives": "leaf", "texts": STAGE["texts"], "training": STAGE["training"]}
        student = {"kind": "dense", "exits": [1], "stages": [leaf], "control": "untrained"}
        results = job(student, latency_queries=2)
        names = ["control", "control@exit-1", "student", "student@exit-1"]
        assert [one.name for one in results.systems][2:] == names
        row = results.system("student@exit-1")
        assert (row.documents_by, row.queries_by) == (f"dense:{tiny_model}", "dense:student@exit-1")
        assert row.query_ms
        found = load_encoder(f"dense:{tmp_path / 'out' / 'students' / 'student@exit-1'}")
        assert len(found.model[0].auto_model.encoder.layer) == 1
        index = load_index(tmp_path / "out" / "indexes" / "student", found)
        assert index.search("star planet", k=3).scores.shape == (3,)
        assert load_index(tmp_path / "out" / "indexes" / "student@exit-1").queries.name == found.name

    def test_of_a_student_with_documents_of_its_own(self, job):
        both = {**STAGE, "train": "both_encoders"}
        results = job({"kind": "dense", "exits": [1], "stages": [both], "documents": "student"})
        assert results.system("student@exit-1").documents_by == "dense:student@exit-1"


class TestLengths:
    DROPPING: ClassVar = {"layers": [1], "keep": [0.5, 0.25], "by": "norm", "fewest": 4}

    def test_a_plan_lists_them(self, recipe, write_recipe, tmp_path):
        leaf = {"objectives": "leaf", "texts": STAGE["texts"], "training": STAGE["training"]}
        student = {"kind": "dense", "length_adaptive": self.DROPPING, "stages": [leaf]}
        steps = plan_recipe(write_recipe(recipe(student)), tmp_path / "out").to_json()["steps"][1:]
        besides = [one["step"] for one in steps if one["step"].endswith("also measured")]
        assert besides == ["student@keep-0.5: also measured", "student@keep-0.25: also measured"]

    def test_each_is_measured_and_loads_by_its_name(self, job, tmp_path):
        texts = {**STAGE["texts"], "documents": True}
        leaf = {"objectives": "leaf", "texts": texts, "training": STAGE["training"]}
        student = {
            "kind": "dense", "length_adaptive": self.DROPPING, "stages": [leaf], "documents": "student",
            "control": "untrained",
        }  # fmt: skip
        results = job(student)
        shares = ["", "@keep-0.5", "@keep-0.25"]
        expected = [f"{name}{share}" for name in ("control", "student") for share in shares]
        assert [one.name for one in results.systems][2:] == expected
        assert results.system("student@keep-0.5").documents_by == "dense:student@keep-0.5"
        name = f"dense:{tmp_path / 'out' / 'students' / 'student'}@keep-0.5"
        index = load_index(tmp_path / "out" / "indexes" / "student@keep-0.5", load_encoder(name))
        assert index.search("star planet", k=3).scores.shape == (3,)
        with pytest.raises(UserError, match="space"):
            load_index(tmp_path / "out" / "indexes" / "student", load_encoder(name))
        card = (tmp_path / "out" / "students" / "student" / "README.md").read_text()
        assert "dense:FOLDER@keep-0.5" in card

    def test_of_a_query_encoder_search_the_teachers_documents(self, job, tmp_path, tiny_model):
        leaf = {"objectives": "leaf", "texts": STAGE["texts"], "training": STAGE["training"]}
        results = job({"kind": "dense", "length_adaptive": self.DROPPING, "stages": [leaf]})
        assert results.system("student@keep-0.25").documents_by == f"dense:{tiny_model}"
        found = load_encoder(f"dense:{tmp_path / 'out' / 'students' / 'student'}@keep-0.3")
        index = load_index(tmp_path / "out" / "indexes" / "student", found)
        assert index.search("star planet", k=3).scores.shape == (3,)


class TestTruncations:
    def test_stand_beside_the_teachers_own(self, job, tmp_path):
        leaf = {"objectives": "leaf", "matryoshka": [8], "texts": STAGE["texts"], "training": STAGE["training"]}
        results = job({"kind": "dense", "stages": [leaf]}, truncations=[8, 32])
        assert [one.name for one in results.systems] == ["bm25", "teacher", "teacher@8", "student", "student@8"]
        assert results.system("student@8").bytes_per_document == pytest.approx(32, rel=0.2)
        assert load_index(tmp_path / "out" / "indexes" / "student@8").space.truncation == 8
        written = json.loads((tmp_path / "out" / "results.json").read_text())
        assert {"a": "student@8", "b": "teacher@8"}.items() <= next(
            one for one in written["comparisons"] if (one["a"], one["b"]) == ("student@8", "teacher@8")
        ).items()
