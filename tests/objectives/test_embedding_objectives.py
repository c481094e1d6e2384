import inspect
import itertools
import math

import pytest
import torch

from retrodistill.core.errors import UserError
from retrodistill.objectives.embeddings import (
    cosine,
    leaf,
    mi_alpha,
    norm_and_direction,
    relation_matching,
    teacher_dropping,
    triplets,
)
from retrodistill.objectives.registry import get_objective

OF_PAIRS = {"leaf": leaf, "cosine": cosine, "nd": norm_and_direction, "mi-alpha": mi_alpha}
OF_BATCHES = {"relations": relation_matching, "triplets": lambda s, t: triplets(s, t, 0.5)}
ALL = {**OF_PAIRS, **OF_BATCHES}


def embeddings(seed, batch=5, width=6, dtype=torch.float64):
    generator = torch.Generator().manual_seed(seed)
    return torch.randn(2, batch, width, generator=generator, dtype=torch.float64).to(dtype).unbind()


def dot(a, b):
    return sum(x * y for x, y in zip(a, b, strict=True))


def cos(a, b):
    return dot(a, b) / math.sqrt(dot(a, a) * dot(b, b))


class TestBruteForce:
    def test_cosine(self):
        student, teacher = embeddings(0)
        wanted = [1 - cos(s, t) for s, t in zip(student.tolist(), teacher.tolist(), strict=True)]
        assert cosine(student, teacher).item() == pytest.approx(sum(wanted) / 5)

    def test_relations(self):
        student, teacher = embeddings(1)[0], embeddings(2, width=9)[1]
        s, t = student.tolist(), teacher.tolist()
        wanted = [(cos(s[i], s[j]) - cos(t[i], t[j])) ** 2 for i, j in itertools.combinations(range(5), 2)]
        assert relation_matching(student, teacher).item() == pytest.approx(sum(wanted) / 10)

    def test_triplets(self):
        student, teacher = embeddings(1)[0], embeddings(2, width=9)[1]
        s, t = student.tolist(), teacher.tolist()
        wanted = [
            max(0, 0.5 - (cos(s[i], s[j]) - cos(s[i], s[k])))
            for i, j, k in itertools.permutations(range(5), 3)
            if cos(t[i], t[j]) > cos(t[i], t[k])
        ]
        assert len(wanted) == 30
        assert triplets(student, teacher, 0.5).item() == pytest.approx(sum(wanted) / 30)

    def test_teacher_dropping(self):
        student, teacher = embeddings(3, batch=400)
        torch.manual_seed(0)
        found = teacher_dropping(student, teacher, (2, 4), keep=0.5).item()
        parts = [(slice(0, 2), 0), (slice(2, 6), 1)]
        s, t = student.tolist(), teacher.tolist()
        lengths = [sum(dot(row[part], row[part]) for row in t) / 400 for part, _ in parts]
        distances = [
            [sum((x - y) ** 2 for x, y in zip(a[part], b[part], strict=True)) / lengths[n] for part, n in parts]
            for a, b in zip(s, t, strict=True)
        ]
        torch.manual_seed(0)
        drawn = (torch.rand(400, 2, dtype=torch.float64) < 0.5).tolist()
        wanted = sum(
            value
            for row, kept in zip(distances, drawn, strict=True)
            for value, stays in zip(row, kept, strict=True)
            if stays or value == max(row)
        )
        assert found == pytest.approx(wanted / 400, rel=0.02)

    def test_nd(self):
        student, teacher = embeddings(3)
        centers = embeddings(4)[0]
        for given, directions in ((None, teacher), (centers, centers)):
            wanted = []
            for s, t, e in zip(student.tolist(), teacher.tolist(), directions.tolist(), strict=True):
                longest = max(math.sqrt(dot(s, s)), math.sqrt(dot(t, t)))
                wanted.append(1 - dot(s, e) / math.sqrt(dot(e, e)) / longest)
            assert norm_and_direction(student, teacher, given).item() == pytest.approx(sum(wanted) / 5)

    @pytest.mark.parametrize("alpha", [1.0, 0.9, 0.1])
    def test_mi_alpha(self, alpha):
        student, teacher = embeddings(5)
        s, t = student.tolist(), teacher.tolist()
        joint, marginal = [], []
        for i in range(5):
            critic = [math.exp(cos(s[i], x) / 0.5) for x in t]
            others = [one for j, one in enumerate(critic) if j != i]
            baseline = (1 - alpha) * math.e
            joint.append(math.log(critic[i] / (alpha * sum(critic) / 5 + baseline)))
            marginal.append(sum(others) / 4 / (alpha * sum(others) / 4 + baseline))
        wanted = -(1 + sum(joint) / 5 - sum(marginal) / 5)
        assert mi_alpha(student, teacher, temperature=0.5, alpha=alpha).item() == pytest.approx(wanted)


