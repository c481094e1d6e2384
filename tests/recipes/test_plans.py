import pytest

from retrodistill.core.errors import UserError
from retrodistill.core.json_files import read_json
from retrodistill.core.manifest import Manifest
from retrodistill.encoders.contract import STUDENT_MANIFEST
from retrodistill.recipes import run_recipe
from retrodistill.recipes.job import open_job
from retrodistill.recipes.loading import load_recipe
from retrodistill.recipes.measuring import index_needs
from retrodistill.recipes.pace import remember_pace, stage_pace, start_model
from retrodistill.recipes.plan import _plan, check_job, plan_recipe
from retrodistill.recipes.resources import Machine
from retrodistill.training.trainer import History, Pace


def steps_of(path, out):
    """The steps after loading."""
    return plan_recipe(path, out).to_json()["steps"][1:]


class TestPlanning:
    def test_it_counts_and_writes_nothing(self, content, write_recipe, tmp_path):
        steps = steps_of(write_recipe(content), tmp_path / "out")
        assert (steps[0]["items"], steps[0]["unit"]) == (60, "texts")
        assert (steps[1]["step"], steps[1]["unit"]) == ("control: token table", "tokens")
        saves = [step for step in steps if step["unit"] == "students"]
        assert [step["step"] for step in saves] == ["control: save", "student: save"]
        steps = [step for step in (steps[0], *steps[2:]) if step not in saves]
        stages = ["student, stage 1", "student, stage 1", "student, stage 2", "student, stage 2"]
        assert [step["step"].split(":")[0] for step in steps[1:5]] == stages
        assert steps[1]["items"] > 42
        assert [(step["items"], step["unit"]) for step in steps[5:]] == [(2, "indexes"), (2, "systems")]
        assert all(step["seconds"] >= 0 and step["memory_bytes"] > 0 for step in steps)
        assert not (tmp_path / "out").exists()
        assert not list((tmp_path / "cache").rglob("part-*"))
        assert not (tmp_path / "cache" / "token-tables").exists()

    def test_pairs_of_a_cross_encoder_are_counted(self, dense_content, tiny_cross_encoder, write_recipe, tmp_path):
        dense_content["teacher"] = f"cross-encoder:{tiny_cross_encoder}"
        steps = steps_of(write_recipe(dense_content), tmp_path / "out")
        assert steps[1]["unit"] == "pairs"
        assert 42 <= steps[1]["items"] <= 420
        assert steps[1]["seconds"] >= 0

    def test_after_the_run_nothing_is_left_to_do(self, content, write_recipe, tmp_path):
        path = write_recipe(content)
        run_recipe(path, tmp_path / "out")
        steps = steps_of(path, tmp_path / "out")
        assert [step["items"] for step in steps] == [0, 0, 0, 2]
        assert steps[-1]["unit"] == "systems"

    def test_planned_steps_are_those_of_training(self, dense_content, write_recipe, tmp_path):
        path = write_recipe(dense_content)
        told = {step["step"]: step for step in steps_of(path, tmp_path / "out")}["student, stage 1: train"]
        run_recipe(path, tmp_path / "out")
        about = Manifest.read(tmp_path / "out" / "students" / "student", STUDENT_MANIFEST).about
        assert (told["items"], told["unit"]) == (about["steps"], "steps")
        dense_content["students"]["student"]["stages"][0]["training"]["max_steps"] = 1
        steps = steps_of(write_recipe(dense_content), tmp_path / "out")
        assert any("student: its settings or inputs have changed" in step["step"] for step in steps)
        assert [step["items"] for step in steps[-3:]] == [1, 1, 1]


class TestChecking:
    def test_bounds_are_not_below_the_plan(self, content, write_recipe, tmp_path):
        job = open_job(load_recipe(write_recipe(content)), tmp_path / "out")
        bounds, counted = (_plan(job, is_timed=False, counts_texts=counts).steps for counts in (False, True))
        assert [step.step for step in bounds] == [step.step for step in counted]
        for bound, step in zip(bounds, counted, strict=True):
            assert bound.needs.cache >= step.needs.cache
            assert bound.needs.out >= step.needs.out

    def test_a_job_that_fits_is_not_refused_by_bounds(self, content, write_recipe, tmp_path, monkeypatch):
        job = open_job(load_recipe(write_recipe(content)), tmp_path / "out")
        plans = {counts: _plan(job, is_timed=False, counts_texts=counts) for counts in (False, True)}
        cache = {counts: int(plan.total()["cache_bytes"]) for counts, plan in plans.items()}
        assert cache[False] > cache[True]  # not every document has as many sentences
        machine = Machine(10**12, 10**12, cache[True], same_disk=False)
        monkeypatch.setattr(Machine, "now", lambda out: machine)
        check_job(job)

    def test_a_control_has_the_model_of_its_student(self, content, write_recipe, tmp_path, monkeypatch):
        made = []
        monkeypatch.setattr("retrodistill.recipes.plan.start_model", lambda *a: made.append(a) or start_model(*a))
        content["students"]["student"]["control"] = "contrastive"
        check_job(open_job(load_recipe(write_recipe(content)), tmp_path / "out"))
        assert len(made) == 1

    def test_indexes_need_what_their_factory_takes(self, content, write_recipe, tmp_path):
        needs = {}
        for factory in ("Flat", "SQ8"):
            content["index"] = {"factory": factory}
            job = open_job(load_recipe(write_recipe(content)), tmp_path / "out")
            vectors = 4.0 * job.space.dimension * len(job.collection.documents)
            needs[factory] = index_needs(job, job.space, vectors)
        assert needs["Flat"].out == vectors == 4 * needs["SQ8"].out
        assert needs["Flat"].memory - needs["SQ8"].memory == 1.25 * 0.75 * vectors


