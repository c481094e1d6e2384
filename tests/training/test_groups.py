import numpy as np
import pytest
import torch
from losses import over_corpus, table

from retrodistill.candidates.samplers import SAMPLERS
from retrodistill.core.errors import UserError
from retrodistill.encoders import load_encoder
from retrodistill.encoders.modules import weights_digest
from retrodistill.rankers.loading import load_ranker
from retrodistill.recipes.student_settings import StudentSettings
from retrodistill.recipes.students import build_student
from retrodistill.students.registry import run_stage
from retrodistill.training import trainer
from retrodistill.training.groups import draw_groups, require_groups
from retrodistill.training.lists import Lists
from retrodistill.training.loss import DistillationLoss
from retrodistill.training.scorers import StoredVectorScorer
from retrodistill.training.settings import GroupSettings, StageSettings
from retrodistill.training.training_data import TrainingData

SCORES = np.random.default_rng(0).standard_normal((5, 40)).astype("f4")
SOURCES = np.array([-1, -1, 7, 8, 9])


def draw(lists, seed=0, **settings):
    return draw_groups(lists, GroupSettings(**settings), seed)


def drawn(groups):
    """(groups, n) documents and teacher scores of all groups, as the loss gets them."""
    batch = groups.batch(np.arange(len(groups)))
    np.testing.assert_array_equal(batch.documents, groups.documents(np.arange(len(groups))))
    return batch.documents, batch.targets.numpy()


class TestOverTheCorpus:
    def test_the_best_is_included_and_the_others_are_within_the_depth(self):
        groups = draw(over_corpus(SCORES, np.full(5, -1)), documents=6, depth=10)
        assert groups.documents(np.arange(5)).shape == (5, 6)
        for row, documents, scores in zip(groups.text_rows, *drawn(groups), strict=True):
            order = np.argsort(-SCORES[row])
            assert documents[0] == order[0]
            assert set(documents) <= set(order[:10])
            np.testing.assert_array_equal(scores, SCORES[row, documents])

    def test_random_documents_span_the_corpus_with_their_scores_and_no_duplicates(self):
        groups = draw(over_corpus(SCORES, np.full(5, -1)), documents=3, depth=3, random=30)
        for row, documents, scores in zip(groups.text_rows, *drawn(groups), strict=True):
            there = documents[documents >= 0]
            assert len(set(there)) == len(there)
            assert len(set(there) - set(np.argsort(-SCORES[row])[:10])) > 10
            np.testing.assert_array_equal(scores[documents >= 0], SCORES[row, there])

    def test_random_documents_are_uniform_over_the_corpus(self):
        groups = draw(over_corpus(SCORES[:1], np.full(1, -1)), documents=2, depth=2, random=4, draws=3000)
        counts = np.bincount(groups.documents(np.arange(3000))[:, 2:].ravel() + 1, minlength=41)[1:]
        others = np.setdiff1d(np.arange(40), groups.documents(np.array([0]))[0, :2])
        # each of 40 documents in 1 of 10 groups: 300 times, deviation sqrt(3000 x .1 x .9) = 16
        assert np.abs(counts[others] - 300).max() < 5 * 16

    def test_a_hidden_source_is_in_no_group(self):
        scores = SCORES.copy()
        scores[2, 7] = 100
        groups = draw(over_corpus(scores, SOURCES), documents=20, depth=40, random=20, draws=3)
        documents = groups.documents(np.flatnonzero(groups.text_rows == 2))
        assert 7 not in documents
        assert not groups.shows_positives.any()
        assert (groups.batch(np.arange(len(groups))).positives == -1).all()

    def test_a_shown_source_is_first_in_every_group_of_its_text(self):
        scores = SCORES.copy()
        scores[3, 8] = -100  # a control needs it even where the teacher does not want it
        for sampler in SAMPLERS:
            groups = draw(
                over_corpus(scores, SOURCES, hide_source=False), documents=4, depth=10, draws=3, sampler=sampler
            )
            own = SOURCES[groups.text_rows]
            batch = groups.batch(np.arange(len(groups)))
            np.testing.assert_array_equal(batch.own, own)
            np.testing.assert_array_equal(batch.positives, np.where(own >= 0, 0, -1))
            assert (batch.documents[own >= 0, 0] == own[own >= 0]).all()
            for row, documents, targets in zip(groups.text_rows, batch.documents, batch.targets, strict=True):
                assert len(set(documents)) == 4
                np.testing.assert_array_equal(targets, scores[row, documents])

    def test_random_documents_beside_mined_lists_are_rejected(self):
        lists = Lists(np.array([[0, 1, 2]]), SCORES[:1, :3], np.array([-1]), np.array([-1]))
        with pytest.raises(UserError, match=r"^groups.random=2 .* candidates\.random"):
            draw(lists, documents=2, sampler="top-k", random=2)