class TestTeacherDropping:
    def test_without_dropping_it_is_leaf_per_teacher(self):
        student, teacher = (torch.nn.functional.normalize(side, dim=1) for side in embeddings(0))
        ours, theirs = torch.cat([student, teacher], dim=1), torch.cat([teacher, student], dim=1)
        found = teacher_dropping(ours / math.sqrt(2), theirs / math.sqrt(2), (6, 6), keep=1.0)
        torch.testing.assert_close(found, 2 * leaf(student, teacher))

    def test_with_all_dropped_only_the_farthest_teacher_teaches(self):
        teacher = torch.tensor([[1.0, 0.0, 1.0, 0.0], [1.0, 0.0, 1.0, 0.0]])
        student = torch.tensor([[0.0, 1.0, 1.0, 0.2], [1.0, 0.2, 0.0, 1.0]], requires_grad=True)
        teacher_dropping(student, teacher, (2, 2), keep=0.0).backward()
        assert (student.grad != 0).tolist() == [[True, True, False, False], [False, False, True, True]]

    @pytest.mark.parametrize("widths", [(6,), (3, 2), ()])
    def test_widths_that_are_not_those_of_several_teachers(self, widths):
        with pytest.raises(UserError, match=r"give the widths of two or more teachers"):
            teacher_dropping(*embeddings(0), widths)

    def test_gradients_are_those_of_finite_differences(self):
        student, teacher = embeddings(7)
        assert torch.autograd.gradcheck(
            lambda s: teacher_dropping(s, teacher, (2, 4), keep=1.0), [student.requires_grad_()]
        )


class TestReferences:
    def test_cosine_is_that_of_sentence_transformers(self):
        from sentence_transformers.sentence_transformer.losses import EmbedDistillLoss

        student, teacher = embeddings(0, dtype=torch.float32)
        theirs = EmbedDistillLoss(torch.nn.Identity(), distance_metric="cosine")
        expected = theirs.compute_loss_from_embeddings([student], [teacher])
        torch.testing.assert_close(cosine(student, teacher), expected)

    def test_cosine_is_half_of_leaf_between_unit_vectors(self):
        student, teacher = (torch.nn.functional.normalize(one, dim=1) for one in embeddings(1))
        torch.testing.assert_close(cosine(student, teacher) * 2, leaf(student, teacher))
        torch.testing.assert_close(norm_and_direction(student, teacher), cosine(student, teacher))

    def test_mi_alpha_at_1_is_infonce(self):
        student, teacher = embeddings(2)
        logits = torch.nn.functional.normalize(student, dim=1) @ torch.nn.functional.normalize(teacher, dim=1).T / 0.05
        infonce = torch.nn.functional.cross_entropy(logits, torch.arange(5)) - math.log(5)
        torch.testing.assert_close(mi_alpha(student, teacher, 0.05, alpha=1.0), infonce)

    @pytest.mark.parametrize("cosine_to_teacher", [0.5, 0.9])
    def test_mi_alpha_still_teaches_close_to_the_teacher_at_its_default_temperature(self, cosine_to_teacher):
        """The gradient along the direction to the teacher, for a batch of 64 of width 384."""
        generator = torch.Generator().manual_seed(0)
        teacher, noise = torch.nn.functional.normalize(torch.randn(2, 64, 384, generator=generator), dim=2)
        away = torch.nn.functional.normalize(noise - (noise * teacher).sum(1, keepdim=True) * teacher, dim=1)

        def pull(temperature, cosine_to_teacher=cosine_to_teacher):
            angle = torch.tensor(cosine_to_teacher).acos()
            angles = torch.full((64, 1), angle.item(), requires_grad=True)
            mi_alpha(angles.cos() * teacher + angles.sin() * away, teacher, temperature).backward()
            return float(angles.grad.sum()) / float(angle.sin())  # loss per unit of cosine that is lost

        default = inspect.signature(mi_alpha).parameters["temperature"].default
        assert default == get_objective("mi-alpha").student_temperature == 0.25
        assert pull(default) > 0.6 * pull(default, 0.0) > 1
        assert abs(pull(0.05)) < 0.01 * pull(0.05, 0.0)

    def test_mi_alpha_toward_0_is_nwj(self):
        student, teacher = embeddings(3)
        critic = torch.nn.functional.normalize(student, dim=1) @ torch.nn.functional.normalize(teacher, dim=1).T / 0.5
        others = critic.exp()[~torch.eye(5, dtype=torch.bool)].mean()
        nwj = critic.diagonal().mean() - others / math.e  # 1 + E[f - 1] - E[e^(f - 1)]
        found = -mi_alpha(student, teacher, temperature=0.5, alpha=1e-12)
        torch.testing.assert_close(found, nwj)

    @pytest.mark.parametrize(("alpha", "highest"), [(1.0, math.log(8)), (0.5, 1 + math.log(16))])
    def test_mi_alpha_is_bounded_where_every_text_is_found(self, alpha, highest):
        unit = torch.eye(8, dtype=torch.float64)  # the critic is 1000 for a text's own embedding and 0 for the others'
        found = -mi_alpha(unit, unit, temperature=1e-3, alpha=alpha, log_baseline=20.0)
        assert found.item() == pytest.approx(highest, abs=1e-6)


