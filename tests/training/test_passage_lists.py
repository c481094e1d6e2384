"""What a student learns from passages of labeled documents."""

import numpy as np
import pytest

from retrodistill.core.errors import UserError
from retrodistill.data import Collection
from retrodistill.data.collection import judgments_of
from retrodistill.data.passages import with_passages
from retrodistill.data.pseudo_queries import title_texts
from retrodistill.rankers import load_ranker
from retrodistill.training.groups import draw_groups
from retrodistill.training.lists import lists_from_run, lists_over_corpus, without_siblings
from retrodistill.training.scoring import check_teacher, scored_lists, stage_texts
from retrodistill.training.settings import GroupSettings, StageSettings
from retrodistill.training.training_data import TrainingData

DOCUMENTS = {
    "sky": ("Sky", "star star star. planet orbit moon. comet galaxy nebula."),
    "sea": ("Sea", "wave coral reef. star fish swim. tide whale shark."),
    "law": ("Law", "court judge jury. appeal lawyer trial. star witness speaks."),
}


@pytest.fixture
def cut_up() -> Collection:
    queries = {"q": "star planet", "r": "star comet"}
    judged = {"train": {"q": {"sky": 1, "sea": 1}, "r": {"sky": 1}}}
    return with_passages(Collection.from_parts("small", DOCUMENTS, queries, judged), "3,0")


@pytest.fixture
def data(cut_up, tmp_path) -> TrainingData:
    queries = cut_up.split("train")
    labels = cut_up.passage_labels(judgments_of(queries, cut_up.qrels.values()))
    return TrainingData(cut_up, queries, load_ranker("bm25"), None, tmp_path, labels=labels)


def stage(**keys) -> StageSettings:
    defaults = {"objectives": "contrastive", "texts": {"titles": True, "sentences": 1}, "train": "both_encoders"}
    return StageSettings.model_validate({**defaults, "candidates": {"sources": ["bm25"], "depth": 9}, **keys})


def listed(lists, row: int, names: list[str]) -> set[str]:
    documents = lists.documents[row]
    return {names[place] for place in documents[lists.mask[row]].tolist()}


class TestLabels:
    def test_the_best_passage_is_the_positive_and_the_others_do_not_count(self, data, cut_up):
        settings = stage(positives="labels", texts={"titles": False, "sentences": 0})
        texts = stage_texts(settings, data)
        lists = scored_lists(settings, data, texts).lists
        names = cut_up.documents.ids
        positive = names[lists.positives[texts.texts.ids.index("q")]]
        scores = data.teacher.search(data.queries, cut_up, 9).to_dict()["q"]
        assert positive == max((name for name in scores if not name.startswith("law")), key=scores.get)
        shown = listed(lists, texts.texts.ids.index("q"), names)
        assert positive in shown
        # of the other relevant document its best passage stays, as another labeled document does
        assert {name for name in shown if name.startswith("sky")} == {positive}
        assert {name for name in shown if name.startswith("sea")} == {"sea#2"}
        assert any(name.startswith("law") for name in shown)

    def test_all_passages_of_a_judged_document_are_scored(self, data, cut_up):
        settings = stage(positives="labels", texts={"titles": False, "sentences": 0})
        texts = stage_texts(settings, data)
        scored = scored_lists(settings, data, texts).run.to_dict()
        assert {"sky#1", "sky#2", "sky#3", "sea#1", "sea#2", "sea#3"} <= scored["q"].keys()

    def test_passages_of_one_document_are_no_negatives_of_a_batch(self, data, cut_up):
        settings = stage(positives="labels", texts={"titles": False, "sentences": 0})
        texts = stage_texts(settings, data)
        lists = scored_lists(settings, data, texts).lists
        q, r = (texts.texts.ids.index(name) for name in ("q", "r"))
        assert lists.positives[q] != lists.positives[r]  # two passages of one document
        rows = np.array([q, r])
        assert lists.excuses(rows, lists.positives[rows]).tolist() == [[False, True], [True, False]]
        batch = lists.batch(rows)
        scores, counts = lists.teacher_on(batch, lists.positives[rows]) or (None, None)
        assert scores is None or counts.tolist() == [[True, False], [False, True]]

    def test_a_group_has_no_sibling_of_its_positive(self, data, cut_up):
        settings = stage(positives="labels", texts={"titles": False, "sentences": 0})
        texts = stage_texts(settings, data)
        lists = scored_lists(settings, data, texts).lists
        groups = draw_groups(lists, GroupSettings(documents=9), seed=0)
        names = cut_up.documents.ids
        drawn = {names[place] for place in groups.documents(np.array([0]))[0].tolist() if place >= 0}
        assert sum(name.startswith("sky") for name in drawn) == 1


class TestPseudoQueries:
    def test_a_document_has_one_title(self, cut_up):
        assert title_texts(cut_up).ids == ["\0title:sky#1", "\0title:sea#1", "\0title:law#1"]
        assert title_texts(cut_up, np.array([0, 1, 4])).ids == ["\0title:sky#1"]

    def test_the_other_passages_of_its_document_do_not_count(self, data, cut_up):
        settings = stage(objectives="kl", candidates={"sources": ["bm25"], "depth": 9}, texts={"queries": False})
        texts = stage_texts(settings, data)
        lists = scored_lists(settings, data, texts).lists
        names = cut_up.documents.ids
        for row, source in enumerate(texts.sources.tolist()):
            own = names[source].rpartition("#")[0]
            assert not any(name.startswith(own) for name in listed(lists, row, names))


class TestRecordedTeachers:
    def test_a_run_over_whole_documents_cannot_teach_passages(self, data, cut_up):
        run = load_ranker(load_ranker("bm25").search(data.queries, cut_up.whole, 3))
        with pytest.raises(UserError, match="whole documents"):
            check_teacher(run, cut_up, data.queries, [stage(objectives="kl")])

    def test_a_run_over_passages_can(self, data, cut_up):
        run = load_ranker(load_ranker("bm25").search(data.queries, cut_up, 9))
        check_teacher(run, cut_up, data.queries, [stage(objectives="kl")])


class TestLists:
    def test_lists_over_a_corpus_leave_them_out_too(self, data, cut_up):
        settings = stage(positives="all")
        texts = stage_texts(settings, data)
        teacher = data.teacher.corpus_scores(texts.texts, cut_up)
        plain = lists_over_corpus(teacher, texts.sources)
        plain = without_siblings(plain, texts, cut_up.documents, cut_up.parents, data.qrels())
        rows = np.arange(len(texts))
        batch = plain.batch(rows)
        by_key = plain.counts(rows, np.tile(np.arange(9), (len(rows), 1)), np.zeros((len(rows), 9)))
        assert batch.mask.numpy().tolist() == by_key.tolist()
        assert not by_key.all()

    def test_without_passages_nothing_is_excused(self, tiny):
        queries = tiny.split("train")
        run = load_ranker("bm25").search(queries, tiny, 5)
        lists = lists_from_run(run, queries, tiny.documents, np.full(len(queries), -1))
        assert lists.excused is None
        assert not lists.excuses(np.arange(3), lists.documents[:3]).any()
