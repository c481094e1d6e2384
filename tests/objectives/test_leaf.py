import pytest
import torch

from retrodistill.core.errors import UserError
from retrodistill.objectives.embeddings import leaf


def embeddings(seed, dtype=torch.float64, batch=4, width=6):
    generator = torch.Generator().manual_seed(seed)
    return torch.randn(2, batch, width, generator=generator, dtype=torch.float64).to(dtype).unbind()


class TestLeaf:
    def test_is_the_brute_force_sum_over_dimensions_mean_over_texts(self):
        student, teacher = embeddings(0)
        wanted = [
            sum((a - b) ** 2 for a, b in zip(s, t, strict=True))
            for s, t in zip(student.tolist(), teacher.tolist(), strict=True)
        ]
        assert leaf(student, teacher).item() == pytest.approx(sum(wanted) / 4)

    def test_is_the_width_times_the_mse_of_sentence_transformers(self):
        from sentence_transformers.sentence_transformer.losses import MSELoss

        student, teacher = embeddings(1, torch.float32)
        theirs = MSELoss(None).compute_loss_from_embeddings([student], [teacher])
        torch.testing.assert_close(leaf(student, teacher), theirs * 6)

    def test_between_unit_vectors_it_is_2_minus_2_cosines(self):
        student, teacher = (torch.nn.functional.normalize(one, dim=1) for one in embeddings(2))
        torch.testing.assert_close(leaf(student, teacher), (2 - 2 * (student * teacher).sum(1)).mean())
        assert leaf(teacher, teacher) == 0
        assert leaf(-teacher, teacher).item() == pytest.approx(4)

    def test_gradients_are_those_of_finite_differences_and_do_not_shrink_with_width(self):
        student, teacher = embeddings(3)
        assert torch.autograd.gradcheck(lambda s: leaf(s, teacher), [student.requires_grad_()])
        leaf(student, teacher).backward()
        torch.testing.assert_close(student.grad, 2 * (student - teacher).detach() / 4)

    @pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
    def test_half_precision_is_computed_in_float32(self, dtype):
        student, teacher = embeddings(4, dtype)
        found = leaf(student * 200, teacher * 200)
        assert found.dtype == torch.float32
        torch.testing.assert_close(found, leaf((student * 200).float(), (teacher * 200).float()))

    def test_another_width_is_rejected_with_advice(self):
        with pytest.raises(UserError, match=r"shape \(2, 3\), teacher's \(2, 5\); give the student a projection"):
            leaf(torch.zeros(2, 3), torch.zeros(2, 5))
