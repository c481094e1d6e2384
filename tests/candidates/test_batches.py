import json
from unittest import mock

import numpy as np
import pytest
import torch
from accelerate.data_loader import BatchSamplerShard, skip_first_batches
from torch.utils.data import BatchSampler, DataLoader

from retrodistill.candidates.samplers import (
    PlannedBatches,
    balanced_ranks,
    cluster_topics,
    length_plan,
    margin_bins,
    topic_count,
    topic_plan,
    uniforms,
)
from retrodistill.core.errors import UserError

TOPICS = np.repeat([0, 1, 2, 3], [17, 30, 9, 11])
ROWS = list(range(len(TOPICS)))


class TestClusters:
    def blobs(self):
        generator = np.random.default_rng(0)
        centers = np.eye(5)[np.repeat(np.arange(5), 20)]
        return (centers + 0.01 * generator.normal(size=centers.shape)).astype(np.float32)

    def test_neighboring_texts_are_one_topic(self):
        topics = cluster_topics(self.blobs(), 5, seed=1).reshape(5, 20)
        assert (topics == topics[:, :1]).all()
        assert set(topics[:, 0]) == set(range(5))

    def test_the_seed_decides(self):
        points = np.random.default_rng(0).normal(size=(300, 8)).astype(np.float32)
        first, again, other = (cluster_topics(points, 12, seed).tolist() for seed in (3, 3, 4))
        assert first == again != other

    @pytest.mark.parametrize("topics", [0, 101])
    def test_more_topics_than_texts_or_none(self, topics):
        with pytest.raises(UserError, match=f"{topics} topics of 100 training texts"):
            cluster_topics(self.blobs(), topics)

    def test_vectors_that_are_not_finite(self):
        points = self.blobs()
        points[3, 2] = np.nan
        with pytest.raises(UserError, match="1 embeddings of training texts are not finite"):
            cluster_topics(points, 5)

    def test_about_six_batches_a_topic(self):
        assert (topic_count(400_000, 32), topic_count(100, 32)) == (2083, 1)


class TestPlan:
    def test_every_row_is_in_one_batch(self):
        for size in range(1, 70):
            assert sorted(np.concatenate(topic_plan(TOPICS, size, seed=0)).tolist()) == ROWS

    def test_all_batches_are_full_but_the_last(self):
        for size in range(1, 70):
            sizes = [len(batch) for batch in topic_plan(TOPICS, size, seed=0)]
            assert sizes[:-1] == [size] * (len(sizes) - 1)
            assert 0 < sizes[-1] <= size

    def test_as_many_batches_of_one_topic_as_its_rows_fill(self):
        plan = topic_plan(TOPICS, 4, seed=0)
        pure = [TOPICS[batch[0]] for batch in plan if len(batch) == 4 and len(set(TOPICS[batch])) == 1]
        assert [pure.count(topic) for topic in range(4)] == [4, 7, 2, 2]

    def test_seed_and_epoch_decide_the_order(self):
        first, again, seed, epoch = (
            [batch.tolist() for batch in topic_plan(TOPICS, 4, *given)] for given in ((0, 0), (0, 0), (1, 0), (0, 1))
        )
        assert first == again
        assert len({str(plan) for plan in (first, seed, epoch)}) == 3

    def test_every_row_comes_first_equally_often(self):
        # 14 rows of one topic in 7 batches of 2: over many epochs each row is in the first batch 2 times in 14
        first = np.concatenate([topic_plan(np.zeros(14), 2, 0, epoch)[0] for epoch in range(2000)])
        counts = np.bincount(first, minlength=14)
        assert np.abs(counts - 2000 / 7).max() < 5 * np.sqrt(2000 / 7 * 6 / 7)


class TestLengthPlan:
    LENGTHS = np.random.default_rng(0).integers(5, 900, 1003)

    @pytest.mark.parametrize("size", [1, 4, 32, 1003, 2000])
    def test_every_row_is_in_one_batch_and_all_are_full_but_the_last(self, size):
        plan = length_plan(self.LENGTHS, size, seed=0)
        assert sorted(np.concatenate(plan).tolist()) == list(range(1003))
        assert {len(batch) for batch in plan[:-1]} <= {size}

    def test_fewer_rows_than_fifty_batches_are_sorted_as_a_whole(self):
        ordered = np.sort(self.LENGTHS)[::-1]
        batches = sorted((self.LENGTHS[batch] for batch in length_plan(self.LENGTHS, 32, seed=3)), key=lambda b: -b[0])
        assert np.concatenate(batches).tolist() == ordered.tolist()

    def test_more_rows_are_sorted_fifty_batches_at_a_time(self):
        windows = [set(range(0, 200)), set(range(200, 400)), set(range(400, 410))]
        with mock.patch("numpy.random.default_rng", return_value=mock.Mock(permutation=np.arange)):
            plan = [set(batch.tolist()) for batch in length_plan(np.arange(410), 4, seed=0)]
        assert all(any(batch <= window for window in windows) for batch in plan)

    def test_batches_of_long_texts_do_not_come_first(self):
        firsts = [self.LENGTHS[length_plan(self.LENGTHS, 32, seed)[0]].mean() for seed in range(40)]
        assert min(firsts) < 200
        assert max(firsts) > 700

    def test_seed_and_epoch_decide_the_order(self):
        plans = [str(length_plan(self.LENGTHS, 4, *given)[0]) for given in ((0, 0), (0, 0), (1, 0), (0, 1))]
        assert plans[0] == plans[1]
        assert len(set(plans)) == 3


