import itertools
import random

import pytest

from retrodistill.reports.front import pareto
from retrodistill.reports.labels import Box, place_labels
from retrodistill.reports.svg import Scale, number


class TestPareto:
    def test_equals_brute_force(self):
        draw = random.Random(3)
        costs = [draw.choice([1.0, 2.0, 3.0, 5.0]) for _ in range(40)]
        qualities = [round(draw.random(), 3) for _ in range(40)]
        points = list(zip(costs, qualities, strict=True))
        beaten = {
            at
            for at, (cost, quality) in enumerate(points)
            if any(c <= cost and q >= quality and (c, q) != (cost, quality) for c, q in points)
        }
        assert set(pareto(costs, qualities)) == set(range(40)) - beaten

    def test_of_equals_the_first_stands(self):
        assert pareto([1.0, 1.0], [0.5, 0.5]) == [0]


class TestLabels:
    PLOT = Box(0, 0, 380, 270)

    def check(self, names, points):
        boxes = [label.box for label in place_labels(names, points, self.PLOT)]
        assert all(one.overlap(other) == 0 for one, other in itertools.combinations(boxes, 2))
        marks = [Box(x - 6, y - 6, x + 6, y + 6) for x, y in points]
        assert all(box.overlap(mark) == 0 for box in boxes for mark in marks)
        assert all(box.overlap(self.PLOT) == pytest.approx(box.area) for box in boxes)

    def test_names_of_points_in_one_place_stand_apart(self):
        self.check(["student", "control", "teacher"], [(200.0, 100.0)] * 3)

    def test_scattered_points(self):
        draw = random.Random(5)
        self.check(
            [f"system-{at}" for at in range(10)], [(draw.uniform(20, 360), draw.uniform(20, 250)) for _ in range(10)]
        )

    def test_a_name_at_the_right_edge_goes_left(self):
        self.check(["a-rather-long-name"], [(372.0, 130.0)])


class TestTicks:
    @pytest.mark.parametrize(("low", "high"), [(0.05, 40.0), (900.0, 2400.0), (40.0, 5000.0), (1e-3, 1e6), (1.0, 2.56)])
    def test_a_logarithmic_scale_has_two_to_seven_within_its_ends(self, low, high):
        ticks = Scale(low, high, 0, 1, logarithmic=True).ticks()
        assert 2 <= len(ticks) <= 7
        assert all(low <= tick <= high for tick in ticks)

    @pytest.mark.parametrize(("low", "high"), [(0.0, 1.0), (0.6, 0.71), (-3.0, 2000.0)])
    def test_a_linear_scale_has_round_ones(self, low, high):
        ticks = Scale(low, high, 0, 1).ticks()
        assert 3 <= len(ticks) <= 9
        assert all(len(number(tick)) <= 5 for tick in ticks)

    def test_large_numbers_are_short(self):
        assert [number(value) for value in (0.05, 20, 1500, 2e6)] == ["0.05", "20", "1.5k", "2M"]
