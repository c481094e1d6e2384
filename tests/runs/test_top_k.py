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

    def test_no_rows_keep_their_width(self):
        assert top_k(np.zeros((0, 5)), 3).shape == (0, 3)
