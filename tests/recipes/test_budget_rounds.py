"""A labeling budget in rounds: what is bought, planned, and resumed."""

import copy

import numpy as np
import pytest

from retrodistill.core.manifest import Manifest
from retrodistill.encoders.contract import STUDENT_MANIFEST
from retrodistill.rankers.cross_encoder import CrossEncoderRanker
from retrodistill.recipes import parse_recipe, run_recipe
from retrodistill.recipes import students as pipeline_students
from retrodistill.recipes.plan import plan_recipe
from retrodistill.recipes.student_settings import StudentSettings
from retrodistill.runs import read_run
from retrodistill.students.registry import load_student
from retrodistill.training.scoring import scored_by_teacher

pytestmark = [pytest.mark.usefixtures("given_pace"), pytest.mark.slow]

SHARES = (10, 20, 30)


@pytest.fixture
def rounds(dense_content, tiny_cross_encoder):
    """A cross-encoder teaches a tenth of the pairs, drawn at random, and twice a tenth that the student chooses."""
    changed = copy.deepcopy(dense_content)
    changed["teacher"] = f"cross-encoder:{tiny_cross_encoder}"
    changed["evaluation"] = {"latency_queries": 0, "examples": 0}
    [first] = changed["students"]["student"]["stages"]
    pool = {"depth": 10, "sources": ["bm25"], "random": 3}
    changed["students"]["student"]["stages"] = [
        {**first, "candidates": {**pool, "budget": f"{share}%", "budget_by": "uncertain" if place else "random"}}
        for place, share in enumerate(SHARES)
    ]
    return changed


@pytest.fixture
def scored(monkeypatch, tiny):
    """The pairs of texts of training queries that the teacher scores."""
    logits, pairs, evaluated = CrossEncoderRanker.logits, [], set(tiny.split("test").texts)

    def listening(self, given):
        pairs.extend(pair for pair in given if pair[0] not in evaluated)
        return logits(self, given)

    monkeypatch.setattr(CrossEncoderRanker, "logits", listening)
    return pairs


def bought(out):
    """Pairs by round, in order, as their files have them."""
    learned = Manifest.read(out / "students" / "student", STUDENT_MANIFEST).about["stages"]
    runs = [scored_by_teacher(read_run(out / "scores" / one["scores"])) for one in learned]
    assert [one["pairs"] for one in learned] == [len(run) for run in runs]
    return [{(query, document) for query, documents, _ in run for document in documents} for run in runs]


class TestRounds:
    def test_a_job_that_is_killed_at_any_point_buys_and_trains_the_same(self, rounds, scored, tmp_path, monkeypatch):
        recipe, run_stage = parse_recipe(rounds), pipeline_students.run_stage
        for place in (1, 2, 3):

            def stopping(model, stage, data, folder, what, place=place):
                history = run_stage(model, stage, data, folder, what)
                if what == f"student, stage {place} of 3":
                    raise KeyboardInterrupt  # when the pairs are bought and the stage is trained, but not kept
                return history

            monkeypatch.setattr(pipeline_students, "run_stage", stopping)
            with pytest.raises(KeyboardInterrupt):
                run_recipe(recipe, tmp_path / "out")
        monkeypatch.setattr(pipeline_students, "run_stage", run_stage)
        run_recipe(recipe, tmp_path / "out")
        first, second, third = bought(tmp_path / "out")
        assert first < second < third  # the last budget is the total, and no pair is bought twice
        assert len(scored) == len(set(scored)) == len(third) == pytest.approx(3 * len(first), abs=2)
        run_recipe(recipe, tmp_path / "whole")
        assert bought(tmp_path / "whole") == [first, second, third]
        whole, resumed = (load_student(tmp_path / out / "students" / "student") for out in ("whole", "out"))
        assert resumed.weights_digest == whole.weights_digest

    def test_a_teacher_that_is_killed_while_it_scores_goes_on(self, rounds, scored, tmp_path, monkeypatch):
        logits, calls = CrossEncoderRanker.logits, []

        def stopping(self, given):
            calls.append(len(given))
            if len(calls) == 2:  # of the second round
                raise KeyboardInterrupt
            return logits(self, given)

        monkeypatch.setattr(CrossEncoderRanker, "logits", stopping)
        with pytest.raises(KeyboardInterrupt):
            run_recipe(parse_recipe(rounds), tmp_path / "out")
        run_recipe(parse_recipe(rounds), tmp_path / "out")
        assert len(scored) == len(set(scored)) == len(bought(tmp_path / "out")[-1])

    def test_a_plan_counts_each_round(self, rounds, write_recipe, tmp_path):
        path = write_recipe(rounds)
        steps = {step["step"]: step for step in plan_recipe(path, tmp_path / "out").to_json()["steps"]}
        teaching = [step for title, step in steps.items() if ": teacher " in title]
        assert [step["unit"] for step in teaching] == ["pairs"] * 3
        assert np.ptp([step["items"] for step in teaching]) <= 1
        choosing = [title for title in steps if "choose pairs" in title]
        assert [title[:16] for title in choosing] == ["student, stage 2", "student, stage 3"]
        run_recipe(path, tmp_path / "out")
        after = plan_recipe(path, tmp_path / "out").to_json()["steps"]
        assert sum(step["items"] for step in after if step["unit"] in ("pairs", "texts")) == 0


class TestWhatCounts:
    def settings(self, *candidates, teachers=("bm25", "bm25", "bm25")):
        stages = [
            {"objectives": "kl", "teacher": teacher, "candidates": {"depth": 10, **each}}
            for teacher, each in zip(teachers, candidates, strict=False)
        ]
        return StudentSettings.model_validate({"model": "static", "stages": stages})

    def test_budgets_of_earlier_stages_of_the_same_teacher(self):
        by_student = {"budget": 30, "budget_by": "uncertain"}
        assert self.settings({"budget": 10}, {"budget": 20}, by_student).bought_before(3) == {1: 10, 2: 20}
        assert self.settings({"budget": 10}, {}, by_student).bought_before(3) == {1: 10}
        assert self.settings({"budget": 10}, by_student, {}).bought_before(3) == {}
        others = self.settings({"budget": 10}, {"budget": 20}, by_student, teachers=("dense:x", "bm25", "bm25"))
        assert others.bought_before(3) == {2: 20}

    def test_a_stage_with_the_same_candidates_has_the_same_pairs(self):
        same = {"budget": 10, "budget_by": "random"}
        assert self.settings(same, same).bought_before(2) == {}
        assert self.settings(same, {**same, "budget": 20}, {**same, "budget": 20}).bought_before(3) == {1: 10}
        by_student = {"budget": 10, "budget_by": "uncertain"}
        assert self.settings(by_student, by_student).bought_before(2) == {1: 10}
