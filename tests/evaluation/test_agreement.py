import math

import numpy as np
import pytest

from retrodistill.core.errors import UserError
from retrodistill.evaluation.measures import evaluate_run
from retrodistill.runs import Run
from retrodistill.runs.agreement import (
    kendall,
    labeled_ndcg,
    overlap,
    rank_agreement,
    rank_biased_overlap,
    ranking_overlap,
    score_bins,
)


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


class TestLabeledNDCG:
    def test_over_a_whole_corpus_it_is_that_of_ir_measures(self):
        generator = np.random.default_rng(0)
        scores, names = generator.standard_normal((6, 40)), [f"d{at}" for at in range(40)]
        grades = {
            row: {int(at): int(generator.integers(1, 4)) for at in generator.choice(40, count, replace=False)}
            for row, count in {0: 1, 2: 3, 4: 15, 5: 2}.items()
        }
        run = Run.from_dict({f"q{row}": dict(zip(names, scores[row], strict=True)) for row in grades})
        qrels = {f"q{row}": {names[at]: grade for at, grade in judged.items()} for row, judged in grades.items()}
        expected = evaluate_run(run, qrels, ["ndcg@10"])["ndcg@10"].to_numpy().mean()
        assert labeled_ndcg(np.argsort(-scores, axis=1)[:, :10], grades) == pytest.approx(expected, abs=1e-12)

    def test_lists_shorter_than_the_labels(self):
        assert labeled_ndcg(np.array([[3, 1]]), {0: {1: 1, 3: 2, 7: 1}}) == pytest.approx(1)
        assert labeled_ndcg(np.array([[5, 1]]), {0: {1: 2}}) == pytest.approx(1 / math.log2(3))


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

    def test_a_tie_with_the_last_counts_as_found(self):
        teacher = Run.from_dict({"q": {"a": 10.0, "b": 9.0}})
        student = Run.from_dict({"q": {"a": 10.0, "c": 8.9995}})
        assert overlap(student, teacher, 2) == {"q": 0.5}
        assert overlap(student, teacher, 2, tie=1e-4) == {"q": 1.0}
        assert overlap(student, teacher, 2, tie=1e-5) == {"q": 0.5}


def brute_overlap(student, teacher, p, depth=3000):
    """The infinite sum (equation 4) over agreements as the extrapolation assumes them beyond the lists' ends."""
    short, long = sorted((student, teacher), key=len)
    shared = [len(set(short[:d]) & set(long[:d])) for d in range(depth + 1)]
    total = 0.0
    for d in range(1, depth + 1):
        if d <= len(short):
            agreement = shared[d] / d
        elif d <= len(long):  # what the short list would go on to share: as much as until its end
            agreement = (shared[d] + shared[len(short)] / len(short) * (d - len(short))) / d
        total += (1 - p) * p ** (d - 1) * agreement  # behind the longer list it stays as it is
    return total


class TestRankBiasedOverlap:
    def test_a_published_value(self):
        # github.com/b4ny4n/rankmeasures: .828
        found = rank_biased_overlap([1, 2, 3, 4, 5], [2, 3, 4, 1, 5], 0.9)
        assert found == pytest.approx(0.828, abs=5e-4)

    def test_worked_by_hand(self):
        # agreements 0, 1/2, 2/3, 1, 1: (.1/.9)(.405 + .486 + .6561 + .59049) + .59049
        found = rank_biased_overlap("abcde", "bcdae", 0.9)
        assert found == pytest.approx((0.405 + 0.486 + 0.6561 + 0.59049) / 9 + 0.59049)

    @pytest.mark.parametrize("seed", range(8))
    @pytest.mark.parametrize("p", [0.5, 0.9, 0.98])
    def test_is_the_infinite_sum_for_lists_of_any_length(self, seed, p):
        generator = np.random.default_rng(seed)
        student = generator.permutation(20)[: generator.integers(1, 15)].tolist()
        teacher = generator.permutation(20)[: generator.integers(1, 15)].tolist()
        found = rank_biased_overlap(student, teacher, p)
        assert found == pytest.approx(brute_overlap(student, teacher, p), abs=1e-9)
        assert found == pytest.approx(rank_biased_overlap(teacher, student, p))

    def test_ends_of_the_scale(self):
        assert rank_biased_overlap("abc", "abc") == pytest.approx(1)
        assert rank_biased_overlap("abc", "abcdef") == pytest.approx(1)
        assert rank_biased_overlap("abc", "xyz") == 0
        assert rank_biased_overlap("", "abc") == 0

    @pytest.mark.parametrize(("lists", "p", "message"), [(("ab", "ab"), 1.0, "p=1.0"), (("aa", "ab"), 0.9, "twice")])
    def test_mistakes(self, lists, p, message):
        with pytest.raises(UserError, match=message):
            rank_biased_overlap(*lists, p)

    def test_of_runs_each_of_the_teachers_queries_has_one(self):
        teacher = Run.from_dict({"q": {"a": 3, "b": 2, "c": 1}, "none": {"x": 1}})
        student = Run.from_dict({"q": {"c": 9, "a": 8, "b": 7}, "more": {"x": 1}})
        assert ranking_overlap(student, teacher) == {"q": rank_biased_overlap("cab", "abc"), "none": 0.0}
        assert ranking_overlap(student, teacher, depth=1)["q"] == 0.0


