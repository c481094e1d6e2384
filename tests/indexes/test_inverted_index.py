import json
import shutil
import subprocess
import sys

import numpy as np
import pydantic
import pytest
from scipy.sparse import csr_array
from sparse_models import inference_free, saved, splade

from retrodistill.core.errors import UserError
from retrodistill.core.json_files import read_json, write_json
from retrodistill.data import Texts
from retrodistill.encoders.any_encoder import load_encoder
from retrodistill.encoders.space import EmbeddingSpace
from retrodistill.indexes import Index, build_index
from retrodistill.indexes.inverted import InvertedIndex, InvertedSettings, keep_largest
from retrodistill.rankers import Ranker
from retrodistill.rankers.bi_encoder import SparseRanker

EXACT = InvertedSettings(bits=None)
SPACE = EmbeddingSpace("of-a-test", 4, "dot", "sparse:elsewhere")
ROWS = csr_array(np.array([[1.0, 2, 0, 0], [0, 0, 0, 0], [0, 1, 3, 0], [5, 0, 0, 1]]))


@pytest.fixture(scope="module")
def free_name(tmp_path_factory):
    folder = tmp_path_factory.mktemp("free")
    return saved(inference_free(folder / "bert"), folder / "model")


@pytest.fixture(scope="module")
def splade_name(tmp_path_factory):
    folder = tmp_path_factory.mktemp("splade")
    return saved(splade(folder / "bert"), folder / "model")


@pytest.fixture
def index(tiny, free_name):
    return build_index(tiny, free_name, settings=EXACT)


@pytest.fixture
def small():
    return InvertedIndex.from_csr(["a", "b", "c", "d"], ROWS, SPACE, settings=EXACT)


def query(*weights):
    return csr_array(np.array([weights], dtype=np.float32))


class TestSearching:
    @pytest.mark.parametrize("name", ["free_name", "splade_name"])
    def test_it_ranks_by_inner_product(self, tiny, name, request):
        encoder = load_encoder(request.getfixturevalue(name))
        run = build_index(tiny, encoder, settings=EXACT).search(tiny.split("test"), k=60)
        vectors = encoder.encode(tiny.documents.texts, "document")
        products = (encoder.encode(tiny.split("test").texts, "query") @ vectors.T).toarray()
        assert len(run) == (products > 0).sum()
        for row, (result, documents, scores) in enumerate(run):
            assert result == tiny.split("test").ids[row]
            np.testing.assert_allclose(scores, -np.sort(-products[row])[: len(scores)], rtol=1e-5)
            np.testing.assert_allclose(products[row][tiny.documents.positions(documents)], scores, rtol=1e-5)

    def test_it_is_an_index(self, index):
        assert isinstance(index, Index)
        assert isinstance(index, Ranker)

    def test_retrieving_is_searching_with_k_cut_to_the_corpus(self, tiny, index):
        expected = index.search(tiny.split("test"), k=60)
        assert index.search(tiny.split("test"), tiny, 1000).to_dict() == expected.to_dict()

    def test_it_answers_as_its_responder_does(self, tiny, index):
        rows, scores = index.query_fn(tiny, 3)("star planet")
        run = index.search("star planet", k=3)
        assert [index.ids[row] for row in rows[0]] == list(run.document_ids)
        np.testing.assert_allclose(scores[0], run.scores)

    def test_documents_without_terms_count_and_are_never_found(self, small):
        assert len(small) == 4
        assert sorted(small.search_vectors(query(1, 1, 1, 1), 4).document_ids) == ["a", "c", "d"]

    def test_queries_without_terms_find_nothing(self, small):
        run = small.search_vectors(csr_array(np.array([[0.0, 0, 0, 0], [0, 1, 0, 0]])), 4, ["none", "some"])
        assert run.query_ids == ["some"]

    def test_fewer_matches_than_k(self, small):
        assert small.search_vectors(query(0, 0, 0, 2), 4).to_dict() == {"0": {"d": 2.0}}

    def test_ties_go_by_id(self):
        index = InvertedIndex.from_csr(["b", "a", "c"], csr_array(np.ones((3, 4))), SPACE)
        assert list(index.search_vectors(query(1, 0, 0, 0), 3).document_ids) == ["a", "b", "c"]

    @pytest.mark.parametrize("bits", [8])
    def test_quantized_impacts_keep_the_ranking(self, tiny, free_name, index, bits):
        rough = build_index(tiny, free_name, settings=InvertedSettings(bits=bits))
        expected = index.search(tiny.split("test"), k=10)
        result = rough.search(tiny.split("test"), k=10)
        assert [rows[1][0] for rows in result] == [rows[1][0] for rows in expected]
        np.testing.assert_allclose(result.scores, expected.scores, rtol=4 / 2**bits)
        assert rough.bytes_per_document() < index.bytes_per_document()

    def test_pruned_documents_keep_their_heaviest_terms(self):
        index = InvertedIndex.from_csr(["a", "b", "c", "d"], ROWS, SPACE, settings=InvertedSettings(prune=1))
        assert index.search_vectors(query(1, 0, 0, 0), 4).to_dict() == {"0": {"d": 5.0}}
        cut = keep_largest(csr_array(np.array([[1.0, 3, 3, 2], [0, 0, 0, 0], [0, 4, 0, 0]])), 2)
        np.testing.assert_array_equal(cut.toarray(), [[0, 3, 3, 0], [0, 0, 0, 0], [0, 4, 0, 0]])

    def test_the_plain_retriever_finds_the_same(self, tiny, free_name, index):
        plain = SparseRanker(load_encoder(free_name))
        queries = tiny.split("test")
        assert plain.search(queries, tiny, 10).ranked().to_dict() == index.search(queries, tiny, 10).to_dict()
        assert plain.bytes_per_document(tiny) == index.bytes_per_document()
        rows, _ = plain.query_fn(tiny, 5)("star planet")
        assert [index.ids[row] for row in rows[0]] == list(index.search("star planet", k=5).document_ids)


