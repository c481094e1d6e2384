"""Exact search in blocks, against a sort of all scores."""

import numpy as np
import pytest

from retrodistill.core.faiss import faiss
from retrodistill.encoders import vectors
from retrodistill.encoders.vectors import exact_search


def brute_force(queries, documents, k):
    scores = queries @ documents.T
    rows = np.argsort(-scores, axis=1, kind="stable")[:, :k]
    return rows, np.take_along_axis(scores, rows, axis=1)


@pytest.fixture(params=["products", "scans"])
def way(request, monkeypatch):
    """FAISS in blocks of 96 documents, by matrix products or by scanning, for any number of queries."""
    monkeypatch.setattr(vectors, "_BLOCK", 96)
    monkeypatch.setattr(vectors, "_READY_BLOCK", 96)
    threshold = 1 if request.param == "products" else 10**9
    monkeypatch.setattr(faiss.cvar, "distance_compute_blas_threshold", threshold)


@pytest.mark.usefixtures("way")
class TestExactSearch:
    @pytest.mark.parametrize("documents", [1, 7, 96, 97, 500])
    @pytest.mark.parametrize("k", [1, 3, 50, 1000])
    def test_it_is_a_sort_of_all_scores(self, documents, k):
        generator = np.random.default_rng(documents)
        queries, corpus = (generator.standard_normal((n, 8), dtype=np.float32) for n in (13, documents))
        rows, scores = exact_search(queries, corpus, k)
        expected, values = brute_force(queries, corpus, k)
        assert (rows.dtype, scores.dtype, rows.shape) == (np.int64, np.float32, (13, min(k, documents)))
        assert (rows == expected).mean() > 0.99  # rounding may exchange two neighbors
        np.testing.assert_allclose(scores, values, rtol=1e-5, atol=1e-5)

    def test_equal_documents_are_in_the_order_of_their_rows(self):
        corpus = np.zeros((300, 4), dtype=np.float32)
        corpus[[250, 20, 130]] = [1, 0, 0, 0]
        rows, scores = exact_search(np.eye(1, 4, dtype=np.float32), corpus, 3)
        assert rows.tolist() == [[20, 130, 250]]
        assert scores.tolist() == [[1, 1, 1]]

    @pytest.mark.parametrize("k", [1, 3, 40, 120])
    def test_equal_scores_at_the_last_place_are_cut_by_row(self, k):
        # Whole numbers: products are exact, and many are equal.
        generator = np.random.default_rng(k)
        queries, corpus = (generator.integers(-2, 3, (n, 6)).astype(np.float32) for n in (20, 400))
        rows, scores = exact_search(queries, corpus, k)
        expected, values = brute_force(queries, corpus, k)
        np.testing.assert_array_equal(rows, expected)
        np.testing.assert_array_equal(scores, values)

    def test_no_queries_and_no_documents(self):
        nothing, some = np.zeros((0, 4), dtype=np.float32), np.ones((3, 4), dtype=np.float32)
        assert exact_search(nothing, some, 2)[0].shape == (0, 2)
        assert exact_search(some, nothing, 2)[0].shape == (3, 0)

    def test_half_precision_and_memory_maps_are_read(self, tmp_path):
        corpus = np.random.default_rng(0).standard_normal((200, 8)).astype(np.float16)
        np.save(tmp_path / "corpus.npy", corpus)
        mapped = np.load(tmp_path / "corpus.npy", mmap_mode="r")
        queries = np.random.default_rng(1).standard_normal((3, 8), dtype=np.float32)
        assert (exact_search(queries, mapped, 5)[0] == brute_force(queries, corpus.astype(np.float32), 5)[0]).all()
