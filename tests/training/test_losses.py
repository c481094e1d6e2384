import numpy as np
import pytest
import torch

from retrodistill.errors import UserError
from retrodistill.models import load_encoder
from retrodistill.models.loading import load_bi_encoder
from retrodistill.objectives import contrastive, kl_divergence, leaf, margin_mse
from retrodistill.training.lists import Lists, lists_over_corpus
from retrodistill.training.losses import GroupsLoss, StoredTargetsLoss, Term

TEXTS = ["what star planet", "violin chord", "bread", "judge"]
DOCUMENTS = np.random.default_rng(0).standard_normal((5, 32)).astype("f4")
SCORES = np.random.default_rng(1).standard_normal((4, 3)).astype("f4")
PLACES = np.array([[0, 1, 2], [4, 3, -1], [2, 0, 1], [3, -1, -1]], dtype=np.int32)
NONE = np.full(4, -1)
ROWS = [2, 0, 1]
KL = Term("kl", student_temperature=0.1, teacher_temperature=0.5)


@pytest.fixture
def model(tiny_model):
    return load_bi_encoder(tiny_model)


def features(model, texts):
    return model.preprocess(list(texts))


def encoded(model, texts):
    return torch.from_numpy(load_encoder(model).encode(texts, "query"))


def total(parts):
    return float(sum(parts.values()))


class TestTerms:
    def test_an_unknown_objective_is_answered_with_the_nearest(self):
        with pytest.raises(UserError, match=r"^unknown objective 'laef'. Did you mean 'leaf'\?"):
            Term("laef")


class TestStoredTargets:
    def test_alignment_is_the_squared_distance_to_the_stored_rows(self, model):
        stored = DOCUMENTS[:4] / np.linalg.norm(DOCUMENTS[:4], axis=1, keepdims=True)
        loss = StoredTargetsLoss(model, [Term("leaf", weight=3)], embeddings=stored)
        found = loss([features(model, [TEXTS[row] for row in ROWS])], torch.tensor(ROWS))
        expected = 3 * leaf(encoded(model, [TEXTS[row] for row in ROWS]), torch.from_numpy(stored[ROWS]))
        assert total(found) == pytest.approx(float(expected), rel=1e-5)

    @pytest.mark.parametrize(
        ("name", "pure"),
        [
            ("kl", kl_divergence),
            ("margin-mse", margin_mse),
            ("margin-mse-all", lambda s, t, m: margin_mse(s, t, m, pairs="all")),
        ],
    )
    def test_lists_are_the_pure_objective_of_products_with_stored_documents(self, model, name, pure):
        term = Term(name, student_temperature=0.1, teacher_temperature=0.5)
        loss = StoredTargetsLoss(model, [term], documents=DOCUMENTS, lists=Lists(PLACES, SCORES, NONE, NONE))
        found = loss([features(model, [TEXTS[row] for row in ROWS])], torch.tensor(ROWS))
        products = encoded(model, [TEXTS[row] for row in ROWS]) @ torch.from_numpy(DOCUMENTS).T
        places = torch.from_numpy(PLACES[ROWS].astype(np.int64))
        scores = products.gather(1, places.clamp(min=0))
        expected = pure(scores / 0.1, torch.from_numpy(SCORES[ROWS]) / 0.5, places >= 0)
        assert total(found) == pytest.approx(float(expected), rel=1e-4)

    def test_a_list_over_the_whole_corpus_leaves_the_source_out(self, model):
        every = np.random.default_rng(2).standard_normal((4, 5)).astype("f4")
        sources = np.array([-1, 3, -1, 0])
        loss = StoredTargetsLoss(model, [KL], documents=DOCUMENTS, lists=lists_over_corpus(every, sources))
        found = loss([features(model, TEXTS)], torch.arange(4))
        mask = torch.ones(4, 5, dtype=torch.bool)
        mask[1, 3] = mask[3, 0] = False
        products = encoded(model, TEXTS) @ torch.from_numpy(DOCUMENTS).T
        expected = kl_divergence(products / 0.1, torch.from_numpy(every) / 0.5, mask)
        assert total(found) == pytest.approx(float(expected), rel=1e-4)

    def test_contrastive_takes_the_source_for_the_positive(self, model):
        every, sources = np.zeros((4, 5), dtype="f4"), np.array([-1, 3, -1, 0])
        lists = lists_over_corpus(every, sources, hide_source=False)
        loss = StoredTargetsLoss(model, [Term("contrastive")], documents=DOCUMENTS, lists=lists)
        found = loss([features(model, TEXTS)], torch.arange(4))
        products = encoded(model, TEXTS) @ torch.from_numpy(DOCUMENTS).T
        assert total(found) == pytest.approx(float(contrastive(products, torch.from_numpy(sources))), rel=1e-4)

    def test_terms_are_summed_by_weight_and_named(self, model):
        stored = DOCUMENTS[:4]
        lists = Lists(PLACES, SCORES, NONE, NONE)
        parts = [Term("leaf", 0.5), Term("kl", 2.0)]
        found = StoredTargetsLoss(model, parts, embeddings=stored, documents=DOCUMENTS, lists=lists)(
            [features(model, TEXTS)], torch.arange(4)
        )
        for term in parts:
            alone = StoredTargetsLoss(model, [Term(term.name)], embeddings=stored, documents=DOCUMENTS, lists=lists)
            single = alone([features(model, TEXTS)], torch.arange(4))
            assert float(found[term.name]) == pytest.approx(term.weight * float(single[term.name]), rel=1e-5)

    def test_what_an_objective_lacks_is_said_before_training(self, model):
        with pytest.raises(UserError, match=r"^objective 'kl' needs candidates with teacher scores and stored doc"):
            StoredTargetsLoss(model, [KL])
        with pytest.raises(UserError, match=r"^objective 'leaf' needs a dense teacher, whose embeddings it aligns to"):
            StoredTargetsLoss(model, [Term("leaf")], documents=DOCUMENTS)

    def test_its_settings_stand_in_the_model_card(self, model):
        assert StoredTargetsLoss(model, [Term("leaf")], embeddings=DOCUMENTS).get_config_dict()["terms"][0] == {
            "name": "leaf",
            "weight": 1.0,
            "student_temperature": 0.05,
            "teacher_temperature": 1.0,
        }


