import numpy as np
import pytest
from random_runs import random_scores
from scipy.special import softmax
from scipy.stats import entropy

from retrodistill.core.errors import UserError
from retrodistill.runs import Run
from retrodistill.runs.calibration import (
    CALIBRATIONS,
    Entropy,
    ZScore,
    fit_calibration,
    list_moments,
)

RUN = Run.from_dict(random_scores(3, depth=(2, 12)))


class TestFitted:
    @pytest.mark.parametrize("name", list(CALIBRATIONS))
    @pytest.mark.parametrize("scale", [1e-6, 1.0, 1e4])
    def test_keeps_the_order_of_every_list_and_forgets_the_scale(self, name, scale):
        run = RUN.with_scores(RUN.scores * scale + 3 * scale)
        calibrated = fit_calibration(name, run).apply(run)
        assert np.allclose(calibrated.scores, fit_calibration(name, RUN).apply(RUN).scores)
        for (_, _, before), (_, _, after) in zip(run, calibrated, strict=True):
            assert (
                np.sign(np.subtract.outer(before, before)) == np.sign(np.round(np.subtract.outer(after, after), 9))
            ).all()

    def test_zscore_applies_what_was_fitted_on_another_run(self):
        fitted = fit_calibration("zscore", Run.from_dict({"q": {"a": 0.0, "b": 10.0}}))
        assert fitted == ZScore(5.0, 5.0)
        assert fitted.apply(Run.from_dict({"p": {"z": 20.0}})).to_dict() == {"p": {"z": 3.0}}


class TestEntropy:
    def test_lists_have_half_of_the_greatest_entropy_on_average(self):
        fitted = fit_calibration("entropy", RUN)
        shares = []
        for _, _, scores in fitted.apply(RUN):
            if np.ptp(scores) > 0:
                least = np.log((scores == scores.max()).sum())
                shares.append((entropy(softmax(scores)) - least) / (np.log(len(scores)) - least))
            assert scores.mean() == pytest.approx(0, abs=1e-6)
        assert np.mean(shares) == pytest.approx(0.5, abs=1e-6)

    def test_a_list_of_two_by_hand(self):
        # Shares p and 1 - p have half a bit of entropy at p = .110028: log(p / (1 - p)) = -2.0905.
        fitted = fit_calibration("entropy", Run.from_dict({"q": {"a": 30.0, "b": 10.0}, "flat": {"a": 1.0, "b": 1.0}}))
        assert fitted.temperature == pytest.approx(20 / 2.0905, rel=1e-3)

    def test_documents_that_are_tied_for_the_best_are_as_sure_as_one(self):
        # The two best share what is left of all: from log 2 to log 4, half is at an entropy of log 8 / 2.
        fitted = fit_calibration("entropy", Run.from_dict({"q": {"a": 1.0, "b": 1.0, "c": 0.0, "d": 0.0}}))
        shares = softmax(np.array([1.0, 1.0, 0.0, 0.0]) / fitted.temperature)
        assert entropy(shares) == pytest.approx(1.5 * np.log(2), rel=1e-6)
        graded = Run.from_dict({"q": {f"d{at}": float(at < 5) for at in range(20)}})
        assert 0.1 < fit_calibration("entropy", graded).temperature < 1

    @pytest.mark.parametrize("temperature", [0.0, -1.0, float("nan"), float("inf")])
    def test_a_temperature_that_calibrates_nothing(self, temperature):
        with pytest.raises(UserError, match=r"^calibration entropy: temperature="):
            Entropy(temperature)


class TestMoments:
    def test_are_numpys_and_0_for_flat_lists(self):
        run = Run.from_dict({**RUN.to_dict(), "flat": dict.fromkeys("abc", 0.1), "single": {"a": 7.0}})
        means, deviations = list_moments(run)
        for place, (query, _, scores) in enumerate(run):
            assert means[place] == pytest.approx(scores.mean())
            assert deviations[place] == (0.0 if query in ("flat", "single") else pytest.approx(scores.std()))


class TestRefusals:
    def test_an_unknown_name(self):
        with pytest.raises(UserError, match=r"unknown calibration 'zscores'. Did you mean 'zscore'?"):
            fit_calibration("zscores", RUN)

    def test_an_empty_run_has_no_moments(self):
        with pytest.raises(UserError, match="all 0 scores are equal"):
            fit_calibration("zscore", Run.from_dict({}))

    @pytest.mark.parametrize(("mean", "deviation"), [(0.0, 0.0), ("x", 1.0), (float("nan"), 1.0)])
    def test_moments_that_calibrate_nothing_are_refused(self, mean, deviation):
        with pytest.raises(UserError, match="deviation must be above 0"):
            ZScore(mean, deviation)