def forbidden(*_, **__):
    pytest.fail("measured")


class TestRates:
    def test_those_of_the_last_run_are_taken_whatever_the_length(
        self, dense_content, write_recipe, tmp_path, monkeypatch
    ):
        dense_content["students"]["student"]["stages"][0]["objectives"] = "leaf"
        run_recipe(write_recipe(dense_content), tmp_path / "out")
        (rates,) = [rates for rates in read_json(tmp_path / "cache" / "rates.json").values() if "step" in rates]
        monkeypatch.setattr("retrodistill.recipes.pace._measured", forbidden)
        dense_content["students"]["student"]["stages"][0]["training"]["epochs"] = 40
        (training,) = [
            step for step in steps_of(write_recipe(dense_content), tmp_path / "out") if step["unit"] == "steps"
        ]
        assert training["seconds"] == round(Pace(**rates).seconds(training["items"]), 1)

    def test_other_work_has_other_rates(self, dense_content, write_recipe, tmp_path, monkeypatch):
        run_recipe(write_recipe(dense_content), tmp_path / "out")
        monkeypatch.setattr("retrodistill.recipes.pace._measured", forbidden)
        dense_content["students"]["student"]["stages"][0]["training"]["batch_size"] = 8
        with pytest.raises(pytest.fail.Exception, match="measured"):
            steps_of(write_recipe(dense_content), tmp_path / "out")

    def test_a_plan_measures_a_stage_once(self, dense_content, write_recipe, tmp_path, monkeypatch):
        path = write_recipe(dense_content)
        first = steps_of(path, tmp_path / "out")
        monkeypatch.setattr("retrodistill.recipes.pace._measured", forbidden)
        plans = first, steps_of(path, tmp_path / "out")
        once, again = ([step["seconds"] for step in steps if step["unit"] == "steps"] for steps in plans)
        assert once == again

    def test_a_run_replaces_what_a_plan_measured(self, dense_content, write_recipe, tmp_path):
        job = open_job(load_recipe(write_recipe(dense_content)), tmp_path / "out")
        student, data = job.recipe.students["student"], job.training_data
        model = start_model(student, data)
        stage_pace(student, 1, data, model)
        remember_pace(student, student.stages[0], data, History(pace=Pace(step=123.0)))
        assert stage_pace(student, 1, data, model).training == Pace(step=123.0)


class TestNeeds:
    def test_the_output_folder_has_the_models_of_controls_and_the_runs(self, content, write_recipe, tmp_path):
        path = write_recipe(content)
        planned = steps_of(path, tmp_path / "out")
        run_recipe(path, tmp_path / "out")
        saved = sum(step["out_bytes"] for step in planned if step["unit"] == "students")
        for pattern, expected in (("students/**/*.safetensors", saved), ("runs/*.run", planned[-1]["out_bytes"])):
            written = sum(file.stat().st_size for file in (tmp_path / "out").glob(pattern))
            assert expected == pytest.approx(written, rel=0.25)

    def test_a_student_after_each_stage_is_on_disk_until_the_job_is_done(self, content, write_recipe, tmp_path):
        steps = steps_of(write_recipe(content), tmp_path / "out")
        (size,) = {step["out_bytes"] for step in steps if step["unit"] == "students"}
        assert steps[-1]["scratch_bytes"] == 2 * size

    def test_totals_are_sums_and_peaks(self, content, write_recipe, tmp_path):
        plan = plan_recipe(write_recipe(content), tmp_path / "out").to_json()
        for name, combine in (("seconds", sum), ("out_bytes", sum), ("cache_bytes", sum), ("memory_bytes", max)):
            assert plan["total"][name] == pytest.approx(combine(step[name] for step in plan["steps"]))
        assert plan["steps"][1]["cache_bytes"] == 60 * 32 * 4
        assert set(plan["available"]) == {"memory_bytes", "out_bytes", "cache_bytes"}

    @pytest.mark.parametrize("what", ["memory", "out", "cache"])
    @pytest.mark.parametrize("start", [plan_recipe, run_recipe])
    def test_what_does_not_fit_is_refused_before_any_work(
        self, what, start, content, write_recipe, tmp_path, monkeypatch
    ):
        machine = Machine(**{"memory": 10**12, "out": 10**12, "cache": 10**12, what: 1000}, same_disk=False)
        monkeypatch.setattr(Machine, "now", lambda out: machine)
        with pytest.raises(UserError, match=r"^the step '.*' needs about .* and there are 0 MB; [^\n]+\.$"):
            start(write_recipe(content), tmp_path / "out")
        assert not (tmp_path / "out").exists()
        assert not list((tmp_path / "cache").rglob("part-*"))
