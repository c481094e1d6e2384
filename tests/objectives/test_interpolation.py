import json
import math

import pytest
import torch
from brute_lists import lists

from retrodistill.core.errors import UserError
from retrodistill.objectives.distributions import InterpolationSchedule, kl_divergence, taid


class TestTaid:
    def test_at_1_it_is_kl_and_at_0_nothing_is_learned(self):
        scores, targets, mask = lists(0)
        torch.testing.assert_close(taid(scores, targets, mask, t=1.0), kl_divergence(scores, targets, mask))
        assert taid(scores, targets, mask, t=0.0).item() == pytest.approx(0, abs=1e-12)

    def test_the_targets_own_student_carries_no_gradient(self):
        scores, targets, _ = lists(1, kind="full")
        scores.requires_grad_()
        target = (0.3 * scores + 0.7 * targets).softmax(dim=1)
        taid(scores, targets, t=0.7).backward()
        torch.testing.assert_close(scores.grad, ((scores.softmax(dim=1) - target) / 5).detach())

    def test_the_pull_grows_with_t(self):
        scores, targets, _ = lists(2, kind="full")
        losses = [taid(scores, targets, t=t).item() for t in (0.2, 0.4, 0.8, 1.0)]
        assert losses == sorted(losses)

    @pytest.mark.parametrize("t", [-0.1, 1.1, math.nan])
    def test_a_t_outside_0_to_1(self, t):
        with pytest.raises(UserError, match=r"^t=.* from 0 to 1"):
            taid(torch.zeros(2, 3), torch.zeros(2, 3), t=t)


class TestSchedule:
    def test_is_the_authors_recurrence(self):
        schedule = InterpolationSchedule(alpha=0.05, beta=0.9)
        losses = [2.0, 1.5, 1.6, 0.4, 0.39]
        t, momentum, before = 0.4, 0.0, None
        for step, loss in enumerate(losses):
            schedule.update(loss, step / 1000)
            if before is not None:
                momentum = 0.9 * momentum + 0.1 * (before - loss) / before
                t = max(0.4 + 0.6 * step / 1000, t + 0.05 / (1 + math.exp(-momentum)) * (1 - t))
            before = loss
            assert schedule.t == pytest.approx(t)

    def test_it_never_falls_and_ends_at_the_end(self):
        schedule, generator = InterpolationSchedule(), torch.Generator().manual_seed(0)
        seen = []
        for step in range(101):
            schedule.update(float(torch.rand(1, generator=generator)), step / 100)
            seen.append(schedule.t)
        assert seen == sorted(seen)
        assert seen[0] == 0.4
        assert seen[-1] == 1.0

    def test_a_falling_loss_moves_faster_than_a_rising_one(self):
        falling, rising = InterpolationSchedule(alpha=0.1), InterpolationSchedule(alpha=0.1)
        for step in range(1, 30):
            falling.update(2.0**-step, step * 1e-9)
            rising.update(2.0**step, step * 1e-9)
        assert falling.t > rising.t > 0.4

    def test_a_second_call_in_a_step_and_a_broken_loss_change_nothing(self):
        schedule = InterpolationSchedule()
        schedule.update(1.0, 0.0)
        schedule.update(0.5, 0.1)
        before = schedule.state()
        schedule.update(0.1, 0.1)
        schedule.update(math.nan, 0.2)
        assert schedule.state() == before

    @pytest.mark.parametrize("stop", [0, 1, 7])
    def test_a_resumed_schedule_continues_as_if_never_stopped(self, stop):
        whole, first = InterpolationSchedule(), InterpolationSchedule()
        losses = [1 / (1 + step) for step in range(12)]
        for step, loss in enumerate(losses):
            whole.update(loss, step / 12)
            if step < stop:
                first.update(loss, step / 12)
        resumed = InterpolationSchedule.from_state(json.loads(json.dumps(first.state(), allow_nan=False)))
        for step in range(stop, 12):
            resumed.update(losses[step], step / 12)
        assert resumed == whole

    def test_a_huge_rise_does_not_overflow(self):
        schedule = InterpolationSchedule(beta=0.0)
        schedule.update(1e-30, 0.0)
        schedule.update(1e30, 0.1)
        assert schedule.t == pytest.approx(0.46)

    @pytest.mark.parametrize("given", [{"start": 1.1}, {"start": 0.5, "end": 0.4}, {"beta": 1.0}, {"alpha": math.nan}])
    def test_settings_out_of_range(self, given):
        with pytest.raises(UserError, match=r"0 <= start <= end <= 1, alpha from 0 to 1"):
            InterpolationSchedule(**given)

    def test_a_foreign_state(self):
        with pytest.raises(UserError, match=r"TAID's schedule.*weights"):
            InterpolationSchedule.from_state({"weights": 1.0})
