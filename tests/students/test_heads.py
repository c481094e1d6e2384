"""Heads against stored hidden states: their scores are the student's own."""

import losses
import numpy as np
import pytest
import torch
from sentence_transformers.util import batch_to_device

from retrodistill.core.cache import cache_folder
from retrodistill.core.digests import digest, texts_digest
from retrodistill.core.errors import UserError
from retrodistill.encoders.multi_vector import MultiVectorModel
from retrodistill.encoders.sparse import SparseTextEncoder
from retrodistill.objectives.sparsity import flops
from retrodistill.students import sparse_training
from retrodistill.students.clustering import with_clusters
from retrodistill.students.multi_vector import TokenHeadScorer, multi_vector_student
from retrodistill.students.sparse import sparse_student
from retrodistill.students.sparse_training import QueryStatesScorer, QueryWeightsScorer, TermHead
from retrodistill.students.stored_states import best_products, cached_states, stored_states, through_modules
from retrodistill.students.token_pooling import with_pooling
from retrodistill.training.loss import DistillationLoss, Term
from retrodistill.training.settings import RegularizerSettings

QUERIES = ["what star planet", "violin", "the judge and the jury", "all about bread"]


@pytest.fixture
def groups():
    generator = np.random.default_rng(0)
    documents = np.stack([generator.choice(60, 3, replace=False) for _ in QUERIES]).astype(np.int32)
    documents[1, 2] = -1
    scores = generator.standard_normal((4, 3)).astype(np.float32)
    return losses.groups(scores, documents >= 0, np.array([-1, 0, -1, 2]), documents)


@pytest.fixture
def sparse(tiny, tiny_model):
    return SparseTextEncoder(sparse_student(tiny_model, tiny.documents, queries="inference-free"), "sparse:student")


@pytest.fixture
def multi_vector(tiny, tiny_model):
    return MultiVectorModel(multi_vector_student(tiny_model, tiny.documents.texts, dimension=16), "multi-vector:s")


def features(student, rows):
    made = student.model.preprocess([QUERIES[row] for row in rows], task="query")
    return batch_to_device(made, student.model.device)


def encoded(loss, student, rows):
    return loss.scorer.encode(None, [features(student, rows)], rows)


def sparse_loss(student, tiny, groups, **more):
    documents = stored_states(student, tiny.documents.texts, "document")
    head = TermHead(student, documents, tiny.documents.texts)
    if student.is_inference_free:
        scorer = QueryWeightsScorer(student, head, documents, **more)
    else:
        scorer = QueryStatesScorer(head, documents, stored_states(student, QUERIES, "query"), **more)
    return DistillationLoss(student.model, [Term("kl")], scorer, groups)


