import numpy as np
import pytest
import torch
from losses import groups_loss, over_corpus, stored_loss, table

from retrodistill.core.errors import UserError
from retrodistill.core.runtime import set_quiet
from retrodistill.encoders import load_encoder
from retrodistill.encoders.loading import load_bi_encoder
from retrodistill.objectives.classes import pseudo_classes
from retrodistill.objectives.distributions import (
    contrastive,
    in_batch_contrastive,
    kl_divergence,
    listmle,
    pld,
    sinkhorn,
    taid,
    without_forgetting,
)
from retrodistill.objectives.embeddings import leaf, mi_alpha, relation_matching, triplets
from retrodistill.objectives.registry import OBJECTIVES, get_objective
from retrodistill.objectives.scores import lambda_loss, margin_mse, mse
from retrodistill.training.lists import Lists
from retrodistill.training.loss import DistillationLoss, TeacherVectors, Term
from retrodistill.training.scorers import StoredVectorScorer, VectorScorer

LIST_OBJECTIVES = [name for name in OBJECTIVES if get_objective(name).sees == "lists"]
EMBEDDING_OBJECTIVES = [name for name in OBJECTIVES if get_objective(name).sees == "embeddings"]
PLAIN = [name for name in LIST_OBJECTIVES if set(get_objective(name).takes) <= {"scores", "targets", "labels", "mask"}]
TEXTS = ["what star planet", "violin chord", "bread", "judge"]
DOCUMENTS = np.random.default_rng(0).standard_normal((5, 32)).astype("f4")
NOISE = np.random.default_rng(3).standard_normal((15, 32)).astype("f4")
SCORES = np.random.default_rng(1).standard_normal((4, 3)).astype("f4")
PLACES = np.array([[0, 1, 2], [4, 3, -1], [2, 0, 1], [3, -1, -1]], dtype=np.int32)
SCORES_OF_ALL = np.random.default_rng(2).standard_normal((4, 5)).astype("f4")
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

    @pytest.mark.parametrize(
        ("name", "missing"),
        [("taid", "t"), ("lwf", "start_scores"), ("in-batch", "own_scores"), ("in-batch-margin-mse", "batch_scores")],
    )
    def test_a_missing_input_is_named(self, name, missing):
        given = {"scores": torch.zeros(1, 2), "targets": torch.zeros(1, 2), "mask": torch.ones(1, 2, dtype=torch.bool)}
        with pytest.raises(UserError, match=rf"^objective '{name}' needs {missing}: "):
            Term(name).value(given)

    @pytest.mark.parametrize("name", sorted({*PLAIN, "pld"}))
    def test_lists_that_teach_nothing_do_not_count(self, name):
        targets = torch.tensor([[3.0, 1.0, 2.0], [5.0, 5.0, 5.0], [1.0, float("nan"), 2.0], [1.0, 0.0, 0.0]])
        mask = torch.tensor([[1, 1, 1], [1, 1, 1], [1, 1, 1], [1, 0, 0]], dtype=torch.bool)
        # as close as cosines, so that no objective is flat there
        scores = (0.1 * torch.randn(4, 3, generator=torch.Generator().manual_seed(0))).requires_grad_()
        positives = torch.full((4,), -1)
        inputs = {"scores": scores, "targets": targets, "labels": targets, "mask": mask, "positives": positives}
        found = Term(name).value(inputs)
        alone = Term(name).value({key: value[:1] for key, value in inputs.items()})
        torch.testing.assert_close(found, alone)
        found.backward()
        assert (scores.grad[0] != 0).any()
        assert (scores.grad[1:] == 0).all()

    def test_pld_puts_the_known_document_first(self):
        scores, targets = torch.randn(2, 3, 4, generator=torch.Generator().manual_seed(0))
        mask, positives = torch.ones(3, 4, dtype=torch.bool), torch.tensor([2, -1, 0])
        inputs = {"scores": scores, "targets": targets, "mask": mask, "positives": positives}
        found = Term("pld", student_temperature=0.5).value(inputs)
        torch.testing.assert_close(found, pld(scores / 0.5, targets, mask, positives))


