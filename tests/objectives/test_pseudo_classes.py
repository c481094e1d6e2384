import numpy as np
import pytest
import torch

from retrodistill.core.errors import UserError
from retrodistill.objectives.classes import classes_of, lelp, pseudo_class_alignment, pseudo_classes

GENERATOR = np.random.default_rng(0)
LABELS = np.repeat([0, 1], [40, 25])
EMBEDDINGS = (GENERATOR.standard_normal((65, 8)) * np.linspace(4, 0.5, 8) + LABELS[:, None] * 5).astype("f4")


def softmax(values):
    raised = np.exp(values - values.max())
    return raised / raised.sum()


class TestProjections:
    def test_they_span_each_classes_principal_directions_and_are_orthonormal(self):
        found = pseudo_classes(EMBEDDINGS, LABELS, 3)
        assert found.directions.shape == (2, 3, 8)
        for label in range(2):
            rows = EMBEDDINGS[label == LABELS].astype("f8")
            np.testing.assert_allclose(found.centers[label], rows.mean(0), rtol=1e-5)
            values, vectors = np.linalg.eigh(np.cov(rows.T))
            principal = vectors[:, np.argsort(values)[::-1][:3]]
            projector = found.directions[label].T @ found.directions[label]
            np.testing.assert_allclose(projector, principal @ principal.T, atol=1e-5)
            np.testing.assert_allclose(found.directions[label] @ found.directions[label].T, np.eye(3), atol=1e-6)
            projected = (rows - rows.mean(0)) @ found.directions[label].T
            assert found.scales[label] == pytest.approx(np.sqrt((projected**2).mean()), rel=1e-5)

    def test_what_the_teachers_weights_see_is_left_out(self):
        weights = GENERATOR.standard_normal((2, 8))
        found = pseudo_classes(EMBEDDINGS, LABELS, 3, weights=weights)
        np.testing.assert_allclose(found.directions @ weights.T, 0, atol=1e-5)

    def test_the_seed_decides_the_rotation(self):
        one, same, other = (pseudo_classes(EMBEDDINGS, LABELS, 3, seed=seed).directions for seed in (0, 0, 1))
        np.testing.assert_array_equal(one, same)
        assert not np.allclose(one, other)


class TestTargets:
    def test_are_the_brute_force_shares_and_add_up_to_the_teachers_probabilities(self):
        classes = pseudo_classes(EMBEDDINGS, LABELS, 3)
        probabilities = np.stack([softmax(row) for row in GENERATOR.standard_normal((4, 2))])
        found = classes.targets(torch.from_numpy(EMBEDDINGS[:4]), torch.from_numpy(probabilities), temperature=0.7)
        for row in range(4):
            wanted = []
            for label in range(2):
                leaning = classes.directions[label] @ (EMBEDDINGS[row] - classes.centers[label])
                wanted += list(probabilities[row, label] * softmax(leaning / (classes.scales[label] * 0.7)))
            np.testing.assert_allclose(found[row].numpy(), wanted, rtol=1e-4)
        np.testing.assert_allclose(found.unflatten(1, (2, 3)).sum(2).numpy(), probabilities, rtol=1e-5)

    def test_they_distinguish_texts_of_one_class(self):
        classes = pseudo_classes(EMBEDDINGS, LABELS, 2)
        certain = torch.tensor([[1.0, 0.0]]).expand(40, 2)
        found = classes.targets(torch.from_numpy(EMBEDDINGS[:40]), certain)
        assert found[:, :2].argmax(1).float().mean().item() == pytest.approx(0.5, abs=0.3)
        assert (found[:, 2:] == 0).all()


