import numpy as np
import pytest

from retrodistill.core.errors import UserError
from retrodistill.recipes.job import open_job
from retrodistill.recipes.loading import parse_recipe
from retrodistill.recipes.pace import repeated, stage_pace, start_model
from retrodistill.recipes.resources import Machine, Needs, Plan, Step, held_memory
from retrodistill.recipes.sizes import is_in_memory
from retrodistill.training.trainer import Pace


class TestRepeated:
    def test_few_texts_fill_a_corpus(self, tiny):
        made = repeated(tiny, 150)
        assert len(made.documents) == len(set(made.documents.ids)) == 150
        assert set(made.documents.texts) <= set(tiny.documents.texts)
        places = [tiny.documents.texts.index(text) for text in made.documents.texts]
        assert made.titles.texts == [tiny.titles.texts[place] for place in places]
        assert made.bodies.texts == [tiny.bodies.texts[place] for place in places]


class TestPace:
    @pytest.mark.parametrize("steps", [1, 3, 5, 9, 10, 11, 19, 50, 101])
    def test_it_counts_the_monitors_and_checkpoints_of_training(self, steps):
        every, save = max(1, steps // 10), max(1, int(np.ceil(steps / 5)))
        monitors = 2 + sum(step % every == 0 for step in range(1, steps))
        saves = sum(step % save == 0 or step == steps for step in range(1, steps + 1))
        expected = steps * 1.0 + monitors * 1000.0 + saves * 1e6
        assert Pace(step=1.0, monitor=1000.0, save=1e6).seconds(steps) == expected

    def test_a_measurement_leaves_the_job_and_the_cache_alone(self, dense_content, tmp_path):
        job = open_job(parse_recipe(dense_content), tmp_path / "out")
        before = sorted((tmp_path / "cache").rglob("*"))
        student, data = job.recipe.students["student"], job.training_data
        pace = stage_pace(student, 1, data, start_model(student, data))
        assert pace.training.step > 0
        added = {path.name for path in set((tmp_path / "cache").rglob("*")) - set(before)}
        assert {name for name in added if not name.startswith(".")} <= {"rates.json"}
        assert not (tmp_path / "out").exists()


class TestMachine:
    def test_the_limit_of_a_container_counts(self, tmp_path, monkeypatch):
        held = held_memory()
        contents = {"max": "1000000\n", "now": "700000\n", "stat": "anon 1\ninactive_file 200000\nactive_file 50000\n"}
        for name, text in contents.items():
            (tmp_path / name).write_text(text)
        files = tuple(tmp_path / name for name in contents)
        monkeypatch.setattr("retrodistill.recipes.resources._CGROUPS", [files])
        monkeypatch.setattr("retrodistill.recipes.resources.held_memory", lambda: held)
        assert Machine.now(tmp_path).memory == 550_000 + held
        (tmp_path / "max").write_text("max\n")
        assert Machine.now(tmp_path).memory > 10 * 550_000

    @pytest.mark.parametrize(("device", "expected"), [("cpu", True), ("mps", True), ("cuda:1", False)])
    def test_memory_of_a_gpu_is_its_own(self, device, expected):
        assert is_in_memory(device) == expected


class TestFitting:
    def test_disks_add_up_and_scratch_is_freed(self):
        steps = [Step("a", needs=Needs(out=40, scratch=50)), Step("b", needs=Needs(out=30, cache=20, scratch=10))]
        Plan(steps, Machine(0, 100, 100, same_disk=True)).check()
        with pytest.raises(UserError, match=r"^the step 'b' needs"):
            Plan(steps, Machine(0, 99, 99, same_disk=True)).check()
        Plan(steps, Machine(0, 90, 20, same_disk=False)).check()
        with pytest.raises(UserError, match=r"^the step 'a' needs about .* of the disk of the output folder"):
            Plan(steps, Machine(0, 89, 20, same_disk=False)).check()
        with pytest.raises(UserError, match="of the disk of the cache"):
            Plan(steps, Machine(0, 90, 19, same_disk=False)).check()
