import json
import re
import subprocess
import sys
from html.parser import HTMLParser

import pytest
from sample_results import agreement, everywhere, example, hit, results, system, unjudged, whole

from retrodistill.core.errors import UserError
from retrodistill.report import page_text, write_page

VOID = {"meta", "link", "input", "br"}


class Page(HTMLParser):
    """Tags, attributes and text; refuses tags that do not close in order."""

    def __init__(self, text):
        super().__init__()
        self.tags, self.open, self.words = [], [], []
        self.feed(text)
        self.close()
        assert self.open == []

    def handle_starttag(self, tag, attrs):
        self.tags.append((tag, dict(attrs)))
        if tag not in VOID:
            self.open.append(tag)

    def handle_startendtag(self, tag, attrs):
        self.tags.append((tag, dict(attrs)))

    def handle_endtag(self, tag):
        assert self.open.pop() == tag

    def handle_data(self, data):
        self.words.append(data)

    def all(self, tag):
        return [attrs for name, attrs in self.tags if name == tag]


class TestSelfContained:
    def test_nothing_is_loaded(self):
        page = Page(page_text(whole()))
        loaded = [attrs[key] for _, attrs in page.tags for key in ("src", "href", "data", "srcset") if key in attrs]
        assert [place for place in loaded if not place.startswith("#")] == ["data:,"]
        assert not re.search(r"@import|url\(|https?:", page_text(whole()))

    def test_every_link_has_its_section(self):
        page = Page(page_text(whole()))
        named = {attrs["id"] for _, attrs in page.tags if "id" in attrs}
        assert [attrs["href"][1:] for attrs in page.all("a")] == [
            "systems", "differences", "front", "training", "agreement", "compression", "queries", "provenance",
        ]  # fmt: skip
        assert {attrs["href"][1:] for attrs in page.all("a")} <= named
        assert len(named) == sum("id" in attrs for _, attrs in page.tags)

    def test_only_its_own_script_runs(self):
        page = Page(page_text(results()))
        assert len(page.all("script")) == 1
        policy = next(attrs["content"] for attrs in page.all("meta") if "http-equiv" in attrs)
        assert policy.startswith("default-src 'none'")
        assert not [key for _, attrs in page.tags for key in attrs if key.startswith("on")]

    def test_the_same_results_give_the_same_bytes(self, tmp_path):
        write_page(results(), tmp_path / "a.html")
        write_page(results(), tmp_path / "b.html")
        assert (tmp_path / "a.html").read_bytes() == (tmp_path / "b.html").read_bytes()
        assert sorted(file.name for file in tmp_path.iterdir()) == ["a.html", "b.html"]

    def test_a_folder_that_cannot_be_made_is_said(self, tmp_path):
        (tmp_path / "file").write_text("")
        with pytest.raises(UserError, match="cannot write"):
            write_page(results(), tmp_path / "file" / "report.html")


class TestEscaping:
    EVIL = "</script><script>alert(1)</script>\"'><img src=x onerror=alert(2)>"

    def test_nothing_from_outside_becomes_markup(self):
        evil = self.EVIL
        changed = results(
            collection=evil,
            split=evil,
            name=evil,
            command=evil,
            hardware={evil: evil},
            versions={evil: evil},
            seconds={evil: 1.0},
            taught_by=evil,
            systems=[
                system(evil, "teacher", documents_by=evil, queries_by=evil),
                system("student", documents_by=evil, agreement=agreement(teacher=evil), measures={evil: 0.5}),
                system(f"{evil}8", "control", documents_by=evil, bytes_per_document=20.0),
            ],
            comparisons=[{**results().comparisons[0], "b": evil, "measure": evil}],
            curves={evil: results().curves["student"]},
            examples=[example(evil, relevant=[evil], teacher=[hit(evil, evil, title=evil)], query_id=evil)],
            won=[example(evil, teacher_value=0.0, student_value=1.0)],
            lost=[example(evil * 20, relevant=[])],
            sides=[evil, "student"],
            notes=[evil],
            provenance={evil: {evil: [evil]}},
        )
        text = page_text(changed)
        page = Page(text)
        assert len(page.all("script")) == 1
        assert page.all("img") == []
        assert "alert(2)" in text

    def test_the_text_itself_is_still_read(self):
        page = Page(page_text(results(examples=[example(teacher=[hit(text="a <script> & b")])])))
        assert "a <script> & b" in page.words


