"""Equal scores: of the documents that tie for the last places of a search, those of the lowest ids are found."""

import numpy as np
import pytest
from scipy.sparse import csr_array

from retrodistill.data import Collection, Texts
from retrodistill.encoders.multi_vector import Tokens, best_documents
from retrodistill.encoders.space import EmbeddingSpace
from retrodistill.encoders.vectors import exact_search
from retrodistill.exports import records
from retrodistill.indexes import FaissIndex, InvertedIndex
from retrodistill.indexes.factory import build_faiss
from retrodistill.rankers import load_ranker
from retrodistill.rankers.bi_encoder import DenseRanker
from retrodistill.rankers.postings import Postings
from retrodistill.runs.run import Run, top_k

IDS = [f"d{number}" for number in np.random.default_rng(3).permutation(90)]  # as text, d10 comes before d2
LEVELS = np.arange(90) % 3  # of three scores


def wanted(k, levels=LEVELS):
    return [IDS[row] for row in sorted(range(90), key=lambda row: (-levels[row], IDS[row]))[:k]]


def texts():
    return Texts.from_pairs((id_, "") for id_ in IDS)


def ids(rows, scores):
    """The ids of a search's rows in the order of runs."""
    return Run.from_matrix(["q"], IDS, rows, scores).ranked().document_ids.tolist()


class TestTopK:
    @pytest.mark.parametrize("k", [1, 20, 45, 89, 90])
    def test_ties_are_kept_by_their_keys(self, k):
        scores = LEVELS.astype(np.float32)
        found = top_k(scores, k, texts().id_order)
        assert ids(found[None, :], scores[found][None, :]) == wanted(k)

    def test_long_rows_too(self):
        scores = np.random.default_rng(0).integers(0, 50, size=10_000).astype(np.float32)
        keys = np.random.default_rng(1).permutation(10_000)
        best = np.lexsort((keys, -scores))
        for k in (1, 10, 100, 150, 5000):
            assert set(top_k(scores, k, lambda rows: keys[rows])) == set(best[:k].tolist())


class TestExactSearch:
    @pytest.mark.parametrize("k", [1, 20, 45])
    @pytest.mark.parametrize("block", [7, 64, 2**20])
    def test_of_vectors_in_blocks(self, k, block, monkeypatch):
        monkeypatch.setattr("retrodistill.encoders.vectors._READY_BLOCK", block)
        vectors = np.stack([LEVELS, np.ones(90)], axis=1).astype(np.float32)
        assert ids(*exact_search(np.float32([[1, 0]]), vectors, k, texts().id_order)) == wanted(k)

    @pytest.mark.parametrize("k", [1, 20, 45])
    def test_of_token_vectors_in_blocks(self, k):
        tokens = [np.float32([[level, 1.0], [0.0, 1.0]]) for level in LEVELS]
        blocks = [(start, Tokens.of(tokens[start : start + 4], 2)) for start in range(0, 90, 4)]
        query = Tokens.of([np.float32([[1, 0]])], 2)
        assert ids(*best_documents(query, blocks, k, texts().id_order)) == wanted(k)

    @pytest.mark.parametrize("k", [1, 20, 45])
    def test_of_exported_vectors(self, k):
        vectors = np.stack([LEVELS, np.ones(90)], axis=1).astype(np.float32)
        batches = [(IDS[start : start + 8], vectors[start : start + 8]) for start in range(0, 90, 8)]
        answers = records.exact_search(batches, np.float32([[1, 0]]), k)
        assert records.run_of(answers).document_ids.tolist() == wanted(k)

    @pytest.mark.parametrize("k", [1, 20, 45])
    def test_of_postings(self, k):
        postings = Postings.from_csr(csr_array((LEVELS + 1)[:, None].astype(np.float32)))
        rows, scores = postings.search(np.array([0]), np.ones(1), k, texts().id_order)
        assert ids(rows[None, :], scores[None, :]) == wanted(k)


class TestRankers:
    """A shallow search is the beginning of a deep one."""

    @pytest.fixture(scope="class")
    def collection(self):
        words = ["heart artery", "heart", "star heart heart"]
        documents = {id_: words[level] for id_, level in zip(IDS, LEVELS, strict=True)}
        return Collection.from_parts("ties", documents, {"q": "heart", "r": "artery star"}, {})

    @pytest.mark.parametrize("streams", [False, True])
    @pytest.mark.parametrize("name", ["bm25", "dense"])
    def test_at_any_depth(self, collection, tiny_model, name, streams, monkeypatch):
        ranker = load_ranker(name if name == "bm25" else f"dense:{tiny_model}")
        if streams:
            monkeypatch.setattr(DenseRanker, "holds", lambda *_: False)
            monkeypatch.setattr("retrodistill.rankers.bi_encoder.BLOCK", 11)
        search = ranker.stream if streams else ranker.search
        whole = search(collection.queries, collection, 90).ranked()
        for k in (1, 20, 45, 70):
            assert search(collection.queries, collection, k).top(k).to_dict() == whole.top(k).to_dict()


class TestIndexes:
    @pytest.fixture
    def make_space(self):
        return lambda dimension: EmbeddingSpace("of-a-test", dimension, "dot", "dense:elsewhere")

    @pytest.mark.parametrize("k", [1, 20, 45, 90])
    @pytest.mark.parametrize("factory", ["Flat", "IVF2,Flat", "SQ8"])
    def test_faiss(self, k, factory, make_space):
        vectors = np.stack([LEVELS, np.ones(90)], axis=1).astype(np.float32)
        index = FaissIndex(build_faiss(factory, vectors), IDS, make_space(2), factory=factory)
        if factory.startswith("IVF"):
            index.parameters = "nprobe=2"
        assert index.search_vectors(np.float32([[1, 0]]), k).document_ids.tolist() == wanted(k)

    def test_the_order_is_new_after_a_change(self, make_space):
        index = FaissIndex(build_faiss("Flat", np.ones((3, 2), np.float32)), ["c", "d", "e"], make_space(2))
        assert index.search_vectors(np.ones((1, 2)), 1).document_ids.tolist() == ["c"]
        index.add_vectors(["b"], np.ones((1, 2)))
        assert index.search_vectors(np.ones((1, 2)), 1).document_ids.tolist() == ["b"]
        index.remove(["b", "c"])
        assert index.search_vectors(np.ones((1, 2)), 1).document_ids.tolist() == ["d"]

    def test_inverted(self, make_space):
        weights = csr_array((LEVELS + 1)[:, None].astype(np.float32))
        index = InvertedIndex.from_csr(IDS, weights, make_space(1))
        for k in (1, 20, 45):
            assert index.search_vectors(csr_array(np.ones((1, 1))), k).document_ids.tolist() == wanted(k)