class TestChanging:
    def test_adding_is_as_building_at_once(self, tiny, free_name, index):
        first = tiny.documents.select(tiny.documents.ids[:40])
        rest = tiny.documents.select(tiny.documents.ids[40:])
        encoder = load_encoder(free_name)
        parts = InvertedIndex.from_csr(first.ids, encoder.encode(first.texts, "document"), index.space, encoder, EXACT)
        parts.add(rest)
        assert parts.ids == index.ids
        assert (abs(parts.postings.matrix() - index.postings.matrix()) > 1e-5).nnz == 0

    @pytest.mark.parametrize("bits", [8])
    def test_codes_that_are_there_stay(self, bits):
        index = InvertedIndex.from_csr(["a", "b", "c", "d"], ROWS, SPACE, settings=InvertedSettings(bits=bits))
        before = index.postings.matrix().toarray()
        index.add_vectors(["e"], query(0.3, 0.1, 2, 0))
        np.testing.assert_array_equal(index.postings.matrix().toarray()[:4], before)
        index.remove(["d", "b"])
        np.testing.assert_array_equal(index.postings.matrix().toarray()[:2], before[[0, 2]])

    def test_a_larger_weight_widens_the_step_of_its_term_only(self):
        index = InvertedIndex.from_csr(["a", "b", "c", "d"], ROWS, SPACE)
        index.add_vectors(["e"], query(500, 0, 0, 0))
        result = index.postings.matrix().toarray()
        np.testing.assert_allclose(result[:, 0], [1.96, 0, 0, 5.88, 500], rtol=0.01)
        np.testing.assert_allclose(result[:4, 1:], ROWS.toarray()[:, 1:], rtol=1e-2)

    def test_what_is_removed_is_not_found(self, small):
        small.remove(["d"])
        assert small.ids == ["a", "b", "c"]
        assert small.search_vectors(query(1, 0, 0, 1), 3).to_dict() == {"0": {"a": 1.0}}

    def test_all_can_go_and_others_come(self, small):
        small.remove(["a", "b", "c", "d"])
        assert (len(small), small.bytes_per_document()) == (0, None)
        small.add_vectors(["x"], query(0, 0, 1, 0))
        assert small.search_vectors(query(0, 0, 2, 0), 1).to_dict() == {"0": {"x": 2.0}}

    def test_the_encoder_is_found_by_name_after_loading(self, index, free_name, tmp_path):
        index.save(tmp_path / "index")
        loaded = InvertedIndex.load(tmp_path / "index")
        loaded.add(Texts.from_pairs([("new", "violin opera")]))
        assert "new" in loaded.search("violin opera", k=61).document_ids


