import math

import pytest
import torch
from brute_lists import BRUTE, KINDS, brute_kl, lists, log_softmax

from retrodistill.core.errors import UserError
from retrodistill.objectives.distributions import (
    balanced_kl,
    calibrated_kl,
    contrastive,
    kl_divergence,
    listmle,
    listnet,
    pld,
    reverse_kl,
    sinkhorn,
    skewed_kl,
    taid,
)
from retrodistill.objectives.registry import INPUTS, OBJECTIVES, get_objective
from retrodistill.objectives.registry import objective as register
from retrodistill.objectives.scores import (
    binary_cross_entropy,
    discounted_rank_mse,
    lambda_loss,
    margin_mse,
    mse,
    ranknet,
)

OF_LISTS = {
    "kl": kl_divergence,
    "reverse-kl": reverse_kl,
    "balanced-kl": balanced_kl,
    "skew-kl": skewed_kl,
    "skew-reverse-kl": lambda *given, **named: skewed_kl(*given, **named, reverse=True),
    "calibrated-kl": calibrated_kl,
    "listnet": listnet,
    "mse": mse,
    "bce": binary_cross_entropy,
    "margin-mse": margin_mse,
    "margin-mse-all": lambda *given, **named: margin_mse(*given, **named, pairs="all"),
    "ranknet": ranknet,
    "adr-mse": discounted_rank_mse,
    "lambdaloss": lambda_loss,
    "listmle": listmle,
    "pld": pld,
    "sinkhorn": sinkhorn,
    "taid": lambda *given, **named: taid(*given, **named, t=0.6),
}
OF_SHIFTED = sorted(set(OF_LISTS) - {"mse", "bce"})
DIVERGENCES = ["kl", "reverse-kl", "balanced-kl", "skew-kl", "skew-reverse-kl", "calibrated-kl"]
ZERO_AT_AGREEMENT = [*DIVERGENCES, "margin-mse", "margin-mse-all", "taid"]
PULLS_FLAT = [*ZERO_AT_AGREEMENT, "listnet", "mse"]
STOPPED = {"balanced-kl", "taid"}  # a part of theirs that depends on the student carries no gradient, on purpose
SEEDS = range(4)


@pytest.fixture(params=OF_LISTS)
def objective(request):
    return OF_LISTS[request.param]


class TestBruteForce:
    @pytest.mark.parametrize("kind", KINDS)
    @pytest.mark.parametrize("seed", SEEDS)
    @pytest.mark.parametrize("name", OF_LISTS)
    def test_every_objective_is_its_loop(self, name, seed, kind):
        scores, targets, mask = lists(seed, kind=kind)
        found = OF_LISTS[name](scores, targets, mask).item()
        assert found == pytest.approx(BRUTE[name](scores, targets, mask), rel=1e-9, abs=1e-12)

    @pytest.mark.parametrize("temperatures", [(1.0, 1.0), (0.05, 2.5)])
    def test_temperatures_divide(self, temperatures):
        scores, targets, mask = lists(0)
        student, teacher = temperatures
        found = kl_divergence(scores, targets, mask, student_temperature=student, teacher_temperature=teacher)
        assert found.item() == pytest.approx(brute_kl(scores, targets, mask, *temperatures), rel=1e-9)

    @pytest.mark.parametrize("seed", SEEDS)
    def test_contrastive(self, seed):
        scores, _, mask = lists(seed)
        positives = torch.tensor([0, 2, -1, int(mask[3].int().argmax()), int(mask[4].int().argmax())])
        wanted = []
        for row, place in ((3, positives[3]), (4, positives[4])):
            valid = mask[row].nonzero().squeeze(1).tolist()
            if len(valid) >= 2:
                wanted.append(-log_softmax(scores[row, valid].tolist(), 0.05)[valid.index(place)])
        found = contrastive(scores, positives, mask).item()
        assert found == pytest.approx(sum(wanted) / max(len(wanted), 1), rel=1e-9)

    def test_margin_worked_by_hand(self):
        scores, targets = torch.tensor([[1.0, 3.0, 0.0]]), torch.tensor([[10.0, 7.0, 8.0]])
        # margins of the student: 1-3 = -2, 1-0 = 1; of the teacher: 3, 2: (-5)^2 and (-1)^2
        assert margin_mse(scores, targets).item() == pytest.approx((25 + 1) / 2)
        # all pairs: the third is student 3, teacher -1: 4^2
        assert margin_mse(scores, targets, pairs="all").item() == pytest.approx((25 + 1 + 16) / 3)

    def test_margins_are_those_of_the_positive_where_it_is_known(self):
        generator = torch.Generator().manual_seed(3)
        scores, targets = torch.randn(2, 4, 5, generator=generator)
        mask = torch.rand(4, 5, generator=generator) < 0.8
        mask[:, [1, 3]] = True
        positives = torch.tensor([3, -1, 1, 3])
        squares = []
        for row in range(4):
            first = int(positives[row])
            if first < 0:
                first = max(torch.nonzero(mask[row]).flatten().tolist(), key=lambda at: float(targets[row, at]))
            for other in range(5):
                if mask[row, other] and other != first:
                    student, teacher = (side[row, first] - side[row, other] for side in (scores, targets))
                    squares.append(float((student - teacher) ** 2))
        assert margin_mse(scores, targets, mask, positives).item() == pytest.approx(
            sum(squares) / len(squares), rel=1e-5
        )


