import math

import numpy as np
import pytest
from scipy.special import softmax
from scipy.stats import entropy

from retrodistill.candidates.selection import chosen_texts, disagreements, labeled, prod_selection, pseudo_labeled
from retrodistill.core.errors import UserError
from retrodistill.data.collection import Qrels
from retrodistill.runs.run import Run


def run_of(**lists):
    """Documents of each query, best first, as single letters."""
    return Run.from_dict({query: {name: -place for place, name in enumerate(names)} for query, names in lists.items()})


POSITIVES = {query: {"p"} for query in ("wrong", "right", "missed", "late", "hopeless", "absent", "unknown")}


class TestProdSelection:
    TEACHER = run_of(wrong="pab", right="pab", missed="pab", late="pab", hopeless="apb", absent="pab", bare="pab")
    STUDENT = run_of(wrong="apb", right="pab", missed="abc", late="abcp", hopeless="apb", bare="apb")

    def test_a_worked_example(self):
        found = prod_selection(self.TEACHER, self.STUDENT, POSITIVES, ranks=(2, 3))
        assert found.query_ids == ["wrong"]
        assert found.counts == {
            "selected": 1, "unlabeled": 1, "teacher_wrong": 1, "not_ranked": 1, "student_right": 1, "too_far": 2
        }  # fmt: skip

    def test_both_ends_of_the_range_count(self):
        student = run_of(**{f"q{rank}": "abcdefg"[: rank - 1] + "p" for rank in range(1, 7)})
        teacher = run_of(**{f"q{rank}": "pab" for rank in range(1, 7)})
        positives = {f"q{rank}": {"p"} for rank in range(1, 7)}
        assert prod_selection(teacher, student, positives, (3, 5)).query_ids == ["q3", "q4", "q5"]
        found = prod_selection(teacher, student, positives, (3, 5))
        assert (found.counts["student_right"], found.counts["too_far"]) == (2, 1)

    def test_15_ranks_by_default(self):
        letters = "abcdefghijklmno"
        student = run_of(in_=letters[:14] + "p", out=letters + "p")
        found = prod_selection(run_of(in_="p", out="p"), student, {"in_": ["p"], "out": ["p"]})
        assert found.query_ids == ["in_"]

    def test_of_several_positives_the_best_of_the_student_counts(self):
        teacher, student = run_of(q="pra", r="pra"), run_of(q="rpa", r="arp")
        assert prod_selection(teacher, student, {"q": {"p", "r"}, "r": {"p", "r"}}).query_ids == ["r"]

    def test_ties_are_broken_by_the_id(self):
        teacher = Run.from_dict({"q": {"b": 1.0, "a": 1.0}})
        assert prod_selection(teacher, run_of(q="ba"), {"q": {"a"}}).query_ids == ["q"]

    @pytest.mark.parametrize("ranks", [(1, 15), (0, 3), (5, 4)])
    def test_invalid_ranks(self, ranks):
        with pytest.raises(UserError, match="the first is at least 2"):
            prod_selection(self.TEACHER, self.STUDENT, POSITIVES, ranks)


class TestDisagreement:
    def test_it_is_the_divergence_of_each_list(self):
        generator = np.random.default_rng(0)
        lists = {
            f"q{row}": {f"d{at}": score for at, score in enumerate(generator.normal(size=row + 1))} for row in range(5)
        }
        teacher = Run.from_dict(lists)
        student = teacher.with_scores(generator.normal(size=len(teacher)))
        found = disagreements(teacher, student, (0.5, 2.0))
        for row, (start, end) in enumerate(zip(teacher.bounds[:-1], teacher.bounds[1:], strict=True)):
            of, to = (softmax(run.scores[start:end] / t) for run, t in ((teacher, 0.5), (student, 2.0)))
            assert found[row] == pytest.approx(entropy(of, to), abs=1e-9)
        assert (disagreements(teacher, teacher, (3.0, 3.0)) == 0).all()

    def test_scores_that_would_overflow(self):
        teacher = Run.from_dict({"q": {"a": 2000.0, "b": 0.0}})
        found = disagreements(teacher, teacher.with_scores(np.zeros(2)), (1.0, 1.0))
        assert found[0] == pytest.approx(math.log(2))


class TestChosenTexts:
    GAPS = np.array([0.1, 0.5, 0.5, 0.0, 0.9, 0.3])

    def test_the_largest_gaps_in_order(self):
        assert chosen_texts("disagreement", self.GAPS, 0.5).nonzero()[0].tolist() == [1, 2, 4]
        assert chosen_texts("disagreement", self.GAPS, 0.34).nonzero()[0].tolist() == [1, 4]
        assert chosen_texts("disagreement", self.GAPS, 0.01).sum() == 1

    def test_topics_are_drawn_in_proportion_to_their_gap(self):
        topics = np.repeat([0, 1, 2], 2000)
        gaps = np.repeat([0.3, 0.1, 0.0], 2000)  # a topic without a gap is never drawn
        drawn = chosen_texts("topics", gaps, 0.02, topics=topics, seed=3)
        counts = np.bincount(topics[drawn], minlength=3)
        assert counts.sum() == 120
        assert counts[2] == 0
        assert 75 <= counts[0] <= 103  # 90 expected; four deviations of a binomial are 19

    def test_random_draws_are_uniform_and_follow_the_seed(self):
        gaps = np.zeros(1000)
        one, same, other = (chosen_texts("random", gaps, 0.3, seed=seed) for seed in (0, 0, 1))
        assert one.sum() == 300
        assert (one == same).all()
        assert not (one == other).all()


class TestPositives:
    def test_labels_are_judgments_above_0(self):
        qrels = Qrels.from_dict({"q": {"a": 2, "b": 0, "c": 1}, "r": {"a": -1}})
        assert labeled(qrels) == {"q": {"a", "c"}}

    def test_pseudo_labels_are_what_the_ensemble_ranks_first(self):
        assert pseudo_labeled(run_of(q="ba", r="c")) == {"q": {"b"}, "r": {"c"}}
