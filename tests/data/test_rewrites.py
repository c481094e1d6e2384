import json

import pytest

from retrodistill.core.errors import UserError
from retrodistill.data.conversations import check_rewrites, load_rewrites, with_rewrites
from retrodistill.data.texts import Texts


@pytest.fixture
def written(tmp_path):
    def written(*lines):
        path = tmp_path / "better.jsonl"
        path.write_text("\n".join(line if isinstance(line, str) else json.dumps(line) for line in lines))
        return path

    return written


def line(query, text):
    return {"query_id": query, "text": text}


class TestReading:
    def test_ids_and_texts_in_their_order(self, written):
        found = load_rewrites(written(line("b", "all of b"), "", line("a", "all of a")))
        assert dict(zip(found.ids, found.texts, strict=True)) == {"b": "all of b", "a": "all of a"}

    @pytest.mark.parametrize(
        ("lines", "message"),
        [
            (["{"], "line 1: not JSON"),
            (["[1]"], "line 1: a JSON list, not an object"),
            ([line("a", "x"), {"query_id": "b"}], "line 2: no 'text'"),
            ([{"query_id": "b", "test": "x"}], "line 1: unknown key 'test'. Did you mean 'text'"),
            ([line("a", " ")], "line 1: 'text' is empty"),
            ([line("a", "x"), line("a", "y")], "line 2: query 'a' has a rewrite in line 1 already"),
            ([""], "has no lines"),
        ],
    )
    def test_a_wrong_line_is_named(self, written, lines, message):
        with pytest.raises(UserError) as error:
            load_rewrites(written(*lines))
        assert message in str(error.value)
        assert "\n" not in str(error.value)

    def test_a_file_that_is_not_there(self, tmp_path):
        with pytest.raises(UserError, match=r"cannot read .*No such file"):
            load_rewrites(tmp_path / "nowhere.jsonl")


class TestAsking:
    QUERIES = Texts.from_pairs([("a", "short"), ("b", "brief"), ("c", "curt")])

    def test_only_those_that_have_one_are_replaced(self):
        found = with_rewrites(self.QUERIES, Texts.from_pairs([("c", "a long one"), ("other", "x")]))
        assert (found.ids, found.texts) == (["a", "b", "c"], ["short", "brief", "a long one"])

    def test_how_many_have_one_is_told(self):
        assert "rewrites for 1 of 3 queries" in check_rewrites(Texts.from_pairs([("a", "x")]), self.QUERIES, "file")

    def test_unknown_queries_are_named(self):
        with pytest.raises(UserError, match=r"file: 1 rewrites belong to queries .*other"):
            check_rewrites(Texts.from_pairs([("other", "x")]), self.QUERIES, "file")
