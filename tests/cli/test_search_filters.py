"""Fields and filters from the command line."""

import json

import pytest

DOCUMENTS = [
    {"_id": "d1", "title": "Mars", "text": "A red planet.", "year": 2020, "tags": ["rock", "red"], "by": "A B"},
    {"_id": "d2", "text": "A gas giant.", "year": 2021, "day": "2020-01-31"},
    {"_id": "d3", "text": "A star."},
]


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    folder = tmp_path_factory.mktemp("planets")
    (folder / "corpus.jsonl").write_text("".join(json.dumps(document) + "\n" for document in DOCUMENTS))
    return folder


@pytest.fixture
def build(call, folder, tiny_model, tmp_path):
    def run(*more):
        place = tmp_path / "index"
        options = ("--collection", folder, "--documents", f"dense:{tiny_model}", "--out", place)
        status, _, err = call("index", *options, *more)
        assert status == 0, err
        return place

    return run


def ids(answer):
    return {row["document_id"] for row in json.loads(answer[1])}


class TestSearch:
    def test_conditions_and_what_is_printed(self, build, call):
        place = build("--store-texts")
        assert ids(call("search", place, "planet", "--filter", "year>=2020", "--json")) == {"d1", "d2"}
        answer = call("search", place, "planet", "--filter", "year>=2020", "--filter", "tags contains red", "--json")
        (row,) = json.loads(answer[1])
        assert (row["title"], row["text"]) == ("Mars", "A red planet.")
        assert row["fields"] == {"year": 2020, "tags": ["rock", "red"], "by": "A B"}
        _, out, _ = call("search", place, "planet", "--filter", 'by = "A B"')
        assert "d1  Mars A red planet." in out
        assert "year=2020  tags=rock, red  by=A B" in out
        _, out, _ = call("search", place, "planet", "--filter", "day=2020-01-31", "--json")
        assert json.loads(out)[0]["fields"]["day"] == "2020-01-31"

    def test_nothing_passes(self, build, call):
        status, out, err = call("search", build(), "planet", "--filter", "year>3000")
        assert (status, out) == (0, "")
        assert "'planet'" in err
        assert "year>3000" in err

    def test_of_a_collection(self, build, call, folder):
        place = build("--fields", "none")
        rows = json.loads(call("search", place, "planet", "--json")[1])
        assert not any("fields" in row or "text" in row for row in rows)
        rows = json.loads(call("search", place, "planet", "--collection", folder, "--json")[1])
        assert {row["document_id"]: row.get("fields", {}).get("year") for row in rows} == {
            "d1": 2020,
            "d2": 2021,
            "d3": None,
        }
        status, _, err = call("search", place, "planet", "--collection", folder, "--filter", "year=2020")
        assert status == 2
        assert "'year'" in err

    @pytest.mark.parametrize(
        ("condition", "fact"), [("yaer=1", "year (integer)"), ("year=x", "'x'"), ("year", "'year'")]
    )
    def test_mistakes(self, build, call, condition, fact):
        status, out, err = call("search", build(), "planet", "--filter", condition)
        assert (status, out) == (2, "")
        assert fact in err

    def test_an_exported_store(self, build, call, tmp_path):
        place = build("--fields", "year,by", "--store-texts")
        assert call("export", place, "--to", "parquet", "--out", tmp_path / "p", "texts=true")[0] == 0
        answer = call("search", f"parquet:{tmp_path / 'p'}", "planet", "--filter", "year in 2020,2022", "--json")
        (row,) = json.loads(answer[1])
        assert row["fields"] == {"year": 2020, "by": "A B"}
        assert row["title"] == "Mars"


class TestIndex:
    def test_unknown_fields(self, call, folder, tiny_model, tmp_path):
        options = ["--collection", folder, "--documents", f"dense:{tiny_model}", "--out", tmp_path / "x"]
        status, _, err = call("index", *options, "--fields", "yaer")
        assert status == 2
        assert "'year'" in err
        assert not (tmp_path / "x").exists()