class TestFolders:
    @pytest.mark.parametrize("memory_map", [True, False])
    @pytest.mark.parametrize("bits", [None, 8])
    def test_it_comes_back_as_it_was(self, tiny, free_name, tmp_path, bits, memory_map):
        index = build_index(tiny, free_name, settings=InvertedSettings(bits=bits, prune=30), name="mine")
        index.save(tmp_path / "index")
        loaded = InvertedIndex.load(tmp_path / "index", memory_map=memory_map)
        assert loaded.search(tiny.split("test"), k=20).to_dict() == index.search(tiny.split("test"), k=20).to_dict()
        assert (loaded.settings, loaded.name, loaded.space) == (index.settings, "mine", index.space)
        loaded.save(tmp_path / "again")
        assert InvertedIndex.load(tmp_path / "again").search("star", k=1).name == "mine"

    def test_inference_free_queries_are_answered_without_torch(self, tiny, index, free_name, tmp_path):
        index.save(tmp_path / "index")
        elsewhere = shutil.move(tmp_path / "index", tmp_path / "moved")
        code = (
            "import sys, json; from retrodistill.indexes.inverted import InvertedIndex\n"
            "index = InvertedIndex.load(sys.argv[1])\n"
            "print(json.dumps(index.search('star planet', k=3).to_dict()))\n"
            "print(*sorted({'torch', 'transformers', 'sentence_transformers', 'faiss'} & set(sys.modules)))"
        )
        done = subprocess.run([sys.executable, "-c", code, elsewhere], capture_output=True, text=True, check=True)
        result, loaded = done.stdout.split("\n")[:2]
        assert loaded == ""
        assert json.loads(result) == index.search("star planet", k=3).to_dict()

    def test_a_model_that_was_never_saved_is_needed_for_adding_only(self, tiny, tmp_path):
        index = build_index(tiny, inference_free(tmp_path / "bert"))
        index.save(tmp_path / "index")
        assert len(InvertedIndex.load(tmp_path / "index").search("star", k=3)) == 3

    def test_a_query_model_is_loaded_by_name_or_given(self, tiny, splade_name, tmp_path):
        index = build_index(tiny, splade_name)
        index.save(tmp_path / "index")
        assert not (tmp_path / "index/query-weights.npy").exists()
        for queries in (None, splade_name, load_encoder(splade_name).model):
            result = InvertedIndex.load(tmp_path / "index", queries).search("star planet", k=3)
            assert result.to_dict() == index.search("star planet", k=3).to_dict()

    @pytest.mark.parametrize("file", ["postings-impacts.npy", "postings-bounds.npy", "query-weights.npy"])
    @pytest.mark.parametrize("damage", ["cut", "altered", "missing"])
    def test_damaged_files(self, index, tmp_path, file, damage):
        index.save(tmp_path / "index")
        path = tmp_path / "index" / file
        content = path.read_bytes()
        path.write_bytes(content[:-3] if damage == "cut" else content[:-1] + bytes([content[-1] ^ 1]))
        if damage == "missing":
            path.unlink()
        with pytest.raises(UserError, match=rf"{file} is damaged: .*; build the index"):
            InvertedIndex.load(tmp_path / "index")

    def test_settings_of_another_version(self, index, tmp_path):
        index.save(tmp_path / "index")
        manifest = tmp_path / "index/manifest.json"
        content = read_json(manifest)
        write_json(manifest, {**content, "settings": {**content["settings"], "bits": 5}})
        with pytest.raises(UserError, match=r"index .*: bits.*: Input should be .*; build the index again\.$"):
            InvertedIndex.load(tmp_path / "index")

    def test_an_index_of_another_kind(self, tiny, tiny_model, tmp_path):
        build_index(tiny, f"dense:{tiny_model}").save(tmp_path / "index")
        with pytest.raises(UserError, match=r"holds an index of kind faiss, not inverted"):
            InvertedIndex.load(tmp_path / "index")


