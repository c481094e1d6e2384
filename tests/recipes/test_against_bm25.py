"""Warnings where a student loses to BM25 on queries that were held out from training."""

import shutil

import pytest

from retrodistill.core.manifest import Manifest
from retrodistill.encoders.contract import STUDENT_MANIFEST
from retrodistill.evaluation.measures import evaluate_run
from retrodistill.evaluation.results import Agreement, SystemResult
from retrodistill.evaluation.significance import compare_paired
from retrodistill.indexes import load_index
from retrodistill.rankers.bm25 import BM25Ranker
from retrodistill.recipes import against_bm25, parse_recipe, run_recipe
from retrodistill.recipes.students import Distilled
from retrodistill.students.registry import load_student


@pytest.fixture
def quick(content):
    """A static student that has learned nothing yet: it loses to BM25."""
    content["students"]["student"] |= {
        "stages": [{"objectives": "leaf", "training": {"max_steps": 1, "learning_rate": 1e-6}}],
        "control": None,
    }
    content["evaluation"] = {"latency_queries": 0, "examples": 0}
    return content


def held_out_of(out):
    """Ids of the training queries that the student of a job was not trained on."""
    return Manifest.read(out / "students" / "student", STUDENT_MANIFEST).about["held_out"]


class TestWithLabels:
    def test_both_search_for_the_held_out_training_queries(self, quick, tiny, tmp_path, monkeypatch):
        monkeypatch.setattr(against_bm25, "_LEAST", 1)
        results = run_recipe(parse_recipe(quick), tmp_path / "out")
        student = load_student(tmp_path / "out" / "students" / "student")
        (warning,) = results.warnings
        assert results.notes[0] == warning
        labels, queries = tiny.relevance("train").to_dict(), tiny.split("train")
        record = held_out_of(tmp_path / "out")
        assert len(record) == 3
        assert set(record) <= set(queries.ids)
        grades = {query: labels[query] for query in record}
        values = [
            evaluate_run(ranker.search(queries.select(record), tiny, 10), grades, ["ndcg@10"])["ndcg@10"].to_numpy()
            for ranker in (load_index(tmp_path / "out" / "indexes" / "student", student), BM25Ranker())
        ]
        p = compare_paired(*values)["p"]
        assert values[0].mean() < values[1].mean()
        assert f"than BM25 on {len(record)} held-out training queries: {values[0].mean():.3f} against " in warning
        assert f"against {values[1].mean():.3f} (" in warning
        assert f"p = {p:.3f})" in warning
        page = (tmp_path / "out" / "report.html").read_text()
        assert page.count("than BM25 on") == 1

    def test_few_queries_say_nothing(self, quick, tmp_path):
        assert run_recipe(parse_recipe(quick), tmp_path / "out").warnings == []

    def test_a_query_that_some_stage_may_have_seen_is_not_held_out(self, quick, tmp_path):
        stages = [{"objectives": "leaf", "training": {"max_steps": 1}} for _ in range(2)]
        quick["students"]["student"]["stages"] = stages
        run_recipe(parse_recipe(quick), tmp_path / "same")
        assert len(held_out_of(tmp_path / "same")) == 3
        stages[1]["texts"] = {"queries": False}
        run_recipe(parse_recipe(quick), tmp_path / "other")
        assert held_out_of(tmp_path / "other") == []


class TestWithoutLabels:
    def test_a_student_that_agrees_less_than_bm25_is_told(self, quick, tiny_folder, tmp_path):
        folder = shutil.copytree(tiny_folder, tmp_path / "bare")
        shutil.rmtree(folder / "qrels")
        quick["collection"] = str(folder)
        results = run_recipe(parse_recipe(quick), tmp_path / "out")
        own, bm25 = (results.system(name).agreement.rank_biased_overlap for name in ("student", "bm25"))
        assert bm25 > own
        (warning,) = results.warnings
        assert warning.startswith("warning: student may be no better than BM25, which agrees with ensemble as much")
        assert f"{bm25:.3f} against {own:.3f} on 12 queries" in warning
        assert "Add BM25 to the search" in warning

    @pytest.mark.parametrize(("own", "is_told"), [(0.40, True), (0.519, True), (0.53, False), (None, False)])
    def test_within_a_margin_they_agree_as_much(self, own, is_told, tiny_static):
        def row(name, role, overlap):
            agreement = Agreement(teacher="t", queries=9, overlap10=0.5, rank_biased_overlap=overlap or 0)
            return SystemResult(name=name, role=role, ndcg10=None, agreement=None if overlap is None else agreement)

        encoder = load_student(tiny_static)
        rows = {"bm25": row("bm25", "baseline", 0.5), "s": row("s", "student", own)}
        student = Distilled("s", encoder, encoder, 0.0)
        assert bool(against_bm25.unlabeled_warnings([student], rows)) == is_told
