"""Filters of false negatives in a stage: `candidates.filter`."""

from dataclasses import replace

import numpy as np
import pytest
from losses import table

from retrodistill.core.errors import UserError
from retrodistill.encoders import load_encoder
from retrodistill.rankers.loading import load_ranker
from retrodistill.recipes.student_settings import StudentSettings
from retrodistill.recipes.students import build_student
from retrodistill.students.registry import run_stage
from retrodistill.training.groups import draw_groups
from retrodistill.training.lists import Lists, below_positives
from retrodistill.training.scoring import scored_lists, stage_texts
from retrodistill.training.settings import FilterSettings, GroupSettings, StageSettings
from retrodistill.training.training_data import TrainingData

SHORT = {"epochs": 1, "max_steps": 2, "batch_size": 4, "learning_rate": 1e-3, "warmup": 0}


@pytest.fixture
def data(tiny, tiny_model, tmp_path):
    space = load_encoder(f"dense:{tiny_model}")
    labels = tiny.relevance("train")
    return TrainingData(tiny, tiny.split("train"), load_ranker(space), space, tmp_path / "out", labels=labels)


def stage(**more):
    given = {"objectives": "kl", "candidates": {"depth": 8, "filter": {"margin": 0.05}}, "training": SHORT}
    return StageSettings.model_validate({**given, **more})


def wanted(limit, lists):
    """Which documents count, list by list."""
    counted = []
    for row in range(len(lists)):
        listed = dict(zip(lists.documents[row].tolist(), lists.scores[row].tolist(), strict=True))
        positive = listed.get(int(lists.positives[row]))
        ceiling = np.inf if positive is None or lists.positives[row] < 0 else limit(positive)
        counted.append(
            {
                document
                for document, score in listed.items()
                if document >= 0
                and document != lists.hidden[row]
                and (document == lists.positives[row] or np.float32(score) <= np.float32(ceiling))
            }
        )
    return counted


def counted(lists):
    return [set(documents[mask].tolist()) for documents, mask in zip(lists.documents, lists.mask, strict=True)]


class TestStages:
    @pytest.mark.parametrize("objectives", ["kl", "contrastive"])
    @pytest.mark.parametrize(
        ("given", "limit"),
        [({"margin": 0.05}, lambda score: score - 0.05), ({"relative": 0.95}, lambda score: 0.95 * score)],
    )
    def test_negatives_near_the_source_document_are_dropped_and_counted(self, objectives, given, limit, data):
        one = stage(objectives=objectives, candidates={"depth": 8, "filter": given}, texts={"sentences": 1})
        texts = stage_texts(one, data)
        scored = scored_lists(one, data, texts)
        assert (scored.lists.hidden[texts.sources >= 0] >= 0).all() == (objectives == "kl")
        assert counted(scored.lists) == wanted(limit, scored.lists)
        dropped = int(replace(scored.lists, ceiling=None).mask.sum() - scored.lists.mask.sum())
        assert dropped > 0
        assert f"dropped {dropped} of " in scored.notes[-1]
        positives = int((texts.sources >= 0).sum())
        assert f"{positives} of {len(texts)} texts have a positive" in scored.notes[-1]

    def test_labeled_documents_are_the_positives_of_queries(self, data):
        one = stage(positives="labels", texts={"titles": False, "sentences": 0})
        scored = scored_lists(one, data, stage_texts(one, data))
        assert (scored.lists.positives >= 0).all()
        assert counted(scored.lists) == wanted(lambda score: score - 0.05, scored.lists)
        assert sum(map(len, counted(scored.lists))) < (scored.lists.documents >= 0).sum()

    def test_the_history_of_a_training_has_the_count(self, data, tiny_model, tmp_path):
        one = stage(texts={"sentences": 1})
        settings = StudentSettings.model_validate({"model": f"dense:{tiny_model}", "stages": [one], "control": None})
        history = run_stage(build_student(settings, data), one, data, tmp_path / "work", "training")
        assert history.notes[0].startswith("filter of false negatives (margin 0.05): dropped ")

    def test_logits_have_no_share(self, data):
        logits = replace(data, teacher=_Shifted(data.teacher))
        one = stage(candidates={"depth": 8, "filter": {"relative": 0.9}})
        texts = stage_texts(one, logits)
        with pytest.raises(UserError, match=r"^candidates.filter.relative: teacher .* has negative scores"):
            scored_lists(one, logits, texts)

    def test_no_text_with_a_positive_is_rejected(self, data):
        one = stage(positives="labels", texts={"titles": False, "sentences": 0})
        nobody = Lists(np.zeros((2, 1), "i4"), np.zeros((2, 1), "f4"), np.full(2, -1), np.full(2, -1))
        with pytest.raises(UserError, match=r"^candidates.filter compares with .* no text has one"):
            below_positives(nobody, one.candidates.filter, "bm25")

    @pytest.mark.parametrize(
        ("given", "message"),
        [
            ({"texts": {"titles": False, "sentences": 0}}, "no text has one: set positives: labels"),
            ({"objectives": "leaf"}, "candidates.filter is about candidates"),
            ({"candidates": {"depth": "all", "filter": {"margin": 0}}}, "a filter is for mined candidates"),
            ({"candidates": {"budget": 9, "filter": {"margin": 0}}}, "which a budget may not buy"),
            ({"candidates": {"filter": {}}}, "either a margin or relative"),
            ({"candidates": {"filter": {"margin": 1, "relative": 0.5}}}, "either a margin or relative"),
        ],
    )
    def test_combinations_without_a_meaning_are_rejected(self, given, message):
        with pytest.raises(ValueError, match=message):
            stage(**given)

    def test_settings_without_a_filter_are_written_as_before(self):
        assert "filter" not in StageSettings.model_validate({"objectives": "kl"}).model_dump(mode="json")["candidates"]


