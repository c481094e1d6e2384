import itertools
import math

import pytest
import torch

from retrodistill.core.errors import UserError
from retrodistill.objectives.embeddings import relation_matching, token_relations


def tokens(seed, width, batch=3, n=4):
    generator = torch.Generator().manual_seed(seed)
    return torch.randn(batch, n, width, generator=generator, dtype=torch.float64)


def cos(a, b):
    return torch.nn.functional.cosine_similarity(a, b, dim=0).item()


MASK = torch.tensor([[1, 1, 1, 0], [1, 0, 1, 1], [1, 0, 0, 0]], dtype=torch.bool)


class TestTokenRelations:
    @pytest.mark.parametrize("across", [False, True])
    def test_is_the_brute_force_mean_over_pairs_of_real_tokens(self, across):
        student, teacher = tokens(0, 5), tokens(1, 8)
        places = [(text, place) for text in range(3) for place in range(4) if MASK[text, place]]
        wanted = [
            (cos(student[i], student[j]) - cos(teacher[i], teacher[j])) ** 2
            for i, j in itertools.combinations(places, 2)
            if across or i[0] == j[0]
        ]
        found = token_relations(student, teacher, MASK, across_texts=across)
        assert len(wanted) == (21 if across else 6)
        assert found.item() == pytest.approx(sum(wanted) / len(wanted))

    def test_padding_has_no_effect_and_no_gradient(self):
        student, teacher = tokens(2, 5), tokens(3, 5)
        broken = [torch.where(MASK[:, :, None], one, torch.tensor(math.nan)) for one in (student, teacher)]
        broken[0].requires_grad_()
        loss = token_relations(*broken, MASK)
        torch.testing.assert_close(loss, token_relations(student, teacher, MASK))
        loss.backward()
        assert (broken[0].grad[~MASK] == 0).all()
        assert torch.isfinite(broken[0].grad).all()
        assert (broken[0].grad[2] == 0).all(), "one token has no relation"

    def test_one_text_is_the_matching_of_a_batch(self):
        student, teacher = tokens(4, 5, batch=1, n=6), tokens(5, 7, batch=1, n=6)
        torch.testing.assert_close(token_relations(student, teacher), relation_matching(student[0], teacher[0]))

    def test_a_rotated_teacher_is_matched_and_nothing_to_match_is_0(self):
        teacher = tokens(6, 5)
        rotation = torch.linalg.qr(tokens(7, 5, batch=1, n=5)[0])[0]
        assert token_relations(teacher @ rotation, teacher, MASK).item() == pytest.approx(0, abs=1e-12)
        assert token_relations(teacher, tokens(8, 5), torch.zeros(3, 4)) == 0

    def test_gradients_are_those_of_finite_differences(self):
        student, teacher = tokens(9, 5).requires_grad_(), tokens(10, 6)
        assert torch.autograd.gradcheck(lambda s: token_relations(s, teacher, MASK), [student])

    def test_other_tokens_are_rejected(self):
        with pytest.raises(UserError, match=r"student tokens of shape \(3, 4, 5\), teacher's \(3, 5, 5\); .* one"):
            token_relations(tokens(0, 5), tokens(0, 5, n=5))
        with pytest.raises(UserError, match=r"mask of shape \(3, 5\)"):
            token_relations(tokens(0, 5), tokens(0, 5), torch.ones(3, 5))
