import numpy as np
import pytest

from retrodistill.errors import UserError
from retrodistill.measures import latency, query_latency


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
    monkeypatch.setattr(latency, "time", clock)
    return clock


class TestQueryLatency:
    def test_percentiles_in_milliseconds_over_all_rounds(self, clock):
        texts = [str(number / 1000) for number in range(1, 31)]
        found = query_latency(clock.respond, texts, warm_up=5, repeats=3)
        wanted = np.percentile(list(range(1, 31)) * 3, [50, 95])
        assert (found["p50"], found["p95"]) == pytest.approx(tuple(wanted), abs=1e-4)
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
