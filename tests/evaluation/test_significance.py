from itertools import product

import numpy as np
import pytest

from retrodistill.core.errors import UserError
from retrodistill.evaluation import compare_paired, holm, outcomes, significance, smallest_difference


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


class TestHolm:
    def test_worked_by_hand(self):
        # ascending .01, .02, .03, .04: times 4, 3, 2, 1 is .04, .06, .06, .04, and none may fall below the one before
        assert holm([0.04, 0.01, 0.03, 0.02]) == pytest.approx([0.06, 0.04, 0.06, 0.06])

    def test_one_comparison_stays_and_none_passes_1(self):
        assert holm([0.3]) == [0.3]
        assert holm([0.9, 0.8, 0.7]) == [1.0, 1.0, 1.0]
        assert holm([]) == []

    @pytest.mark.parametrize("seed", range(5))
    def test_rejects_what_the_step_down_procedure_rejects(self, seed):
        p = np.random.default_rng(seed).random(7) ** 4
        corrected = holm(p)
        for level in (0.01, 0.05, 0.2):
            rejected = set()
            for step, at in enumerate(np.argsort(p)):
                if p[at] > level / (len(p) - step):
                    break
                rejected.add(int(at))
            assert {at for at, value in enumerate(corrected) if value <= level} == rejected

    @pytest.mark.parametrize("bad", [-0.1, 1.1, np.nan])
    def test_what_is_no_probability_is_refused(self, bad):
        with pytest.raises(UserError, match="each lies between 0 and 1"):
            holm([0.5, bad])


class TestSmallestDifference:
    def test_is_2_80_standard_errors(self):
        differences = np.random.default_rng(0).normal(size=400)
        assert smallest_difference(differences) == pytest.approx(
            (1.959964 + 0.841621) * differences.std(ddof=1) / 20, rel=1e-6
        )

    def test_such_a_difference_is_found_four_times_in_five(self):
        from scipy.stats import ttest_1samp

        generator, found = np.random.default_rng(1), []
        shift = smallest_difference(generator.normal(size=100_000)) * np.sqrt(100_000 / 200)
        for _ in range(1500):
            found.append(ttest_1samp(generator.normal(shift, size=200), 0).pvalue < 0.05)
        assert np.mean(found) == pytest.approx(0.8, abs=0.035)  # three standard errors

    def test_is_not_defined_for_one_query_and_0_where_nothing_varies(self):
        assert smallest_difference(np.array([0.3])) is None
        assert smallest_difference(np.zeros(10)) == 0


class TestOutcomes:
    def test_wins_ties_and_losses_of_the_first(self):
        a, b = np.array([1.0, 0.5, 0.2, 0.0, 0.3]), np.array([0.5, 0.5, 0.2 + 1e-12, 0.4, 0.1])
        assert outcomes(a, b) == {"wins": 2, "ties": 2, "losses": 1}
        assert outcomes(b, a) == {"wins": 1, "ties": 2, "losses": 2}