class TestLoss:
    def test_is_torchs_kl_and_0_at_agreement(self):
        logits = torch.randn(5, 6, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
        targets = torch.randn(5, 6, generator=torch.Generator().manual_seed(1), dtype=torch.float64).softmax(1)
        expected = torch.nn.functional.kl_div((logits / 2).log_softmax(1), targets, reduction="batchmean")
        torch.testing.assert_close(lelp(logits, targets, student_temperature=2.0), expected)
        assert lelp(targets.log(), targets).item() == pytest.approx(0, abs=1e-12)
        assert torch.autograd.gradcheck(lambda z: lelp(z, targets), [logits.requires_grad_()])

    def test_certain_teachers_are_finite(self):
        logits = torch.zeros(2, 4, requires_grad=True)
        loss = lelp(logits, torch.tensor([[1.0, 0, 0, 0], [0, 0, 0.5, 0.5]]))
        loss.backward()
        assert loss.item() == pytest.approx((np.log(4) + np.log(2)) / 2)
        assert torch.isfinite(logits.grad).all()


class TestAlignment:
    CLASSES = pseudo_classes(EMBEDDINGS, LABELS, 3)

    def test_the_students_logits_are_the_logarithm_of_the_teachers_targets(self):
        embeddings = torch.from_numpy(EMBEDDINGS[::7])
        logits = self.CLASSES.logits(embeddings, 2.0)
        probabilities = torch.softmax(embeddings @ torch.from_numpy(self.CLASSES.centers).T / 2.0, dim=1)
        torch.testing.assert_close(logits.exp(), self.CLASSES.targets(embeddings, probabilities))
        torch.testing.assert_close(logits.exp().sum(1), torch.ones(len(embeddings)))

    def test_it_is_lelp_of_these_and_0_without_a_gradient_at_the_teacher(self):
        teacher = torch.from_numpy(EMBEDDINGS[:6])
        student = (teacher + 1).requires_grad_(True)
        value = pseudo_class_alignment(student, teacher, self.CLASSES, 5.0)
        expected = lelp(self.CLASSES.logits(student, 5.0), self.CLASSES.logits(teacher, 5.0).exp())
        torch.testing.assert_close(value, expected)
        assert float(value.detach()) > 0
        there = teacher.clone().requires_grad_(True)
        pseudo_class_alignment(there, teacher, self.CLASSES, 5.0).backward()
        assert there.grad.abs().max() < 1e-5

    def test_its_gradient_is_that_of_finite_differences(self):
        teacher = torch.from_numpy(EMBEDDINGS[:3]).double()
        student = (teacher + 0.5).requires_grad_(True)
        assert torch.autograd.gradcheck(
            lambda given: pseudo_class_alignment(given, teacher, self.CLASSES, 5.0), [student], atol=1e-4
        )

    def test_another_width_is_rejected(self):
        with pytest.raises(UserError, match=r"'lelp' is for students of the teacher's width"):
            pseudo_class_alignment(torch.zeros(2, 4), torch.zeros(2, 8), self.CLASSES, 1.0)


class TestClasses:
    def test_they_are_the_documents_relevant_to_enough_different_texts(self):
        documents = np.array([7] * 20 + [3] * 20 + [-1] * 20 + [9] * 2 + [5] * 3)
        embeddings = EMBEDDINGS.copy()
        embeddings[62:] = embeddings[62]  # document 5 has one text, three times
        classes = classes_of(embeddings, documents, 2)
        np.testing.assert_allclose(classes.centers, [embeddings[20:40].mean(0), embeddings[:20].mean(0)], rtol=1e-4)
        assert classes.directions.shape == (2, 2, 8)

    def test_the_largest_are_kept(self):
        documents = np.array([7] * 20 + [3] * 21 + [4] * 24)
        classes = classes_of(EMBEDDINGS, documents, 2, largest=2)
        np.testing.assert_allclose(classes.centers[1], EMBEDDINGS[41:].mean(0), rtol=1e-4)
        assert len(classes.centers) == 2

    def test_too_few_texts_are_rejected(self):
        with pytest.raises(UserError, match=r"'lelp' needs .* more than parts=2"):
            classes_of(EMBEDDINGS, np.arange(65), 2)


class TestRefusals:
    def test_a_class_that_does_not_spread(self):
        flat = EMBEDDINGS.copy()
        flat[40:, 1:] = 0
        with pytest.raises(UserError, match=r"^class 1: its 25 texts spread over 1 directions, and 2 parts need"):
            pseudo_classes(flat, LABELS, 2)

    def test_labels_with_a_gap_and_shapes(self):
        with pytest.raises(UserError, match=r"^labels are not 0, 1, .. without a gap"):
            pseudo_classes(EMBEDDINGS, LABELS * 2, 2)
        with pytest.raises(UserError, match=r"^embeddings of shape \(65, 8\) and labels of shape \(3,\)"):
            pseudo_classes(EMBEDDINGS, LABELS[:3], 2)
        with pytest.raises(UserError, match=r"^parts=1: "):
            pseudo_classes(EMBEDDINGS, LABELS, 1)
        with pytest.raises(UserError, match=r"^weights of shape \(2, 5\) for embeddings of width 8"):
            pseudo_classes(EMBEDDINGS, LABELS, 2, weights=np.zeros((2, 5)))

    def test_what_does_not_fit_the_classes(self):
        classes = pseudo_classes(EMBEDDINGS, LABELS, 2)
        with pytest.raises(UserError, match=r"wanted \(batch, 8\) and \(batch, 2\)"):
            classes.targets(torch.zeros(3, 8), torch.zeros(3, 5))
        with pytest.raises(UserError, match=r"^temperature=0.* above 0"):
            classes.targets(torch.zeros(3, 8), torch.zeros(3, 2), temperature=0)
        with pytest.raises(UserError, match=r"^logits of shape \(3, 4\), targets of shape \(3, 5\)"):
            lelp(torch.zeros(3, 4), torch.zeros(3, 5))
        with pytest.raises(UserError, match=r"^temperature=0.* above 0"):
            lelp(torch.zeros(3, 4), torch.zeros(3, 4), student_temperature=0)