def brute_tau(ours, theirs):
    """Kendall's tau-b by all pairs."""
    signs = [(np.sign(ours[i] - ours[j]), np.sign(theirs[i] - theirs[j])) for i in range(len(ours)) for j in range(i)]
    both = sum(x * y for x, y in signs)
    return both / np.sqrt(sum(x != 0 for x, _ in signs) * sum(y != 0 for _, y in signs))


class TestKendall:
    @pytest.mark.parametrize("seed", range(5))
    def test_is_that_of_all_pairs_on_the_teachers_list(self, seed):
        generator = np.random.default_rng(seed)
        teacher = {f"d{at}": float(value) for at, value in enumerate(generator.integers(0, 8, 12))}
        student = {f"d{at}": float(value) for at, value in enumerate(generator.integers(0, 8, 30))}
        found = kendall(Run.from_dict({"q": student}), Run.from_dict({"q": teacher}))
        assert found["q"] == pytest.approx(
            brute_tau([student[document] for document in teacher], list(teacher.values()))
        )

    def test_documents_that_the_student_did_not_find_are_below_and_tied(self):
        teacher = Run.from_dict({"q": {"a": 4.0, "b": 3.0, "c": 2.0, "d": 1.0}})
        student = Run.from_dict({"q": {"a": -5.0, "b": -7.0, "z": 9.0}})
        assert kendall(student, teacher)["q"] == pytest.approx(brute_tau([3, 2, 1, 1], [4, 3, 2, 1]))

    def test_ends_of_the_scale_and_the_depth(self):
        teacher = Run.from_dict({"q": {"a": 3.0, "b": 2.0, "c": 1.0}})
        turned = Run.from_dict({"q": {"a": 1.0, "b": 2.0, "c": 3.0}})
        assert kendall(teacher, teacher) == {"q": pytest.approx(1)}
        assert kendall(turned, teacher) == {"q": pytest.approx(-1)}
        assert kendall(turned, teacher, depth=2) == {"q": pytest.approx(-1)}

    def test_a_query_without_any_order_is_left_out(self):
        teacher = Run.from_dict({"one": {"a": 1.0}, "flat": {"a": 1.0, "b": 1.0}, "absent": {"a": 2.0, "b": 1.0}})
        assert kendall(Run.from_dict({"flat": {"a": 2.0, "b": 1.0}}), teacher) == {}


class TestScoreBins:
    def test_groups_of_equal_size_by_the_students_score(self):
        student = np.array([5.0, 1.0, 3.0, 2.0, 4.0, 6.0])
        found = score_bins(student, student * 10, bins=3)
        assert [point["student"] for point in found] == [1.5, 3.5, 5.5]
        assert [point["teacher"] for point in found] == [15, 35, 55]
        assert [(point["low"], point["high"], point["pairs"]) for point in found] == [
            (12.5, 17.5, 2), (32.5, 37.5, 2), (52.5, 57.5, 2)
        ]  # fmt: skip

    def test_few_pairs_make_few_groups_and_none_none(self):
        assert [point["pairs"] for point in score_bins(np.zeros(3), np.zeros(3))] == [1, 1, 1]
        assert score_bins(np.zeros(0), np.zeros(0)) == []

    def test_scores_of_different_length_are_refused(self):
        with pytest.raises(UserError, match=r"\(2,\) and \(3,\)"):
            score_bins(np.zeros(2), np.zeros(3))
