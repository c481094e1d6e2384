import math

import numpy as np
import pytest

from retrodistill.errors import UserError
from retrodistill.measures import overlap, rank_agreement
from retrodistill.runs import Run


def brute(student, teacher):
    k = len(teacher)
    gain = {document: k - place for place, document in enumerate(teacher) if document >= 0}
    got = sum(gain.get(document, 0) / math.log2(place + 2) for place, document in enumerate(student))
    ideal = sum((k - place) / math.log2(place + 2) for place, document in enumerate(teacher) if document >= 0)
    return got / ideal if ideal else 0.0


class TestRankAgreement:
    def test_worked_by_hand(self):
        # gains of the teacher's 7, 8, 9 are 3, 2, 1; the student's 8, 1, 7 earn 2/1 + 0 + 3/2
        ideal = 3 + 2 / math.log2(3) + 1 / 2
        found = rank_agreement(np.array([[8, 1, 7]]), np.array([[7, 8, 9]]))
        assert found == pytest.approx([3.5 / ideal])

    def test_is_the_brute_force_on_random_lists(self):
        generator = np.random.default_rng(0)
        teacher = np.stack([generator.permutation(30)[:10] for _ in range(50)])
        student = np.stack([generator.permutation(30)[:10] for _ in range(50)])
        teacher[:10, 7:] = -1
        student[5:15, 6:] = -1
        teacher[0] = -1
        found = rank_agreement(student, teacher)
        assert found.dtype == np.float64
        assert found == pytest.approx([brute(s, t) for s, t in zip(student.tolist(), teacher.tolist(), strict=True)])

    def test_the_same_lists_agree_fully_and_disjoint_ones_not_at_all(self):
        lists = np.array([[3, 1, 2], [5, 4, -1]])
        assert rank_agreement(lists, lists) == pytest.approx([1, 1])
        assert rank_agreement(lists + 10, lists).tolist() == [0, 0]

    def test_the_order_counts(self):
        teacher = np.array([[1, 2, 3]])
        worst, better = rank_agreement(np.array([[3, 2, 1]]), teacher), rank_agreement(np.array([[2, 1, 3]]), teacher)
        assert 0 < worst[0] < better[0] < 1

    def test_lists_of_different_shape_are_refused(self):
        with pytest.raises(UserError, match=r"rankings of shape \(1, 2\) by the student and \(1, 3\) by the teacher"):
            rank_agreement(np.zeros((1, 2)), np.zeros((1, 3)))


class TestOverlap:
    TEACHER = Run.from_dict({"q": {"a": 3, "b": 2, "c": 1}, "p": {"a": 1}, "none": {"x": 1}})

    def test_is_the_share_of_the_teachers_top_k(self):
        student = Run.from_dict({"q": {"b": 9, "x": 8, "a": 7}, "p": {"a": 1, "b": 0}, "more": {"a": 1}})
        assert overlap(student, self.TEACHER, 2) == {"q": 0.5, "p": 1.0, "none": 0.0}
        assert overlap(student, self.TEACHER, 3) == {"q": pytest.approx(2 / 3), "p": 1.0, "none": 0.0}

    def test_with_itself_is_1_and_with_nothing_0(self):
        assert set(overlap(self.TEACHER, self.TEACHER).values()) == {1.0}
        assert set(overlap(Run.from_dict({}), self.TEACHER).values()) == {0.0}
        assert overlap(self.TEACHER, Run.from_dict({})) == {}