class TestStoredTargets:
    def test_alignment_is_the_squared_distance_to_the_stored_rows(self, model):
        stored = DOCUMENTS[:4] / np.linalg.norm(DOCUMENTS[:4], axis=1, keepdims=True)
        loss = stored_loss(model, [Term("leaf", weight=3)], embeddings=stored)
        found = loss([features(model, [TEXTS[row] for row in ROWS])], torch.tensor(ROWS))
        expected = 3 * leaf(encoded(model, [TEXTS[row] for row in ROWS]), torch.from_numpy(stored[ROWS]))
        assert total(found) == pytest.approx(float(expected), rel=1e-5)

    @pytest.mark.parametrize(
        ("name", "pure"),
        [
            ("kl", kl_divergence),
            ("margin-mse", margin_mse),
            ("margin-mse-all", lambda s, t, m: margin_mse(s, t, m, pairs="all")),
            ("mse", lambda s, t, m: mse(s, t, m, free_zero=True)),
            ("lambdaloss", lambda_loss),
            ("listmle", listmle),
            ("sinkhorn", sinkhorn),
        ],
    )
    def test_lists_are_the_pure_objective_of_products_with_stored_documents(self, model, name, pure):
        term = Term(name, student_temperature=0.1, teacher_temperature=0.5)
        loss = stored_loss(model, [term], documents=DOCUMENTS, lists=Lists(PLACES, SCORES, NONE, NONE))
        found = loss([features(model, [TEXTS[row] for row in ROWS])], torch.tensor(ROWS))
        products = encoded(model, [TEXTS[row] for row in ROWS]) @ torch.from_numpy(DOCUMENTS).T
        places = torch.from_numpy(PLACES[ROWS].astype(np.int64))
        scores = products.gather(1, places.clamp(min=0))
        expected = pure(scores / 0.1, torch.from_numpy(SCORES[ROWS]) / 0.5, places >= 0)
        assert total(found) == pytest.approx(float(expected), rel=1e-4)

    def test_a_list_over_the_whole_corpus_leaves_the_source_out(self, model):
        every = np.random.default_rng(2).standard_normal((4, 5)).astype("f4")
        sources = np.array([-1, 3, -1, 0])
        loss = stored_loss(model, [KL], documents=DOCUMENTS, lists=over_corpus(every, sources))
        found = loss([features(model, TEXTS)], torch.arange(4))
        mask = torch.ones(4, 5, dtype=torch.bool)
        mask[1, 3] = mask[3, 0] = False
        products = encoded(model, TEXTS) @ torch.from_numpy(DOCUMENTS).T
        expected = kl_divergence(products / 0.1, torch.from_numpy(every) / 0.5, mask)
        assert total(found) == pytest.approx(float(expected), rel=1e-4)

    def test_contrastive_takes_the_source_for_the_positive(self, model):
        every, sources = np.zeros((4, 5), dtype="f4"), np.array([-1, 3, -1, 0])
        lists = over_corpus(every, sources, hide_source=False)
        loss = stored_loss(model, [Term("contrastive")], documents=DOCUMENTS, lists=lists)
        found = loss([features(model, TEXTS)], torch.arange(4))
        products = encoded(model, TEXTS) @ torch.from_numpy(DOCUMENTS).T
        assert total(found) == pytest.approx(float(contrastive(products, torch.from_numpy(sources))), rel=1e-4)

    @pytest.mark.parametrize("name", sorted(LIST_OBJECTIVES))
    def test_any_list_objective_reaches_the_student(self, model, name):
        lists = over_corpus(SCORES_OF_ALL, np.array([1, 3, -1, 0]), hide_source=False)
        loss = stored_loss(model, [Term(name)], documents=DOCUMENTS, lists=lists)
        loss.progress = 0.0
        with torch.no_grad():
            next(model.parameters()).add_(0.1)  # the student has moved on since the stage's start
        parts = loss([features(model, TEXTS)], torch.arange(4))
        assert list(parts) == [name]
        sum(parts.values()).backward()
        assert sum(float(one.grad.abs().sum()) for one in model.parameters() if one.grad is not None) > 0

    def test_in_batch_uses_the_batchs_own_documents_except_shared_ones(self, model):
        sources = np.array([1, 3, -1, 1])
        lists = over_corpus(np.zeros((4, 5), dtype="f4"), sources, hide_source=False)
        loss = stored_loss(model, [Term("in-batch", student_temperature=0.2)], documents=DOCUMENTS, lists=lists)
        found = loss([features(model, TEXTS)], torch.arange(4))
        scores = encoded(model, TEXTS) @ torch.from_numpy(DOCUMENTS[np.maximum(sources, 0)]).T
        shared = torch.tensor([[0, 0, 0, 1], [0, 0, 0, 0], [0, 0, 0, 0], [1, 0, 0, 0]])
        expected = in_batch_contrastive(scores, shared, torch.from_numpy(sources >= 0), student_temperature=0.2)
        assert total(found) == pytest.approx(float(expected), rel=1e-4)

    def test_lwf_compares_with_the_student_as_it_was_given(self, model):
        lists = Lists(PLACES, SCORES, NONE, NONE)
        before = encoded(model, TEXTS) @ torch.from_numpy(DOCUMENTS).T
        loss = stored_loss(model, [Term("lwf", student_temperature=0.5)], documents=DOCUMENTS, lists=lists)
        model.eval()
        assert total(loss([features(model, TEXTS)], torch.arange(4))) == pytest.approx(0, abs=1e-6)
        with torch.no_grad():
            next(model.parameters()).mul_(-1.5)
        after = encoded(model, TEXTS) @ torch.from_numpy(DOCUMENTS).T
        places = torch.from_numpy(PLACES.astype(np.int64))
        sides = [one.gather(1, places.clamp(min=0)) for one in (after, before)]
        expected = without_forgetting(*sides, places >= 0, student_temperature=0.5)
        assert float(expected) > 1e-3
        assert total(loss([features(model, TEXTS)], torch.arange(4))) == pytest.approx(float(expected), rel=1e-4)

    def test_taid_moves_its_target_and_needs_the_progress_of_training(self, model):
        lists = over_corpus(SCORES_OF_ALL, NONE)
        loss = stored_loss(model.eval(), [Term("taid", student_temperature=0.1)], documents=DOCUMENTS, lists=lists)
        products = encoded(model, TEXTS) @ torch.from_numpy(DOCUMENTS).T
        with pytest.raises(UserError, match=r"^objective 'taid' needs t: "):
            loss([features(model, TEXTS)], torch.arange(4))
        for progress, t in ((0.0, 0.4), (0.5, 0.4), (1.0, 0.7)):
            loss.progress = progress
            found = total(loss([features(model, TEXTS)], torch.arange(4)))
            assert found == pytest.approx(float(taid(products / 0.1, torch.from_numpy(SCORES_OF_ALL), t=t)), rel=1e-4)
        state = loss.objective_state()
        assert state["0"]["t"] == 1.0
        other = stored_loss(model, [Term("taid")], documents=DOCUMENTS, lists=lists)
        other.load_objective_state(state)
        assert other.objective_state() == state

    @pytest.mark.parametrize(
        ("name", "pure"),
        [
            ("relations", relation_matching),
            ("mi-alpha", lambda s, t: mi_alpha(s, t, temperature=0.05)),
            ("cosine", lambda s, t: leaf(s, torch.nn.functional.normalize(t, dim=1)) / 2),
        ],
    )
    def test_embeddings_are_the_pure_objective_of_the_stored_rows(self, model, name, pure):
        loss = stored_loss(model, [Term(name)], embeddings=DOCUMENTS)
        found = loss([features(model, [TEXTS[row] for row in ROWS])], torch.tensor(ROWS))
        expected = pure(encoded(model, [TEXTS[row] for row in ROWS]), torch.from_numpy(DOCUMENTS[ROWS]))
        assert total(found) == pytest.approx(float(expected), rel=1e-4)

    @pytest.mark.parametrize("name", ["relations", "triplets"])
    def test_relations_are_those_of_the_whole_teacher(self, model, name):
        whole = np.random.default_rng(0).standard_normal((len(DOCUMENTS), 40)).astype(np.float32)
        teacher = TeacherVectors(DOCUMENTS, whole=whole)
        loss = DistillationLoss(model, [Term(name)], StoredVectorScorer(True), None, teacher)
        found = loss([features(model, [TEXTS[row] for row in ROWS])], torch.tensor(ROWS))
        pure = {"relations": relation_matching, "triplets": triplets}[name]
        expected = pure(encoded(model, [TEXTS[row] for row in ROWS]), torch.from_numpy(whole[ROWS]))
        assert total(found) == pytest.approx(float(expected), rel=1e-4)

    def test_terms_know_every_embedding_objective(self, model):
        model.similarity_fn_name = "dot"
        classes = pseudo_classes(np.tile(DOCUMENTS, (3, 1)) + NOISE, np.repeat([0, 1], [8, 7]), 2)
        for name in EMBEDDING_OBJECTIVES:
            widths = (1, DOCUMENTS.shape[1] - 1)
            teacher = TeacherVectors(DOCUMENTS, classes, widths=widths)
            loss = DistillationLoss(model, [Term(name)], StoredVectorScorer(cosine=False), None, teacher)
            parts = loss([features(model, TEXTS)], torch.arange(4))
            assert torch.isfinite(parts[name])
            model.zero_grad()
            parts[name].backward()
            assert sum(float(one.grad.abs().sum()) for one in model.parameters() if one.grad is not None) > 0

    def test_terms_of_one_name_are_added_up(self, model):
        lists = Lists(PLACES, SCORES, NONE, NONE)
        both = stored_loss(model.eval(), [KL, Term("kl", 3.0)], documents=DOCUMENTS, lists=lists)
        found = total(both([features(model, TEXTS)], torch.arange(4)))
        alone = [
            total(
                stored_loss(model, [one], documents=DOCUMENTS, lists=lists)([features(model, TEXTS)], torch.arange(4))
            )
            for one in both.terms
        ]
        assert found == pytest.approx(sum(alone), rel=1e-5)

    def test_terms_are_summed_by_weight_and_named(self, model):
        stored = DOCUMENTS[:4]
        lists = Lists(PLACES, SCORES, NONE, NONE)
        parts = [Term("leaf", 0.5), Term("kl", 2.0)]
        found = stored_loss(model, parts, embeddings=stored, documents=DOCUMENTS, lists=lists)(
            [features(model, TEXTS)], torch.arange(4)
        )
        for term in parts:
            alone = stored_loss(model, [Term(term.name)], embeddings=stored, documents=DOCUMENTS, lists=lists)
            single = alone([features(model, TEXTS)], torch.arange(4))
            assert float(found[term.name]) == pytest.approx(term.weight * float(single[term.name]), rel=1e-5)

    def test_missing_requirements_are_reported_before_training(self, model):
        with pytest.raises(UserError, match=r"^objective 'kl' needs candidates with teacher scores and stored doc"):
            stored_loss(model, [KL])
        with pytest.raises(UserError, match=r"^objective 'leaf' needs a dense teacher, whose embeddings it aligns to"):
            stored_loss(model, [Term("leaf")], documents=DOCUMENTS)

        with pytest.raises(UserError, match=r"^objective 'nd' shapes lengths"):
            stored_loss(model, [Term("nd")], embeddings=DOCUMENTS)
        wide = over_corpus(np.zeros((4, 2000), dtype="f4"), NONE)
        with pytest.raises(UserError, match=r"^lists of 2000 candidates; objectives over pairs take at most 1024"):
            stored_loss(model, [Term("ranknet")], documents=DOCUMENTS, lists=wide)

    def test_its_settings_are_in_the_model_card(self, model):
        assert stored_loss(model, [Term("leaf")], embeddings=DOCUMENTS).get_config_dict()["terms"][0] == {
            "name": "leaf",
            "weight": 1.0,
            "student_temperature": 0.05,
            "teacher_temperature": 1.0,
        }


