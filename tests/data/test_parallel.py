import json

import pytest

from retrodistill.core.errors import UserError
from retrodistill.data import Texts
from retrodistill.data.leaks import ExcludedQueries
from retrodistill.data.parallel import load_parallel
from retrodistill.data.texts import GENERATED

PAIRS = [("a red star", "ein roter Stern"), ("a red star", "una estrella roja"), ("two moons", "zwei Monde")]


@pytest.fixture
def file(tmp_path):
    def file(name, lines):
        path = tmp_path / name
        path.write_text("".join(f"{line}\n" for line in lines), encoding="utf-8")
        return path

    return file


class TestReading:
    def test_a_source_is_read_once_and_stands_in_for_its_translations(self, file):
        parallel = load_parallel(file("pairs.tsv", ["\t".join(pair) for pair in PAIRS]))
        assert {id_.removeprefix(GENERATED): text for id_, text in parallel.texts.items()} == {
            "source:0": "a red star",
            "source:1": "two moons",
            "translation:0": "ein roter Stern",
            "translation:1": "una estrella roja",
            "translation:2": "zwei Monde",
        }
        assert dict(parallel.sources) == {
            f"{GENERATED}translation:{row}": source for row, (source, _) in enumerate(PAIRS)
        }
        assert len(parallel) == 3

    def test_both_formats_hold_the_same(self, file):
        objects = [json.dumps({"source": source, "translation": text}) for source, text in PAIRS]
        of_objects, of_columns = file("a.jsonl", objects), file("b.tsv", ["\t".join(pair) for pair in PAIRS])
        assert load_parallel(of_objects).fingerprint == load_parallel(of_columns).fingerprint

    @pytest.mark.parametrize(
        ("name", "line", "error"),
        [
            ("a.tsv", "a\tb\tc", "line 2"),
            ("a.tsv", "a\t ", "line 2: the translation is empty"),
            ("a.tsv", "\tb", "line 2: the source is empty"),
            ("a.jsonl", '{"source": "a"}', "line 2"),
            ("a.jsonl", '{"source": "a", "translation": 3}', "line 2"),
        ],
    )
    def test_a_mistake_is_named_with_its_line(self, file, name, line, error):
        first = "a\tb" if name.endswith("tsv") else '{"source": "a", "translation": "b"}'
        with pytest.raises(UserError, match=error):
            load_parallel(file(name, [first, line]))

    def test_a_header_names_the_columns(self, file):
        parallel = load_parallel(file("a.csv", ["translation,source", "zwei Monde,two moons"]))
        assert parallel.sources.texts == ["two moons"]

    def test_an_empty_file(self, file):
        with pytest.raises(UserError, match="no pairs"):
            load_parallel(file("a.tsv", []))


class TestLeaks:
    @pytest.mark.parametrize(("test", "kept"), [("ein roter Stern", 2), ("A red star?", 1), ("three moons", 3)])
    def test_a_pair_with_a_test_query_is_left_out(self, file, test, kept):
        parallel = load_parallel(file("pairs.tsv", ["\t".join(pair) for pair in PAIRS]))
        excluded = ExcludedQueries(Texts.from_pairs([("q", test)]))
        assert [len(parallel.without_leaks(excluded)[0]), parallel.without_leaks(excluded)[1]] == [kept, 3 - kept]
