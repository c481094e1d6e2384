"""What the modules of all frameworks share."""

import importlib
import re
import sys
from concurrent.futures import ThreadPoolExecutor

import numpy as np
import pytest

from retrodistill.core.errors import UserError
from retrodistill.data import Collection, Texts, with_passages
from retrodistill.encoders import load_encoder
from retrodistill.exports import export_index
from retrodistill.indexes import build_index, load_index
from retrodistill.integrations import searching
from retrodistill.integrations.searching import Searcher

MODULES = {
    "langchain": "langchain_core",
    "llama_index": "llama_index",
    "haystack": "haystack",
    "pyterrier": "pyterrier",
    "mteb": "mteb",
}


class TestDocuments:
    def test_they_are_those_of_the_index_with_their_texts(self, folder, small):
        found = Searcher(folder).documents("moon and star", 3)
        wanted = load_index(folder).search("moon and star", k=3).to_dict()["0"]
        assert {each.id: each.score for each in found} == wanted
        assert [each.text for each in found] == [small.bodies[each.id] for each in found]

    def test_metadata_has_the_title_and_the_fields_as_json(self, folder):
        found = {each.id: each.metadata for each in Searcher(folder).documents("moon", 5)}
        assert {name: value for name, value in found["b"].items() if name != "score"} == {
            "id": "b",
            "title": "star",
            "year": 2020,
            "lang": "de",
            "day": "2020-03-01",
        }
        assert "title" not in found["e"]

    def test_a_field_called_score_does_not_replace_the_score(self, folder):
        (found,) = Searcher(folder).documents("bread", 1, {"document_id": "c"})
        assert found.metadata["score"] == found.score != 7
        assert found.metadata["field_score"] == 7

    def test_a_collection_has_the_texts_that_an_index_does_not_store(self, without_texts, folder, small):
        found = Searcher(without_texts, small).documents("moon", 5)
        assert {each.id: each.text for each in found} == {id_: small.bodies[id_] for id_ in small.documents.ids}

    def test_neither_is_refused(self, without_texts):
        with pytest.raises(UserError, match="stores no texts of its documents; give the collection"):
            Searcher(without_texts)

    def test_another_collection_is_refused(self, without_texts):
        other = Collection.from_parts("other", {"z": "zebra"}, {}, {})
        with pytest.raises(UserError, match="collection other has no text of document"):
            Searcher(without_texts, other).documents("moon", 1)

    def test_of_passages_the_best_one_of_each_document(self, small, teacher):
        cut = with_passages(small, {"words": 4, "overlap": 0})
        index = build_index(cut, teacher, store_texts=True)
        found = Searcher(index).documents("moon", 5)
        assert sorted(each.metadata["id"] for each in found) == sorted(small.documents.ids)
        assert [each.id for each in found] == [each.metadata["passage_id"] for each in found]
        assert [each.text for each in found] == [cut.bodies[each.id] for each in found]

    def test_an_exported_store(self, folder, small, tmp_path):
        pytest.importorskip("qdrant_client")
        export_index(folder, f"qdrant:{tmp_path / 'store'}#docs", small, {"texts": True})
        searcher = Searcher(f"qdrant:{tmp_path / 'store'}#docs")
        with ThreadPoolExecutor(1) as thread:  # another one than opened it
            stored = thread.submit(searcher.documents, "moon", 3, "year>=2020").result()
        indexed = Searcher(folder).documents("moon", 3, "year>=2020")
        assert [(each.id, each.text) for each in stored] == [(each.id, each.text) for each in indexed]
        np.testing.assert_allclose([each.score for each in stored], [each.score for each in indexed], atol=1e-5)

    def test_a_ranker_by_its_name_searches_a_collection(self, small, tiny_cross_encoder):
        assert [each.id for each in Searcher("bm25", small).documents("garlic butter", 5)] == ["c"]
        found = Searcher(f"rerank:cross-encoder:{tiny_cross_encoder}@bm25", small).documents("the moon", 5)
        assert {each.id for each in found} == {"b", "d"}


