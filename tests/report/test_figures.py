import itertools
import random

import pytest
from sample_results import everywhere, results, section, unjudged, whole

from retrodistill.report.figures import Box, Scale, place_labels, tick_label


class TestFront:
    def test_names_who_is_not_beaten_by_cost(self):
        text = section("front", results())
        assert "front, by rising cost: student, ensemble." in text
        assert "Not measured: bm25." in text  # its bytes

    def test_without_quality_there_are_costs_alone(self):
        text = section("front", unjudged())
        assert 'role="img"' not in text
        assert ">Cost</h2>" in text

    def test_the_costs_in_full_stand_below(self):
        text = section("front", whole())
        for shown in ("7.96 MB", "612 MB", "5,120", "41.0%", "5 min 12 s", "126", "on 1 thread"):
            assert shown in text

    def test_nothing_measured_is_no_section(self):
        assert section("front", results(systems=everywhere(ndcg10=None, retention=None), comparisons=[])) == ""


class TestCurves:
    @staticmethod
    def drawn(monitors):
        losses = [{"step": at, "loss": 1 / at} for at in (5, 10, 15, 20)]
        return section("training", results(curves={"student": {"losses": losses, "monitors": monitors}}))

    def test_a_stage_begins_where_the_monitors_look_twice(self):
        values = [(0, 0.1), (10, 0.3), (10, 0.2), (20, 0.4)]
        html = self.drawn([{"step": step, "agreement": value} for step, value in values])
        assert html.count("stroke-dasharray") == 2  # in both figures
        assert html.count("vertical line: a stage begins") == 2
        assert html.count('class="line first"') == 4  # a line a stage
        assert "from 0.1 to 0.4" in html

    def test_one_stage_is_one_line(self):
        html = self.drawn([{"step": step, "agreement": step / 20} for step in (0, 10, 20)])
        assert "dash" not in html
        assert html.count('class="line first"') == 2

    def test_quality_is_drawn_with_agreement_and_explained(self):
        values = [(0, 0.5, 0.6), (10, 0.6, 0.7), (20, 0.7, 0.65)]
        html = self.drawn([{"step": step, "agreement": one, "ndcg@10": two} for step, one, two in values])
        assert 'aria-label="agreement and nDCG@10"' in html
        assert html.count('class="line second"') == 1
        assert "from 0.6 to 0.65, highest at step 10: 0.7" in " ".join(html.split())
        assert "If nDCG@10 falls while agreement rises, the student learns the teacher’s mistakes" in html
        assert "too far away" not in html

    def test_a_far_start_is_left_out_of_the_figure_and_told(self):
        values = [(0, 0.1), (10, 0.7), (20, 0.72), (30, 0.74)]
        html = self.drawn([{"step": step, "agreement": value} for step, value in values])
        assert html.count('class="dot first"') == 4 + 3  # of the loss, and of agreement
        assert "from 0.1 to 0.74; the start is too far away to be drawn" in " ".join(html.split())


class TestLabels:
    PLOT = Box(0, 0, 380, 270)

    def check(self, names, points):
        boxes = place_labels(names, points, self.PLOT)
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
        assert all(len(tick_label(tick)) <= 5 for tick in ticks)

    def test_large_numbers_are_short(self):
        assert [tick_label(value) for value in (0.05, 20, 1500, 2e6)] == ["0.05", "20", "1.5k", "2M"]
