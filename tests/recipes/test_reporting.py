"""The report of a job: agreement, corrected tests, queries won and lost, no judgments."""

from __future__ import annotations

import json
import shutil

import numpy as np
import pyarrow.parquet as pq
import pytest

from retrodistill.core.errors import UserError
from retrodistill.evaluation import holm
from retrodistill.evaluation.results import Results
from retrodistill.recipes import parse_recipe, run_recipe
from retrodistill.runs import Run, read_run, write_run
from retrodistill.runs.agreement import overlap


@pytest.fixture
def quick(content):
    """The static student of an ensemble, a few steps of alignment."""
    content["students"]["student"]["stages"] = [{"objectives": "leaf", "training": {"max_steps": 5}}]
    return content


class TestOfAJudgedCollection:
    @pytest.fixture
    def done(self, quick, tmp_path):
        run_recipe(parse_recipe(quick), tmp_path / "out")
        return Results.from_json(json.loads((tmp_path / "out" / "results.json").read_text())), tmp_path / "out"

    def test_everything_on_the_page(self, done):
        results, out = done
        self.agrees(results, out)
        self.is_corrected(results)
        self.won_and_lost_follow_the_values(results, out)
        page = (out / "report.html").read_text()
        for section in ("systems", "differences", "front", "training", "agreement", "queries", "provenance"):
            assert f'<section id="{section}"' in page

    def test_quality_of_held_out_training_queries_is_on_the_curve(self, content, tmp_path):
        stage = {"objectives": "kl", "candidates": {"depth": 10}, "training": {"max_steps": 5}}
        content["students"]["student"] |= {"stages": [stage], "control": None}
        results = run_recipe(parse_recipe(content), tmp_path / "out")
        monitors = results.curves["student"]["monitors"]
        assert all(0 <= point["ndcg@10"] <= 1 for point in monitors)
        assert "If nDCG@10 falls while agreement rises" in (tmp_path / "out" / "report.html").read_text()

    def test_measures_beyond_the_retrieved_depth_are_not_reported(self, quick, tmp_path):
        quick["evaluation"]["depth"] = 50
        results = run_recipe(parse_recipe(quick), tmp_path / "out")
        assert results.system("bm25").recall100 is None
        assert results.system("bm25").mrr10 > 0
        assert pq.read_table(tmp_path / "out" / "per-query.parquet").column_names[2:] == [
            *("ndcg@10", "mrr@10", "recall@10", "hole@10")
        ]

    def test_a_recipe_names_further_measures_by_any_string_of_ir_measures(self, quick, tmp_path):
        quick["evaluation"]["measures"] = ["Rprec", "RR(rel=2)@5", "nDCG@10", "P@5"]
        results = run_recipe(parse_recipe(quick), tmp_path / "out")
        for system in results.systems:
            assert set(system.measures) == {"Rprec", "RR(rel=2)@5", "precision@5"}
        assert results.system("bm25").measures["Rprec"] > 0
        assert results.system("bm25").ndcg10 > 0

    def test_an_unknown_measure_is_refused_when_the_recipe_is_read(self, quick):
        quick["evaluation"]["measures"] = ["ndgc@10"]
        with pytest.raises(UserError, match=r"evaluation\.measures.*'ndgc@10'.*Did you mean 'ndcg@k'"):
            parse_recipe(quick)

    def agrees(self, results, out):
        """Every system but the teacher itself, by the recorded runs."""
        assert [one.name for one in results.systems if one.agreement is None] == ["ensemble"]
        runs = [read_run(out / "runs" / f"{name}.run") for name in ("student", "ensemble")]
        told = results.system("student").agreement
        assert told.overlap10 == pytest.approx(np.mean(list(overlap(*runs, 10).values())))
        assert told.teacher == "ensemble"
        assert told.ceiling is not None
        assert len(told.calibration) > 1

    def is_corrected(self, results):
        compared = results.comparisons
        assert [one["p_holm"] for one in compared] == holm([one["p"] for one in compared])
        assert all(one["wins"] + one["ties"] + one["losses"] == 12 for one in compared)

    def won_and_lost_follow_the_values(self, results, out):
        assert results.sides == ["ensemble", "student"]
        values = {
            (row["system"], row["query_id"]): row["ndcg@10"]
            for row in pq.read_table(out / "per-query.parquet").to_pylist()
        }
        gains = [
            values["student", query] - values["ensemble", query] for query in sorted({query for _, query in values})
        ]
        assert len(results.won) == sum(gain > 1e-9 for gain in gains)
        assert len(results.lost) == sum(gain < -1e-9 for gain in gains)
        for one in [*results.won, *results.lost]:
            assert one.student_value == values["student", one.query_id]
            assert one.teacher_value == values["ensemble", one.query_id]
        lost = [one.student_value - one.teacher_value for one in results.lost]
        assert lost == sorted(lost)


class TestWithoutJudgments:
    def test_agreement_and_cost_are_measured_and_the_page_says_why_quality_is_not(self, quick, tiny_folder, tmp_path):
        folder = shutil.copytree(tiny_folder, tmp_path / "bare")
        shutil.rmtree(folder / "qrels")
        quick |= {"collection": str(folder), "evaluation": {"latency_queries": 2, "examples": 2}}
        results = run_recipe(parse_recipe(quick), tmp_path / "out")
        assert (results.split, results.queries) == ("unjudged", 12)
        assert results.provenance["training queries"] == "33"  # of 48; none is measured, or near one that is
        for system in results.systems:
            assert system.ndcg10 is system.retention is None
            assert system.query_ms["p50"] > 0
            assert (system.agreement is None) == (system.name == "ensemble")
        assert results.comparisons == results.won == results.lost == []
        assert len(results.examples) == 2
        assert any("bare has no relevance judgments" in note for note in results.notes)
        page = (tmp_path / "out" / "report.html").read_text()
        assert "no relevance judgments to measure quality with" in page
        assert not (tmp_path / "out" / "per-query.parquet").exists()
        assert Results.from_json(json.loads((tmp_path / "out" / "results.json").read_text())) == results


class TestTeachersThatCannotSearch:
    def test_agreement_with_a_recorded_run_is_on_the_queries_that_it_has(self, quick, tiny, tmp_path):
        asked = [*tiny.split("train").ids[:30], "t0", "t1"]
        rows = {query: {f"d{place}": float(60 - place) for place in range(8)} for query in asked}
        write_run(Run.from_dict(rows), tmp_path / "teacher.run")
        quick["teacher"] = f"run:{tmp_path / 'teacher.run'}"
        results = run_recipe(parse_recipe(quick), tmp_path / "out")
        wanted = Run.from_dict({query: rows[query] for query in ("t0", "t1")})
        found = read_run(tmp_path / "out" / "runs" / "student.run")
        assert results.system("student").agreement.overlap10 == np.mean(list(overlap(found, wanted, 10).values()))
        assert any(
            "and for 2 of 12 test queries, on which agreement with it is measured" in note for note in results.notes
        )

    def test_an_expensive_teacher_does_not_score_again(self, quick, tiny_cross_encoder, tmp_path, monkeypatch):
        quick["teacher"] = ["bm25", f"cross-encoder:{tiny_cross_encoder}"]
        asked = []
        from retrodistill.rankers.ensemble import Ensemble

        whole = Ensemble.score
        monkeypatch.setattr(Ensemble, "score", lambda *given: asked.append(given) or whole(*given))
        results = run_recipe(parse_recipe(quick), tmp_path / "out")
        assert len(asked) == 1  # to find the ensemble's own ranking
        told = results.system("student").agreement
        assert told.ceiling is None
        assert 0 <= told.overlap10 <= 1
