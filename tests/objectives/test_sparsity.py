import pytest
import torch
from children import Child

from retrodistill.core.errors import UserError
from retrodistill.objectives.sparsity import anti_zero, flops, l0_mask, l1, outside_top_k, top_k, whole_batch

PENALTIES = {"flops": flops, "l1": l1, "top-k": lambda w: outside_top_k(w, 2), "anti-zero": anti_zero}


def weights(seed=0, texts=4, terms=7):
    generator = torch.Generator().manual_seed(seed)
    return torch.relu(torch.randn(texts, terms, generator=generator, dtype=torch.float64))


class TestBruteForce:
    def test_each_is_its_loop(self):
        table = weights().tolist()
        columns = list(zip(*table, strict=True))
        wanted = {
            "flops": sum((sum(column) / 4) ** 2 for column in columns),
            "l1": sum(sum(row) for row in table) / 4,
            "top-k": sum(sum(sorted(row)[:-2]) for row in table) / 4,
            "anti-zero": sum(1 / (0.1 + sum(row)) ** 2 for row in table) / 4,
        }
        for name, value in wanted.items():
            assert PENALTIES[name](weights()).item() == pytest.approx(value)

    def test_flops_is_that_of_sentence_transformers(self):
        from sentence_transformers.sparse_encoder.losses import FlopsLoss

        table = weights(1).float()
        torch.testing.assert_close(flops(table), FlopsLoss(None).compute_loss_from_embeddings(table))

    def test_flops_worked_by_hand(self):
        assert flops(torch.tensor([[1.0, 0.0], [1.0, 2.0]])).item() == 1 + 1


class TestL0Mask:
    def test_masked_flops_are_those_of_sentence_transformers(self):
        from sentence_transformers.sparse_encoder.losses import FlopsLoss

        table = weights(5).float()
        for threshold in (0, 2, 3, 7):
            wanted = FlopsLoss(None, threshold=threshold).compute_loss_from_embeddings(table)
            torch.testing.assert_close(flops(l0_mask(table, threshold)), wanted)

    def test_only_texts_with_more_terms_have_a_gradient(self):
        table = torch.tensor([[1.0, 2.0, 0.0], [1.0, 2.0, 3.0]], requires_grad=True)
        l1(l0_mask(table, 2)).backward()
        assert table.grad.tolist() == [[0, 0, 0], [0.5, 0.5, 0.5]]

    def test_counts_of_the_whole_vocabulary_decide_where_they_are_given(self):
        table = torch.ones(2, 3)
        assert l0_mask(table, 5, torch.tensor([5, 6])).tolist() == [[0, 0, 0], [1, 1, 1]]


class TestMeaning:
    def test_flops_prefers_terms_that_few_texts_share(self):
        shared, spread = torch.tensor([[1.0, 0.0], [1.0, 0.0]]), torch.eye(2)
        assert flops(spread) < flops(shared)
        assert l1(spread) == l1(shared)

    def test_top_k_keeps_the_highest_with_their_gradient(self):
        table = torch.tensor([[0.5, 3.0, 0.0, 1.0]], requires_grad=True)
        kept = top_k(table, 2)
        assert kept.tolist() == [[0.0, 3.0, 0.0, 1.0]]
        kept.sum().backward()
        assert table.grad.tolist() == [[0.0, 1.0, 0.0, 1.0]]
        assert torch.equal(top_k(table, 9), table)

    def test_what_top_k_cuts_is_what_the_penalty_counts(self):
        table = weights(2)
        torch.testing.assert_close(outside_top_k(table, 3), l1(table) - l1(top_k(table, 3)))
        assert outside_top_k(top_k(table, 3), 3) == 0

    def test_an_empty_text_is_pushed_up_and_stays_finite(self):
        table = torch.zeros(2, 3, requires_grad=True)
        loss = anti_zero(table + 1e-6)
        loss.backward()
        assert loss.item() == pytest.approx(100, rel=1e-3)
        assert (table.grad < 0).all()

    @pytest.mark.parametrize("name", PENALTIES)
    def test_gradients_are_those_of_finite_differences(self, name):
        table = (weights(3) + torch.linspace(0.01, 0.3, 28, dtype=torch.float64).reshape(4, 7)).requires_grad_()
        assert torch.autograd.gradcheck(PENALTIES[name], [table])

    @pytest.mark.parametrize("name", PENALTIES)
    def test_half_precision_is_computed_in_float32(self, name):
        table = weights(4).half() * 200
        found = PENALTIES[name](table)
        assert found.dtype == torch.float32
        torch.testing.assert_close(found, PENALTIES[name](table.float()))

    @pytest.mark.parametrize("name", PENALTIES)
    def test_an_empty_batch_is_rejected(self, name):
        for table in (torch.zeros(0, 3), torch.zeros(3)):
            with pytest.raises(UserError, match=r"they are \(texts, terms\), at least one text"):
                PENALTIES[name](table)

    def test_settings_out_of_range(self):
        with pytest.raises(UserError, match=r"^k=0: at least 1 term"):
            top_k(weights(), 0)
        with pytest.raises(UserError, match=r"^floor=0.* above 0"):
            anti_zero(weights(), floor=0)


TWO = """
import sys, torch
from retrodistill.objectives.sparsity import flops, whole_batch
rank = int(sys.argv[1])
torch.distributed.init_process_group("gloo", init_method="file://" + sys.argv[2], rank=rank, world_size=2)
table = torch.arange(12.0).reshape(4, 3)
mine = table[2 * rank : 2 * rank + 2].clone().requires_grad_()
loss = flops(whole_batch(mine))
loss.backward()
print(loss.item(), *(mine.grad / 2).flatten().tolist())  # the mean over processes that training takes
"""


class TestDevices:
    def test_the_mean_of_halves_is_another_value(self):
        table = weights(5)
        assert (flops(table[:2]) + flops(table[2:])) / 2 > flops(table) + 1e-3

    def test_alone_nothing_is_gathered(self):
        table = weights(6)
        assert whole_batch(table) is table

    @pytest.mark.xdist_group("children")
    def test_two_processes_have_the_value_and_gradient_of_one(self, tmp_path):
        running = [
            Child(TWO, rank, tmp_path / "meet", environment={"WORLD_SIZE": "2", "RANK": str(rank)}) for rank in range(2)
        ]
        found = [[float(part) for part in process.wait()[1].split()] for process in running]
        table = torch.arange(12.0).reshape(4, 3).requires_grad_()
        loss = flops(table)
        loss.backward()
        for rank, (value, *gradient) in enumerate(found):
            assert value == pytest.approx(loss.item())
            assert gradient == pytest.approx(table.grad[2 * rank : 2 * rank + 2].flatten().tolist())