class TestReferences:
    @pytest.mark.parametrize("seed", SEEDS)
    def test_kl_is_torchs(self, seed):
        scores, targets, _ = lists(seed, kind="full")
        wanted = torch.nn.functional.kl_div(
            (scores / 0.5).log_softmax(1), (targets / 2).log_softmax(1), log_target=True, reduction="batchmean"
        )
        found = kl_divergence(scores, targets, student_temperature=0.5, teacher_temperature=2.0)
        torch.testing.assert_close(found, wanted)

    def test_kl_is_scipys(self):
        from scipy.special import softmax
        from scipy.stats import entropy

        scores, targets, _ = lists(7, kind="full")
        wanted = entropy(softmax(targets.numpy(), axis=1), softmax(scores.numpy(), axis=1), axis=1).mean()
        assert kl_divergence(scores, targets).item() == pytest.approx(wanted)

    def test_contrastive_is_torchs_cross_entropy(self):
        scores, _, _ = lists(3, kind="full")
        positives = torch.tensor([0, 5, 2, 2, 1])
        wanted = torch.nn.functional.cross_entropy(scores / 0.05, positives)
        torch.testing.assert_close(contrastive(scores, positives), wanted)

    def test_margin_and_kl_are_those_of_sentence_transformers(self):
        from sentence_transformers.sentence_transformer.losses import DistillKLDivLoss, MarginMSELoss

        generator = torch.Generator().manual_seed(0)
        query, positive, *negatives = (torch.randn(4, 8, generator=generator) for _ in range(5))
        scores = torch.stack([(query * one).sum(1) for one in (positive, *negatives)], dim=1)
        targets = torch.randn(4, 4, generator=generator)
        targets[:, 0] += 10  # their positive is the first column, ours the teacher's best
        embeddings = [query, positive, *negatives]
        margins = targets[:, :1] - targets[:, 1:]
        torch.testing.assert_close(
            margin_mse(scores, targets), MarginMSELoss(None).compute_loss_from_embeddings(embeddings, margins)
        )
        theirs = DistillKLDivLoss(None, temperature=2.0).compute_loss_from_embeddings(embeddings, targets)
        ours = kl_divergence(scores, targets, student_temperature=2.0, teacher_temperature=2.0)
        torch.testing.assert_close(ours * 2.0**2, theirs)  # they multiply by the temperature squared


