"""Text that is not UTF-8 is named at every door, as is what another library could not hold."""

import json

import numpy as np
import pytest

from retrodistill.core.digests import digest
from retrodistill.core.errors import UserError
from retrodistill.core.json_files import json_text, read_json, write_json
from retrodistill.data import Collection, Texts
from retrodistill.encoders import load_encoder
from retrodistill.rankers.protocol import as_queries, check_queries
from retrodistill.recipes.loading import load_recipe
from retrodistill.runs import Run, read_run

HALF, BYTE = "heart \ud83d", "caf\udce9"


class TestQueries:
    @pytest.mark.parametrize(("text", "fact"), [(HALF, r"\\ud83d"), (BYTE, "byte 0xe9 at 3")])
    @pytest.mark.parametrize("given", [lambda t: t, lambda t: ["x", t], lambda t: {"q": t}])
    def test_typed_ones(self, text, fact, given):
        with pytest.raises(UserError, match=fact):
            as_queries(given(text))
        with pytest.raises(UserError, match=fact):
            check_queries([text])

    @pytest.mark.parametrize("name", ["tiny_model", "tiny_static"])
    def test_of_encoders(self, name, request):
        encoder = load_encoder(f"dense:{request.getfixturevalue(name)}")
        with pytest.raises(UserError, match=r"query 2 .*\\ud83d"):
            encoder.encode(["x", HALF], "query")


class TestCollections:
    @pytest.mark.parametrize(
        ("documents", "queries", "qrels", "fact"),
        [
            ({"d1": "x", "d2": HALF}, {}, {}, r"c, document 2: 'text' .*\\ud83d"),
            ({"d1": (HALF, "x")}, {}, {}, r"c, document 1: 'title'"),
            ({"d1": 3}, {}, {}, r"c, document 1: 'text' is 3 \(int\)"),
            ({BYTE: "x"}, {}, {}, r"c, document 1: '_id' .*byte 0xe9"),
            ({"a\0b": "x"}, {}, {}, "c, document 1: '_id' .*NUL"),
            ({"d1": "x"}, {"q": HALF}, {}, r"c, query 1: 'text'"),
            ({"d1": "x"}, {"q": None}, {}, r"c, query 1: 'text' is null"),
            ({"d1": "x"}, {"q": "y"}, {"test": {"q": {"d1": 0.5}}}, r"c, test, judgment 1: the score 0.5"),
            ({"d1": "x"}, {"q": "y"}, {"test": {"q": {HALF: 1}}}, r"c, test, judgment 1: 'corpus-id'"),
        ],
    )
    def test_from_parts_checks_as_files_are(self, documents, queries, qrels, fact):
        with pytest.raises(UserError, match=fact):
            Collection.from_parts("c", documents, queries, qrels)

    def test_from_parts_takes_numbers_of_numpy_and_whole_floats(self):
        qrels = {"test": {1: {np.int64(7): np.int32(2), 8: 1.0}}}
        collection = Collection.from_parts("c", {7: "x", np.int64(8): "y"}, {1: "z"}, qrels)
        assert collection.documents.ids == ["7", "8"]
        assert collection.relevance("test").to_dict() == {"1": {"7": 2, "8": 1}}

    def test_texts_name_the_id(self):
        with pytest.raises(UserError, match=r"'b': 'text' .*\\ud83d"):
            Texts.from_pairs([("a", "x"), ("b", HALF)])

    def test_a_long_id_is_kept(self):
        long = "x" * 100_000
        assert Texts.from_pairs([(long, "text")])[long] == "text"


class TestFiles:
    def test_a_run_in_json(self, tmp_path):
        (tmp_path / "x.jsonl").write_text(json.dumps({"query_id": "q", "document_id": HALF, "score": 1}))
        with pytest.raises(UserError, match=r"x\.jsonl"):
            read_run(tmp_path / "x.jsonl")
        with pytest.raises(UserError, match="ids must be strings"):
            Run.from_dict({"q": {HALF: 1.0}})

    @pytest.mark.parametrize("content", [b"name: caf\xe9\n", b'name: "\\ud83d"\n'])
    def test_a_recipe(self, tmp_path, content):
        (tmp_path / "x.yaml").write_bytes(content)
        with pytest.raises(UserError, match=r"x\.yaml"):
            load_recipe(tmp_path / "x.yaml")

    @pytest.mark.parametrize("change", [f"collection={BYTE}", 'collection="\\ud83d"', f"{BYTE}=1"])
    def test_an_override(self, change):
        with pytest.raises(UserError) as caught:
            load_recipe("static-leaf", [change])
        assert "\n" not in str(caught.value)

    def test_json_keeps_the_name_of_a_file_that_is_not_utf8(self, tmp_path):
        write_json(tmp_path / "x.json", {"name": BYTE})
        assert read_json(tmp_path / "x.json") == {"name": BYTE}
        assert digest(BYTE) != digest("caf")

    def test_json_for_a_narrow_encoding(self):
        assert json.loads(json_text(["北京 é"], "ascii").encode("ascii")) == ["北京 é"]
        assert json_text(["é"], "cp1252") == '["é"]'

    def test_json_with_a_byte_order_mark(self, tmp_path):
        (tmp_path / "x.json").write_bytes(b'\xef\xbb\xbf{"a": 1}')
        assert read_json(tmp_path / "x.json") == {"a": 1}