class TestGroups:
    COLUMNS = ({"query": TEXTS[:2], "a": ["star", "chord violin"], "b": ["bread", ""]},)
    MASK = np.array([[True, True], [True, False]])

    def test_it_is_the_pure_objective_of_what_the_student_encodes(self, model):
        scores = SCORES[:2, :2]
        loss = GroupsLoss(model, [KL], scores, self.MASK, np.array([-1, -1]))
        columns = self.COLUMNS[0].values()
        found = loss([features(model, texts) for texts in columns], torch.tensor([0, 1]))
        queries, *sides = (encoded(model, texts) for texts in columns)
        products = torch.stack([(queries * side).sum(dim=1) for side in sides], dim=1)
        expected = kl_divergence(products / 0.1, torch.from_numpy(scores) / 0.5, torch.from_numpy(self.MASK))
        assert total(found) == pytest.approx(float(expected), rel=1e-4)

    def test_labels_choose_the_rows(self, model):
        scores = SCORES[:2, :2]
        loss = GroupsLoss(model, [KL], scores, np.ones((2, 2), dtype=bool), np.array([-1, -1]))
        texts = [["star"], ["bread"], ["chord"]]
        found = [total(loss([features(model, side) for side in texts], torch.tensor([row]))) for row in (0, 1)]
        other = GroupsLoss(model, [KL], scores[::-1].copy(), np.ones((2, 2), dtype=bool), np.array([-1, -1]))
        assert found[0] == pytest.approx(
            total(other([features(model, side) for side in texts], torch.tensor([1]))), rel=1e-5
        )
        assert found[0] != pytest.approx(found[1], rel=1e-3)

    def test_gradients_reach_both_sides(self, model):
        loss = GroupsLoss(model, [KL], SCORES[:1, :2], np.ones((1, 2), dtype=bool), np.array([-1]))
        vectors = [torch.randn(1, 32, requires_grad=True) for _ in range(3)]
        sum(loss.compute_loss_from_embeddings(vectors, torch.tensor([0])).values()).backward()
        assert all(float(vector.grad.abs().sum()) > 0 for vector in vectors)

    def test_alignment_belongs_elsewhere(self, model):
        with pytest.raises(
            UserError, match=r"^objective 'leaf' aligns single texts; use it in a stage with towers: que"
        ):
            GroupsLoss(model, [Term("leaf")], SCORES, PLACES >= 0, NONE)
