import numpy as np
import pytest
import torch
from losses import over_corpus, table

from retrodistill.core.errors import UserError
from retrodistill.training.lists import Lists, draw_groups, require_lists
from retrodistill.training.scorers import StoredVectorScorer
from retrodistill.training.settings import GroupSettings

SCORES = np.random.default_rng(0).standard_normal((5, 40)).astype("f4")
SOURCES = np.array([-1, -1, 7, 8, 9])


def draw(lists, seed=0, **settings):
    return draw_groups(lists, GroupSettings(**settings), seed)


class TestOverTheCorpus:
    def test_the_best_is_included_and_the_others_are_within_the_depth(self):
        groups = draw(over_corpus(SCORES, np.full(5, -1)), documents=6, depth=10)
        assert groups.documents.shape == (5, 6)
        for row, documents, scores in zip(groups.text_rows, groups.documents, groups.scores, strict=True):
            order = np.argsort(-SCORES[row])
            assert documents[0] == order[0]
            assert set(documents) <= set(order[:10])
            np.testing.assert_array_equal(scores, SCORES[row, documents])

    def test_random_documents_span_the_corpus_with_their_scores_and_no_duplicates(self):
        groups = draw(over_corpus(SCORES, np.full(5, -1)), documents=3, depth=3, random=30)
        for row, documents, scores in zip(groups.text_rows, groups.documents, groups.scores, strict=True):
            there = documents[documents >= 0]
            assert len(set(there)) == len(there)
            assert len(set(there) - set(np.argsort(-SCORES[row])[:10])) > 10
            np.testing.assert_array_equal(scores[documents >= 0], SCORES[row, there])

    def test_a_hidden_source_is_in_no_group(self):
        scores = SCORES.copy()
        scores[2, 7] = 100
        groups = draw(over_corpus(scores, SOURCES), documents=20, depth=40, random=20, draws=3)
        assert 7 not in groups.documents[groups.text_rows == 2]
        assert (groups.positives == -1).all()

    def test_a_shown_source_is_in_every_group_of_its_text(self):
        scores = SCORES.copy()
        scores[3, 8] = -100  # a control needs it even where the teacher does not want it
        groups = draw(over_corpus(scores, SOURCES, hide_source=False), documents=4, depth=10, draws=3)
        own = np.where(SOURCES >= 0, SOURCES, -1)[groups.text_rows]
        np.testing.assert_array_equal(groups.positives, own)
        places = groups.batch(np.arange(len(groups))).positives.numpy()
        at = np.take_along_axis(groups.documents, np.maximum(places, 0)[:, None], axis=1)[:, 0]
        assert (at[own >= 0] == own[own >= 0]).all()
        assert (places[own < 0] == -1).all()

    def test_random_documents_beside_mined_lists_are_rejected(self):
        lists = Lists(np.array([[0, 1, 2]]), SCORES[:1, :3], np.array([-1]), np.array([-1]))
        with pytest.raises(UserError, match=r"^groups.random=2 .* candidates\.random"):
            draw(lists, documents=2, sampler="top-k", random=2)


class TestGroups:
    def test_lists_of_repeated_texts_are_repeated(self):
        groups = draw(over_corpus(SCORES, np.full(5, -1)), documents=2, draws=2)
        found = groups.of_texts(np.array([4, 1, 4]))
        assert found.text_rows.tolist() == [4, 4, 1, 1, 4, 4]
        assert groups.of_texts(np.array([3, 0]), times=1).text_rows.tolist() == [3, 0]
        assert len(groups.of_texts(np.array([], dtype=int))) == 0

    def test_the_same_seed_draws_the_same(self):
        lists = over_corpus(SCORES, np.full(5, -1))
        first, again, other = (draw(lists, seed, documents=5, random=5) for seed in (0, 0, 1))
        np.testing.assert_array_equal(first.documents, again.documents)
        assert (first.documents != other.documents).any()

    def test_no_group_at_all_is_rejected(self):
        groups = draw(over_corpus(SCORES, np.full(5, -1)), documents=2)
        with pytest.raises(UserError, match=r"^no training text is left"):
            require_lists(groups.of_texts(np.array([], dtype=int)))


class TestSharedDocuments:
    """Lists of two candidates and documents that a batch shares, against the teacher's known scores."""

    TEACHER = np.random.default_rng(1).standard_normal((4, 50)).astype(np.float32)
    CANDIDATES = np.array([[3, 40], [40, 7], [9, -1], [0, 1]], dtype=np.int32)
    SOURCES = np.array([5, 40, -1, 1])

    def lists(self, shared=20, hide_source=True):
        scores = np.take_along_axis(self.TEACHER, np.maximum(self.CANDIDATES, 0), axis=1)
        hidden = self.SOURCES if hide_source else np.full(4, -1)
        return Lists(self.CANDIDATES, scores, hidden, self.SOURCES, teacher=table(self.TEACHER), shared=shared, seed=3)

    def test_each_document_counts_once_with_the_teachers_score_and_sources_are_hidden(self):
        batch = self.lists().batch(np.array([2, 0, 1]))
        assert (len(batch.shared), batch.targets.shape) == (20, (3, 22))
        assert (np.diff(batch.shared) > 0).all()
        for row, text in enumerate([2, 0, 1]):
            listed = np.concatenate([batch.documents[row], batch.shared])
            counted = listed[batch.mask[row].numpy()]
            wanted = set(self.CANDIDATES[text]) | set(batch.shared.tolist())
            assert len(counted) == len(set(counted))
            assert set(counted) == wanted - {-1, self.SOURCES[text]}
            np.testing.assert_allclose(batch.targets[row].numpy()[batch.mask[row].numpy()], self.TEACHER[text, counted])

    def test_a_batch_has_the_same_documents_again_and_another_batch_others(self):
        lists = self.lists()
        first, again, other = (lists.batch(np.array(rows)).shared for rows in ([0, 1], [0, 1], [1, 2]))
        assert (first == again).all()
        assert (first != other).any()
        assert (lists.of_texts(np.array([0, 1])).batch(np.array([0, 1])).shared == first).all()

    def test_the_own_document_is_found_among_candidates_and_shared_ones(self):
        batch = self.lists(shared=50, hide_source=False).batch(np.arange(4))
        assert batch.positives.tolist() == [2 + 5, 0, -1, 1]

    def test_stored_vectors_are_scored_with_candidates_and_shared_ones(self):
        queries = torch.randn(3, 8, generator=torch.Generator().manual_seed(0))
        documents = np.random.default_rng(2).standard_normal((50, 8)).astype(np.float32)
        for shared in (20, 50):
            batch = self.lists(shared).batch(np.array([2, 0, 1]))
            scores = StoredVectorScorer(False, documents).lists(queries, batch)
            for row in range(3):
                listed = np.concatenate([np.maximum(batch.documents[row], 0), batch.shared])
                np.testing.assert_allclose(scores[row], documents[listed] @ queries[row].numpy(), rtol=1e-4, atol=1e-5)

    def test_groups_take_the_best_candidates_and_random_documents_with_their_scores(self):
        groups = draw(self.lists(), documents=2, random=6)
        assert groups.text_rows.tolist() == [0]  # the others have one candidate that is not hidden
        for row, text in enumerate(groups.text_rows):
            counts = groups.documents[row] >= 0
            listed = groups.documents[row][counts]
            assert self.SOURCES[text] not in listed
            np.testing.assert_allclose(groups.scores[row][counts], self.TEACHER[text, listed], rtol=1e-6)
