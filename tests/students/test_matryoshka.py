import copy

import numpy as np
import pytest
import torch
from losses import groups_loss, stored_loss
from sentence_transformers import SentenceTransformer

from retrodistill.core.errors import UserError
from retrodistill.encoders import load_encoder
from retrodistill.encoders.loading import load_bi_encoder
from retrodistill.encoders.vectors import leading
from retrodistill.objectives.distributions import kl_divergence, without_forgetting
from retrodistill.objectives.embeddings import leaf
from retrodistill.students.dense_variants import LeadingVectors, MatryoshkaLoss
from retrodistill.training.lists import Lists, lists_over_corpus
from retrodistill.training.loss import Term, objective_keeper
from retrodistill.training.settings import TrainingSettings
from retrodistill.training.trainer import TextColumns, train

TEXTS = ["what star planet", "violin chord", "bread", "judge"]
DOCUMENTS = np.random.default_rng(0).standard_normal((5, 32)).astype("f4")
TARGETS = np.random.default_rng(3).standard_normal((4, 32)).astype("f4")
SCORES = np.random.default_rng(1).standard_normal((4, 3)).astype("f4")
PLACES = np.array([[0, 1, 2], [4, 3, -1], [2, 0, 1], [3, 1, -1]], dtype=np.int32)
NONE = np.full(4, -1)
LISTS = Lists(PLACES, SCORES, NONE, NONE)
WHOLE = lists_over_corpus(np.random.default_rng(2).standard_normal((4, 5)).astype("f4"), NONE)
KL = Term("kl", student_temperature=0.1, teacher_temperature=0.5)
CUTS = (32, 8)


@pytest.fixture
def model(tiny_model):
    return load_bi_encoder(tiny_model).eval()


@pytest.fixture
def dot(tiny_model):
    modules = [module for module in load_bi_encoder(tiny_model) if type(module).__name__ != "Normalize"]
    return SentenceTransformer(modules=modules, similarity_fn_name="dot", device="cpu").eval()


def encoded(model):
    return load_encoder(model).encode(TEXTS, "query")


def stored(model, terms, lists=LISTS, cuts=CUTS):
    """A loss at each number of dimensions, on stored vectors of as many."""
    unit = str(model.similarity_fn_name) == "cosine"
    documents, targets = (
        one / np.linalg.norm(one, axis=1, keepdims=True) if unit else one for one in (DOCUMENTS, TARGETS)
    )
    losses = {}
    for cut in cuts:
        cut_documents, cut_targets = (LeadingVectors(one, cut, unit=unit) for one in (documents, targets))
        losses[cut] = stored_loss(model, terms, embeddings=cut_targets, documents=cut_documents, lists=lists)
    return losses


def by_hand(vectors, cut, unit=True):
    """Leading dimensions of each vector, of length 1."""
    vectors = vectors[:, :cut]
    return torch.from_numpy(vectors / np.linalg.norm(vectors, axis=1, keepdims=True) if unit else vectors)


class TestLeadingVectors:
    @pytest.mark.parametrize("unit", [False, True])
    def test_are_what_an_index_holds(self, unit):
        found, expected = LeadingVectors(DOCUMENTS, 8, unit=unit), leading(DOCUMENTS, 8, unit=unit)
        assert found[:].shape == (5, 8)
        np.testing.assert_array_equal(found[:], expected)
        rows = np.array([[0, 3, 3], [4, 1, 0]])
        np.testing.assert_array_equal(found[rows], expected[rows])

    def test_whole_vectors_stay_as_they_are(self):
        np.testing.assert_array_equal(LeadingVectors(DOCUMENTS, 32, unit=True)[:], DOCUMENTS)

    @pytest.mark.parametrize("dimensions", [0, 33])
    def test_dimensions_that_there_are_not(self, dimensions):
        with pytest.raises(UserError, match=f"truncation to {dimensions} dimensions: the vectors have 32"):
            LeadingVectors(DOCUMENTS, dimensions, unit=True)


