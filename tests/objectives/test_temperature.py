import numpy as np
import pytest

from retrodistill.core.errors import UserError
from retrodistill.objectives.lists import check_trainable, spread, temperature_for
from retrodistill.runs import Run


def random_run(scale=1.0, seed=0):
    generator = np.random.default_rng(seed)
    return Run.from_dict(
        {f"q{q}": {f"d{d}": scale * generator.normal() * (1 + q) for d in range(2 + q)} for q in range(6)}
    )


FLAT = {f"d{number}": 0.1 for number in range(7)}


class TestSpread:
    def test_is_numpys_mean_of_standard_deviations(self):
        run = random_run()
        assert spread(run) == pytest.approx(np.mean([np.std(scores) for _, _, scores in run]))

    def test_single_and_flat_lists_do_not_count(self):
        run = random_run()
        more = Run.from_dict({**run.to_dict(), "single": {"d": 5.0}, "flat": FLAT})
        assert spread(more) == pytest.approx(spread(run))

    @pytest.mark.parametrize("scale", [1e-4, 1e4])
    def test_grows_with_the_scale_and_ignores_the_shift(self, scale):
        run = random_run(scale)
        assert spread(run) == pytest.approx(scale * spread(random_run()))
        assert spread(run.with_scores(run.scores + 5 * scale)) == pytest.approx(spread(run))

    @pytest.mark.parametrize("scores", [{}, {"q": FLAT}, {"q": {"d": 1.0}, "p": {"d": 2.0}}])
    def test_nothing_to_measure_is_rejected(self, scores):
        with pytest.raises(UserError, match=r"scores are equal.* so there is nothing to learn or to calibrate"):
            spread(Run.from_dict(scores))


class TestTemperature:
    @pytest.mark.parametrize("target_std", [0.5, 1.0, 4.0])
    @pytest.mark.parametrize("scale", [0.01, 1.0, 1e4])
    def test_brings_the_mean_list_to_the_target_deviation(self, target_std, scale):
        run = random_run(scale)
        logits = run.with_scores(run.scores / temperature_for(run, target_std))
        assert np.mean([np.std(scores) for _, _, scores in logits]) == pytest.approx(target_std)

    @pytest.mark.parametrize("target_std", [0, -1, float("nan")])
    def test_a_target_that_is_not_above_0_is_rejected(self, target_std):
        with pytest.raises(UserError, match=r"target_std=.* above 0"):
            temperature_for(random_run(), target_std)


class TestTrainable:
    def test_drops_and_counts_lists_that_teach_nothing(self):
        run = Run.from_dict(
            {
                "good": {"a": 1, "b": 2},
                "single": {"a": 1},
                "flat": FLAT,
                "flat2": {"a": 3, "b": 3},
                "near": {"a": 1e-9, "b": 0},
            }
        )
        kept, dropped = check_trainable(run)
        assert kept.query_ids == ["good", "near"]
        assert dropped == {"single": 1, "flat": 2}
        assert kept.to_dict()["good"] == {"a": 1.0, "b": 2.0}

    def test_a_good_run_is_kept_whole(self):
        kept, dropped = check_trainable(random_run())
        assert kept.fingerprint == random_run().fingerprint
        assert dropped == {"single": 0, "flat": 0}

    @pytest.mark.parametrize(
        ("scores", "message"),
        [
            ({}, "run e5 is empty"),
            ({"q": {"a": 1.0}, "p": {"b": 2.0}}, "run e5: every query has one candidate, .*; mine deeper"),
            ({"q": FLAT, "p": FLAT}, "run e5: all 14 scores are equal, .* use raw logits"),
            ({"q": FLAT, "p": {"a": 1.0}}, "run e5: all 8 scores are equal within each query"),
        ],
    )
    def test_a_run_without_any_is_rejected(self, scores, message):
        with pytest.raises(UserError, match=message):
            check_trainable(Run.from_dict(scores, "e5"))
