"""The list objectives against other implementations, and the identities that their papers state."""

import math

import pytest
import torch
from brute_lists import lambda_sum, lists, pld_sum, rows
from scipy.special import softmax as scipy_softmax
from scipy.stats import entropy as scipy_entropy

from retrodistill.core.errors import UserError
from retrodistill.objectives.distributions import (
    affinity_mimicking,
    balanced_kl,
    calibrated_kl,
    contrastive,
    in_batch_contrastive,
    kl_divergence,
    listmle,
    listnet,
    plackett_luce,
    pld,
    reverse_kl,
    sinkhorn,
    skewed_kl,
    without_forgetting,
)
from retrodistill.objectives.scores import WEIGHTINGS, in_batch_margin_mse, lambda_loss, margin_mse, mse, ranknet

SEEDS = range(3)


class Scorer(torch.nn.Module):
    """Stands for a cross-encoder: a text is the place of its score."""

    num_labels = 1
    device = torch.device("cpu")

    def __init__(self, scores):
        super().__init__()
        self.scores = scores

    def preprocess(self, pairs, **_):
        return {"places": torch.tensor([[int(query), int(document)] for query, document in pairs])}

    def forward(self, features):
        places = features["places"]
        return {"scores": self.scores[places[:, 0], places[:, 1]][:, None]}


def of_sentence_transformers(loss, scores, labels, mask, **settings):
    """A listwise cross-encoder loss of sentence-transformers on given scores and labels."""
    documents = [[str(place) for place, one in enumerate(row) if one] for row in mask.tolist()]
    inputs = [[str(row) for row in range(len(scores))], documents]
    wanted = [labels[row, mask[row]] for row in range(len(scores))]
    return loss(Scorer(scores), **settings)(inputs, wanted)


def usable(seed):
    """Float32 lists of at least two candidates each, without a tie."""
    scores, targets, mask = lists(seed, batch=6)
    mask[:, :2] = True
    generator = torch.Generator().manual_seed(seed)
    scores, targets = (torch.where(mask, torch.randn(6, 6, generator=generator), torch.nan) for _ in range(2))
    return scores, targets, mask