class TestArguments:
    @pytest.mark.parametrize("filter", [{"year": {">=": 2021}}, "year>=2021", ["year>=2021", "lang in en,fr"]])
    def test_filters_are_those_of_this_package(self, folder, filter):
        assert {each.id for each in Searcher(folder).documents("moon", 5, filter)} == {"c", "d"}

    def test_more_documents_than_there_are(self, folder):
        assert len(Searcher(folder).documents("moon", 1000)) == 5

    @pytest.mark.parametrize(
        ("query", "k", "filter", "message"),
        [
            (" ", 3, None, "is empty"),
            ("moon", 0, None, "k=0"),
            ("moon", 3, {"colour": 1}, "unknown field 'colour'"),
        ],
    )
    def test_wrong_ones_are_refused(self, folder, query, k, filter, message):
        with pytest.raises(UserError, match=message):
            Searcher(folder).documents(query, k, filter)

    def test_what_does_not_search_is_refused(self, student, tmp_path):
        with pytest.raises(UserError, match="holds no documents"):
            Searcher(student.removeprefix("static:"))
        (tmp_path / "recipe.yaml").write_text("name: x")
        with pytest.raises(UserError, match="holds a job; give one of its indexes"):
            Searcher(str(tmp_path))

    def test_another_query_encoder(self, folder, teacher, small):
        found = Searcher(folder, queries=teacher).documents("moon", 5)
        assert {each.id: each.score for each in found} == load_index(folder, teacher).search("moon", k=5).to_dict()["0"]
        with pytest.raises(UserError, match="leave queries out"):
            Searcher(load_index(folder), queries=teacher)
        with pytest.raises(UserError, match="bm25 is not one"):
            Searcher("bm25", small, queries=teacher)


class TestRuns:
    def test_blocks_together_are_one_search_and_blank_queries_find_nothing(self, folder, monkeypatch):
        monkeypatch.setattr(searching, "_BLOCK", 2)
        texts = Texts.from_pairs([("1", "moon"), ("2", " "), ("3", "bread"), ("4", "star"), ("5", "piano")])
        runs = list(Searcher(folder, texts=False).runs(texts, 2))
        assert [run.query_ids for run in runs] == [["1"], ["3", "4"], ["5"]]
        merged = {query: found for run in runs for query, found in run.to_dict().items()}
        assert merged == load_index(folder).search(texts.select(["1", "3", "4", "5"]), k=2).to_dict()

    def test_the_teacher_is_not_loaded_beside_the_student(self, folder, monkeypatch):
        from retrodistill.serving import opening

        monkeypatch.setattr(opening, "load_encoder", lambda *_: pytest.fail("a second model is loaded"))
        assert len(Searcher(folder).documents("moon", 1)) == 1

    def test_threads_get_their_own_answers(self, folder):
        searcher = Searcher(folder)
        queries = ["moon", "bread", "piano", "whale"] * 8
        alone = [searcher.documents(query, 2) for query in queries]
        with ThreadPoolExecutor(8) as threads:
            assert list(threads.map(lambda query: searcher.documents(query, 2), queries)) == alone


class TestMissingFrameworks:
    @pytest.mark.parametrize("module", MODULES)
    def test_the_extra_is_named(self, module, monkeypatch):
        name = f"retrodistill.integrations.{module}"
        for loaded in list(sys.modules):
            if loaded == name or loaded.startswith(f"{MODULES[module]}."):
                monkeypatch.delitem(sys.modules, loaded)
        monkeypatch.setitem(sys.modules, MODULES[module], None)
        with pytest.raises(UserError, match=re.escape(f"pip install 'retrodistill[{module.replace('_', '-')}]'")):
            importlib.import_module(name)


def test_the_student_encodes_queries_and_the_teacher_documents(folder, student, teacher):
    encoded = (
        load_encoder(student).encode(["moon"], "query")
        @ load_encoder(teacher).encode(["bread bread with butter and garlic"], "document").T
    )
    (found,) = Searcher(folder).documents("moon", 1, {"document_id": "c"})
    assert found.score == pytest.approx(float(encoded[0, 0]), abs=1e-5)