class TestStoredTargets:
    @pytest.mark.parametrize(("lists", "places"), [(LISTS, PLACES), (WHOLE, np.arange(5)[None].repeat(4, axis=0))])
    def test_lists_over_truncated_documents(self, model, lists, places):
        loss = MatryoshkaLoss(model, stored(model, [KL], lists))
        parts = loss([model.preprocess(TEXTS)], torch.arange(4))
        assert list(parts) == ["kl", "kl@8"]
        for name, cut in (("kl", 32), ("kl@8", 8)):
            scores = by_hand(encoded(model), cut) @ by_hand(DOCUMENTS, cut).T
            scores = scores.gather(1, torch.from_numpy(places).clamp(min=0).long())
            targets, mask = torch.from_numpy(lists.scores), torch.from_numpy(places >= 0)
            expected = kl_divergence(scores, targets, mask, student_temperature=0.1, teacher_temperature=0.5)
            torch.testing.assert_close(parts[name], expected, atol=1e-5, rtol=1e-4)

    def test_embeddings_of_the_teacher_are_truncated_too(self, model):
        parts = MatryoshkaLoss(model, stored(model, [Term("leaf")]))([model.preprocess(TEXTS)], torch.arange(4))
        for name, cut in (("leaf", 32), ("leaf@8", 8)):
            torch.testing.assert_close(
                parts[name], leaf(by_hand(encoded(model), cut), by_hand(TARGETS, cut)), atol=1e-5, rtol=1e-4
            )

    def test_dot_products_keep_lengths(self, dot):
        parts = MatryoshkaLoss(dot, stored(dot, [KL]))([dot.preprocess(TEXTS)], torch.arange(4))
        scores = torch.from_numpy(encoded(dot)[:, :8]) @ torch.from_numpy(DOCUMENTS[:, :8]).T
        scores = scores.gather(1, torch.from_numpy(PLACES).clamp(min=0).long())
        expected = kl_divergence(
            scores,
            torch.from_numpy(SCORES),
            torch.from_numpy(PLACES >= 0),
            student_temperature=0.1,
            teacher_temperature=0.5,
        )
        torch.testing.assert_close(parts["kl@8"], expected, atol=1e-4, rtol=1e-4)

    def test_the_loss_of_leading_dimensions_reaches_no_other(self, dot):
        loss = MatryoshkaLoss(dot, stored(dot, [Term("leaf")]))
        given = torch.randn(4, 32, generator=torch.Generator().manual_seed(0)).requires_grad_(True)
        loss.compute_loss_from_embeddings([given], torch.arange(4))["leaf@8"].backward()
        assert given.grad[:, :8].abs().sum() > 0
        assert not given.grad[:, 8:].any()

    def test_the_student_of_the_stages_start(self, model):
        start = moved(model)
        terms = [KL, Term("lwf", student_temperature=0.1)]
        loss = MatryoshkaLoss(model, stored(model, terms), start=start)
        parts = loss([model.preprocess(TEXTS)], torch.arange(4))
        places, mask = torch.from_numpy(PLACES).clamp(min=0).long(), torch.from_numpy(PLACES >= 0)
        for name, cut in (("lwf", 32), ("lwf@8", 8)):
            now, then = (
                (by_hand(encoded(one), cut) @ by_hand(DOCUMENTS, cut).T).gather(1, places) for one in (model, start)
            )
            expected = without_forgetting(now, then, mask, student_temperature=0.1)
            assert float(expected) > 1e-3
            torch.testing.assert_close(parts[name], expected, atol=1e-5, rtol=1e-3)

    def test_forgetting_without_a_start_is_refused(self, model):
        loss = MatryoshkaLoss(model, stored(model, [Term("lwf")]))
        with pytest.raises(UserError, match="'lwf' needs start_scores"):
            loss([model.preprocess(TEXTS)], torch.arange(4))


def moved(model):
    """The model with other weights."""
    other = copy.deepcopy(model)
    generator = torch.Generator().manual_seed(0)
    with torch.no_grad():
        for parameter in other.parameters():
            parameter.add_(0.2 * torch.randn(parameter.shape, generator=generator))
    return other


class TestGroups:
    def test_both_sides_are_truncated(self, model):
        targets = SCORES[:, :2]
        made = {
            cut: groups_loss(model, [KL], targets, np.ones((4, 2), dtype=bool), np.zeros(4, dtype=np.int64))
            for cut in CUTS
        }
        columns = [TEXTS, TEXTS[::-1], TEXTS[1:] + TEXTS[:1]]
        parts = MatryoshkaLoss(model, made)([model.preprocess(column) for column in columns], torch.arange(4))
        vectors = [load_encoder(model).encode(column, "query") for column in columns]
        for name, cut in (("kl", 32), ("kl@8", 8)):
            query, *documents = (by_hand(one, cut) for one in vectors)
            scores = torch.stack([(query * one).sum(dim=1) for one in documents], dim=1)
            expected = kl_divergence(
                scores, torch.from_numpy(targets), student_temperature=0.1, teacher_temperature=0.5
            )
            torch.testing.assert_close(parts[name], expected, atol=1e-5, rtol=1e-4)


class TestTraining:
    def test_each_truncation_has_its_own_schedule(self, model):
        loss = MatryoshkaLoss(model, stored(model, [Term("taid", student_temperature=0.1)]))
        keeper = objective_keeper(loss)
        keeper.on_step_begin(None, _State(1, 10), None)
        for _ in range(2):
            loss([model.preprocess(TEXTS)], torch.arange(4))
        states = [inner.objective_state() for inner in loss.losses.values()]
        assert all(states)
        alone = stored(model, [Term("taid", student_temperature=0.1)])[32]
        alone.progress = 0.1
        for _ in range(2):
            alone([model.preprocess(TEXTS)], torch.arange(4))
        assert states[0] == alone.objective_state()

    def test_through_the_trainer(self, tiny_model, tmp_path):
        model = load_bi_encoder(tiny_model)
        targets = TARGETS / np.linalg.norm(TARGETS, axis=1, keepdims=True)
        losses = {
            cut: stored_loss(model, [Term("leaf")], embeddings=LeadingVectors(targets, cut, unit=True)) for cut in CUTS
        }
        before = (by_hand(encoded(model), 8) * by_hand(TARGETS, 8)).sum()
        settings = TrainingSettings(epochs=10, batch_size=4, learning_rate=3e-3)
        history = train(
            model, MatryoshkaLoss(model, losses), TextColumns({"text": TEXTS}, range(4)), settings, tmp_path / "it"
        )
        assert {"leaf", "leaf@8"} <= set(history.losses[0])
        assert (by_hand(encoded(model), 8) * by_hand(TARGETS, 8)).sum() > before + 1


class _State:
    def __init__(self, step, steps):
        self.global_step, self.max_steps = step, steps


class TestMistakes:
    @pytest.mark.parametrize("cuts", [(8,), (32, 64)])
    def test_losses_that_do_not_fit_the_student(self, model, cuts):
        made = {cut: torch.nn.Identity() for cut in cuts}
        with pytest.raises(UserError, match=r"whole vectors of 32|truncation to 64 dimensions"):
            MatryoshkaLoss(model, made)