class TestUnusableLists:
    LISTS = Lists(
        np.array([[0, 1, 2, 3], [0, 1, 2, 3], [0, 1, -1, -1], [0, -1, -1, -1], [0, 1, 2, 3]], dtype=np.int32),
        np.array([[4, 3, 2, 1], [1, 1, 1, 1], [2, 2, 9, 9], [1, 0, 0, 0], [1, 1, 1, 0.5]], dtype=np.float32),
        np.full(5, -1),
        np.full(5, -1),
    )

    def test_they_are_counted_by_reason(self):
        assert self.LISTS.usable() == {"usable": 1, "single": 1, "not finite": 0, "flat": 2, "saturated": 1}

    def test_a_hidden_source_is_not_a_candidate(self):
        hidden = Lists(self.LISTS.documents[2:3], np.array([[1, 2, 0, 0]], dtype="f4"), np.array([1]), np.array([1]))
        assert hidden.usable()["single"] == 1

    def test_they_are_logged_and_kept_before_training(self, model, capsys):
        set_quiet(False)
        loss = stored_loss(model, [KL], documents=DOCUMENTS, lists=self.LISTS)
        assert "left out: 2 lists with equal scores, 1 lists with a tied top" in capsys.readouterr().err
        assert loss.left_out == {"single": 1, "not finite": 0, "flat": 2, "saturated": 1}

    def test_a_control_without_a_teacher_ignores_them(self, model):
        lists = Lists(self.LISTS.documents, self.LISTS.scores, self.LISTS.hidden, np.zeros(5, dtype=np.int64))
        assert stored_loss(model, [Term("contrastive")], documents=DOCUMENTS, lists=lists).left_out == {}

    def test_a_control_without_a_positive_is_refused(self, model):
        for name in ("contrastive", "in-batch"):
            wanted = rf"^objective '{name}' needs texts with their own document: texts.titles"
            with pytest.raises(UserError, match=wanted):
                stored_loss(model, [Term(name)], documents=DOCUMENTS, lists=self.LISTS)
            with pytest.raises(UserError, match=wanted):
                groups_loss(model, [Term(name)], SCORES, PLACES >= 0, NONE, PLACES)

    def test_only_such_lists_are_rejected(self, model):
        whole = self.LISTS
        flat = Lists(*(part[1:4] for part in (whole.documents, whole.scores, whole.hidden, whole.positives)))
        with pytest.raises(
            UserError,
            match=r"^no list teaches anything: 1 with fewer than two candidates; 2 lists with equal scores. M",
        ):
            stored_loss(model, [KL], documents=DOCUMENTS, lists=flat)
        with pytest.raises(UserError, match=r"^no list teaches anything: 0 with fewer"):
            groups_loss(model, [KL], np.ones((2, 3), dtype="f4"), np.ones((2, 3), dtype=bool), NONE[:2])