class TestSparse:
    @pytest.fixture(params=["inference-free", "model"])
    def sparse(self, request, tiny, tiny_model):
        return SparseTextEncoder(sparse_student(tiny_model, tiny.documents, queries=request.param), "sparse:student")

    def test_scores_are_the_students_own(self, sparse, tiny, groups):
        expected = sparse.encode(QUERIES, "query") @ sparse.encode(tiny.documents.texts, "document").T
        # Both sides of a score of 17 come from float16 states where a model encodes queries.
        bounds = {"atol": 3e-3} if sparse.is_inference_free else {"rtol": 2e-3, "atol": 3e-3}
        loss = sparse_loss(sparse, tiny, groups)
        rows = np.array([2, 1, 0])
        queries = encoded(loss, sparse, rows)
        with torch.no_grad():
            np.testing.assert_allclose(
                loss.scorer.matrix(queries, np.arange(60)).cpu(), expected.toarray()[rows], **bounds
            )
            lists = loss.scorer.scores(loss.scorer.trained, queries, groups.documents[rows]).cpu().numpy()
        own = np.take_along_axis(expected.toarray()[rows], np.maximum(groups.documents[rows], 0).astype(int), axis=1)
        np.testing.assert_allclose(lists, np.where(groups.documents[rows] >= 0, own, 0), **bounds)

    def test_a_step_moves_terms_of_its_queries_only(self, sparse, tiny, groups):
        loss = sparse_loss(sparse, tiny, groups)
        sum(loss([features(sparse, [0])], torch.tensor([0])).values()).backward()
        *weights, vectors, biases = (parameter.grad for parameter in loss.scorer.trained)
        touched = set(sparse.encode([QUERIES[0]], "query").indices.tolist())
        assert len(touched) >= 3
        if sparse.is_inference_free:
            assert touched == set(sparse.model.tokenizer.convert_tokens_to_ids(["what", "star", "planet"]))
        assert all(set(grad.nonzero()[:, 0].tolist()) <= touched for grad in weights)
        assert set(vectors.abs().sum(dim=1).nonzero()[:, 0].tolist()) <= touched
        assert biases.abs().sum() > 0

    def test_flops_is_that_of_the_batchs_terms_in_drawn_documents(self, sparse, tiny, groups):
        regularized = [
            RegularizerSettings(name="flops", weight=2.0, warmup=0),
            RegularizerSettings(name="l1", weight=1.0, side="query", warmup=0),
        ]
        loss = sparse_loss(sparse, tiny, groups, regularizers=regularized)
        parts = loss([features(sparse, [0, 1])], torch.tensor([0, 1]))
        drawn = np.sort(np.random.default_rng([0, 0]).choice(60, 32, replace=False))
        asked = sparse.encode(QUERIES[:2], "query").toarray()
        used = (asked != 0).any(axis=0)
        documents = sparse.encode([tiny.documents.texts[row] for row in drawn], "document").toarray()[:, used]
        assert float(parts["flops-document"]) == pytest.approx(2 * float(flops(torch.from_numpy(documents))), rel=1e-2)
        assert float(parts["l1-query"]) == pytest.approx(asked.sum() / 2, rel=1e-4)

    def test_a_threshold_compares_with_terms_of_the_whole_vocabulary(self, sparse, tiny, groups, monkeypatch):
        drawn = np.sort(np.random.default_rng([0, 0]).choice(60, 32, replace=False))
        documents = sparse.encode([tiny.documents.texts[row] for row in drawn], "document").toarray()
        counts, used = (documents != 0).sum(axis=1), (sparse.encode(QUERIES[:2], "query").toarray() != 0).any(axis=0)
        threshold = int(np.median(counts))
        assert 0 < (counts > threshold).sum() < len(counts)
        masked = RegularizerSettings(name="l1", weight=1.0, warmup=0, threshold=threshold)
        monkeypatch.setattr(sparse_training, "_COUNTED", 10**6)  # all other terms: the estimate is exact
        loss = sparse_loss(sparse, tiny, groups, regularizers=[masked])
        parts = loss([features(sparse, [0, 1])], torch.tensor([0, 1]))
        wanted = documents[:, used].sum(axis=1)[counts > threshold].sum() / len(drawn)
        assert float(parts["l1-document"]) == pytest.approx(wanted, rel=1e-2)

    def test_a_number_of_terms_is_estimated_without_bias(self, sparse, tiny, groups, monkeypatch):
        monkeypatch.setattr(sparse_training, "_COUNTED", 20)
        loss, documents = sparse_loss(sparse, tiny, groups), np.arange(8)
        scorer, used = loss.scorer, torch.tensor([1, 5, 9])
        weights = scorer.head.weights([parameter[used] for parameter in scorer.head.parameters], used, documents)
        generator = np.random.default_rng(0)
        estimates = torch.stack([scorer._counts(weights, used, documents, generator) for _ in range(200)])
        counts = (sparse.encode(tiny.documents.texts[:8], "document") != 0).sum(axis=1)
        np.testing.assert_allclose(estimates.mean(dim=0).cpu(), np.asarray(counts).ravel(), rtol=0.1)

    def test_a_step_has_the_gradients_of_the_students_own_encoding(self, tiny, tiny_model, groups):
        """Terms that a query does not have are left out, and nothing is lost by that: brute force over all of them."""
        student = SparseTextEncoder(sparse_student(tiny_model, tiny.documents), "sparse:student")
        loss, rows = sparse_loss(student, tiny, groups), np.array([0, 3])
        shown = groups.documents[rows]
        loss.scorer.scores(loss.scorer.trained, encoded(loss, student, rows), shown).square().sum().backward()
        found = [parameter.grad.clone() for parameter in loss.scorer.trained]
        student.model.zero_grad()
        student.model.eval()

        def weights(texts, role):  # log(1 + relu(max over tokens)), SPLADE's equation, on what the pooling gets
            made = batch_to_device(student.model.preprocess(texts, task=role), student.model.device)
            out = through_modules(student.modules(role)[:-1], made, role)
            mask = out["attention_mask"].bool()[:, :, None]
            return torch.log1p(torch.relu(out["token_embeddings"].masked_fill(~mask, -1e9).amax(dim=1)))

        texts = [tiny.documents.texts[row] for row in np.maximum(shown, 0).ravel()]
        documents = weights(texts, "document").view(*shown.shape, -1)
        scores = (weights([QUERIES[row] for row in rows], "query")[:, None] * documents).sum(dim=2)
        (scores * torch.from_numpy(shown >= 0).to(scores.device)).square().sum().backward()
        for grad, parameter in zip(found, loss.scorer.trained, strict=True):
            assert torch.allclose(grad, parameter.grad, atol=3e-3 * float(parameter.grad.abs().max()))

    def test_queries_of_another_model_are_refused(self, tiny, tiny_model):
        student = SparseTextEncoder(sparse_student(tiny_model, tiny.documents), "sparse:student")
        documents = stored_states(student, tiny.documents.texts, "document")
        with pytest.raises(UserError, match=r"^train: head trains a sparse student with queries: inference-free"):
            QueryWeightsScorer(student, TermHead(student, documents, tiny.documents.texts), documents)


