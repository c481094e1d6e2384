"""Settings chosen on held-out training queries."""

import json
import shutil

import numpy as np
import pytest
import yaml

from retrodistill.core.errors import UserError
from retrodistill.data.leaks import ExcludedQueries, words_of
from retrodistill.recipes import load_recipe, parse_recipe, run_recipe
from retrodistill.recipes.job import open_job
from retrodistill.recipes.tuning import Dimension, tune_recipe
from retrodistill.training.texts import training_queries

optuna = pytest.importorskip("optuna")
RATE = "students.student.stages.0.training.learning_rate"


@pytest.fixture(scope="module")
def quick(tiny_folder, tiny_model, tmp_path_factory):
    """A recipe of one short stage, as a file."""
    stage = {"objectives": "leaf", "training": {"max_steps": 2, "batch_size": 8, "learning_rate": 1e-3}}
    content = {
        "name": "small",
        "collection": str(tiny_folder),
        "document_encoder": f"dense:{tiny_model}",
        "students": {"student": {"model": "static", "stages": [stage]}},
        "evaluation": {"latency_queries": 0, "examples": 0},
    }
    path = tmp_path_factory.mktemp("quick") / "recipe.yaml"
    path.write_text(yaml.safe_dump(content))
    return path


class TestHeldOut:
    @pytest.fixture
    def job(self, content, tmp_path):
        return open_job(parse_recipe({**content, "split": {"held_out": True}}), tmp_path)

    def test_training_queries_take_the_place_of_test_queries(self, job, tiny):
        test = ExcludedQueries(tiny.split("test"))
        train, _ = training_queries(tiny, "train", test)
        assert len(job.test) == len(train) // 5
        assert set(job.test.ids) <= set(train.ids)
        assert set(job.train.ids).isdisjoint(job.test.ids)
        labels = tiny.relevance("train").to_dict()
        assert job.task.grades == {query: labels[query] for query in job.test.ids}

    def test_test_queries_are_gone_and_still_barred_from_training(self, job, tiny):
        test = tiny.split("test")
        assert set(job.collection.queries.ids).isdisjoint(test.ids)
        assert set(job.training_data.excluded.queries.ids) == {*test.ids, *job.test.ids}

    def test_near_duplicates_of_held_out_queries_are_not_trained_on(self, job):
        for held_out in map(words_of, job.test.texts):
            for other in map(words_of, job.train.texts):
                assert len(held_out & other) / len(held_out | other) < 0.6

    def test_queries_without_judgments_are_measured_by_agreement(self, content, tiny_folder, tmp_path):
        folder = shutil.copytree(tiny_folder, tmp_path / "log")
        (folder / "qrels" / "train.tsv").unlink()
        content |= {"collection": str(folder), "split": {"held_out": True}}
        job = open_job(parse_recipe(content), tmp_path)
        assert len(job.test) >= 1
        assert job.task.grades is None
        assert job.task.split == "unjudged"

    def test_too_few_training_queries_are_refused(self, content, tmp_path):
        with pytest.raises(UserError, match=r"split\.held_out.* 0 training queries"):
            open_job(parse_recipe({**content, "split": {"held_out": True, "train": "test"}}), tmp_path)


@pytest.fixture(scope="module")
def tuned(quick, tmp_path_factory):
    """Three trials, which no test changes, and their folder."""
    out = tmp_path_factory.mktemp("tuned")
    return tune_recipe(quick, out, vary=[f"{RATE}=1e-6..0.1"], trials=3), out