class TestBatchSampler:
    def made(self, drop_last=False, seed=0, rows=ROWS):
        return PlannedBatches(TOPICS, topic_plan)(
            rows,
            batch_size=4,
            drop_last=drop_last,
            valid_label_columns=["label"],
            generator=torch.Generator(),
            seed=seed,
        )

    def test_is_what_torch_and_the_trainer_take(self):
        loader = DataLoader(ROWS, batch_sampler=self.made())
        assert isinstance(self.made(), BatchSampler)
        assert len(loader) == 17
        assert [batch.tolist() for batch in loader] == [batch.tolist() for batch in topic_plan(TOPICS, 4, 0)]

    def test_drop_last(self):
        batches = list(self.made(drop_last=True))
        assert len(batches) == len(self.made(drop_last=True)) == 16
        assert {len(batch) for batch in batches} == {4}

    def test_the_order_of_an_epoch_does_not_depend_on_earlier_reads(self):
        read, fresh = self.made(), self.made()
        list(read)
        before = list(read)
        for sampler in (read, fresh):
            sampler.set_epoch(3)
        assert list(read) == list(fresh) != before

    def test_resuming_skips_what_was_seen(self):
        whole = [batch.tolist() for batch in DataLoader(ROWS, batch_sampler=self.made())]
        resumed = skip_first_batches(DataLoader(ROWS, batch_sampler=self.made()), 5)
        assert [batch.tolist() for batch in resumed] == whole[5:]

    def test_devices_share_the_batches_of_an_epoch(self):
        shards = [list(BatchSamplerShard(self.made(), 2, place, even_batches=False)) for place in (0, 1)]
        assert sorted(row for shard in shards for batch in shard for row in batch) == ROWS

    def test_topics_of_other_rows_are_rejected(self):
        with pytest.raises(UserError, match="67 topics or lengths for 3 training rows"):
            self.made(rows=[0, 1, 2])

    def test_the_trainer_uses_it(self, tiny_model, tmp_path):
        from datasets import Dataset
        from sentence_transformers import (
            SentenceTransformer,
            SentenceTransformerTrainer,
            SentenceTransformerTrainingArguments,
        )

        arguments = SentenceTransformerTrainingArguments(
            str(tmp_path),
            per_device_train_batch_size=4,
            batch_sampler=PlannedBatches(TOPICS, topic_plan),
            use_cpu=True,
            seed=5,
        )
        dataset = Dataset.from_dict({"text": [f"star {row}" for row in ROWS], "label": ROWS})
        model = SentenceTransformer(tiny_model, device="cpu")
        trainer = SentenceTransformerTrainer(model, arguments, train_dataset=dataset, loss=torch.nn.Identity())
        labels = [batch["label"].tolist() for batch in trainer.get_train_dataloader()]
        assert labels == [batch.tolist() for batch in topic_plan(TOPICS, 4, seed=5)]
        torch.save(arguments, tmp_path / "training_args.bin")  # as with every checkpoint
        json.dumps(arguments.to_dict())


def bins(margins):
    return margin_bins(np.array([margins]), np.array([len(margins)]))[0]


class TestMarginBins:
    def test_bins_have_equal_width_not_equal_size(self):
        assert bins([0.0, 0.05, 0.09, 0.11, 0.5, 0.99, 1.0]).tolist() == [0, 0, 0, 1, 5, 9, 9]

    def test_the_same_as_a_histogram(self):
        margins = np.random.default_rng(0).normal(size=500)
        counts = np.histogram(margins, bins=10)[0]
        assert np.bincount(bins(margins), minlength=10).tolist() == counts.tolist()

    def test_equal_margins_are_one_bin(self):
        assert bins(np.full(3, 2.5)).tolist() == [0, 0, 0]

    def test_each_list_has_bins_of_its_own_up_to_its_end(self):
        margins = np.array([[0.0, 1.0, 2.0, 99.0], [5.0, 5.5, 99.0, 99.0], [7.0, 7.0, 7.0, 7.0]])
        assert margin_bins(margins, np.array([3, 2, 0])).tolist() == [[0, 5, 9, -1], [0, 9, -1, -1], [-1] * 4]

    def test_scores_that_are_no_numbers_do_not_stop_it(self):
        assert bins([0.0, np.nan, 1.0]).min() >= 0


class TestBalancedSampling:
    #: 90 candidates with a margin near 1, three near .5, one at 0: three bins of ten have any
    MARGINS = np.concatenate([np.full(90, 1.0), [0.5, 0.51, 0.52], [0.0]])

    def drawn(self, count, lists):
        numbers = uniforms([0], np.arange(lists), 2 * count)
        return balanced_ranks(np.tile(self.MARGINS, (lists, 1)), np.full(lists, 94), count, numbers)

    def test_bins_and_candidates_within_them_are_drawn_uniformly(self):
        first = self.drawn(1, 3000)[:, 0]
        # each bin 1000 times, deviation sqrt(3000 x 1/3 x 2/3) = 26; each of three in the middle bin 333 times
        assert abs((first < 90).sum() - 1000) < 5 * 26
        assert abs((first == 93).sum() - 1000) < 5 * 26
        assert np.abs(np.bincount(first, minlength=94)[90:93] - 333).max() < 5 * np.sqrt(333)
        assert np.abs(np.bincount(first, minlength=94)[:90] - 1000 / 90).max() < 30

    def test_nothing_is_drawn_twice(self):
        for ranks in self.drawn(94, 3):
            assert sorted(ranks.tolist()) == list(range(94))

    def test_an_exhausted_bin_is_skipped(self):
        assert all({90, 91, 92, 93} <= set(ranks.tolist()) for ranks in self.drawn(40, 20))
