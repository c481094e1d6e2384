from itertools import product

import numpy as np
import pytest

from retrodistill.errors import UserError
from retrodistill.measures import compare_paired, significance


def exact_p(differences):
    observed = abs(np.mean(differences))
    means = [abs(np.mean(np.multiply(signs, differences))) for signs in product((-1, 1), repeat=len(differences))]
    return np.mean(np.array(means) >= observed - 1e-12)


def values(seed, size, shift=0.0):
    generator = np.random.default_rng(seed)
    return generator.random(size) + shift, generator.random(size)


class TestComparePaired:
    @pytest.mark.parametrize("seed", range(5))
    @pytest.mark.parametrize("shift", [0.0, 0.3])
    def test_p_is_that_of_all_sign_flips(self, seed, shift):
        a, b = values(seed, 8, shift)
        # 10,000 flips: a deviation of at most sqrt(.25 / 10000) = .005
        assert compare_paired(a, b)["p"] == pytest.approx(exact_p(a - b), abs=0.02)

    @pytest.mark.parametrize("seed", range(3))
    def test_p_is_scipys(self, seed):
        from scipy.stats import permutation_test

        a, b = values(seed + 10, 9, 0.2)
        wanted = permutation_test(
            (a, b), lambda x, y, axis: np.mean(x - y, axis=axis), permutation_type="samples", vectorized=True
        ).pvalue
        assert compare_paired(a, b)["p"] == pytest.approx(wanted, abs=0.02)

    @pytest.mark.parametrize("seed", range(5))
    def test_the_interval_contains_the_difference_and_is_the_bootstraps(self, seed):
        from scipy.stats import bootstrap

        a, b = values(seed, 200, 0.1)
        found = compare_paired(a, b)
        low, high = found["interval"]
        assert found["difference"] == pytest.approx(np.mean(a - b))
        assert low < found["difference"] < high
        theirs = bootstrap(((a - b),), np.mean, method="percentile", n_resamples=2000, rng=0).confidence_interval
        assert (low, high) == pytest.approx(tuple(theirs), abs=0.01)

    def test_equal_systems_do_not_differ(self):
        a, _ = values(0, 30)
        assert compare_paired(a, a) == {"difference": 0.0, "interval": [0.0, 0.0], "p": 1.0}

    def test_a_clear_difference_has_the_smallest_p_and_its_sign(self):
        a, b = values(0, 100)
        found, turned = compare_paired(a + 2, b), compare_paired(b, a + 2)
        assert found["p"] == turned["p"] == pytest.approx(1 / 10_001)
        assert found["interval"][0] > 0 > turned["interval"][1]
        assert found["difference"] == -turned["difference"]

    def test_the_seed_decides(self):
        a, b = values(1, 50, 0.05)
        assert compare_paired(a, b, seed=3) == compare_paired(a, b, seed=3)
        assert compare_paired(a, b, seed=3) != compare_paired(a, b, seed=4)

    def test_many_queries_are_resampled_in_blocks(self, monkeypatch):
        a, b = values(2, 40, 0.05)
        whole = compare_paired(a, b)
        monkeypatch.setattr(significance, "_BLOCK_VALUES", 40 * 300)
        blocks = compare_paired(a, b)
        assert blocks["p"] == pytest.approx(whole["p"], abs=0.03)
        assert blocks["interval"] == pytest.approx(whole["interval"], abs=0.01)

    @pytest.mark.parametrize(
        ("a", "b", "message"),
        [
            ([1.0], [1.0, 2.0], "1 and 2 queries cannot be paired; compare systems on the same queries"),
            ([], [], "0 and 0 queries cannot be paired"),
            ([np.nan], [1.0], "not finite; a query without results counts 0"),
        ],
    )
    def test_what_cannot_be_paired_is_refused(self, a, b, message):
        with pytest.raises(UserError, match=message):
            compare_paired(np.array(a), np.array(b))