class TestBalancedPairs:
    """TAS-B's pairs: the labeled document, and a negative from a uniformly drawn bin of margins to it."""

    #: the labeled document, number 9, is the teacher's fifth; margins to the others are -4, -3, 0, .1, .1, .1, .2, 6
    DOCUMENTS = np.array([[4, 7, 1, 0, 9, 5, 6, 2, 3]], dtype=np.int32)
    TEACHER = np.array([[9.0, 8.0, 5.0, 5.0, 5.0, 4.9, 4.9, 4.8, -1.0]], dtype=np.float32)

    def pairs(self, count=4000, epoch=0):
        lists = Lists(self.DOCUMENTS, self.TEACHER, np.array([-1]), np.array([9]))
        groups = draw(lists, documents=2, sampler="margin-balanced", draws=count)
        groups.start_epoch(epoch)
        return groups

    def test_every_pair_starts_with_the_labeled_document_and_keeps_its_drawn_negative(self):
        documents = self.pairs().documents(np.arange(4000))
        assert (documents[:, 0] == 9).all()
        assert 9 not in documents[:, 1]
        assert (documents >= 0).all()

    def test_negatives_are_drawn_by_bins_of_margins_to_the_labeled_document(self):
        """Margins span -4 to 6, bins are 1 wide: {-4}, {-3}, {0, 0, .1, .1, .2}, {6}, each with probability 1/4."""
        counts = np.bincount(self.pairs().documents(np.arange(4000))[:, 1], minlength=10)
        expected = np.zeros(10)
        margins = 5.0 - self.TEACHER[0].astype(float)
        others = np.flatnonzero(self.DOCUMENTS[0] != 9)
        bins = [min(int((margins[place] + 4) / 1.0 + 1e-6), 9) for place in others]
        for place, number in zip(others, bins, strict=True):
            expected[self.DOCUMENTS[0, place]] = 4000 / len(set(bins)) / bins.count(number)
        assert len(set(bins)) == 4
        assert np.abs(counts - expected).max() < 5 * np.sqrt(expected.max())

    def test_the_loss_sees_the_signed_margin_to_the_labeled_document(self):
        batch = self.pairs().batch(np.arange(50))
        teacher = dict(zip(self.DOCUMENTS[0].tolist(), self.TEACHER[0].tolist(), strict=True))
        margins = (batch.targets[:, 0] - batch.targets[:, 1]).numpy()
        np.testing.assert_allclose(margins, [teacher[9] - teacher[at] for at in batch.documents[:, 1]], rtol=1e-6)
        assert margins.min() < 0 < margins.max()

    def test_without_a_label_the_teachers_best_is_the_positive(self):
        lists = Lists(self.DOCUMENTS, self.TEACHER, np.array([-1]), np.array([-1]))
        assert (drawn(draw(lists, documents=2, sampler="margin-balanced", draws=20))[0][:, 0] == 4).all()


class TestEpochs:
    @pytest.mark.parametrize("sampler", ["stratified", "random", "margin-balanced"])
    def test_each_epoch_draws_anew_and_any_part_of_it_can_be_drawn_again(self, sampler):
        rows = np.arange(10)
        lists = over_corpus(SCORES, np.full(5, -1))
        groups = draw(lists, documents=4, depth=30, sampler=sampler, draws=2, random=3)
        epochs = []
        for epoch in (0, 1, 2):
            groups.start_epoch(epoch)
            epochs.append(groups.documents(rows))
        assert all((epochs[first] != epochs[second]).any() for first, second in ((0, 1), (0, 2), (1, 2)))
        resumed = draw(lists, documents=4, depth=30, sampler=sampler, draws=2, random=3)
        resumed.start_epoch(1)
        np.testing.assert_array_equal(resumed.documents(np.array([7, 2])), epochs[1][[7, 2]])

    def test_repeated_texts_and_further_draws_differ_within_an_epoch(self):
        groups = draw(over_corpus(SCORES, np.full(5, -1)), documents=4, depth=30, draws=3).of_texts(np.array([2, 2]))
        assert len({tuple(documents) for documents in groups.documents(np.arange(6))}) == 6