class TestMasks:
    def test_gradients_of_masked_places_are_exactly_0_and_the_others_finite(self, objective):
        scores, targets, mask = lists(1)
        scores.requires_grad_()
        objective(scores, targets, mask).backward()
        assert (scores.grad[~mask] == 0).all()
        assert torch.isfinite(scores.grad).all()
        assert (scores.grad[2:][mask[2:]] != 0).any()
        assert (scores.grad[1] == 0).all(), "a list of one candidate teaches nothing"

    def test_values_at_masked_places_do_not_matter(self, objective):
        scores, targets, mask = lists(2)
        clean = [torch.where(mask, one, torch.zeros_like(one)) for one in (scores, targets)]
        torch.testing.assert_close(objective(scores, targets, mask), objective(*clean, mask), rtol=0, atol=0)

    @pytest.mark.parametrize("kind", ["single", "nothing"])
    def test_lists_without_a_pair_give_0_with_a_gradient_of_0(self, objective, kind):
        scores, targets, mask = lists(3, kind=kind)
        scores.requires_grad_()
        loss = objective(scores, targets, mask)
        loss.backward()
        assert loss.item() == 0
        assert (scores.grad == 0).all()

    def test_padding_changes_nothing(self, objective):
        scores, targets, _ = lists(4, kind="full")
        padding = torch.full((5, 3), math.nan, dtype=torch.float64)
        mask = torch.cat([torch.ones(5, 6), torch.zeros(5, 3)], dim=1)
        padded = objective(torch.cat([scores, padding], 1), torch.cat([targets, padding], 1), mask)
        torch.testing.assert_close(padded, objective(scores, targets))

    def test_masked_contrastive_has_clean_gradients(self):
        scores, _, mask = lists(1)
        scores.requires_grad_()
        contrastive(scores, mask.int().argmax(dim=1), mask).backward()
        assert (scores.grad[~mask] == 0).all()
        assert torch.isfinite(scores.grad).all()

    def test_contrastive_leaves_lists_without_a_positive_out(self):
        scores = torch.tensor([[1.0, 2.0], [5.0, 0.0]])
        only = contrastive(scores[:1], torch.tensor([1]))
        assert contrastive(scores, torch.tensor([1, -1])) == only
        assert contrastive(scores, torch.tensor([1, 0]), torch.tensor([[1, 1], [0, 1]])) == only
        assert contrastive(scores, torch.tensor([-1, -1])) == 0


class TestInvariances:
    @pytest.mark.parametrize("shift", [-1e3, 1e3])
    @pytest.mark.parametrize("name", OF_SHIFTED)
    def test_a_shift_of_a_list_changes_nothing(self, name, shift):
        objective = OF_LISTS[name]
        scores, targets, mask = lists(5)
        shifts = shift * torch.arange(5, dtype=torch.float64)[:, None]
        for moved in ((scores + shifts, targets), (scores, targets + shifts), (scores + shifts, targets - shifts)):
            torch.testing.assert_close(objective(*moved, mask), objective(scores, targets, mask), rtol=1e-8, atol=1e-9)

    def test_the_order_of_candidates_changes_nothing(self, objective):
        scores, targets, mask = lists(6)
        order = torch.randperm(6, generator=torch.Generator().manual_seed(0))
        torch.testing.assert_close(
            objective(scores[:, order], targets[:, order], mask[:, order]), objective(scores, targets, mask)
        )

    def test_mse_is_the_one_that_a_shift_changes(self):
        _, targets, mask = lists(5)
        assert mse(targets + 3, targets, mask).item() == pytest.approx(9)
        assert mse(targets + 3, targets, mask, free_zero=True).item() == pytest.approx(0, abs=1e-12)

    def test_mse_with_a_free_zero_is_the_variance_of_all_residuals(self):
        scores, targets, mask = lists(5)
        mask = mask & (mask.sum(dim=1, keepdim=True) >= 2)
        residuals = (scores - targets)[mask]
        found = mse(scores, targets, mask, free_zero=True)
        torch.testing.assert_close(found, residuals.var(correction=0))
        scores = torch.where(mask, scores, torch.zeros_like(scores)).requires_grad_()
        assert torch.autograd.gradcheck(lambda s: mse(s, targets, mask, free_zero=True), [scores])
        moved = scores.detach() + torch.arange(5)[:, None]  # another zero for each list does count
        assert mse(moved, targets, mask, free_zero=True) != found

    @pytest.mark.parametrize("name", ZERO_AT_AGREEMENT)
    def test_it_is_0_exactly_where_the_student_agrees_up_to_a_shift(self, name):
        objective = OF_LISTS[name]
        scores, targets, mask = lists(7)
        assert objective(scores, targets, mask).item() > 0.01
        assert objective(targets + 3, targets, mask).item() == pytest.approx(0, abs=1e-12)

    def test_margins_are_signed(self):
        scores, targets = torch.tensor([[1.0, 0.0]]), torch.tensor([[0.0, 1.0]])
        assert margin_mse(scores, targets).item() == 4.0

    def test_temperature_is_a_scale(self):
        scores, targets, mask = lists(8)
        halved = kl_divergence(scores, targets, mask, student_temperature=0.5, teacher_temperature=2.0)
        torch.testing.assert_close(halved, kl_divergence(scores * 2, targets / 2, mask))


