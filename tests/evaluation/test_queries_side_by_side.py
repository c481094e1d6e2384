import json

import pyarrow as pa
import pytest

from retrodistill.api import evaluate
from retrodistill.data import Collection
from retrodistill.evaluation import compare_paired
from retrodistill.evaluation.examples import side_by_side, snippet, spread_out, won_and_lost
from retrodistill.evaluation.results import Results
from retrodistill.evaluation.systems import Measured, Task
from retrodistill.runs import Run


@pytest.fixture
def titled():
    documents = {f"d{number}": (f"title {number}", f"body {number}") for number in range(9)}
    judged = {"test": {"a": {"d0": 1, "d1": 0}, "b": {"d2": 2}}}
    return Collection.from_parts("titled", documents, {"a": "first", "b": "second"}, judged)


def side(name, run=None, **values):
    table = pa.table({"query_id": list(values), "ndcg@10": list(values.values())}) if values else None
    return Measured.of(run or Run.from_dict({"a": {"d0": 1.0}}), table, None, name=name, role="baseline")


def on(collection, grades, queries="ab"):
    return Task(collection, "test", collection.queries.select(list(queries)), grades)


class TestWonAndLost:
    def test_from_the_largest_difference_on_without_ties(self):
        before = dict.fromkeys("abcde", 0.5)
        after = {"a": 0.6, "b": 0.9, "c": 0.5, "d": 0.1, "e": 0.4}
        assert won_and_lost(before, after) == (["b", "a"], ["d", "e"])
        assert won_and_lost(before, after, most=1) == (["b"], ["d"])

    def test_without_values_there_are_none(self):
        assert won_and_lost({}, {}) == ([], [])
        other = Measured(side("x").row, None, pa.table({"query_id": ["a"], "mrr@10": [1.0]}))
        assert other.values("ndcg@10") == {}
        assert other.values("mrr@10") == {"a": 1.0}


class TestSideBySide:
    def test_five_documents_each_with_what_is_judged(self, titled):
        full = Run.from_dict({"a": {f"d{number}": float(-number) for number in range(9)}})
        task = on(titled, titled.relevance("test").to_dict())
        first, second = side_by_side(task, ["a", "b"], side("x", full, a=0.25), side("y", a=1.0))
        assert [hit.document_id for hit in first.teacher] == ["d0", "d1", "d2", "d3", "d4"]
        assert [hit.relevant for hit in first.teacher] == [True, False, False, False, False]
        assert (first.teacher[0].title, first.teacher[0].text) == ("title 0", "body 0")
        assert (first.teacher_value, first.student_value, first.relevant) == (0.25, 1.0, ["d0"])
        assert second.teacher == second.student == []
        assert second.relevant == ["d2"]

    def test_a_relevant_document_that_neither_shows_comes_with_its_ranks(self, titled):
        full = Run.from_dict({"a": {f"d{number}": float(-number) for number in range(9)}})
        back = Run.from_dict({"a": {f"d{number}": float(number) for number in range(3, 9)}})
        grades = {"a": {"d0": 1, "d5": 1, "d3": 1, "d1": 0}, "b": {"d2": 2}}
        first, second = side_by_side(on(titled, grades), ["a", "b"], side("x", full), side("y", full))
        assert [(one.document_id, one.teacher_rank, one.student_rank) for one in first.missed] == [("d5", 6, 6)]
        assert [(one.document_id, one.teacher_rank, one.text) for one in second.missed] == [("d2", None, "body 2")]
        (first,) = side_by_side(on(titled, {"a": {"d3": 1, "d2": 1}}), ["a"], side("x", back), side("y", back))
        assert [(one.document_id, one.student_rank) for one in first.missed] == [("d3", 6), ("d2", None)]

    def test_a_relevant_document_that_the_corpus_lacks_is_not_shown(self, titled):
        (first,) = side_by_side(on(titled, {"a": {"gone": 1, "d2": 1}}), ["a"], side("x"), side("y"))
        assert [one.document_id for one in first.missed] == ["d2"]
        assert first.relevant == ["d2", "gone"]

    def test_without_judgments_nothing_is_marked(self, titled):
        only = side_by_side(on(titled, None), ["a"], side("x"), side("y"))[0]
        assert not only.teacher[0].relevant
        assert only.relevant == []
        assert only.teacher_value is None


class TestSnippets:
    def test_short_texts_are_whole_on_one_line(self):
        assert snippet(" one\n two\tthree ", 20) == "one two three"

    def test_long_ones_are_cut_between_words(self):
        assert snippet("word " * 5000, 23) == "word word word word…"

    @pytest.mark.parametrize("letter", ["字", "x", "👩"])
    def test_a_text_without_spaces_is_cut_between_letters(self, letter):
        assert snippet(letter * 10_000, 50) == letter * 49 + "…"

    def test_what_follows_many_spaces_is_not_lost_unsaid(self):
        assert snippet("a" + " " * 10_000 + "b", 50) == "a…"


def test_evenly_drawn_queries():
    assert spread_out(list("abcdefghij"), 3) == ["a", "d", "g"]
    assert spread_out(["a"], 5) == ["a"]
    assert spread_out(["a"], 0) == []


class TestTheReportOfAnEvaluation:
    def test_each_system_is_compared_with_the_first(self, tiny, space, tmp_path):
        made = evaluate({"bm25": "bm25", "model": space}, tiny, out=tmp_path)
        results = Results.from_json(json.loads((tmp_path / "results.json").read_text()))
        one = results.comparisons[0]
        values = [made.per_query[name]["ndcg@10"].to_numpy() for name in ("model", "bm25")]
        assert (one["a"], one["b"]) == ("model", "bm25")
        assert {key: one[key] for key in ("difference", "interval", "p")} == compare_paired(*values)
        assert results.sides == ["bm25", "model"]
        assert len(results.won) == one["wins"]
        page = (tmp_path / "report.html").read_text()
        assert "Queries won and lost" in page
        assert "has the highest nDCG@10" in page

    def test_one_system_has_a_page_too(self, tiny, tmp_path):
        evaluate("bm25", tiny, out=tmp_path)
        assert "<h1>1 system was measured" in (tmp_path / "report.html").read_text()

    def test_other_measures_are_compared_where_there_is_no_ndcg(self, tiny, space, tmp_path):
        evaluate(["bm25", space], tiny, measures=["recall@5"], out=tmp_path)
        results = Results.from_json(json.loads((tmp_path / "results.json").read_text()))
        assert results.comparisons[0]["measure"] == "recall@5"
        assert results.won == results.lost == []
        assert len(results.examples) == 5

    def test_without_judgments_it_says_so(self, unjudged, space, tmp_path):
        evaluate({"model": space, "lexical": "bm25"}, unjudged, teacher="bm25", out=tmp_path)
        page = (tmp_path / "report.html").read_text()
        assert "no relevance judgments to measure quality with" in page
        assert 'id="agreement"' in page
        assert "no document is marked" in page
