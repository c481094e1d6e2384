import sys
import types
from collections import namedtuple

import pytest
from small_collection import left_in

from retrodistill.core.errors import UserError
from retrodistill.data import load_collection

Titled = namedtuple("Titled", "doc_id title text")
Fields = namedtuple("Fields", "doc_id abstract")
Fields.default_text = lambda self: f"default {self.abstract}"
Query = namedtuple("Query", "query_id text")
Qrel = namedtuple("Qrel", "query_id doc_id relevance iteration")


class Dataset:
    def __init__(self, docs=None, queries=None, qrels=None):
        for name, rows in (("docs", docs), ("queries", queries), ("qrels", qrels)):
            setattr(self, f"has_{name}", lambda rows=rows: rows is not None)
            setattr(self, f"{name}_iter", lambda rows=rows: iter(rows))


DOCS = [Titled("d1", "Cats", "They sleep."), Titled("d2", None, "Dogs bark.")]
ONE, TWO, THREE = Query("q1", "cats"), Query("q2", "dogs"), Query("q3", "birds")
REGISTRY = {
    "pets": Dataset(DOCS, [ONE, TWO, THREE]),
    "pets/train": Dataset(DOCS, [ONE], [Qrel("q1", "d1", 1, "0")]),
    "pets/validation": Dataset(DOCS, [TWO], [Qrel("q2", "d2", 2, "0")]),
    "pets/unlabeled": Dataset(DOCS, [THREE]),
    "pets/train/tiny": Dataset(DOCS, [ONE], [Qrel("q1", "d2", 1, "0")]),
    "abstracts": Dataset([Fields("d1", "text")], [ONE], [Qrel("q1", "d1", 1, "0")]),
    "queries-only": Dataset(None, [ONE]),
    "changed": Dataset(DOCS, [ONE]),
    "changed/test": Dataset(DOCS, [Query("q1", "not cats")], [Qrel("q1", "d1", 1, "0")]),
}


@pytest.fixture
def package(monkeypatch):
    module = types.ModuleType("ir_datasets")
    module.registry = REGISTRY
    module.load = REGISTRY.__getitem__
    module.__version__ = "0"
    monkeypatch.setitem(sys.modules, "ir_datasets", module)
    return module


@pytest.mark.usefixtures("package")
class TestLoading:
    def test_a_parent_gathers_the_splits_one_level_below(self):
        collection = load_collection("ir_datasets:pets")
        assert collection.name == "pets"
        assert collection.documents.texts == ["Cats They sleep.", "Dogs bark."]
        assert {split: qrels.to_dict() for split, qrels in collection.qrels.items()} == {
            "train": {"q1": {"d1": 1}},
            "dev": {"q2": {"d2": 2}},
        }
        assert collection.queries.ids == ["q1", "q2", "q3"]
        assert collection.split("unjudged").ids == ["q3"]

    @pytest.mark.parametrize(
        ("name", "split"), [("pets/train", "train"), ("pets/train/tiny", "train"), ("pets/validation", "dev")]
    )
    def test_an_id_with_judgments_is_that_split_alone(self, name, split):
        collection = load_collection(f"ir_datasets:{name}")
        assert list(collection.qrels) == [split]
        assert collection.name == name.replace("/", "-")

    def test_an_id_that_names_no_split_is_test_and_other_fields_use_the_default_text(self):
        collection = load_collection("ir_datasets:abstracts")
        assert list(collection.qrels) == ["test"]
        assert collection.documents.texts == ["default text"]

    def test_second_load_reads_nothing(self, monkeypatch):
        load_collection("ir_datasets:pets")
        monkeypatch.setattr("retrodistill.data.hubs._ir_documents", None)
        assert len(load_collection("ir_datasets:pets").documents) == 2


class TestRefusals:
    def refused(self, name, cache):
        with pytest.raises(UserError) as caught:
            load_collection(f"ir_datasets:{name}")
        assert left_in(cache) == []
        assert "\n" not in str(caught.value)
        return str(caught.value)

    def test_a_missing_package_says_what_to_install(self, cache, monkeypatch):
        monkeypatch.setitem(sys.modules, "ir_datasets", None)
        assert "pip install 'retrodistill[ir-datasets]'" in self.refused("pets", cache)

    def test_an_unknown_id_names_the_nearest(self, cache, package):
        assert "no id 'pet/train'. Did you mean 'pets/train'?" in self.refused("pet/train", cache)

    def test_an_id_without_documents(self, cache, package):
        assert "ir_datasets:queries-only has no documents" in self.refused("queries-only", cache)

    def test_a_query_with_two_texts(self, cache, package):
        assert "query 2: id 'q1' is already on query 1" in self.refused("changed", cache)

    def test_a_failed_download_is_one_line(self, cache, package, monkeypatch):
        def offline():
            raise ConnectionError("no route\nto host")
            yield

        monkeypatch.setattr(REGISTRY["pets"], "docs_iter", offline)
        message = self.refused("pets", cache)
        assert "cannot read ir_datasets:pets (ConnectionError: no route)" in message
        assert "check the network" in message