class TestTies:
    @pytest.mark.parametrize("name", PULLS_FLAT)
    def test_flat_lists_are_finite_and_pull_the_student_flat(self, name):
        objective = OF_LISTS[name]
        targets = torch.full((2, 4), 0.1)
        scores = torch.randn(2, 4, generator=torch.Generator().manual_seed(0), requires_grad=True)
        loss = objective(scores, targets)
        loss.backward()
        assert loss.item() > 0
        assert torch.isfinite(scores.grad).all()
        assert (torch.sign(scores.grad) * torch.sign(scores - scores.mean(1, keepdim=True))).sum() > 0

    def test_gradients_are_finite_where_all_scores_are_tied(self, objective):
        scores = torch.zeros(3, 4, requires_grad=True)
        objective(scores, torch.zeros(3, 4)).backward()
        assert torch.isfinite(scores.grad).all()

    def test_ties_of_the_teacher_make_no_pair(self):
        targets = torch.tensor([[2.0, 2.0, 1.0]])
        wrong, right = torch.tensor([[5.0, -5.0, -9.0]]), torch.tensor([[-5.0, 5.0, -9.0]])
        for objective in (ranknet, lambda_loss):
            torch.testing.assert_close(objective(wrong, targets), objective(right, targets))
            assert objective(wrong, torch.zeros(1, 3)) == 0

    def test_ties_of_the_teacher_follow_the_order_of_the_list(self):
        scores, targets = torch.tensor([[3.0, 1.0, 2.0]]), torch.tensor([[1.0, 1.0, 1.0]])
        in_order = listmle(scores, torch.tensor([[3.0, 2.0, 1.0]]))
        assert listmle(scores, targets) == in_order
        assert listmle(scores, torch.tensor([[3.0, 1.0, 2.0]])) != in_order

    def test_the_first_of_equal_bests_is_the_positive(self):
        scores, targets = torch.tensor([[1.0, 5.0, 0.0]]), torch.tensor([[2.0, 2.0, 0.0]])
        # (1-5 - 0)^2 = 16 and (1-0 - 2)^2 = 1
        assert margin_mse(scores, targets).item() == pytest.approx(17 / 2)


class TestPrecision:
    @pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
    def test_half_precision_is_computed_in_float32(self, objective, dtype):
        scores, targets, mask = (one.to(dtype) if one.is_floating_point() else one for one in lists(9, scale=300.0))
        found = objective(scores, targets, mask)
        assert found.dtype == torch.float32
        torch.testing.assert_close(found, objective(scores.float(), targets.float(), mask), rtol=0, atol=0)

    @pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
    def test_a_small_temperature_does_not_overflow_half_precision(self, dtype):
        scores = torch.tensor([[9e3, 8.9e3]], dtype=dtype)
        assert torch.isfinite(kl_divergence(scores, scores.flip(1), student_temperature=0.05))
        assert torch.isfinite(contrastive(scores, torch.tensor([1])))

    def test_scores_of_1e4_stay_finite_and_right(self, objective):
        scores, targets, mask = lists(10, scale=1e4)
        found = objective(scores.float().requires_grad_(), targets.float(), mask)
        assert found.item() == pytest.approx(objective(scores, targets, mask).item(), rel=1e-4)

    @pytest.mark.parametrize("name", sorted(set(OF_LISTS) - STOPPED))
    def test_gradients_are_those_of_finite_differences(self, name):
        objective = OF_LISTS[name]
        scores, targets, mask = lists(11)
        scores = torch.where(mask, scores, torch.zeros_like(scores)).requires_grad_()
        assert torch.autograd.gradcheck(lambda s: objective(s, targets, mask), [scores])

    def test_contrastive_gradients_are_those_of_finite_differences(self):
        scores, _, mask = lists(12)
        scores = torch.where(mask, scores, torch.zeros_like(scores)).requires_grad_()
        positives = mask.int().argmax(dim=1)
        assert torch.autograd.gradcheck(lambda s: contrastive(s, positives, mask, student_temperature=0.5), [scores])


