import numpy as np
import pytest

from retrodistill.core.errors import UserError
from retrodistill.training.lists import Lists, draw_groups, lists_over_corpus, require_lists
from retrodistill.training.settings import GroupSettings

SCORES = np.random.default_rng(0).standard_normal((5, 40)).astype("f4")
SOURCES = np.array([-1, -1, 7, 8, 9])


def draw(lists, seed=0, **settings):
    return draw_groups(lists, GroupSettings(**settings), seed)


class TestOverTheCorpus:
    def test_the_best_is_included_and_the_others_are_within_the_depth(self):
        groups = draw(lists_over_corpus(SCORES, np.full(5, -1)), documents=6, depth=10)
        assert groups.documents.shape == (5, 6)
        for row, documents, scores in zip(groups.text_rows, groups.documents, groups.scores, strict=True):
            order = np.argsort(-SCORES[row])
            assert documents[0] == order[0]
            assert set(documents) <= set(order[:10])
            np.testing.assert_array_equal(scores, SCORES[row, documents])

    def test_random_documents_span_the_corpus_with_their_scores_and_no_duplicates(self):
        groups = draw(lists_over_corpus(SCORES, np.full(5, -1)), documents=3, depth=3, random=30)
        for row, documents, scores in zip(groups.text_rows, groups.documents, groups.scores, strict=True):
            there = documents[documents >= 0]
            assert len(set(there)) == len(there)
            assert len(set(there) - set(np.argsort(-SCORES[row])[:10])) > 10
            np.testing.assert_array_equal(scores[documents >= 0], SCORES[row, there])

    def test_a_hidden_source_is_in_no_group(self):
        scores = SCORES.copy()
        scores[2, 7] = 100
        groups = draw(lists_over_corpus(scores, SOURCES), documents=20, depth=40, random=20, draws=3)
        assert 7 not in groups.documents[groups.text_rows == 2]
        assert (groups.positives == -1).all()

    def test_a_shown_source_is_in_every_group_of_its_text(self):
        scores = SCORES.copy()
        scores[3, 8] = -100  # a control needs it even where the teacher does not want it
        groups = draw(lists_over_corpus(scores, SOURCES, hide_source=False), documents=4, depth=10, draws=3)
        own = np.where(SOURCES >= 0, SOURCES, -1)[groups.text_rows]
        np.testing.assert_array_equal(groups.positives, own)
        places = groups.batch(np.arange(len(groups))).positives.numpy()
        at = np.take_along_axis(groups.documents, np.maximum(places, 0)[:, None], axis=1)[:, 0]
        assert (at[own >= 0] == own[own >= 0]).all()
        assert (places[own < 0] == -1).all()

    def test_random_documents_beside_mined_lists_are_rejected(self):
        lists = Lists(np.array([[0, 1, 2]]), SCORES[:1, :3], np.array([-1]), np.array([-1]))
        with pytest.raises(UserError, match=r"^groups.random=2 draws from lists over the whole corpus; .*candidates.r"):
            draw(lists, documents=2, sampler="top-k", random=2)


class TestGroups:
    def test_lists_of_repeated_texts_are_repeated(self):
        groups = draw(lists_over_corpus(SCORES, np.full(5, -1)), documents=2, draws=2)
        found = groups.of_texts(np.array([4, 1, 4]))
        assert found.text_rows.tolist() == [4, 4, 1, 1, 4, 4]
        assert groups.of_texts(np.array([3, 0]), times=1).text_rows.tolist() == [3, 0]
        assert len(groups.of_texts(np.array([], dtype=int))) == 0

    def test_the_same_seed_draws_the_same(self):
        lists = lists_over_corpus(SCORES, np.full(5, -1))
        first, again, other = (draw(lists, seed, documents=5, random=5) for seed in (0, 0, 1))
        np.testing.assert_array_equal(first.documents, again.documents)
        assert (first.documents != other.documents).any()

    def test_no_group_at_all_is_rejected(self):
        groups = draw(lists_over_corpus(SCORES, np.full(5, -1)), documents=2)
        with pytest.raises(UserError, match=r"^no training text is left"):
            require_lists(groups.of_texts(np.array([], dtype=int)))