class TestDrawnAndSharedDocuments:
    TEACHER = np.random.default_rng(1).standard_normal((4, 50)).astype(np.float32)
    CANDIDATES = np.array([[3, 40, 5], [40, 7, 6], [9, 8, 2], [1, 0, 4]], dtype=np.int32)
    POSITIVES = np.array([3, 7, -1, 20])  # the last is not among the candidates

    def lists(self, **more):
        scores = np.take_along_axis(self.TEACHER, self.CANDIDATES, axis=1)
        lists = Lists(
            self.CANDIDATES, scores, np.full(4, -1), self.POSITIVES, teacher=table(self.TEACHER), seed=3, **more
        )
        return below_positives(lists, FilterSettings(margin=0.25), "table")[0]

    def expected(self, text, documents):
        positive = self.POSITIVES[text]
        if positive < 0:
            return np.ones(len(documents), dtype=bool)
        ceiling = np.float32(self.TEACHER[text, positive] - np.float32(0.25))
        return (self.TEACHER[text, documents] <= ceiling) | (documents == positive)

    def test_shared_documents_are_filtered_too(self):
        batch = self.lists(shared=30).batch(np.arange(4))
        for text in range(4):
            listed = np.concatenate([batch.documents[text], batch.shared])
            known = ~np.isin(batch.shared, batch.documents[text])
            once = np.concatenate([np.ones(3, dtype=bool), known])
            np.testing.assert_array_equal(batch.mask[text].numpy(), self.expected(text, listed) & once)

    def test_no_group_has_a_dropped_negative(self):
        groups = draw_groups(self.lists(), GroupSettings(documents=3, random=9, draws=20), 0)
        batch = groups.batch(np.arange(len(groups)))
        for text, documents, mask in zip(groups.text_rows, batch.documents, batch.mask.numpy(), strict=True):
            assert self.expected(text, documents[mask]).all()
            assert mask[:2].all()

    def test_documents_of_the_batch_are_filtered_for_each_text(self):
        lists, documents = self.lists(), np.arange(50)
        scores, counts = lists.teacher_on(lists.batch(np.arange(4)), documents)
        np.testing.assert_allclose(scores, self.TEACHER, rtol=1e-6)
        np.testing.assert_array_equal(counts, [self.expected(text, documents) for text in range(4)])


class _Shifted:
    """A teacher whose scores are logits: those of another, stretched and moved."""

    def __init__(self, ranker):
        self.ranker = ranker

    def __getattr__(self, name):
        return getattr(self.ranker, name)

    def score(self, *given):
        run = self.ranker.score(*given)
        return run.with_scores(40 * (run.scores - run.scores.mean()))

    def fingerprint(self, collection):
        return "logits"
