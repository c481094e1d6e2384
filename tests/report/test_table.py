import pytest
from rich.cells import cell_len
from sample_results import example, hit, results, system, whole

from retrodistill.report import examples_text, results_text


def row(text, name):
    return next(line for line in text.splitlines() if line.startswith(name))


class TestTable:
    def test_values_of_a_student(self):
        assert row(results_text(results()), "student").split()[1:8] == [
            "0.690", "0.655", "0.940", "94.1%", "0.12", "/", "0.20",
        ]  # fmt: skip

    def test_latency_and_size_are_dashes_and_other_columns_go_if_nobody_has_a_value(self):
        bare = system("bm25", "baseline", mrr10=None, query_ms=None, bytes_per_document=None, queries_by="")
        text = results_text(results(systems=[bare], taught_by=None, comparisons=[]), width=100)
        assert row(text, "bm25").split() == [
            "bm25",
            "0.690",
            "0.940",
            "–",
            "–",
            "dense:all-MiniLM-L6-v2",
        ]

    def test_retention_above_one_is_said(self):
        text = results_text(results(systems=[*results().systems[:4], system(retention=1.07)]))
        assert "107.0%" in row(text, "student")

    @pytest.mark.parametrize("width", [80, 100])
    def test_fits_the_terminal_with_long_and_wide_names(self, width):
        long = system("学生" * 40, documents_by="dense:organization/" + "model-" * 20, queries_by="x" * 90)
        text = results_text(results(systems=[*results().systems, long]), width)
        assert max(cell_len(line) for line in text.splitlines()) <= width

    def test_encoders_that_do_not_fit_are_listed_below_whole(self):
        text = results_text(results(), width=80)
        assert text.splitlines()[-1] == "student: documents by dense:all-MiniLM-L6-v2, queries by student"
        assert results_text(results(), width=120).count("documents by") == 1

    def test_a_long_name_is_folded_and_stays_whole(self):
        names = [f"student-{'with-a-long-name-' * 5}{size}" for size in (48, 96)]
        text = results_text(results(systems=[*results().systems, *map(system, names)]))
        first_column = "".join(line.partition("  ")[0].strip() for line in text.splitlines())
        assert all(name in first_column for name in names)

    def test_systems_without_encoders_fit_too(self):
        nameless = system("name-" * 40, documents_by="", queries_by="")
        text = results_text(results(systems=[nameless], taught_by=None, comparisons=[]))
        assert "0.690" in text
        assert max(cell_len(line) for line in text.splitlines()) <= 80

    def test_brackets_are_no_markup(self):
        assert "[bold]x" in results_text(results(systems=[*results().systems, system("[bold]x")]))

    def test_a_row_for_each_system(self):
        lines = results_text(results(), width=120).splitlines()
        assert len([line for line in lines if "all-MiniLM" in line or "both" in line]) == 5


class TestExamples:
    def test_both_sides_with_the_relevant_marked(self):
        lines = examples_text(results(), shown=1).splitlines()
        left, right = lines[2].split("│")
        assert left.startswith("✓ 1 31715818")
        assert right.startswith("   1 4983")
        assert len(lines) == 5

    def test_the_two_systems_are_named_and_titles_stand_before_texts(self):
        titled = example(teacher=[hit("1", "the text", title="The title")], student=[])
        lines = examples_text(whole(examples=[titled], won=[], lost=[])).splitlines()
        assert lines[1].split() == ["ensemble", "│", "student"]
        assert "1: The title the text" in lines[2]

    def test_queries_that_the_student_wins_and_loses_with_both_values(self):
        text = examples_text(whole(), shown=2)
        lines = text.splitlines()
        assert lines[0] == "student is better than ensemble:"
        assert lines[3].split() == ["ensemble", "0.200", "│", "student", "0.900"]
        assert [line for line in lines if line.startswith("›")] == ["› won 0", "› won 1", "› lost on Zebrafish"]
        assert text.count("student is worse than ensemble:") == 1

    def test_fits_eighty_columns(self):
        wide = example("質問" * 80, teacher=[hit("d" * 90, "本文" * 200, relevant=True)], student=[])
        assert max(cell_len(line) for line in examples_text(results(examples=[wide])).splitlines()) <= 80

    def test_no_control_characters_reach_the_terminal(self):
        evil = example("a\x1b[31mred\nnext", teacher=[hit("x\x07", "\x1b]0;title\x07")])
        assert not set("\x1b\x07") & set(examples_text(results(examples=[evil])))

    def test_shows_as_many_as_asked(self):
        assert examples_text(results(), shown=1).count("›") == 1

    def test_none(self):
        assert examples_text(results(examples=[])) == ""
