import numpy as np
import pytest
import torch
from sentence_transformers.util import maxsim

from retrodistill.core.errors import UserError
from retrodistill.encoders.loading import load_cross_encoder
from retrodistill.students.cross_encoder import CrossEncoderStudent, PairScorer
from retrodistill.students.multi_vector import TokenScorer, max_sim
from retrodistill.training.scorers import TokenBatch, VectorScorer


def tokens(seed, batch, longest, width=4):
    generator = torch.Generator().manual_seed(seed)
    lengths = torch.randint(1, longest + 1, (batch,), generator=generator)
    mask = torch.arange(longest)[None, :] < lengths[:, None]
    return TokenBatch(torch.randn(batch, longest, width, generator=generator), mask)


def brute(query, document):
    return (query @ document.T).max(dim=1).values.mean()


def rows(batch):
    return [vectors[mask] for vectors, mask in zip(batch.vectors, batch.mask, strict=True)]


class TestVectors:
    def test_lists_are_inner_products_of_own_documents(self):
        query, *documents = torch.randn(4, 3, 5, generator=torch.Generator().manual_seed(0))
        found = VectorScorer(cosine=False).lists([query, *documents])
        expected = torch.tensor([[float(query[row] @ side[row]) for side in documents] for row in range(3)])
        torch.testing.assert_close(found, expected)

    def test_cosine_ignores_lengths(self):
        sides = list(torch.randn(3, 2, 5, generator=torch.Generator().manual_seed(0)))
        found = VectorScorer(cosine=True).lists(sides)
        torch.testing.assert_close(found, VectorScorer(cosine=True).lists([3 * side for side in sides]))
        assert found.abs().max() <= 1

    def test_across_takes_each_querys_own_place(self):
        sides = list(torch.randn(4, 2, 5, generator=torch.Generator().manual_seed(0)))
        found = VectorScorer(cosine=False).across(sides, torch.tensor([2, 0]))
        assert float(found[0, 1]) == pytest.approx(float(sides[0][0] @ sides[1][1]), rel=1e-5)
        assert float(found[1, 0]) == pytest.approx(float(sides[0][1] @ sides[3][0]), rel=1e-5)


class TestTokens:
    def test_scores_are_those_of_the_tokens_that_count(self):
        queries, sides = tokens(0, 3, 4), [tokens(seed, 3, 6) for seed in (1, 2)]
        found = TokenScorer().lists([queries, *sides])
        expected = [[brute(rows(queries)[row], rows(side)[row]) for side in sides] for row in range(3)]
        torch.testing.assert_close(found, torch.tensor(expected))

    def test_they_are_those_of_sentence_transformers(self):
        queries, documents = tokens(0, 3, 4), tokens(1, 3, 6)
        found = TokenScorer().across([queries, documents], torch.zeros(3, dtype=torch.int64))
        expected = maxsim(rows(queries), rows(documents)) / queries.mask.sum(dim=1, keepdim=True)
        torch.testing.assert_close(found, expected)

    def test_negative_products_are_not_beaten_by_padding(self):
        queries = TokenBatch(torch.ones(1, 1, 2), torch.ones(1, 1, dtype=torch.bool))
        documents = TokenBatch(-torch.ones(1, 3, 2), torch.tensor([[True, False, False]]))
        assert float(max_sim(queries, documents)) == -2

    def test_a_text_without_tokens_scores_zero_and_keeps_gradients_finite(self):
        queries, documents = tokens(0, 2, 4), tokens(1, 2, 6)
        vectors = documents.vectors.requires_grad_(True)
        masked = TokenBatch(vectors, documents.mask & torch.tensor([[False], [True]]))
        found = max_sim(queries, masked)
        assert float(found[0].detach()) == 0
        found.sum().backward()
        assert torch.isfinite(vectors.grad).all()
        assert (vectors.grad[0] == 0).all()


class TestPairs:
    def test_lists_are_the_models_logits(self, tiny_cross_encoder):
        model = load_cross_encoder(tiny_cross_encoder).eval()
        columns = [["star", "judge"], ["a comet", "the jury"], ["bread", "a whale"]]
        scorer = PairScorer()
        found = scorer.lists(scorer.encode(model, columns, np.arange(2))).detach().numpy()
        student = CrossEncoderStudent(model, "cross-encoder:student")
        for place in (0, 1):
            expected = student.score(list(zip(columns[0], columns[1 + place], strict=True)))
            np.testing.assert_allclose(found[:, place], expected, atol=1e-6)

    def test_there_are_no_others_documents(self):
        with pytest.raises(UserError, match=r"^objective 'in-batch' needs vectors, and a cross-encoder has none"):
            PairScorer().across([], torch.zeros(1))