class TestMultiVector:
    def test_scores_are_the_students_own_over_the_querys_tokens(self, multi_vector, tiny, groups):
        asked, held = (
            multi_vector.encode(texts, role) for texts, role in ((QUERIES, "query"), (tiny.documents.texts, "document"))
        )
        expected = np.array(
            [
                [(asked[row] @ held[column].T).max(axis=1).mean() for column in range(len(held))]
                for row in range(len(asked))
            ]
        )
        states = [
            stored_states(multi_vector, texts, role)
            for texts, role in ((tiny.documents.texts, "document"), (QUERIES, "query"))
        ]
        loss = DistillationLoss(multi_vector.model, [Term("kl")], TokenHeadScorer(multi_vector, *states), groups)
        rows = np.array([2, 1, 0])
        queries = encoded(loss, multi_vector, rows)
        with torch.no_grad():
            np.testing.assert_allclose(loss.scorer.matrix(queries, np.arange(60)).cpu(), expected[rows], atol=2e-3)
            lists = loss.scorer.scores(loss.scorer.trained, queries, groups.documents[rows]).cpu().numpy()
        own = np.take_along_axis(expected[rows], np.maximum(groups.documents[rows], 0).astype(int), axis=1)
        np.testing.assert_allclose(lists, np.where(groups.documents[rows] >= 0, own, 0), atol=2e-3)


class TestClusters:
    @pytest.fixture
    def clustered(self, multi_vector):
        return MultiVectorModel(with_clusters(multi_vector.model, "C2x3"), "multi-vector:s")

    def made(self, student, tiny, groups, *terms):
        states = [
            stored_states(student, texts, role)
            for texts, role in ((tiny.documents.texts, "document"), (QUERIES, "query"))
        ]
        return DistillationLoss(student.model, terms or [Term("kl")], TokenHeadScorer(student, *states), groups)

    def scores(self, student, loss, tiny):
        """(queries, documents) mean MaxSim by the index' own vectors, and by the loss."""
        asked, held = (
            student.encode(texts, role) for texts, role in ((QUERIES, "query"), (tiny.documents.texts, "document"))
        )
        own = [[(asked[row] @ held[one].T).max(axis=1).mean() for one in range(60)] for row in range(len(asked))]
        rows = np.arange(4)
        with torch.no_grad():
            return np.array(own), loss.scorer.matrix(encoded(loss, student, rows), np.arange(60)).cpu().numpy()

    def test_scores_in_training_are_those_of_the_index(self, clustered, multi_vector, tiny, groups):
        own, found = self.scores(clustered, self.made(clustered, tiny, groups), tiny)
        np.testing.assert_allclose(found, own, atol=5e-3)  # states are float16: a token may change its cluster
        plain, _ = self.scores(multi_vector, self.made(multi_vector, tiny, groups), tiny)
        assert np.abs(plain - own).max() > 0.02

    def test_hidden_states_are_those_of_the_unclustered_student(self, clustered, multi_vector, tiny):
        for student in (clustered, multi_vector):
            stored_states(student, tiny.documents.texts, "document")
        assert len(list((cache_folder() / "states").glob("[!.]*"))) == 1

    def test_a_step_moves_the_projection_through_the_means(self, clustered, tiny, groups):
        loss = self.made(clustered, tiny, groups)
        sum(loss([features(clustered, [0, 3])], torch.tensor([0, 3])).values()).backward()
        assert torch.isfinite(loss.scorer.trained[0].grad).all()
        assert loss.scorer.trained[0].grad.abs().sum() > 0

    def test_the_unclustered_student_of_the_stages_start_teaches(self, clustered, multi_vector, tiny, groups):
        loss = self.made(clustered, tiny, groups, Term("lwf", student_temperature=0.1))
        plain = self.made(multi_vector, tiny, groups)
        rows = np.array([0, 2])
        queries = encoded(loss, clustered, rows)
        with torch.no_grad():
            start = loss.scorer.start_lists(queries, groups.batch(rows))
            torch.testing.assert_close(
                start, plain.scorer.scores(plain.scorer.trained, queries, groups.documents[rows])
            )
            now = loss.scorer.scores(loss.scorer.trained, queries, groups.documents[rows])
        assert (now - start).abs().max() > 0.01
        value = loss([features(clustered, rows)], torch.from_numpy(rows))["lwf"]
        assert float(value) > 0

    def test_pooling_after_training_is_not_trained_through(self, multi_vector, tiny, groups):
        pooled = MultiVectorModel(with_pooling(multi_vector.model, 3), "multi-vector:s")
        with pytest.raises(UserError, match=r"pools its tokens by FixedTokenPooling, which is for after training"):
            self.made(pooled, tiny, groups)


