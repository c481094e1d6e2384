"""Objectives over layers against loops over tokens, heads and dimensions."""

import math

import pytest
import torch

from retrodistill.core.errors import UserError
from retrodistill.objectives.layers import attention_transfer, hidden_states, self_attention_relations

LAYERS, BATCH, HEADS, TOKENS, WIDTH = 2, 3, 4, 5, 6
MASK = torch.tensor([[1, 1, 1, 1, 1], [1, 1, 0, 0, 0], [1, 0, 0, 0, 0]], dtype=torch.bool)


def drawn(seed, *shape):
    """Random numbers in float64, NaN at padding."""
    values = torch.randn(*shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)
    mask = MASK[:, :, None] if len(shape) == 4 else MASK[:, None, :, None]
    return values.masked_fill(~mask, math.nan)


def states(seed):
    return drawn(seed, LAYERS, BATCH, TOKENS, WIDTH)


def heads(seed, count=HEADS, width=WIDTH):
    return drawn(seed, LAYERS, 3, BATCH, count, TOKENS, width)


def real(row):
    return [at for at in range(TOKENS) if MASK[row, at]]


def softmax(values):
    total = sum(math.exp(value) for value in values)
    return [math.exp(value) / total for value in values]


class TestHiddenStates:
    def test_it_is_the_mean_over_tokens_and_dimensions_summed_over_layers(self):
        student, teacher, wanted = states(0), states(1), 0.0
        for layer in range(LAYERS):
            squares = [
                (student[layer, row, at, dim] - teacher[layer, row, at, dim]).item() ** 2
                for row in range(BATCH)
                for at in real(row)
                for dim in range(WIDTH)
            ]
            wanted += sum(squares) / len(squares)
        assert hidden_states(student, teacher, MASK).item() == pytest.approx(wanted, rel=1e-9)

    def test_of_one_layer_without_padding_it_is_torchs(self):
        student, teacher = torch.randn(2, 1, 3, 4, 8, generator=torch.Generator().manual_seed(0))
        found = hidden_states(student, teacher, torch.ones(3, 4, dtype=torch.bool))
        torch.testing.assert_close(found, torch.nn.functional.mse_loss(student, teacher))

    def test_other_widths(self):
        with pytest.raises(UserError, match=r"^hidden states of 6 dimensions, the teacher's of 3"):
            hidden_states(states(0), states(1)[..., :3], MASK)


class TestAttention:
    def test_it_is_the_squared_difference_of_scaled_products_by_head(self):
        student, teacher, wanted = heads(0), heads(1), 0.0
        for layer in range(LAYERS):
            squares = []
            for row in range(BATCH):
                for head in range(HEADS):
                    for one in real(row):
                        for other in real(row):
                            ours, theirs = (
                                (side[layer, 0, row, head, one] @ side[layer, 1, row, head, other]).item()
                                / math.sqrt(WIDTH)
                                for side in (student, teacher)
                            )
                            squares.append((ours - theirs) ** 2)
            wanted += sum(squares) / len(squares)
        assert attention_transfer(student, teacher, MASK).item() == pytest.approx(wanted, rel=1e-9)

    def test_values_do_not_count_and_heads_may_have_another_width(self):
        student = heads(0)
        other = student.clone()
        other[:, 2] += 1
        assert attention_transfer(student, other, MASK) == 0
        assert attention_transfer(student, heads(1, width=3), MASK) > 0

    def test_another_number_of_heads(self):
        with pytest.raises(UserError, match=r"^attention of 4 heads, the teacher's of 2"):
            attention_transfer(heads(0), heads(1, count=2), MASK)


class TestRelations:
    def test_it_is_the_divergence_of_relations_by_head_and_token(self):
        student, teacher, wanted = heads(0), heads(1), 0.0
        for layer in range(LAYERS):
            for kind in range(3):
                divergences = []
                for row in range(BATCH):
                    for head in range(HEADS):
                        for one in real(row):
                            to, of = (
                                softmax(
                                    [
                                        (side[layer, kind, row, head, one] @ side[layer, kind, row, head, other]).item()
                                        / math.sqrt(WIDTH)
                                        for other in real(row)
                                    ]
                                )
                                for side in (student, teacher)
                            )
                            divergences.append(sum(a * math.log(a / b) for a, b in zip(of, to, strict=True)))
                wanted += sum(divergences) / len(divergences)
        assert self_attention_relations(student, teacher, MASK).item() == pytest.approx(wanted, rel=1e-9)

    def test_other_heads_are_split_into_as_many_relation_heads(self):
        whole = drawn(3, LAYERS, BATCH, TOKENS, 12)[:, None].expand(-1, 3, -1, -1, -1)
        of_two, of_four = (whole.unflatten(-1, (count, -1)).transpose(3, 4) for count in (2, 4))
        assert self_attention_relations(of_two, of_four, MASK).item() == pytest.approx(0, abs=1e-12)
        narrow = heads(0, count=2, width=4)  # a pruned student
        assert self_attention_relations(narrow, of_four, MASK) > 0
        with pytest.raises(UserError, match=r"2 heads of 3 dimensions cannot be split into 4"):
            self_attention_relations(heads(0, count=2, width=3), of_four, MASK)


@pytest.mark.parametrize(
    ("function", "make"),
    [(hidden_states, states), (attention_transfer, heads), (self_attention_relations, heads)],
)
class TestAll:
    def test_agreement_is_zero_and_padding_has_no_gradient(self, function, make):
        student, teacher = make(0).requires_grad_(), make(1)
        assert function(teacher, teacher, MASK).item() == pytest.approx(0, abs=1e-12)
        gradient = torch.autograd.grad(function(student, teacher, MASK), student)[0]
        assert torch.isfinite(gradient).all()
        assert (gradient[torch.isnan(student)] == 0).all()
        assert gradient.abs().sum() > 0

    def test_a_batch_without_tokens_teaches_nothing(self, function, make):
        student = make(0).requires_grad_()
        value = function(student, make(1), torch.zeros_like(MASK))
        assert value == 0
        assert (torch.autograd.grad(value, student)[0] == 0).all()
