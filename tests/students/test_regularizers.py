import pytest
import torch

from retrodistill import objectives as pure
from retrodistill.core.errors import UserError
from retrodistill.students.sparse_training import Regularizer, SparsityAlarm, regularized

WEIGHTS = torch.tensor([[0.0, 2.0, 1.0], [4.0, 0.0, 0.0]])


class TestValues:
    @pytest.mark.parametrize(
        ("name", "expected"),
        [("flops", 4.0 + 1.0 + 0.25), ("l1", 3.5), ("top-k", 0.5), ("anti-zero", (3.1**-2 + 4.1**-2) / 2)],
    )
    def test_each_is_its_formula(self, name, expected):
        assert float(Regularizer(name, 1.0, terms=1).value(WEIGHTS)) == pytest.approx(expected)

    def test_the_weight_grows_with_the_square_of_the_step(self):
        one = Regularizer("l1", 2.0, warmup=0.5)
        found = [float(one(WEIGHTS, progress)) for progress in (0.0, 0.25, 0.5, 1.0)]
        assert found == pytest.approx([0.0, 7.0 / 4, 7.0, 7.0])
        assert float(one(WEIGHTS, None)) == pytest.approx(7.0)

    def test_sides_are_told_apart_and_equals_added_up(self):
        given = [Regularizer("l1", 1.0), Regularizer("l1", 2.0), Regularizer("flops", 1.0, "query")]
        parts = regularized(given, 2 * WEIGHTS, WEIGHTS, None)
        assert {name: float(value) for name, value in parts.items()} == pytest.approx(
            {"l1-document": 10.5, "flops-query": float(pure.flops(2 * WEIGHTS))}
        )

    def test_an_unknown_one_is_refused(self):
        with pytest.raises(UserError, match=r"^unknown regularizer 'flop'. Did you mean 'flops'\?"):
            Regularizer("flop", 1.0)


class TestAlarm:
    def test_texts_without_terms_are_told_once(self):
        alarm = SparsityAlarm()
        alarm([3, 5, 4, 6], 1000)
        assert alarm.notes == []
        for _ in range(2):
            alarm([0, 5, 4, 6], 1000)
        assert alarm.notes == [
            "the student collapses: 25% of the documents looked at have no term; lower the regularizers' weights or "
            "add anti-zero"
        ]

    def test_density_is_told_at_the_end_only(self):
        alarm = SparsityAlarm()
        alarm([300, 500], 1000)
        assert alarm.notes == []
        alarm([300, 500], 1000, final=True)
        assert alarm.notes[0].startswith("the student is dense: 400 of 1000 terms a document")
