import numpy as np
import pytest

from retrodistill.candidates.samplers import SAMPLERS, random_documents, sample_ranks, uniforms
from retrodistill.core.errors import UserError


def draw(name, available, count, seed=0, lists=1):
    """Ranks of negatives of lists of one length, whose teacher scores are 0, -1, -2, ..."""
    margins = np.tile(1.0 + np.arange(available), (lists, 1))
    numbers = uniforms([seed], np.arange(lists), max(available, 2 * count))
    return sample_ranks(name, np.full(lists, available), count, numbers, margins)


class TestUniforms:
    def test_any_rows_are_drawn_again_whatever_else_is_drawn(self):
        rows = np.array([5, 0, 7_000_000, 3])
        whole = uniforms([3, 1], rows, 40)
        np.testing.assert_array_equal(uniforms([3, 1], rows[2:], 20), whole[2:, :20])

    def test_seed_row_and_place_decide(self):
        drawn = np.stack([uniforms(seed, np.arange(50), 30) for seed in ([0, 0], [0, 1], [1, 0])])
        assert len(np.unique(drawn)) == drawn.size

    def test_they_are_uniform_and_uncorrelated(self):
        numbers = uniforms([0, 0], np.arange(2000), 50)
        assert 0 <= numbers.min() < numbers.max() < 1
        counts = np.histogram(numbers, bins=20, range=(0, 1))[0]  # 5000 in each bin, deviation 69
        assert np.abs(counts - 5000).max() < 5 * 69
        for shifted in (numbers[1:] * 1.0 - 0.5, numbers[:-1] - 0.5):
            assert abs(shifted.mean()) < 5 * 0.289 / np.sqrt(shifted.size)
        products = (numbers[1:] - 0.5) * (numbers[:-1] - 0.5), (numbers[:, 1:] - 0.5) * (numbers[:, :-1] - 0.5)
        assert all(abs(product.mean()) < 5 / 12 / np.sqrt(product.size) for product in products)

    def test_it_is_splitmix64(self):
        """Against the reference generator, one number at a time."""
        mask, state = 2**64 - 1, int(np.random.SeedSequence([7]).generate_state(1, np.uint64)[0])
        for row in (0, 2):
            z = (state + ((row << 32) + 1) * 0x9E3779B97F4A7C15) & mask
            z = ((z ^ (z >> 30)) * 0xBF58476D1CE4E5B9) & mask
            z = ((z ^ (z >> 27)) * 0x94D049BB133111EB) & mask
            assert uniforms([7], np.array([row]), 2)[0, 1] == ((z ^ (z >> 31)) >> 11) / 2**53


class TestSampleRanks:
    @pytest.mark.parametrize("name", SAMPLERS)
    def test_distinct_ranks_in_order_as_many_as_there_are(self, name):
        for available in range(1, 30):
            for count in range(1, 33):
                ranks = draw(name, available, count, seed=available)[0]
                assert len(ranks) == min(count, available)
                assert (np.diff(ranks) > 0).all()
                assert 0 <= ranks[0] <= ranks[-1] < available

    @pytest.mark.parametrize("name", SAMPLERS)
    def test_lists_of_several_lengths_draw_as_each_alone_and_short_ones_are_padded(self, name):
        available = np.array([9, 2, 0, 5, 4])
        margins = np.random.default_rng(1).normal(size=(5, 9))
        numbers = uniforms([4], np.arange(5), 9)
        together = sample_ranks(name, available, 4, numbers, margins)
        for row, length in enumerate(available):
            there = together[row][together[row] >= 0]
            assert len(there) == min(length, 4)
            assert (there < length).all()
            alone = sample_ranks(name, available[row : row + 1], 4, numbers[row : row + 1], margins[row : row + 1])
            assert together[row].tolist() == alone[0].tolist()

    def test_top_k_is_the_first_ranks(self):
        assert draw("top-k", 100, 4)[0].tolist() == [0, 1, 2, 3]

    def test_random_is_uniform(self):
        counts = np.bincount(draw("random", 10, 3, lists=4000).ravel(), minlength=10)
        # 4000 draws of 3 of 10: each rank 1200 times, deviation sqrt(4000 x .3 x .7) = 29
        assert np.abs(counts - 1200).max() < 5 * 29

    def test_stratified_draws_one_of_each_stratum_uniformly(self):
        drawn = draw("stratified", 12, 3, lists=4000)
        for column, low in ((0, 0), (1, 4), (2, 8)):
            values, counts = np.unique(drawn[:, column], return_counts=True)
            assert values.tolist() == list(range(low, low + 4))
            assert np.abs(counts - 1000).max() < 5 * 28

    def test_refusals(self):
        with pytest.raises(UserError, match=r"unknown sampler 'topk'. Did you mean 'top-k'?"):
            draw("topk", 10, 2)
        with pytest.raises(UserError, match="a group with 0 negatives; take at least 1"):
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