class TestRefusals:
    def test_shapes_that_differ(self, objective):
        with pytest.raises(UserError, match=r"scores of shape \(2, 3\) and teacher scores of shape \(2, 4\)"):
            objective(torch.zeros(2, 3), torch.zeros(2, 4))
        with pytest.raises(UserError, match=r"both are \(batch, candidates\)"):
            objective(torch.zeros(3), torch.zeros(3))
        with pytest.raises(UserError, match=r"mask of shape \(3,\) for scores of shape \(2, 3\)"):
            objective(torch.zeros(2, 3), torch.zeros(2, 3), torch.ones(3))

    @pytest.mark.parametrize("temperature", [0, -1.0, math.nan])
    def test_temperatures_that_are_not_above_0(self, temperature):
        scores = torch.zeros(2, 3)
        for given in ({"student_temperature": temperature}, {"teacher_temperature": temperature}):
            with pytest.raises(UserError, match=r"temperature=.* must be above 0"):
                kl_divergence(scores, scores, **given)

    def test_pairs_that_do_not_fit_into_memory(self):
        wide = torch.zeros(1, 1025)
        for objective in (ranknet, lambda_loss):
            with pytest.raises(UserError, match=r"^lists of 1025 candidates; .* at most 1024: lower candidates.depth"):
                objective(wide, wide)

    def test_unknown_weighting(self):
        with pytest.raises(UserError, match=r"^unknown weighting 'ndcg'"):
            lambda_loss(torch.zeros(2, 3), torch.zeros(2, 3), weighting="ndcg")

    def test_transport_that_cannot_be_computed(self):
        for given in ({"entropy": 0.0}, {"entropy": math.nan}, {"iterations": 0}):
            with pytest.raises(UserError, match=r"^entropy=.*, iterations="):
                sinkhorn(torch.zeros(2, 3), torch.zeros(2, 3), **given)

    def test_unknown_pairs(self):
        with pytest.raises(UserError, match=r"unknown choice of pairs 'al'. Did you mean 'all'?"):
            margin_mse(torch.zeros(2, 3), torch.zeros(2, 3), pairs="al")

    def test_positives_of_another_shape(self):
        with pytest.raises(UserError, match=r"positives of shape \(3,\)"):
            contrastive(torch.zeros(2, 3), torch.zeros(3, dtype=torch.long))


class TestRegistry:
    def test_names_are_the_users_words_with_one_line_each(self):
        lists = {name for name in OBJECTIVES if get_objective(name).sees == "lists"}
        assert {*OF_LISTS, "affinity", "contrastive", "in-batch", "in-batch-margin-mse", "lwf"} == lists
        assert not any("\n" in line for line in OBJECTIVES.values())

    def test_controls_read_no_teacher_and_replace_the_others(self):
        teacherless = {name for name in OBJECTIVES if not get_objective(name).reads_scores}
        assert teacherless >= {"contrastive", "in-batch", "lwf", "leaf"}
        assert {get_objective(name).control for name in OBJECTIVES} == {"contrastive", "in-batch"}

    def test_positives_are_needed_by_controls_and_objectives_over_a_batch(self):
        needing = {name for name in OBJECTIVES if get_objective(name).needs_positives}
        assert needing == {"affinity", "contrastive", "in-batch", "in-batch-margin-mse"}

    def test_an_unknown_input_or_a_duplicate_name_is_rejected(self):
        for name, takes in (("new", ("scores", "gains")), ("kl", ("scores",))):
            with pytest.raises(ValueError, match=rf"'{name}'"):
                register(name, "", takes)(torch.sum)
        assert "new" not in OBJECTIVES
        assert all(set(get_objective(name).takes) <= set(INPUTS) for name in OBJECTIVES)