class TestGroups:
    COLUMNS = ({"query": TEXTS[:2], "a": ["star", "chord violin"], "b": ["bread", ""]},)
    MASK = np.array([[True, True], [True, False]])

    def test_it_is_the_pure_objective_of_what_the_student_encodes(self, model):
        scores = SCORES[:2, :2]
        loss = groups_loss(model, [KL], scores, self.MASK, np.array([-1, -1]))
        columns = self.COLUMNS[0].values()
        found = loss([features(model, texts) for texts in columns], torch.tensor([0, 1]))
        queries, *sides = (encoded(model, texts) for texts in columns)
        products = torch.stack([(queries * side).sum(dim=1) for side in sides], dim=1)
        expected = kl_divergence(products / 0.1, torch.from_numpy(scores) / 0.5, torch.from_numpy(self.MASK))
        assert total(found) == pytest.approx(float(expected), rel=1e-4)

    def test_labels_choose_the_rows(self, model):
        scores = SCORES[:2, :2]
        loss = groups_loss(model, [KL], scores, np.ones((2, 2), dtype=bool), np.array([-1, -1]))
        texts = [["star"], ["bread"], ["chord"]]
        found = [total(loss([features(model, side) for side in texts], torch.tensor([row]))) for row in (0, 1)]
        other = groups_loss(model, [KL], scores[::-1].copy(), np.ones((2, 2), dtype=bool), np.array([-1, -1]))
        assert found[0] == pytest.approx(
            total(other([features(model, side) for side in texts], torch.tensor([1]))), rel=1e-5
        )
        assert found[0] != pytest.approx(found[1], rel=1e-3)

    def test_gradients_reach_both_sides(self, model):
        loss = groups_loss(model, [KL], SCORES[:1, :2], np.ones((1, 2), dtype=bool), np.array([-1]))
        vectors = [torch.randn(1, 32, requires_grad=True) for _ in range(3)]
        sum(loss.compute_loss_from_embeddings(vectors, torch.tensor([0])).values()).backward()
        assert all(float(vector.grad.abs().sum()) > 0 for vector in vectors)

    def test_in_batch_takes_the_groups_own_documents(self, model):
        documents = np.array([[4, 7], [7, 9]])
        loss = groups_loss(model, [Term("in-batch")], SCORES[:2, :2], self.MASK, np.array([1, 0]), documents)
        vectors = torch.nn.functional.normalize(
            torch.randn(3, 2, 32, generator=torch.Generator().manual_seed(0)), dim=2
        )
        found = loss.compute_loss_from_embeddings(list(vectors), torch.arange(2))
        assert total(found) == 0  # both own document 7: there is no negative left
        documents[1, 0] = 8
        loss = groups_loss(model, [Term("in-batch")], SCORES[:2, :2], self.MASK, np.array([1, 0]), documents)
        own = torch.stack([vectors[2, 0], vectors[1, 1]])
        expected = in_batch_contrastive(vectors[0] @ own.T)
        found = loss.compute_loss_from_embeddings(list(vectors), torch.arange(2))
        assert total(found) == pytest.approx(float(expected), rel=1e-5)

    def test_in_batch_margins_are_those_of_the_teachers_scores_of_the_corpus(self, model):
        term = Term("in-batch-margin-mse", student_temperature=0.5, teacher_temperature=2.0)
        teacher = np.random.default_rng(0).normal(size=(3, 10)).astype(np.float32)
        texts, documents = np.array([2, 0]), np.array([[7, -1], [1, 2], [5, 4]])  # document 4 is hidden from text 2
        own, hidden = np.array([7, 1, 5]), np.array([-1, -1, 4])
        lists = Lists(documents, SCORES[:3, :2], hidden, own, teacher=table(teacher))
        loss = DistillationLoss(model, [term], VectorScorer(cosine=True), lists)
        generator = torch.Generator().manual_seed(0)
        vectors = torch.nn.functional.normalize(torch.randn(3, 2, 32, generator=generator), dim=2)
        found = total(loss.compute_loss_from_embeddings(list(vectors), torch.from_numpy(texts)))
        margins = []
        for row, (text, own) in enumerate(zip(texts, (5, 7), strict=True)):
            student = {}  # of a document that stands in the batch, by where it stands
            for column, place in ((1, 0), (1, 1), (2, 0)):
                student[column, place] = float(vectors[0, row] @ vectors[column, place]) / 0.5
            at = {(1, 0): 5, (1, 1): 7, (2, 0): 4}
            home = next(where for where, document in at.items() if document == own)
            for where, document in at.items():
                if where != home and document != lists.hidden[text]:
                    wanted = (teacher[text, own] - teacher[text, document]) / 2.0
                    margins.append((student[home] - student[where] - wanted) ** 2)
        assert len(margins) == 3
        assert found == pytest.approx(float(np.mean(margins)), rel=1e-4)

    def test_without_the_teachers_corpus_scores_they_are_rejected(self, model):
        documents = np.array([[4, 7], [8, 9]])
        term = Term("in-batch-margin-mse")
        with pytest.raises(UserError, match=r"^objective 'in-batch-margin-mse' needs .* any document"):
            groups_loss(model, [term], SCORES[:2, :2], self.MASK, np.array([1, 0]), documents)

    def test_lwf_and_taid_work_on_both_towers(self, model):
        loss = groups_loss(
            model.eval(), [Term("lwf"), Term("taid")], SCORES[:1, :2], np.ones((1, 2), dtype=bool), np.array([-1])
        )
        loss.progress = 0.0
        texts = [["star"], ["bread"], ["chord"]]
        found = loss([features(model, side) for side in texts], torch.tensor([0]))
        assert float(found["lwf"]) == pytest.approx(0, abs=1e-6)
        assert float(found["taid"]) > 0
        with torch.no_grad():
            next(model.parameters()).mul_(-1.5)
        assert float(loss([features(model, side) for side in texts], torch.tensor([0]))["lwf"]) > 1e-4

    def test_alignment_is_rejected(self, model):
        with pytest.raises(
            UserError, match=r"^objective 'leaf' aligns single texts; use it in a stage with train: que"
        ):
            groups_loss(model, [Term("leaf")], SCORES, PLACES >= 0, NONE)