class TestContent:
    def test_the_answer_comes_first(self):
        text = page_text(results())
        assert "keeps 94.1%" in text[text.index("<h1>") : text.index("</h1>")]
        assert text.index("<h1>") < text.index("<table")

    def test_heads_sort_by_button_and_say_so(self):
        page = Page(page_text(results()))
        assert [attrs["aria-sort"] for attrs in page.all("th") if "aria-sort" in attrs] == ["none"] * 10
        assert sum("data-open" not in attrs and "data-close" not in attrs for attrs in page.all("button")) == 10

    def test_cells_carry_the_exact_number(self):
        values = [attrs["data-value"] for attrs in Page(page_text(results())).all("td") if "data-value" in attrs]
        assert values[:7] == ["0.686", "0.655", "0.94", "", "0.42", "0.8", ""]

    def test_two_fronts_and_three_curves(self):
        labels = [attrs["aria-label"] for attrs in Page(page_text(results())).all("svg") if "aria-label" in attrs]
        expected = ["nDCG@10 against median query time, ms", "nDCG@10 against bytes per document"]
        expected += ["loss", "agreement", "mean cosine"]
        assert labels == expected

    def test_examples_open_and_are_searched(self):
        page = Page(page_text(results()))
        assert len(page.all("details")) == 2
        assert [attrs["aria-controls"] for attrs in page.all("input")] == ["rows", "queries-list"]
        assert "lost" in page.words

    def test_provenance_command_seed_and_notes(self):
        words = Page(page_text(results(notes=["Mind the gap."]))).words
        for expected in (results().command, "teacher.dense", "22bb", "seed", "7", "12 min 14 s", "Mind the gap."):
            assert expected in words


class TestWithoutJudgments:
    def test_it_says_why_quality_is_missing_and_shows_the_rest(self):
        text = page_text(unjudged())
        assert "no relevance judgments" in text[: text.index("</h1>")]
        assert "No quality:" in text
        assert "71% of the ten best documents of ensemble" in text[: text.index("</h1>")]
        assert 'id="agreement"' in text
        assert 'id="front"' in text
        assert "no document is marked" in text
        assert 'id="differences"' not in text


class TestHostileTexts:
    @pytest.mark.parametrize("letter", ["x", "字", "\u202e", "👩‍🔬", "<b>", "&amp;", "\x00"])
    def test_ten_thousand_of_anything_are_cut(self, letter):
        long = letter * 10_000
        shown = example(
            long, teacher=[hit(text=long, title=long)], student=[hit(long[:200], long)], relevant=[long] * 99
        )
        text = page_text(results(examples=[shown]))
        Page(text)
        assert len(text) < 200_000
        text.encode()

    def test_texts_of_either_direction_are_kept_apart(self):
        page = Page(page_text(results(examples=[example("שאלה", teacher=[hit(text="עברית")])])))
        assert all(attrs.get("dir") == "auto" for attrs in page.all("p") if "dir" in attrs)
        assert "שאלה" in page.words
        assert len(page.all("bdi")) > 10

    def test_a_name_that_is_no_text_stops_nothing(self, tmp_path):
        write_page(results(command="run bad-\udcff.yaml"), tmp_path / "a.html")
        assert "run bad-?.yaml" in (tmp_path / "a.html").read_text(encoding="utf-8")


class TestEdges:
    @pytest.mark.parametrize(
        "changed",
        [
            {"comparisons": []},
            {"systems": [system("bm25", "baseline")], "taught_by": None, "comparisons": []},
            {"systems": everywhere(query_ms=None, bytes_per_document=None)},
            {"systems": everywhere(ndcg10=None, retention=None)},
            {"systems": everywhere(ndcg10=0.0, retention=None, query_ms={"p50": 0.0, "p95": 0.0})},
            {"curves": {}},
            {"curves": {"student": {}}},
            {"curves": {"student": {"losses": [{"step": 1, "loss": 0.5}], "monitors": [{"step": 1}]}}},
            {"curves": {"student": {"losses": [{"step": at, "loss": 0.0, "rate": 1e-5} for at in range(5000)]}}},
            {"examples": [example(teacher=[], student=[], relevant=[])]},
            {"examples": [], "seconds": {}, "hardware": {}, "versions": {}, "provenance": {}, "command": ""},
            {"seconds": {"mine": 0.0}},
            {"systems": everywhere(agreement=agreement(calibration=[], kendall_tau=None, ceiling=None))},
            {"won": [example(teacher_value=0.0, student_value=0.0)], "lost": [], "examples": []},
            {"systems": [*results().systems, system("very-long-" * 30), system("学生モデル" * 9)]},
            {"collection": "עברית", "examples": [example("שאלה", teacher=[hit(text="本文")])]},
        ],
    )  # fmt: skip
    def test_the_page_still_stands(self, changed):
        text = page_text(results(**changed))
        Page(text)
        assert not re.search(r"\b(nan|inf|None)\b", text)
        assert len(text) < 200_000

    def test_a_point_is_told_in_words_where_one_makes_no_line(self):
        text = page_text(results(curves={"student": {"losses": [{"step": 5, "loss": 0.5}]}}))
        assert "0.5, one point, at step 5" in text
        assert "<b>Agreement</b> was not recorded" in text

    def test_systems_without_a_cost_are_named(self):
        assert "Not measured: bm25." in page_text(results())

    def test_what_was_read_back_gives_the_same_page(self):
        again = type(results()).from_json(json.loads(json.dumps(results().to_json())))
        assert page_text(again) == page_text(results())


class TestImport:
    def test_the_package_alone_loads_neither_rich_nor_pydantic(self):
        code = "import sys, retrodistill.report; print('rich' in sys.modules, 'pydantic' in sys.modules)"
        done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
        assert done.stdout.split() == ["False", "False"]