class TestRefusals:
    @pytest.mark.parametrize("k", [0, 61, -3])
    def test_k_outside_the_corpus(self, index, k):
        with pytest.raises(UserError, match=rf"^k={k}: the corpus has 60 documents; choose k from 1 to 60.$"):
            index.search("star", k=k)

    @pytest.mark.parametrize("queries", ["", ["star", "\t"]])
    def test_an_empty_query(self, index, queries):
        with pytest.raises(UserError, match=r"is empty; a query needs at least one word.$"):
            index.search(queries, k=3)

    def test_no_query_encoder(self, small):
        with pytest.raises(UserError, match=r"^this index has no query encoder; give one, or search by vectors\.$"):
            small.search("star", k=1)

    def test_queries_of_another_vocabulary_by_size(self, small):
        with pytest.raises(UserError, match=r"^queries over 9 terms, the index has 4; use the encoder of its"):
            small.search_vectors(csr_array((1, 9)), 1)

    def test_queries_of_another_space(self, tiny, free_name, tmp_path):
        other = inference_free(tmp_path / "bert", activation="log1p_relu")
        with pytest.raises(UserError, match=r"do not belong among documents by .*; use the encoder that made"):
            build_index(tiny, free_name, other)

    def test_vectors_that_are_not_sparse(self, small):
        with pytest.raises(UserError, match=r"^queries of type ndarray; give a scipy sparse array"):
            small.search_vectors(np.ones((1, 4)), 1)

    @pytest.mark.parametrize("bad", [np.nan, np.inf, -1.0])
    def test_bad_weights_of_documents_are_named(self, small, bad):
        added = csr_array(np.array([[0.0, 1, 0, 0], [1, 0, bad, 0]]))
        with pytest.raises(UserError, match=r"^documents: 1 vectors hold weights .* \('y'\); encode these again"):
            small.add_vectors(["x", "y"], added)
        assert small.ids == ["a", "b", "c", "d"]

    def test_bad_weights_of_queries_are_named(self, small):
        with pytest.raises(UserError, match=r"^queries: 1 vectors hold weights that are NaN or infinite \('q'\)"):
            small.search_vectors(query(0, np.nan, 0, 0), 1, ["q"])

    @pytest.mark.parametrize("ids", [["a"], ["x", "x"]])
    def test_ids_that_are_there_or_twice(self, small, ids):
        with pytest.raises(UserError, match=r"in the index already"):
            small.add_vectors(ids, csr_array(np.ones((len(ids), 4))))

    def test_ids_and_vectors_of_different_number(self, small):
        with pytest.raises(UserError, match=r"^2 ids for 1 vectors; give one id per vector\.$"):
            small.add_vectors(["x", "y"], query(1, 1, 1, 1))

    def test_removing_what_is_not_there(self, small):
        with pytest.raises(UserError, match=r"^cannot remove 'x': not in the index\.$"):
            small.remove(["a", "x"])

    def test_files_that_do_not_belong_together(self, small):
        with pytest.raises(UserError, match=r"4 documents of 4 dimensions with 1 ids"):
            InvertedIndex(small.postings, ["a"], SPACE)

    @pytest.mark.parametrize(
        ("wrong", "words"),
        [
            ({"bits": 5}, "bits"),
            ({"bits": 4}, "dropped; use 8"),
            ({"bits": 16}, "dropped; use 8"),
            ({"bits": 8, "backend": "seismic"}, "bits is not a setting of the backend 'seismic'"),
            ({"query_cut": 3}, "query_cut is not a setting of the backend 'exact'"),
            ({"prune": 0}, "greater than or equal to 1"),
            ({"backend": "lucene"}, "'exact' or 'seismic'"),
        ],
    )
    def test_wrong_settings(self, wrong, words):
        with pytest.raises(pydantic.ValidationError, match=words):
            InvertedSettings(**wrong)