class TestGroups:
    def test_lists_of_repeated_texts_are_repeated(self):
        groups = draw(over_corpus(SCORES, np.full(5, -1)), documents=2, draws=2)
        found = groups.of_texts(np.array([4, 1, 4]))
        assert found.text_rows.tolist() == [4, 4, 1, 1, 4, 4]
        assert groups.of_texts(np.array([3, 0]), times=1).text_rows.tolist() == [3, 0]
        assert len(groups.of_texts(np.array([], dtype=int))) == 0

    def test_the_same_seed_draws_the_same(self):
        lists = over_corpus(SCORES, np.full(5, -1))
        first, again, other = (drawn(draw(lists, seed, documents=5, random=5))[0] for seed in (0, 0, 1))
        np.testing.assert_array_equal(first, again)
        assert (first != other).any()

    def test_no_group_at_all_is_rejected(self):
        groups = draw(over_corpus(SCORES, np.full(5, -1)), documents=2)
        with pytest.raises(UserError, match=r"^no training text is left"):
            require_groups(groups.of_texts(np.array([], dtype=int)))


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
        for text, documents, scores in zip(groups.text_rows, *drawn(groups), strict=True):
            listed = documents[documents >= 0]
            assert self.SOURCES[text] not in listed
            np.testing.assert_allclose(scores[documents >= 0], self.TEACHER[text, listed], rtol=1e-6)


class TestTraining:
    """Groups in a training of three epochs, through the trainer."""

    def trained(self, data, model, folder, train, killed_after=None):
        stage = StageSettings.model_validate(
            {
                "objectives": "margin-mse",
                "train": train,
                "texts": {"titles": False, "sentences": 0},
                "candidates": {"depth": 12, "sources": ["bm25"]},
                "groups": {"documents": 2, "sampler": "margin-balanced"},
                "training": {"epochs": 3, "batch_size": 8, "learning_rate": 1e-3, "warmup": 0},
            }
        )
        settings = {"model": model, "stages": [stage], "control": None, "documents": "student"}
        settings |= {"dimension": 8} if train == "head" else {}
        student = build_student(StudentSettings.model_validate(settings), data)
        seen = []
        whole = DistillationLoss.forward

        def listening(loss, features, labels):
            if killed_after is not None and len(seen) == killed_after:
                raise KeyboardInterrupt
            columns = list(features)
            texts = [student.tokenizer.batch_decode(side["input_ids"], skip_special_tokens=True) for side in columns]
            batch = loss._lists.batch(labels.numpy())
            seen.append((labels.tolist(), batch.documents.tolist(), texts))
            return whole(loss, columns, labels)

        with pytest.MonkeyPatch.context() as patch:
            patch.setattr(DistillationLoss, "forward", listening)
            patch.setattr(trainer, "_CHECKPOINTS", 6)
            run_stage(student, stage, data, folder, "training")
        return seen, weights_digest(student)

    @pytest.mark.parametrize(("model", "train"), [("dense", "both_encoders"), ("multi-vector", "head")])
    def test_epochs_draw_anew_and_a_resumed_training_draws_the_same(self, model, train, tiny, tiny_model, tmp_path):
        space = load_encoder(f"dense:{tiny_model}")
        data = TrainingData(tiny, tiny.split("train"), load_ranker("bm25"), space, tmp_path / "out", own_documents=True)
        name = f"{model}:{tiny_model}"
        whole, weights = self.trained(data, name, tmp_path / "whole", train)
        pairs = [
            {
                label: tuple(documents)
                for labels, drawn, _ in part
                for label, documents in zip(labels, drawn, strict=True)
            }
            for part in np.array_split(np.array(whole, dtype=object), 3)
        ]
        assert pairs[0].keys() == pairs[1].keys() == pairs[2].keys()
        changed = np.mean([pairs[0][label] != pairs[1][label] for label in pairs[0]])
        assert changed > 0.5  # most queries get another negative
        with pytest.raises(KeyboardInterrupt):
            self.trained(data, name, tmp_path / "killed", train, killed_after=len(whole) - 3)
        rest, again = self.trained(data, name, tmp_path / "killed", train)
        assert 0 < len(rest) < len(whole)
        assert rest == whole[-len(rest) :]
        assert again == weights

    def test_the_student_reads_the_texts_of_the_documents_that_the_loss_scores(self, tiny, tiny_model, tmp_path):
        space = load_encoder(f"dense:{tiny_model}")
        data = TrainingData(tiny, tiny.split("train"), load_ranker("bm25"), space, tmp_path / "out", own_documents=True)
        seen, _ = self.trained(data, f"dense:{tiny_model}", tmp_path / "work", "both_encoders")
        decode = space.model.tokenizer
        for _, documents, texts in seen:
            for place, column in enumerate(texts[1:]):
                wanted = [tiny.documents.texts[row[place]] if row[place] >= 0 else "" for row in documents]
                ids = decode(wanted, truncation=True, max_length=space.model.max_seq_length)["input_ids"]
                assert column == decode.batch_decode(ids, skip_special_tokens=True)
