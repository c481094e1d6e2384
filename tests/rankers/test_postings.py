import numpy as np
import pytest
from scipy.sparse import csr_array, random_array

from retrodistill.core.errors import UserError
from retrodistill.rankers import postings as module
from retrodistill.rankers.postings import Postings, check_weights, search_rows


@pytest.fixture
def matrix():
    """301 documents over 53 terms; some documents and some terms are empty."""
    found = random_array((301, 53), density=0.1, format="lil", dtype=np.float32, rng=np.random.default_rng(0))
    found[7], found[:, 11], found[:, 52] = 0, 0, 0
    return csr_array(found.tocsr())


@pytest.fixture
def queries():
    found = random_array((20, 53), density=0.2, format="csr", dtype=np.float32, rng=np.random.default_rng(1))
    return csr_array(found)


def brute(queries, matrix, k):
    products = (queries @ matrix.T).toarray()
    return [
        [row for row in np.lexsort((np.arange(len(scores)), -scores))[:k] if scores[row] > 0] for scores in products
    ]


class TestExact:
    @pytest.mark.parametrize("k", [1, 10, 301])
    def test_it_finds_what_all_products_find(self, matrix, queries, k):
        rows, scores = search_rows(Postings.from_csr(matrix), queries, k)
        products = (queries @ matrix.T).toarray()
        for place, wanted in enumerate(brute(queries, matrix, k)):
            found = rows[place][rows[place] >= 0]
            assert len(found) == len(wanted)
            np.testing.assert_allclose(scores[place][: len(found)], products[place][wanted], rtol=1e-5)
            np.testing.assert_allclose(scores[place][: len(found)], products[place][found], rtol=1e-5)

    @pytest.mark.parametrize("bits", [None, 8])
    def test_few_postings_at_once_give_the_same_scores(self, matrix, queries, bits, monkeypatch):
        postings, query = Postings.from_csr(matrix, bits), queries[[0]]
        whole = postings.scores(query.indices, query.data)
        np.testing.assert_allclose(whole, postings.matrix() @ query.toarray()[0], rtol=1e-5)
        for group in (1, 40):
            monkeypatch.setattr(module, "_GROUP", group)
            np.testing.assert_allclose(postings.scores(query.indices, query.data), whole, rtol=1e-6)

    def test_a_query_without_terms_has_scores_of_0(self, matrix):
        assert not Postings.from_csr(matrix).scores(np.zeros(0, dtype=np.int64), np.zeros(0)).any()

    def test_the_matrix_comes_back_to_the_bit(self, matrix):
        found = Postings.from_csr(matrix).matrix()
        assert found.shape == matrix.shape
        assert (found != matrix).nnz == 0

    def test_no_document_without_a_shared_term(self):
        postings = Postings.from_csr(csr_array(np.array([[1.0, 0], [0, 0], [0, 2]])))
        rows, scores = postings.search(np.array([0]), np.array([3.0]), 3)
        assert (rows.tolist(), scores.tolist()) == ([0], [3.0])

    def test_none_whose_score_falls_to_zero_or_below(self):
        postings = Postings.from_csr(csr_array(np.array([[1.0, 1], [3, 1], [1, 2]])))
        rows, scores = postings.search(np.array([0, 1]), np.array([1.0, -1]), 3)
        assert (rows.tolist(), scores.tolist()) == ([1], [2.0])

    def test_equal_scores_go_by_row(self):
        postings = Postings.from_csr(csr_array(np.ones((9, 2))))
        assert postings.search(np.array([1]), np.array([1.0]), 4)[0].tolist() == [0, 1, 2, 3]

    def test_stored_zeros_are_no_postings(self):
        assert len(Postings.from_csr(csr_array(([0.0, 1.0], ([0, 1], [0, 0])), shape=(2, 1))).rows) == 1


class TestQuantized:
    def test_each_weight_is_within_half_a_step(self, matrix):
        step = matrix.max(axis=0).toarray().ravel() / (2**8 - 1)
        error = np.abs(Postings.from_csr(matrix, 8).matrix().toarray() - matrix.toarray())
        lost = matrix.toarray() < step / 2  # at least one step: a match stays one
        assert (error <= step * np.where(lost, 1, 0.5) * (1 + 1e-4)).all()

    def test_no_match_is_lost(self, matrix):
        found = Postings.from_csr(matrix, 8).matrix()
        np.testing.assert_array_equal(found.toarray() > 0, matrix.toarray() > 0)

    def test_it_ranks_by_the_weights_that_it_kept(self, matrix, queries):
        postings = Postings.from_csr(matrix, 8)
        products = (queries @ postings.matrix().T).toarray()
        rows, scores = search_rows(postings, queries, 10)
        for place in range(len(rows)):
            wanted = -np.sort(-products[place])[:10]
            np.testing.assert_allclose(scores[place], wanted, rtol=1e-5)
            np.testing.assert_allclose(products[place][rows[place]], wanted, rtol=1e-5)

    def test_the_codes_of_what_was_kept_are_the_same_again(self, matrix):
        postings = Postings.from_csr(matrix, 8)
        again = Postings.from_csr(postings.matrix(), 8, postings.scales)
        np.testing.assert_array_equal(again.impacts, postings.impacts)

    def test_bytes_are_what_the_arrays_hold(self, matrix):
        postings = matrix.nnz
        assert Postings.from_csr(matrix).nbytes == postings * (2 + 4) + 54 * 2
        assert Postings.from_csr(matrix, 8).nbytes == postings * (2 + 1) + 54 * 2 + 53 * 4

    def test_more_documents_than_16_bits_name(self):
        tall = csr_array(([1.0, 1.0], ([0, 70_000], [0, 0])), shape=(70_001, 1))
        postings = Postings.from_csr(tall, 8)
        assert postings.search(np.array([0]), np.array([1.0]), 5)[0].tolist() == [0, 70_000]

    def test_nothing_to_index(self):
        nothing = Postings.from_csr(csr_array((3, 5), dtype=np.float32), 8)
        assert nothing.search(np.array([2]), np.array([1.0]), 3)[0].tolist() == []


class TestFiles:
    @pytest.mark.parametrize("memory_map", [True, False])
    @pytest.mark.parametrize("bits", [None, 8])
    def test_they_hold_all(self, matrix, queries, tmp_path, bits, memory_map):
        postings = Postings.from_csr(matrix, bits)
        postings.write(tmp_path)
        read = Postings.read(tmp_path, 301, bits, memory_map=memory_map)
        for wanted, found in zip(search_rows(postings, queries, 20), search_rows(read, queries, 20), strict=True):
            np.testing.assert_array_equal(found, wanted)
        assert read.nbytes == postings.nbytes
        assert sum(file.stat().st_size for file in tmp_path.iterdir()) <= postings.nbytes + 4 * 128  # npy headers


class TestWeights:
    @pytest.mark.parametrize("bad", [np.nan, np.inf, -np.inf, -0.5])
    def test_bad_ones_are_refused_by_name(self, bad):
        matrix = csr_array(np.array([[1.0, 0], [0, bad], [2, 3], [bad, 1]]))
        with pytest.raises(
            UserError, match=r"^here: 2 vectors hold weights that are NaN, infinite or negative \('b', 'd'\)"
        ):
            check_weights(matrix, ["a", "b", "c", "d"], "here")

    def test_negative_ones_where_they_are_welcome(self):
        check_weights(csr_array(np.array([[-1.0]])), ["a"], "here", negative=True)
