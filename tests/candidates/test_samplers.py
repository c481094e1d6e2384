import numpy as np
import pytest

from retrodistill.candidates.samplers import SAMPLERS, random_documents, sample_places
from retrodistill.core.errors import UserError


def draw(name, available, count, seed=0):
    scores = -np.arange(available, dtype=float)
    return sample_places(name, available, count, np.random.default_rng(seed), scores)


class TestSamplePlaces:
    @pytest.mark.parametrize("name", SAMPLERS)
    def test_the_best_and_distinct_places_in_order(self, name):
        for available in range(1, 40):
            for count in range(1, 45):
                places = draw(name, available, count, seed=available)
                assert len(places) == min(count, available)
                assert places[0] == 0
                assert (np.diff(places) > 0).all()
                assert places[-1] < available

    @pytest.mark.parametrize("name", SAMPLERS)
    def test_the_same_seed_draws_the_same(self, name):
        assert draw(name, 100, 10, 3).tolist() == draw(name, 100, 10, 3).tolist()

    def test_top_k_is_the_first_places(self):
        assert draw("top-k", 100, 4).tolist() == [0, 1, 2, 3]

    def test_random_is_uniform_over_the_other_places(self):
        counts = np.zeros(11)
        generator = np.random.default_rng(0)
        for _ in range(4000):
            counts[sample_places("random", 11, 4, generator)] += 1
        assert counts[0] == 4000
        # 4000 draws of 3 of 10: each place 1200 times, deviation sqrt(4000 x .3 x .7) = 29
        assert np.abs(counts[1:] - 1200).max() < 5 * 29

    def test_stratified_draws_one_of_each_stratum_uniformly(self):
        generator = np.random.default_rng(0)
        drawn = np.stack([sample_places("stratified", 13, 4, generator) for _ in range(4000)])
        for column, low in ((1, 1), (2, 5), (3, 9)):
            values, counts = np.unique(drawn[:, column], return_counts=True)
            assert values.tolist() == list(range(low, low + 4))
            assert np.abs(counts - 1000).max() < 5 * 28

    def test_refusals(self):
        with pytest.raises(UserError, match=r"unknown sampler 'topk'. Did you mean 'top-k'?"):
            draw("topk", 10, 2)
        with pytest.raises(UserError, match="a group of 0 documents; take at least 1"):
            draw("random", 10, 0)


class TestRandomDocuments:
    QUERIES, CORPUS = ["q1", "q2", "q3"], [f"d{number}" for number in range(20)]

    def test_draws_distinct_documents_with_score_0(self):
        run = random_documents(self.QUERIES, self.CORPUS, 5, 0)
        assert (run.query_ids, run.bounds.tolist(), run.name) == (self.QUERIES, [0, 5, 10, 15], "random")
        assert (run.scores == 0).all()
        assert set(run.document_ids) <= set(self.CORPUS)

    def test_the_seed_decides(self):
        runs = [random_documents(self.QUERIES, self.CORPUS, 5, seed).fingerprint for seed in (0, 0, 1)]
        assert runs[0] == runs[1] != runs[2]

    def test_queries_draw_independently(self):
        lists = [tuple(sorted(ids)) for _, ids, _ in random_documents(self.QUERIES, self.CORPUS, 5, 0)]
        assert len(set(lists)) == 3

    def test_more_than_the_corpus_is_the_corpus(self):
        run = random_documents(self.QUERIES, self.CORPUS, 50, 0)
        assert all(set(ids) == set(self.CORPUS) for _, ids, _ in run)

    def test_no_queries_or_documents(self):
        assert (
            len(random_documents([], self.CORPUS, 5, 0)) == len(random_documents(self.QUERIES, self.CORPUS, 0, 0)) == 0
        )

    def test_documents_are_drawn_uniformly(self):
        run = random_documents([str(number) for number in range(4000)], self.CORPUS, 5, 0)
        counts = np.unique(run.document_ids, return_counts=True)[1]
        assert np.abs(counts - 1000).max() < 5 * np.sqrt(4000 * 0.25 * 0.75)