@pytest.mark.xdist_group("tuning")
class TestTrials:
    @pytest.fixture
    def tuning(self, tuned):
        return tuned[0]

    def test_the_first_has_the_recipes_own_values(self, tuning):
        assert [trial.number for trial in tuning.trials] == [0, 1, 2]
        assert tuning.trials[0].values == {RATE: 1e-3}

    def test_quality_is_agreement_on_held_out_queries(self, tuning, quick, tmp_path):
        changes = [f"{RATE}={tuning.trials[2].values[RATE]:e}", "split.held_out=true", "students.student.control=null"]
        results = run_recipe(load_recipe(quick, changes), tmp_path / "again")
        row = results.system("student")
        assert tuning.trials[2].quality == row.agreement.rank_biased_overlap
        assert tuning.queries == row.agreement.queries == results.queries

    def test_the_best_recipe_has_the_best_values_and_is_measured_on_test_queries(self, tuning):
        best = load_recipe(tuning.recipe)
        assert best.students["student"].stages[0].training.learning_rate == tuning.best.values[RATE]
        assert tuning.best.quality == max(trial.quality for trial in tuning.trials)
        assert not best.split.held_out

    def test_more_trials_go_on(self, tuned, quick, tmp_path):
        tuning, out = tuned
        shutil.copytree(out, tmp_path / "out")
        more = tune_recipe(quick, tmp_path / "out", vary=[f"{RATE}=1e-6..0.1"], trials=4)
        assert more.trials[:3] == list(tuning.trials)
        assert len(more.trials) == 4
        written = json.loads((tmp_path / "out" / "trials.json").read_text())
        assert [trial["quality"] for trial in written["trials"]] == [trial.quality for trial in more.trials]

    def test_an_interrupted_trial_is_run_again(self, quick, tmp_path, monkeypatch):
        def tune(trials):
            return tune_recipe(quick, tmp_path / "out", vary=[f"{RATE}=1e-6..0.1"], trials=trials)

        done = tune(1)
        begun = []

        def killed(recipe, out):
            begun.append(recipe.students["student"].stages[0].training.learning_rate)
            raise KeyboardInterrupt

        with monkeypatch.context() as patch:
            patch.setattr("retrodistill.recipes.tuning.run_recipe", killed)
            with pytest.raises(KeyboardInterrupt):
                tune(2)
        resumed = tune(2)
        assert resumed.trials[0] == done.trials[0]
        assert resumed.trials[1].values[RATE] == begun[0]

    def test_other_values_are_another_tuning(self, tuned, quick):
        with pytest.raises(UserError, match="another recipe, or of other keys"):
            tune_recipe(quick, tuned[1], vary=[f"{RATE}=1e-6..0.2"], trials=4)

    def test_values_that_fail_are_noted_and_passed_over(self, quick, tmp_path, monkeypatch):
        def failing(recipe, out):
            if recipe.students["student"].stages[0].texts.sentences > 1:
                raise UserError("too many sentences.")
            return run_recipe(recipe, out)

        monkeypatch.setattr("retrodistill.recipes.tuning.run_recipe", failing)
        key = "students.student.stages.0.texts.sentences"
        tuning = tune_recipe(quick, tmp_path / "out", [f"{key}=1"], vary=[f"{key}=[1, 2]"], trials=4)
        failed = [trial for trial in tuning.trials if trial.quality is None]
        assert {trial.error for trial in failed} == {"too many sentences."}
        assert {trial.values[key] for trial in failed} == {2}

    def test_a_recipe_that_cannot_run_ends_it(self, quick, tmp_path):
        with pytest.raises(UserError, match="nowhere"):
            tune_recipe(quick, tmp_path / "out", [f"collection={tmp_path}/nowhere"], trials=2)


class TestDimensions:
    def test_a_range_of_factor_ten_is_logarithmic(self):
        assert Dimension.parse("a.b=1e-4..1e-3").is_log
        assert not Dimension.parse("a.b=0.1..0.9").is_log
        assert Dimension.parse("a.b=1..8").is_whole

    def test_values_are_written_as_yaml(self):
        choices = Dimension.parse("a=[[256, 128], null, x]")
        assert [choices.override(value) for value in choices.choices] == ["a=[256, 128]", "a=null", "a=x"]
        assert Dimension.parse("a=1..2").override(1e-5) == "a=1.0e-05"

    @pytest.mark.parametrize("text", ["a", "a=3", "a=2..1", "a=x..y", "a=[1]", "=1..2", "a=nan..1", "a=[1, 2"])
    def test_anything_else_is_refused(self, text):
        with pytest.raises(UserError, match="--vary"):
            Dimension.parse(text)

    def test_defaults_surround_the_recipes_own_rates_and_temperatures(self, content, write_recipe, tmp_path):
        stages = content["students"]["student"]["stages"]
        for stage in stages:
            stage["training"] = {"max_steps": 1, "learning_rate": 1e-3}
        stages[1]["candidates"] = {"depth": 10}
        tuning = tune_recipe(write_recipe(content), tmp_path / "out", trials=2)
        path = "students.student.stages"
        values = {
            f"{path}.0.training.learning_rate": 1e-3,
            f"{path}.1.training.learning_rate": 1e-3,
            f"{path}.1.objectives.0.student_temperature": 0.05,
        }
        assert tuning.trials[0].values == values
        assert all(0.25 <= tuning.trials[1].values[key] / value <= 4 for key, value in values.items())
        assert np.isfinite(tuning.trials[1].quality)

    def test_values_that_a_key_does_not_take_are_refused_before_any_trial(self, quick, tmp_path):
        with pytest.raises(UserError, match="learning_rate"):
            tune_recipe(quick, tmp_path / "out", vary=[f"{RATE}=[0.1, fast]"])
        with pytest.raises(UserError, match="learning_rat"):
            tune_recipe(quick, tmp_path / "out", vary=[f"{RATE[:-1]}=0.1..0.2"])
        assert not (tmp_path / "out").exists()
