"""The recipes of curricula in configs/, on the tiny collection with tiny models and a few steps."""

from pathlib import Path

import pytest
import yaml

from retrodistill.recipes import parse_recipe, run_recipe
from retrodistill.recipes.plan import plan_recipe

pytestmark = [pytest.mark.usefixtures("given_pace"), pytest.mark.slow]

CONFIGS = Path(__file__).parents[2] / "configs"
ROWS = {
    "prod": {"bm25", "teacher", "ensemble", "control", "student"},
    "labeling-budget": {"bm25", "teacher", "ensemble", "control", "student"},
    "tas-b": {"bm25", "teacher", "ensemble", "control", "student"},
    "disco": {"bm25", "teacher", "ensemble", "control", "student", "rewrites"},
    "trans-encoder": {"bm25", "teacher", "cross", "control", "student"},
}
NOTES = {"prod": "selection: ", "labeling-budget": "budget: ", "disco": "conversations are artificial"}


@pytest.fixture
def shrunk(tiny_folder, tiny_model):
    """A recipe of configs/ whose models are tiny and whose stages take two steps."""

    def shrunk(name):
        text = (CONFIGS / f"{name}.yaml").read_text().replace("all-MiniLM-L6-v2", tiny_model)
        content = yaml.safe_load(text)
        content["collection"] = str(tiny_folder)
        content["evaluation"] = {"latency_queries": 0, "examples": 1}
        for student in content["students"].values():
            student |= {
                key: least for key, least in (("layers", 1), ("max_length", 32), ("lexical", 16)) if key in student
            }
            student["stages"] = [
                {**stage, "training": {**stage["training"], "max_steps": 2}} for stage in student["stages"]
            ]
            for stage in student["stages"]:
                if stage.get("selection"):
                    stage["selection"] = {**stage["selection"], "ranks": [2, 60]}
        return content

    return shrunk


class TestCurricula:
    @pytest.mark.parametrize("name", ROWS)
    def test_each_runs_and_notes_its_choices(self, name, shrunk, tmp_path):
        results = run_recipe(parse_recipe(shrunk(name)), tmp_path / "out")
        assert {one.name for one in results.systems} == ROWS[name]
        assert name not in NOTES or any(NOTES[name] in note for note in results.notes)

    def test_a_finished_job_is_loaded(self, shrunk, tmp_path):
        recipe = parse_recipe(shrunk("labeling-budget"))  # a hybrid, whose index is loaded with its model
        first, again = (run_recipe(recipe, tmp_path / "out") for _ in range(2))
        assert [one.ndcg10 for one in again.systems] == [one.ndcg10 for one in first.systems]

    @pytest.mark.parametrize("name", ["prod", "labeling-budget"])
    def test_a_plan_counts_what_it_can(self, name, shrunk, tmp_path, write_recipe):
        steps = plan_recipe(write_recipe(shrunk(name), name), tmp_path / "out").to_json()["steps"][1:]
        assert all(step["items"] >= 0 for step in steps)
        told = " ".join(step["step"] for step in steps)
        assert ("candidates known when the student" in told) == (name == "prod")
