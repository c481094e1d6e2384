"""Indexes of passages of every kind: documents are found, added and removed, and folders keep them."""

import json

import numpy as np
import pytest
from sparse_models import inference_free, saved

from retrodistill.core.errors import UserError
from retrodistill.data import Collection, Texts, load_collection
from retrodistill.encoders.multi_vector import token_encoder
from retrodistill.evaluation.check import check
from retrodistill.indexes import build_index, load_index

RULE = "12,4"
KINDS = ["dense", "sparse", "multi-vector"]


@pytest.fixture(scope="module")
def models(tmp_path_factory, tiny_static, tiny_model):
    folder = tmp_path_factory.mktemp("models")
    token_encoder(tiny_model).save_pretrained(str(folder / "tokens"))
    return {
        "dense": f"static:{tiny_static}",
        "sparse": saved(inference_free(folder / "bert"), folder / "sparse"),
        "multi-vector": f"multi-vector:{folder / 'tokens'}",
    }


@pytest.fixture(scope="module")
def cut_up(tiny_folder, tmp_path_factory):
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("RETRODISTILL_CACHE", str(tmp_path_factory.mktemp("cache")))
        return load_collection(tiny_folder, passages=RULE)


@pytest.fixture(params=KINDS)
def index(request, cut_up, models):
    return build_index(cut_up, models[request.param])


def by_hand(index, collection, query: str, k: int) -> dict[str, float]:
    """The best k documents from the scores of all passages."""
    passages = index.search({"q": query}, collection, len(index)).to_dict()["q"]
    best: dict[str, float] = {}
    for passage, score in passages.items():
        document = passage.rpartition("#")[0]
        best[document] = max(score, best.get(document, -np.inf))
    return dict(sorted(best.items(), key=lambda item: (-item[1], item[0]))[:k])


class TestSearching:
    def test_documents_are_found_by_their_best_passage(self, index, cut_up):
        found = index.search({"q": "heart and star"}, k=20).to_dict()["q"]
        assert found == pytest.approx(by_hand(index, cut_up, "heart and star", 20), abs=1e-5)

    def test_all_documents_are_found_once(self, index, cut_up):
        assert index.size == 60 < len(index) == len(cut_up.documents)
        documents = index.search("the heart of a star", k=60).document_ids.tolist()
        assert len(documents) == len(set(documents))
        assert set(documents) <= set(cut_up.whole.documents.ids)

    def test_more_than_there_are_is_refused(self, index):
        with pytest.raises(UserError, match="61"):
            index.search("heart", k=61)

    def test_a_run_says_which_passage_was_best(self, index, cut_up):
        table = index.search("heart", k=5).table
        passages = table["passage_id"].to_pylist()
        assert [passage.rpartition("#")[0] for passage in passages] == table["document_id"].to_pylist()
        assert set(passages) <= set(cut_up.documents.ids)

    def test_the_mean_of_the_best(self, index, cut_up):
        k = index.size
        run = index.search({"q": "heart"}, k=k, aggregate="mean@2").to_dict()["q"]
        best = by_hand(index, cut_up, "heart", k)
        assert run.keys() == best.keys()
        assert all(run[document] <= best[document] + 1e-6 for document in run)
        assert run != best

    def test_a_collection_of_documents_gets_documents_and_one_of_passages_passages(self, index, cut_up):
        queries = cut_up.split("test")
        assert set(index.search(queries, cut_up.whole, 5).document_ids) <= set(cut_up.whole.documents.ids)
        assert set(index.search(queries, cut_up, 5).document_ids) <= set(cut_up.documents.ids)

    def test_an_index_of_documents_proposes_all_of_their_passages(self, cut_up, models):
        whole = build_index(cut_up.whole, models["dense"])
        found = whole.search(Texts.from_pairs([("q", "heart")]), cut_up, 2).to_dict()["q"]
        documents = whole.search({"q": "heart"}, k=2).to_dict()["q"]
        own = [id_ for id_ in cut_up.documents.ids if id_.rpartition("#")[0] in documents]
        assert sorted(found) == sorted(own)


class TestChanging:
    def test_what_is_added_is_cut_by_the_same_rule(self, index, cut_up):
        text = "A rocket shows the moon. " * 12
        before = len(index)
        index.add(Texts.from_pairs([("new", text), ("short", "violin")]))
        assert index.ids[before:] == [*(f"new#{number}" for number in range(1, len(index) - before)), "short#1"]
        assert len(index) > before + 2
        assert index.document_ids[60:] == ["new", "short"]

    def test_a_collection_is_added_with_its_titles(self, cut_up, models):
        index = build_index(cut_up, models["dense"])
        added = Collection.from_parts("new", {"new": ("violin", "rocket. " * 30)}, {}, {})
        index.add(added)
        again = build_index(load_collection(added, passages=RULE), models["dense"])
        rows = index.vector_reader()(len(index) - len(again), len(index))
        np.testing.assert_allclose(rows, again.vector_reader()(0, len(again)), atol=1e-6)
        assert index.search("violin rocket", k=1).document_ids.tolist() == ["new"]

    def test_documents_are_removed_with_all_passages(self, index):
        passages = np.diff(index.parents.bounds)[0]
        before = len(index)
        index.remove(["d0"])
        assert (len(index), index.size) == (before - passages, 59)
        assert "d0" not in index.search("heart artery", k=59).document_ids
        assert not any(passage.startswith("d0#") for passage in index.ids)

    def test_a_passage_is_not_removed_alone(self, index):
        with pytest.raises(UserError, match="d0#1"):
            index.remove(["d0#1"])

    def test_a_document_is_not_added_twice(self, index):
        with pytest.raises(UserError, match="d0"):
            index.add(Texts.from_pairs([("d0", "again")]))

    def test_vectors_of_passages_come_with_their_documents(self, cut_up, models):
        index = build_index(cut_up, models["dense"])
        index.add_vectors(["x", "x", "y"], np.eye(3, 32, dtype=np.float32))
        assert index.ids[-3:] == ["x#1", "x#2", "y#1"]
        with pytest.raises(UserError, match="z"):
            index.add_vectors(["z", "w", "z"], np.eye(3, 32, dtype=np.float32))


class TestOnDisk:
    def test_a_loaded_index_finds_the_same(self, index, tmp_path):
        index.remove(["d3"])
        index.save(tmp_path / "index")
        loaded = load_index(tmp_path / "index")
        assert loaded.parents.ids.to_pylist() == index.parents.ids.to_pylist()
        assert loaded.rule == index.rule
        assert loaded.search({"q": "heart"}, k=9).to_dict() == index.search({"q": "heart"}, k=9).to_dict()

    def test_the_manifest_has_documents_and_the_rule(self, cut_up, models, tmp_path):
        index = build_index(cut_up, models["dense"])
        index.save(tmp_path / "index")
        about = json.loads((tmp_path / "index" / "manifest.json").read_text())["about"]
        assert about["documents"] == 60
        assert about["passages"] == {"words": 12, "overlap": 4, "aggregate": "max", "bm25": "documents"}

    def test_an_index_of_documents_has_no_passages(self, tiny, models):
        index = build_index(tiny, models["dense"])
        assert index.parents is None
        assert "passage_id" not in index.search("heart").table.column_names
        with pytest.raises(UserError, match="mean@2"):
            index.search("heart", aggregate="mean@2")


class TestChecking:
    def test_it_is_checked_with_the_collection_of_documents(self, tiny, cut_up, models):
        result = check(build_index(cut_up, models["dense"]), tiny, latency_queries=2)
        assert result.shared[10] == 1.0