class TestStates:
    def test_they_are_stored_once(self, multi_vector, tiny, monkeypatch):
        first = stored_states(multi_vector, tiny.documents.texts, "document")
        monkeypatch.setattr("retrodistill.students.stored_states._write", lambda *_: pytest.fail("computed again"))
        again = stored_states(multi_vector, tiny.documents.texts, "document")
        np.testing.assert_array_equal(first.vectors, again.vectors)
        assert len(first) == 60
        assert first.vectors.shape[1] == 32

    def test_of_long_texts_are_read_in_batches_by_what_is_read_of_them(self):
        seen = []

        def read(batch):
            seen.append(len(batch))
            return torch.zeros(len(batch), 1, 2), torch.ones(len(batch), 1, dtype=torch.bool)

        texts = [f"{row} {'word ' * 4000}" for row in range(8)]
        assert len(cached_states("key", texts, read, "states", longest=64)) == 8
        assert seen == [8]

    def test_another_head_shares_them_and_another_transformer_does_not(self, multi_vector, tiny):
        def stored():
            stored_states(multi_vector, tiny.documents.texts[:3], "document")
            return len(list((cache_folder() / "states").glob("[!.]*")))

        assert stored() == 1
        with torch.no_grad():
            multi_vector.model[1].linear.weight.mul_(2)
        assert stored() == 1
        with torch.no_grad():
            next(multi_vector.model[0].parameters()).mul_(2)
        assert stored() == 2

    def test_states_beyond_float16_are_refused(self, multi_vector, tiny):
        with torch.no_grad():
            for parameter in multi_vector.model[0].parameters():
                parameter.mul_(1e6)
        with pytest.raises(UserError, match=r"hidden states that float16 cannot hold; set train: both_encoders"):
            stored_states(multi_vector, tiny.documents.texts[:3], "document")


class TestBestProducts:
    @pytest.mark.parametrize("with_gradients", [True, False])
    def test_the_largest_product_of_each_text_and_zero_for_one_without_states(self, with_gradients):
        states = torch.tensor([[1.0, -5.0], [3.0, -7.0], [-2.0, -1.0]])
        with torch.set_grad_enabled(with_gradients):
            found = best_products(states, torch.tensor([[1.0, 0.0], [0.0, 1.0], [1.0, 1.0]]), torch.tensor([2, 0, 1]))
        expected = torch.tensor([[3.0, -5.0, -4.0], [0.0, 0.0, 0.0], [-2.0, -1.0, -3.0]])
        torch.testing.assert_close(found, expected)


def test_the_fingerprint_of_texts_is_that_of_the_texts_as_parts():
    for texts in [], ["one"], ['"quoted"', "é", ""] * 3000:
        assert texts_digest(texts) == digest(*texts)
