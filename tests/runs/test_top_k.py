import numpy as np
import pytest

from retrodistill.runs.run import top_k


class TestTopK:
    @pytest.mark.parametrize("k", [1, 7, 49, 50, 60])
    def test_it_is_a_stable_sort_cut_off(self, k):
        scores = np.random.default_rng(0).integers(0, 4, size=(3, 50)).astype(np.float32)
        scores[1, 10:] = -np.inf
        wanted = np.argsort(-scores, axis=1, kind="stable")[:, :k]
        np.testing.assert_array_equal(top_k(scores, k), wanted)
        np.testing.assert_array_equal(top_k(scores[2], k), wanted[2])

    @pytest.mark.parametrize("k", [1, 10, 100, 150, 9999])
    @pytest.mark.parametrize("values", [3, 50, 10**6])  # many ties, some, hardly any
    def test_it_is_that_for_long_rows(self, k, values):
        scores = np.random.default_rng(values).integers(0, values, size=10_000).astype(np.float32)
        scores[:40] = -np.inf
        np.testing.assert_array_equal(top_k(scores, k), np.argsort(-scores, kind="stable")[:k])

    def test_no_rows_keep_their_width(self):
        assert top_k(np.zeros((0, 5)), 3).shape == (0, 3)