class TestMeaning:
    @pytest.mark.parametrize("name", OF_BATCHES)
    def test_relations_ignore_rotation_and_width(self, name):
        student, teacher = embeddings(4)
        rotation = torch.linalg.qr(embeddings(5, batch=6)[0])[0]
        torch.testing.assert_close(OF_BATCHES[name](student @ rotation, teacher), OF_BATCHES[name](student, teacher))
        wider = torch.cat([teacher, torch.zeros(5, 3)], dim=1)
        torch.testing.assert_close(OF_BATCHES[name](wider, teacher), OF_BATCHES[name](teacher, teacher))

    def test_relations_and_triplets_are_zero_where_the_student_is_the_teacher(self):
        teacher = embeddings(4)[1]
        assert relation_matching(teacher, teacher).item() == pytest.approx(0, abs=1e-12)
        assert triplets(teacher, teacher, margin=0.0).item() == pytest.approx(0, abs=1e-12)

    def test_nd_pulls_at_length_up_to_the_teachers_and_at_direction_beyond(self):
        teacher = torch.tensor([[2.0, 0.0]])
        for length, pulled in ((1.0, True), (3.0, False)):
            student = torch.tensor([[length, 0.0]], requires_grad=True)
            norm_and_direction(student, teacher).backward()
            assert (student.grad[0, 0] < 0) == pulled
        askew = torch.tensor([[3.0, 1.0]], requires_grad=True)
        norm_and_direction(askew, teacher).backward()
        assert askew.grad[0, 1] > 0

    def test_a_batch_of_one_has_no_relation(self):
        student, teacher = embeddings(6, batch=1)
        student.requires_grad_()
        for objective in (relation_matching, triplets, mi_alpha):
            loss = objective(student, teacher)
            assert loss == 0
            assert (torch.autograd.grad(loss, student)[0] == 0).all()


class TestPrecision:
    @pytest.mark.parametrize("name", ALL)
    def test_gradients_are_those_of_finite_differences(self, name):
        student, teacher = embeddings(7)
        assert torch.autograd.gradcheck(lambda s: ALL[name](s, teacher), [student.requires_grad_()])

    @pytest.mark.parametrize("name", ALL)
    @pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
    def test_half_precision_is_computed_in_float32(self, name, dtype):
        student, teacher = (one * 300 for one in embeddings(8, dtype=dtype))
        found = ALL[name](student, teacher)
        assert found.dtype == torch.float32
        torch.testing.assert_close(found, ALL[name](student.float(), teacher.float()))

    @pytest.mark.parametrize("name", sorted(set(ALL) - {"leaf"}))
    @pytest.mark.parametrize("scale", [1e-6, 1e6])
    def test_extremes_of_scale_stay_finite_and_keep_the_value(self, name, scale):
        student, teacher = embeddings(9, dtype=torch.float32)
        student.requires_grad_()
        found = ALL[name](student * scale, teacher * scale)
        torch.testing.assert_close(found, ALL[name](student, teacher), rtol=1e-4, atol=1e-4)
        assert torch.isfinite(torch.autograd.grad(found, student)[0]).all()

    @pytest.mark.parametrize("name", ALL)
    def test_a_zero_vector_is_finite(self, name):
        student, teacher = embeddings(10, dtype=torch.float32)
        student = torch.cat([torch.zeros(1, 6), student[1:]]).requires_grad_()
        loss = ALL[name](student, teacher)
        loss.backward()
        assert torch.isfinite(loss)
        assert torch.isfinite(student.grad[1:]).all()


class TestRefusals:
    @pytest.mark.parametrize("name", OF_PAIRS)
    def test_another_width_is_rejected_with_advice(self, name):
        with pytest.raises(UserError, match=r"shape \(2, 3\), teacher's \(2, 5\); give the student a projection"):
            OF_PAIRS[name](torch.zeros(2, 3), torch.zeros(2, 5))

    def test_relations_of_other_texts(self):
        with pytest.raises(UserError, match=r"both are \(batch, dimensions\) of the same texts"):
            relation_matching(torch.zeros(2, 3), torch.zeros(3, 3))

    @pytest.mark.parametrize("given", [{"alpha": 0.0}, {"alpha": 1.1}, {"temperature": 0.0}])
    def test_settings_out_of_range(self, given):
        with pytest.raises(UserError, match=r"^temperature=.*, alpha="):
            mi_alpha(torch.zeros(2, 3), torch.zeros(2, 3), **given)
