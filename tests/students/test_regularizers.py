import pytest
import torch

from retrodistill.objectives.sparsity import flops
from retrodistill.students.sparse_training import SparsityAlarm, regularized
from retrodistill.training.settings import RegularizerSettings

WEIGHTS = torch.tensor([[0.0, 2.0, 1.0], [4.0, 0.0, 0.0]])


def regularizer(name, weight=1.0, **settings):
    return RegularizerSettings(name=name, weight=weight, **settings)


def value(settings, progress=None):
    (part,) = regularized([settings], WEIGHTS, WEIGHTS, progress).values()
    return float(part)


class TestValues:
    @pytest.mark.parametrize(
        ("name", "expected"),
        [("flops", 4.0 + 1.0 + 0.25), ("l1", 3.5), ("top-k", 0.5), ("anti-zero", (3.1**-2 + 4.1**-2) / 2)],
    )
    def test_each_is_its_formula(self, name, expected):
        assert value(regularizer(name, terms=1)) == pytest.approx(expected)

    def test_the_weight_grows_with_the_square_of_the_step(self):
        l1 = regularizer("l1", 2.0, warmup=0.5)
        values = [value(l1, progress) for progress in (0.0, 0.25, 0.5, 1.0)]
        assert values == pytest.approx([0.0, 7.0 / 4, 7.0, 7.0])
        assert value(l1) == pytest.approx(7.0)

    def test_sides_are_told_apart_and_equals_added_up(self):
        regularizers = [regularizer("l1"), regularizer("l1", 2.0), regularizer("flops", side="query")]
        parts = regularized(regularizers, 2 * WEIGHTS, WEIGHTS, None)
        assert {name: float(part) for name, part in parts.items()} == pytest.approx(
            {"l1-document": 10.5, "flops-query": float(flops(2 * WEIGHTS))}
        )

    def test_a_threshold_leaves_out_texts_of_its_side_with_fewer_terms(self):
        masked = regularizer("l1", threshold=1)
        queries = torch.ones(2, 3)
        assert float(regularized([masked], queries, WEIGHTS, None)["l1-document"]) == pytest.approx(3.0 / 2)
        counts = torch.tensor([1, 9])
        assert float(regularized([masked], queries, WEIGHTS, None, counts)["l1-document"]) == pytest.approx(4.0 / 2)
        query = regularizer("l1", threshold=1, side="query")
        assert float(regularized([query], WEIGHTS, queries, None, counts)["l1-query"]) == pytest.approx(3.0 / 2)

    def test_an_unknown_one_is_refused(self):
        with pytest.raises(ValueError, match=r"unknown regularizer 'flop'. Did you mean 'flops'\?"):
            regularizer("flop")


class TestAlarm:
    def test_texts_without_terms_are_told_once(self):
        alarm = SparsityAlarm()
        alarm([3, 5, 4, 6], 1000)
        assert alarm.notes == []
        for _ in range(2):
            alarm([0, 5, 4, 6], 1000)
        (note,) = alarm.notes
        assert note.startswith("the student collapses: 25% of")

    def test_density_is_told_at_the_end_only(self):
        alarm = SparsityAlarm()
        alarm([300, 500], 1000)
        assert alarm.notes == []
        alarm([300, 500], 1000, final=True)
        assert alarm.notes[0].startswith("the student is dense: 400 of 1000 terms")