class TestSentenceTransformers:
    @pytest.mark.parametrize("seed", SEEDS)
    def test_listnet(self, seed):
        from sentence_transformers.cross_encoder.losses import ListNetLoss

        scores, targets, mask = usable(seed)
        theirs = of_sentence_transformers(ListNetLoss, scores, targets, mask)
        torch.testing.assert_close(listnet(scores, targets, mask), theirs)

    @pytest.mark.parametrize("seed", SEEDS)
    def test_listmle(self, seed):
        from sentence_transformers.cross_encoder.losses import ListMLELoss

        scores, targets, mask = usable(seed)
        theirs = of_sentence_transformers(ListMLELoss, scores, targets, mask, respect_input_order=False)
        torch.testing.assert_close(listmle(scores, targets, mask), theirs)

    @pytest.mark.parametrize("seed", SEEDS)
    def test_weighted_choices_are_position_aware_listmle(self, seed):
        from sentence_transformers.cross_encoder.losses import PListMLELoss

        scores, targets, _ = lists(seed, kind="full")
        scores, targets = scores.float(), targets.float()
        mask = torch.ones_like(scores, dtype=torch.bool)
        theirs = of_sentence_transformers(PListMLELoss, scores, targets, mask, respect_input_order=False)
        weights = 2.0 ** torch.arange(5, -1, -1) - 1  # their default: 2^(n - rank) - 1, made to sum to 1
        order = targets.argsort(dim=1, descending=True)
        ours = plackett_luce(scores, order, (weights / weights.sum()).expand(5, 6)).mean()
        torch.testing.assert_close(ours, theirs)

    @pytest.mark.parametrize("seed", SEEDS)
    def test_ranknet(self, seed):
        from sentence_transformers.cross_encoder.losses import RankNetLoss

        scores, targets, mask = usable(seed)
        theirs = of_sentence_transformers(RankNetLoss, scores, targets, mask, reduction_log="natural")
        torch.testing.assert_close(ranknet(scores, targets, mask), theirs)

    @pytest.mark.parametrize("weighting", WEIGHTINGS)
    @pytest.mark.parametrize("seed", SEEDS)
    def test_lambdaloss_with_their_gains(self, seed, weighting):
        from sentence_transformers.cross_encoder import losses

        schemes = [losses.LambdaRankScheme, losses.NDCGLoss2Scheme, losses.NDCGLoss2PPScheme]
        scheme = dict(zip(WEIGHTINGS, schemes, strict=True))[weighting]()
        scores, _, mask = usable(seed)
        grades = torch.stack([torch.randperm(6, generator=torch.Generator().manual_seed(row)) for row in range(6)])
        grades = grades.float()
        theirs = of_sentence_transformers(losses.LambdaLoss, scores, grades, mask, weighting_scheme=scheme)
        pairs = sum(len(row) * (len(row) - 1) // 2 for row, _ in rows(scores, grades, mask))  # grades have no tie
        ours = lambda_loss(scores, grades, mask, gains=2**grades - 1, weighting=weighting)
        torch.testing.assert_close(ours * len(scores) / pairs, theirs)  # they average over pairs, the paper adds up

    def test_in_batch_contrastive_is_multiple_negatives_ranking(self):
        from sentence_transformers.sentence_transformer.losses import MultipleNegativesRankingLoss

        texts, documents = (
            torch.nn.functional.normalize(torch.randn(5, 8, generator=torch.Generator().manual_seed(seed)), dim=1)
            for seed in range(2)
        )
        theirs = MultipleNegativesRankingLoss(None).compute_loss_from_embeddings([texts, documents], None)
        torch.testing.assert_close(in_batch_contrastive(texts @ documents.T), theirs)

    def test_mse_is_theirs(self):
        scores, targets, _ = lists(0, kind="full")
        torch.testing.assert_close(mse(scores, targets), torch.nn.functional.mse_loss(scores, targets))


class TestLambdaLoss:
    @pytest.mark.parametrize("weighting", WEIGHTINGS)
    def test_weightings_are_their_loops(self, weighting):
        scores, targets, mask = lists(3)
        found = [lambda_sum(s, t, weighting) for s, t in rows(scores, targets, mask) if len(s) >= 2]
        assert lambda_loss(scores, targets, mask, weighting=weighting).item() == pytest.approx(sum(found) / len(found))

    def test_worked_by_hand(self):
        # Two documents in the wrong order, gains 1 and 1/e; ideal DCG 1 + 1/(e log2 3), swap worth 1 - 1/log2 3.
        scores, targets = torch.tensor([[0.0, 1.0]]), torch.tensor([[1.0, 0.0]])
        weight = (1 - 0.36788) / (1 + 0.36788 / 1.58496) * (1 - 1 / 1.58496)
        pair = 1.31326 / 0.693147  # log(1 + e) in bits
        assert lambda_loss(scores, targets, weighting="lambdarank").item() == pytest.approx(weight * pair, rel=1e-4)

    def test_a_steeper_teacher_looks_at_the_top(self):
        scores, targets = torch.zeros(1, 4, requires_grad=True), torch.tensor([[3.0, 2.0, 1.0, 0.0]])
        shares = []
        for scale in (0.1, 10.0):
            gradient = torch.autograd.grad(lambda_loss(scores, scale * targets, weighting="ndcg-loss2"), scores)[0]
            shares.append((gradient[0, 0].abs() / gradient.abs().sum()).item())
        assert shares[1] > shares[0]


class TestDivergences:
    def test_listnet_is_kl_and_the_teachers_entropy_with_one_gradient(self):
        scores, targets, _ = lists(1, kind="full")
        scores.requires_grad_()
        entropy = torch.distributions.Categorical(logits=targets).entropy().mean()
        torch.testing.assert_close(listnet(scores, targets), kl_divergence(scores, targets) + entropy)
        gradients = [torch.autograd.grad(one(scores, targets), scores)[0] for one in (listnet, kl_divergence)]
        torch.testing.assert_close(*gradients)

    def test_reverse_kl_is_kl_with_the_sides_swapped(self):
        scores, targets, mask = lists(2)
        found = reverse_kl(scores, targets, mask, student_temperature=0.5, teacher_temperature=2.0)
        changed = kl_divergence(targets, scores, mask, student_temperature=2.0, teacher_temperature=0.5)
        torch.testing.assert_close(found, changed)

    def test_a_student_more_confident_than_its_teacher_gets_the_forward_divergence(self):
        sure, unsure = torch.tensor([[20.0, 0.0, 0.0, 0.0]]), torch.zeros(1, 4)
        weight = torch.sigmoid(torch.tensor(4.0).log()).item()  # entropies log 4 and about 0
        expected = weight * kl_divergence(sure, unsure) + (1 - weight) * reverse_kl(sure, unsure)
        torch.testing.assert_close(balanced_kl(sure, unsure), expected, rtol=1e-5, atol=0)

    def test_the_balance_carries_no_gradient(self):
        scores, targets, _ = lists(3, kind="full", batch=1)
        scores.requires_grad_()
        entropies = [torch.distributions.Categorical(logits=one).entropy() for one in (targets, scores)]
        weight = torch.sigmoid(entropies[0] - entropies[1]).detach()
        both = [torch.autograd.grad(one(scores, targets), scores)[0] for one in (kl_divergence, reverse_kl)]
        found = torch.autograd.grad(balanced_kl(scores, targets), scores)[0]
        torch.testing.assert_close(found, weight * both[0] + (1 - weight) * both[1])


class TestChoices:
    @pytest.mark.parametrize("seed", SEEDS)
    def test_one_weight_on_the_first_choice_is_infonce(self, seed):
        scores, targets, mask = lists(seed)
        mask[:, :2] = True
        scores, targets = (torch.where(mask, one.nan_to_num(0, 0, 0), one) for one in (scores, targets))
        order = torch.where(mask, targets, -torch.inf).argsort(dim=1, descending=True)
        first = torch.zeros(5, 6, dtype=torch.float64)
        first[:, 0] = 1
        expected = contrastive(scores, order[:, 0], mask, student_temperature=1.0)
        torch.testing.assert_close(plackett_luce(scores, order, first, mask).mean(), expected)

    @pytest.mark.parametrize("seed", SEEDS)
    def test_equal_weights_are_listmle(self, seed):
        scores, targets, _ = lists(seed, kind="full")
        order = targets.argsort(dim=1, descending=True)
        ones = torch.ones(5, 6, dtype=torch.float64)
        torch.testing.assert_close(plackett_luce(scores, order, ones).mean(), listmle(scores, targets))

    def test_a_teacher_sure_of_one_makes_pld_infonce_and_a_flat_one_listmle(self):
        scores, targets, _ = lists(4, kind="full")
        best = targets.argmax(dim=1)
        infonce = contrastive(scores, best, student_temperature=1.0)
        torch.testing.assert_close(pld(scores, targets * 1e3), infonce)
        torch.testing.assert_close(pld(scores, targets * 1e-9) * 6, listmle(scores, targets))

    def test_likelihoods_of_all_orders_add_up_to_1(self):
        from itertools import permutations

        scores = torch.tensor([[0.3, -1.2, 2.0, 0.1]], dtype=torch.float64)
        orders = torch.tensor(list(permutations(range(4))))
        likelihoods = torch.exp(-plackett_luce(scores.expand(24, 4), orders))
        assert likelihoods.sum().item() == pytest.approx(1)

    def test_the_positive_comes_first_whatever_the_teacher_says(self):
        scores, targets, _ = lists(5, kind="full", batch=3)
        positives = torch.tensor([4, -1, 0])
        found = pld(scores, targets, positives=positives).item()
        pairs = list(rows(scores, targets, torch.ones(3, 6, dtype=torch.bool)))
        wanted = [pld_sum(*pair, positive) for pair, positive in zip(pairs, [4, None, 0], strict=True)]
        assert found == pytest.approx(sum(wanted) / 3)

    def test_a_masked_positive_is_ignored(self):
        scores, targets, _ = lists(6, kind="full", batch=1)
        mask = torch.tensor([[True, True, True, False, True, True]])
        torch.testing.assert_close(pld(scores, targets, mask, torch.tensor([3])), pld(scores, targets, mask))

    def test_a_shift_invariant_convex_surrogate(self):
        targets = lists(7, kind="full")[1]
        one, two = lists(8, kind="full")[0], lists(9, kind="full")[0]
        assert pld((one + two) / 2, targets) < (pld(one, targets) + pld(two, targets)) / 2


class TestTransport:
    def test_one_list_is_the_l1_distance_of_the_distributions(self):
        scores, targets, _ = lists(0, kind="full", batch=1)
        distance = (scores.softmax(1) - targets.softmax(1)).abs().sum()
        torch.testing.assert_close(sinkhorn(scores, targets), distance)

    def test_columns_are_aligned_by_the_teachers_order(self):
        scores, targets, mask = lists(1)
        shuffled = [
            torch.stack(
                [row[torch.randperm(6, generator=torch.Generator().manual_seed(n))] for n, row in enumerate(one)]
            )
            for one in (scores, targets, mask)
        ]
        torch.testing.assert_close(sinkhorn(*shuffled), sinkhorn(scores, targets, mask))

    def test_agreement_costs_nothing_when_the_entropy_is_low(self):
        _, targets, _ = lists(2, kind="full")
        assert sinkhorn(targets, targets, entropy=1e-3).item() == pytest.approx(0, abs=1e-9)
        assert sinkhorn(targets, targets).item() > 1e-3

    def test_plans_keep_the_columns_sums(self):
        # All costs equal: any plan costs the same, so the mean over lists is that cost.
        scores, targets = torch.tensor([[0.0, 50.0], [0.0, 50.0]]), torch.tensor([[50.0, 0.0], [50.0, 0.0]])
        assert sinkhorn(scores, targets).item() == pytest.approx(2)


class TestInBatch:
    def test_false_negatives_do_not_push_and_own_documents_always_count(self):
        scores = torch.randn(3, 3, generator=torch.Generator().manual_seed(0), requires_grad=True)
        same = torch.tensor([[1, 0, 1], [0, 1, 0], [1, 0, 1]], dtype=torch.bool)
        found = in_batch_contrastive(scores, same, student_temperature=1.0)
        logits = [scores[0, :2], scores[1, [1, 0, 2]], scores[2, [2, 1]]]
        expected = torch.stack([-one.log_softmax(0)[0] for one in logits]).mean()
        torch.testing.assert_close(found, expected)
        found.backward()
        assert scores.grad[0, 2] == scores.grad[2, 0] == 0

    def test_texts_without_a_document_neither_learn_nor_push(self):
        scores = torch.randn(3, 3, generator=torch.Generator().manual_seed(1), requires_grad=True)
        found = in_batch_contrastive(scores, None, torch.tensor([True, False, True]))
        torch.testing.assert_close(found, in_batch_contrastive(scores[[0, 2]][:, [0, 2]]))
        found.backward()
        assert (scores.grad[1] == 0).all()
        assert (scores.grad[:, 1] == 0).all()

    def test_a_batch_of_one_teaches_nothing(self):
        assert in_batch_contrastive(torch.ones(1, 1)) == 0

    def test_scores_that_are_not_square(self):
        with pytest.raises(UserError, match=r"in-batch scores are \(batch, batch\)"):
            in_batch_contrastive(torch.zeros(2, 3))
        with pytest.raises(UserError, match=r"positives of shape \(3,\)"):
            in_batch_contrastive(torch.zeros(2, 2), None, torch.ones(3))


class TestInBatchMargins:
    def test_they_are_the_squared_differences_of_margins_to_the_own_document(self):
        generator = torch.Generator().manual_seed(0)
        scores = torch.randn(3, 4, generator=generator, requires_grad=True)
        targets = torch.randn(3, 4, generator=generator)
        targets[0, 3] = math.nan
        mask = torch.tensor([[1, 1, 1, 0], [1, 1, 1, 1], [1, 1, 1, 1]], dtype=torch.bool)
        found = in_batch_margin_mse(scores, targets, torch.tensor([2, 0, -1]), mask)
        pairs = [(0, 2, 0), (0, 2, 1), (1, 0, 1), (1, 0, 2), (1, 0, 3)]
        by_hand = [
            (scores[row, own] - scores[row, other] - (targets[row, own] - targets[row, other])) ** 2
            for row, own, other in pairs
        ]
        torch.testing.assert_close(found, torch.stack(by_hand).mean())
        found.backward()
        assert (scores.grad[2] == 0).all()  # a text without a document of its own
        assert scores.grad[0, 3] == 0
        assert torch.isfinite(scores.grad).all()

    def test_the_positive_need_not_be_the_teachers_best(self):
        scores, targets = torch.tensor([[0.0, 1.0]]), torch.tensor([[0.0, 3.0]])
        assert in_batch_margin_mse(scores, targets, torch.tensor([0])) == 4.0
        assert in_batch_margin_mse(scores, scores + 7, torch.tensor([0])) == 0

    def test_nothing_to_compare_with_teaches_nothing(self):
        assert in_batch_margin_mse(torch.ones(2, 1), torch.zeros(2, 1), torch.zeros(2, dtype=torch.long)) == 0
        hidden = torch.tensor([[False, True]])  # the own document itself
        assert in_batch_margin_mse(torch.ones(1, 2), torch.zeros(1, 2), torch.tensor([0]), hidden) == 0

    def test_shapes_that_differ(self):
        with pytest.raises(UserError, match=r"positives of shape \(3,\)"):
            in_batch_margin_mse(torch.zeros(2, 3), torch.zeros(2, 3), torch.zeros(3, dtype=torch.long))


class TestSkew:
    def test_worked_by_hand(self):
        scores, targets = (
            torch.tensor([[0.0, 0.0]]),
            torch.tensor([[math.log(3), 0.0]]),
        )  # q = (1/2, 1/2), p = (3/4, 1/4)
        mixed = (0.1 * 0.75 + 0.9 * 0.5, 0.1 * 0.25 + 0.9 * 0.5)
        wanted = 0.75 * math.log(0.75 / mixed[0]) + 0.25 * math.log(0.25 / mixed[1])
        assert skewed_kl(scores, targets).item() == pytest.approx(wanted, rel=1e-6)
        mixed = (0.9 * 0.75 + 0.1 * 0.5, 0.9 * 0.25 + 0.1 * 0.5)
        wanted = 0.5 * math.log(0.5 / mixed[0]) + 0.5 * math.log(0.5 / mixed[1])
        assert skewed_kl(scores, targets, reverse=True).item() == pytest.approx(wanted, rel=1e-6)

    def test_without_skew_it_is_kl_either_way(self):
        scores, targets, mask = lists(2)
        torch.testing.assert_close(skewed_kl(scores, targets, mask, skew=0), kl_divergence(scores, targets, mask))
        found = skewed_kl(scores, targets, mask, skew=0, reverse=True)
        torch.testing.assert_close(found, reverse_kl(scores, targets, mask))

    def test_it_is_bounded_where_kl_is_not(self):
        scores, targets = torch.tensor([[-200.0, 0.0]], requires_grad=True), torch.tensor([[0.0, -200.0]])
        assert kl_divergence(scores, targets).item() == pytest.approx(200)
        for reverse in (False, True):
            assert skewed_kl(scores, targets, reverse=reverse).item() == pytest.approx(-math.log(0.1), rel=1e-5)

    def test_a_share_beyond_its_range(self):
        for skew in (-0.1, 1.0, math.nan):
            with pytest.raises(UserError, match=r"^skew=.*from 0 to less than 1"):
                skewed_kl(torch.zeros(2, 3), torch.zeros(2, 3), skew=skew)


class TestCalibrated:
    def test_worked_by_hand(self):
        scores = torch.zeros(3, 2)
        targets = torch.tensor([[math.log(3), 0.0]]).repeat(3, 1)  # p = (3/4, 1/4)
        first, second, none = (
            calibrated_kl(scores[:1], targets[:1], positives=torch.tensor([place])).item() for place in (0, 1, -1)
        )
        of_teacher = 0.75 * math.log(1.5) + 0.25 * math.log(0.5)
        assert first == pytest.approx(of_teacher, rel=1e-6)  # the teacher ranks the positive first
        assert none == pytest.approx(of_teacher, rel=1e-6)
        weight = 1 - (1 / 4) / (3 / 4)
        mixed = ((1 - weight) * 0.75, (1 - weight) * 0.25 + weight)
        assert second == pytest.approx(sum(p * math.log(2 * p) for p in mixed), rel=1e-6)
        together = calibrated_kl(scores, targets, positives=torch.tensor([0, 1, -1])).item()
        assert together == pytest.approx((first + second + none) / 3, rel=1e-6)

    def test_a_positive_that_the_teacher_rules_out_is_the_contrastive_objective(self):
        scores = torch.randn(2, 4, generator=torch.Generator().manual_seed(0), requires_grad=True)
        targets, positives = torch.tensor([[0.0, -300.0, -3.0, -4.0]]).repeat(2, 1), torch.tensor([1, 1])
        found = calibrated_kl(scores, targets, positives=positives)
        torch.testing.assert_close(found, contrastive(scores, positives, student_temperature=1.0))
        assert torch.isfinite(torch.autograd.grad(found, scores)[0]).all()

    def test_a_masked_positive_counts_as_none(self):
        scores, targets, mask = lists(0, kind="full")
        mask[:, 2] = False
        hidden = calibrated_kl(scores, targets, mask, torch.full((len(scores),), 2))
        torch.testing.assert_close(hidden, kl_divergence(scores, targets, mask))


class TestAffinity:
    def test_it_is_the_divergence_over_rows_and_over_columns(self):
        scores, targets, mask = lists(1, batch=4, n=6)
        valid = mask.numpy()
        found = []
        for student, teacher, used in ((scores, targets, valid), (scores.T, targets.T, valid.T)):
            rows = [(s[of], t[of]) for s, t, of in zip(student, teacher, used, strict=True) if of.sum() >= 2]
            divergences = [scipy_entropy(scipy_softmax(t.numpy()), scipy_softmax(s.numpy())) for s, t in rows]
            found.append(sum(divergences) / len(divergences))
        assert affinity_mimicking(scores, targets, mask).item() == pytest.approx(sum(found) / 2, rel=1e-6)

    def test_a_document_that_all_texts_score_higher_matters_to_the_columns_only(self):
        scores = torch.randn(3, 3, generator=torch.Generator().manual_seed(0))
        shifted = scores + torch.tensor([[0.0], [5.0], [-5.0]])  # by text: the order of each text's documents stays
        rows = kl_divergence(shifted, scores).item()
        assert rows == pytest.approx(0, abs=1e-6)
        columns = kl_divergence(shifted.T, scores.T).item()
        assert columns > 1
        assert affinity_mimicking(shifted, scores).item() == pytest.approx((rows + columns) / 2, rel=1e-5)


class TestWithoutForgetting:
    def test_it_is_kl_to_the_start_at_one_temperature(self):
        scores, start, mask = lists(0)
        found = without_forgetting(scores, start, mask, student_temperature=0.5)
        expected = kl_divergence(scores, start, mask, student_temperature=0.5, teacher_temperature=0.5)
        torch.testing.assert_close(found, expected)

    def test_at_the_start_it_is_0_without_a_pull_and_the_start_gets_no_gradient(self):
        start = lists(1, kind="full")[0].requires_grad_()
        scores = start.detach().clone().requires_grad_()
        without_forgetting(scores, start).backward()
        assert scores.grad.abs().max() < 1e-12
        assert start.grad is None


class TestMarginOverAPairlessTensor:
    def test_lists_may_be_a_whole_corpus(self):
        generator = torch.Generator().manual_seed(0)
        scores, targets = (torch.randn(2, 30_000, generator=generator, dtype=torch.float64) for _ in range(2))
        expected = 2 * (scores - targets).var(dim=1).mean()  # the mean squared difference of two draws
        torch.testing.assert_close(margin_mse(scores, targets, pairs="all"), expected)
