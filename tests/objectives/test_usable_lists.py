import math

import pytest
import torch

from retrodistill.core.errors import UserError
from retrodistill.objectives.lists import usable_lists

NONE = {"single": 0, "not finite": 0, "flat": 0, "saturated": 0}


def one(scores, mask=None):
    usable, counts = usable_lists(torch.tensor([scores]), None if mask is None else torch.tensor([mask]))
    return usable.item(), {reason: count for reason, count in counts.items() if count}


class TestReasons:
    @pytest.mark.parametrize(
        ("scores", "reason"),
        [
            ([3.0], "single"),
            ([0.1, 0.1, 0.1], "flat"),
            ([math.nan, 1.0, 2.0], "not finite"),
            ([math.inf, 1.0, 2.0], "not finite"),
            ([1.0, 1.0, 1.0, 0.99997, 0.2], "saturated"),
        ],
    )
    def test_lists_that_teach_nothing(self, scores, reason):
        assert one(scores) == (False, {reason: 1})

    @pytest.mark.parametrize(
        "scores",
        [
            [1.0, 2.0],
            [1e-9, 0.0],
            [5.0, 5.0, 1.0],
            [9.0, 3.0, 0.0, 0.0, 0.0, 0.0],
            [1.0, 1.0, 1.0, 0.5, 0.4, 0.3],
        ],
    )
    def test_lists_that_teach_something(self, scores):
        assert one(scores) == (True, {})

    def test_a_sigmoid_saturates_its_teacher(self):
        logits = torch.tensor([[40.0, 35.0, 30.0, 25.0, 2.0]])
        assert usable_lists(logits)[0].item()
        assert usable_lists(logits.sigmoid())[1] == {**NONE, "saturated": 1}


class TestMasks:
    def test_masked_places_have_no_effect(self):
        assert one([7.0, math.nan, 7.0, 8.0], [1, 0, 1, 1]) == (True, {})
        assert one([7.0, 9.0, 7.0, math.nan], [1, 0, 1, 0]) == (False, {"flat": 1})
        assert one([7.0, 9.0], [0, 1]) == (False, {"single": 1})
        assert one([7.0, 9.0], [0, 0]) == (False, {"single": 1})

    def test_a_batch_is_classified_and_counted(self):
        scores = torch.tensor([[1.0, 2.0, 3.0], [1.0, 1.0, 1.0], [2.0, 2.0, 5.0], [1.0, 2.0, math.inf]])
        mask = torch.tensor([[1, 1, 1], [1, 1, 1], [1, 1, 0], [1, 1, 1]])
        usable, counts = usable_lists(scores, mask)
        assert usable.tolist() == [True, False, False, False]
        assert counts == {**NONE, "flat": 2, "not finite": 1}

    def test_a_mask_of_another_shape(self):
        with pytest.raises(UserError, match=r"mask of shape \(2,\)"):
            usable_lists(torch.zeros(1, 2), torch.ones(2))
