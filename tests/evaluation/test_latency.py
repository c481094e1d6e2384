import numpy as np
import pytest

from retrodistill.core.errors import UserError
from retrodistill.evaluation import cost, query_latency, staged_latency


class Clock:
    """Time that passes only while a query is answered."""

    def __init__(self):
        self.now, self.answered = 50.0, []

    def perf_counter(self):
        return self.now

    def respond(self, text):
        self.answered.append(text)
        self.now += float(text)


@pytest.fixture
def clock(monkeypatch):
    clock = Clock()
    monkeypatch.setattr(cost, "time", clock)
    return clock


class TestQueryLatency:
    def test_percentiles_in_milliseconds_over_all_rounds(self, clock):
        texts = [str(number / 1000) for number in range(1, 31)]
        found = query_latency(clock.respond, texts, warm_up=5, repeats=3)
        wanted = np.percentile(list(range(1, 31)) * 3, [50, 95, 99])
        assert tuple(found[key] for key in ("p50", "p95", "p99")) == pytest.approx(tuple(wanted), abs=1e-4)
        assert found["p50"] <= found["p95"]
        assert clock.answered == texts[:5] + texts * 3

    def test_warming_up_does_not_count(self, clock):
        slow_once = ["9"] + ["0.001"] * 30
        assert query_latency(clock.respond, slow_once, warm_up=1, repeats=1)["p50"] == 1.0
        assert clock.answered[:2] == ["9", "9"]

    def test_stops_after_the_given_time_and_not_before_20_answers(self, clock):
        query_latency(clock.respond, ["1"] * 100, warm_up=0, repeats=3, seconds=5)
        assert len(clock.answered) == 20
        clock.answered.clear()
        query_latency(clock.respond, ["1"] * 100, warm_up=0, repeats=3, seconds=30)
        assert len(clock.answered) == 31

    def test_a_real_clock_gives_sane_figures(self):
        found = query_latency(lambda text: sum(range(200)), ["a", "b"], repeats=5)
        assert 0 < found["p50"] <= found["p95"] < 1000

    @pytest.mark.parametrize(("texts", "repeats"), [([], 3), (["a"], 0)])
    def test_nothing_to_time_is_refused(self, texts, repeats):
        with pytest.raises(UserError, match="give at least one of each"):
            query_latency(str, texts, repeats=repeats)


class TestStagedLatency:
    @pytest.fixture
    def stages(self, clock):
        """Encoding takes 2 ms a text, search 1 ms and 3 ms a batch."""

        def encode(texts):
            clock.answered.append(texts)
            clock.now += 0.002 * len(texts)
            return len(texts)

        def search(count):
            clock.now += 0.003 + 0.001 * count

        return [encode, search]

    def test_each_stage_has_its_own_time_and_their_sum_the_whole(self, stages):
        (encode, search), total, rate = staged_latency(stages, [str(number) for number in range(30)], batch=1)
        assert (encode["p50"], search["p50"], total["p99"]) == pytest.approx((2, 4, 6))
        assert rate == pytest.approx(1 / 0.006)

    def test_batches_are_filled_up_from_the_first_query(self, stages, clock):
        texts = [str(number) for number in range(10)]
        (encode, search), total, rate = staged_latency(stages, texts, batch=4, warm_up=0, repeats=1)
        assert clock.answered == [texts[0:4], texts[4:8], ["8", "9", "0", "1"]]
        assert (encode["p50"], search["p50"], total["p50"]) == pytest.approx((8, 7, 15))
        assert rate == pytest.approx(4 / 0.015)

    def test_warming_up_goes_through_all_stages_and_does_not_count(self, stages, clock):
        staged_latency(stages, ["a", "b"], warm_up=1, repeats=1)
        assert clock.answered == [["a"], ["a"], ["b"]]

    @pytest.mark.parametrize(("texts", "batch"), [([], 1), (["a"], 0)])
    def test_nothing_to_time_is_refused(self, stages, texts, batch):
        with pytest.raises(UserError, match="give at least"):
            staged_latency(stages, texts, batch=batch)
