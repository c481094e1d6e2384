import pytest

from retrodistill.core.manifest import Manifest
from retrodistill.encoders.contract import STUDENT_MANIFEST
from retrodistill.recipes import run_recipe
from retrodistill.recipes.plan import plan_recipe


class TestPlanning:
    def test_it_counts_and_writes_nothing(self, content, write_recipe, tmp_path, monkeypatch):
        monkeypatch.setattr("retrodistill.training.stages.train", lambda *_, **__: pytest.fail("trained"))
        steps = plan_recipe(write_recipe(content), tmp_path / "out")
        assert (steps[0]["items"], steps[0]["unit"]) == (60, "texts")
        stages = ["student, stage 1", "student, stage 1", "student, stage 2", "student, stage 2"]
        assert [step["step"].split(":")[0] for step in steps[1:5]] == stages
        assert steps[1]["items"] > 42
        assert [(step["items"], step["unit"]) for step in steps[5:]] == [(2, "indexes"), (2, "systems")]
        assert not (tmp_path / "out").exists()
        assert not list((tmp_path / "cache").rglob("part-*"))

    def test_pairs_of_a_cross_encoder_are_counted(self, dense_content, tiny_cross_encoder, write_recipe, tmp_path):
        dense_content["teacher"] = f"cross-encoder:{tiny_cross_encoder}"
        steps = plan_recipe(write_recipe(dense_content), tmp_path / "out")
        assert steps[1]["unit"] == "pairs"
        assert 42 <= steps[1]["items"] <= 420
        assert steps[1]["seconds"] >= 0

    def test_after_the_run_nothing_is_left_to_do(self, content, write_recipe, tmp_path):
        path = write_recipe(content)
        run_recipe(path, tmp_path / "out")
        steps = plan_recipe(path, tmp_path / "out")
        assert [step["items"] for step in steps] == [0, 0, 0, 2]
        assert steps[-1]["unit"] == "systems"

    def test_planned_steps_are_those_of_training(self, dense_content, write_recipe, tmp_path):
        path = write_recipe(dense_content)
        told = {step["step"]: step for step in plan_recipe(path, tmp_path / "out")}["student, stage 1: train"]
        run_recipe(path, tmp_path / "out")
        about = Manifest.read(tmp_path / "out" / "students" / "student", STUDENT_MANIFEST).about
        assert (told["items"], told["unit"], told["seconds"]) == (about["steps"], "steps", None)
        dense_content["students"]["student"]["stages"][0]["training"]["max_steps"] = 1
        steps = plan_recipe(write_recipe(dense_content), tmp_path / "out")
        assert any("student: its settings or inputs have changed" in step["step"] for step in steps)
        assert [step["items"] for step in steps[-3:]] == [1, 1, 1]
