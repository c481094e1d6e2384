import numpy as np
import pytest

from retrodistill.candidates import keep_below_margin, keep_below_share
from retrodistill.core.errors import UserError
from retrodistill.runs import Run

RUN = Run.from_dict({"q": {"p": 2.0, "a": 1.0, "b": 1.5, "c": 1.9, "d": 3.0}, "free": {"a": 9.0, "b": 0.0}}, "e5")


class TestMargin:
    def test_keeps_the_positive_and_documents_far_enough_below(self):
        kept = keep_below_margin(RUN, {"q": "p"}, 0.5).to_dict()
        assert kept == {"q": {"p": 2.0, "a": 1.0, "b": 1.5}, "free": {"a": 9.0, "b": 0.0}}

    def test_0_drops_only_documents_above_the_positive(self):
        assert set(keep_below_margin(RUN, {"q": "p"}, 0).to_dict()["q"]) == {"p", "a", "b", "c"}

    @pytest.mark.parametrize("shift", [-1e4, 0.0, 1e4])
    def test_is_right_on_any_scale_of_logits(self, shift):
        moved = RUN.with_scores(RUN.scores + shift)
        assert set(keep_below_margin(moved, {"q": "p"}, 0.25).to_dict()["q"]) == {"p", "a", "b"}

    @pytest.mark.parametrize("margin", [-0.1, float("nan")])
    def test_a_margin_below_0_is_rejected(self, margin):
        with pytest.raises(UserError, match="it is 0 or more, in the unit of the teacher's scores"):
            keep_below_margin(RUN, {"q": "p"}, margin)


class TestShare:
    def test_keeps_documents_with_at_most_the_share(self):
        assert set(keep_below_share(RUN, {"q": "p"}, 0.95).to_dict()["q"]) == {"p", "a", "b", "c"}
        assert set(keep_below_share(RUN, {"q": "p"}, 0.75).to_dict()["q"]) == {"p", "a", "b"}

    def test_logits_are_rejected_because_a_share_of_them_has_no_meaning(self):
        with pytest.raises(UserError, match=r"run e5 has negative scores \(from -1 to 8\).*'minmax' or .* margin"):
            keep_below_share(RUN.with_scores(RUN.scores - 1), {"q": "p"})

    def test_cosines_are_calibrated_and_a_negative_positive_has_a_ceiling_below_it(self):
        run = Run.from_dict(
            {"q": {"p": -0.2, "a": -0.19, "b": -0.22, "c": -0.5}, "r": {"p": 0.9, "a": 0.86, "b": 0.85}}
        )
        kept = keep_below_share(run, {"q": "p", "r": "p"}, 0.95).to_dict()
        assert {query: set(documents) for query, documents in kept.items()} == {"q": {"p", "b", "c"}, "r": {"p", "b"}}

    @pytest.mark.parametrize("share", [0, -1, 1.01, float("nan")])
    def test_a_share_outside_0_to_1_is_rejected(self, share):
        with pytest.raises(UserError, match="above 0 and at most 1"):
            keep_below_share(RUN, {"q": "p"}, share)


class TestPositives:
    @pytest.mark.parametrize("keep", [lambda run, p: keep_below_margin(run, p, 0.1), keep_below_share])
    def test_one_without_a_score_is_rejected(self, keep):
        with pytest.raises(UserError, match="1 positives have no score, first of query 'q'; score them"):
            keep(RUN, {"q": "x"})

    def test_queries_without_one_and_positives_without_a_query_change_nothing(self):
        assert keep_below_margin(RUN, {"elsewhere": "p"}, 0.1).to_dict() == RUN.to_dict()

    def test_an_empty_run_stays_empty(self):
        empty = RUN.filter(np.zeros(len(RUN), dtype=bool))
        assert len(keep_below_margin(empty, {"q": "p"}, 1)) == len(keep_below_share(empty, {"q": "p"})) == 0
