"""Controls of a student: what each builds or trains, and what a recipe may say."""

from dataclasses import replace

import numpy as np
import pytest

from retrodistill.core.errors import UserError
from retrodistill.encoders import load_encoder
from retrodistill.rankers.loading import load_ranker
from retrodistill.recipes.job import open_job
from retrodistill.recipes.loading import parse_recipe
from retrodistill.recipes.student_settings import StudentSettings, control_of
from retrodistill.recipes.systems import students_to_train
from retrodistill.training.prepared import prepare, training_rows
from retrodistill.training.training_data import TrainingData

STAGE = {"objectives": ["leaf", "kl"], "texts": {"sentences": 1}, "candidates": {"depth": 6, "sources": ["bm25"]}}


def student(control, **more):
    return StudentSettings.model_validate({"model": "static", "stages": [STAGE], "control": control, **more})


def names(stage):
    return [term.name for term in stage.objectives]


class TestWhatTheyAre:
    def test_without_training(self):
        assert control_of(student(None)) is None
        untrained, fitted = (control_of(student(name)) for name in ("untrained", "fitted"))
        assert untrained.stages == fitted.stages == []
        assert (untrained.initialize, fitted.initialize) == ("teacher", "fitted")

    def test_contrastive_ones_keep_all_but_the_teacher(self):
        given = student("contrastive")
        plain, labeled = (control_of(student(name)).stages[0] for name in ("contrastive", "contrastive-labels"))
        assert names(plain) == names(labeled) == ["leaf", "contrastive"]
        assert (plain.positives, labeled.positives) == ("source_document", "all")
        for stage in (plain, labeled):
            assert stage.training == given.stages[0].training
            assert stage.candidates == given.stages[0].candidates
            assert stage.texts == given.stages[0].texts

    def test_another_teacher_teaches_the_stages_with_lists(self):
        given = student({"teacher": "bm25"}, stages=[{"objectives": "leaf"}, STAGE])
        first, second = control_of(given).stages
        assert first == given.stages[0]
        assert second == given.stages[1].model_copy(update={"teacher": second.teacher})
        assert [member.model for member in second.teacher] == ["bm25"]

    @pytest.mark.parametrize(
        ("control", "more", "message"),
        [
            (
                "fitted",
                {"model": "sparse:x", "stages": [{**STAGE, "objectives": "kl", "train": "both_encoders"}]},
                "for static and",
            ),
            ({"teacher": "student:other"}, {}, "cannot be a student"),
            ({"teacher": []}, {}, "at least 1 item"),
            ("contrastive", {"stages": [{**STAGE, "texts": {"titles": False, "sentences": 0}}]}, "contrastive-labels"),
        ],
    )
    def test_what_a_recipe_may_not_say(self, control, more, message):
        with pytest.raises(ValueError, match=message):
            student(control, **more)


class TestWhatTheyTrainOn:
    @pytest.fixture
    def data(self, tiny, tiny_model, tmp_path):
        space = load_encoder(f"dense:{tiny_model}")
        labels = tiny.relevance("train")
        return TrainingData(tiny, tiny.split("train"), load_ranker("bm25"), space, tmp_path / "out", labels=labels)

    def test_queries_have_their_labeled_documents_and_pseudo_queries_their_sources(self, data):
        stage = control_of(student("contrastive-labels")).stages[0]
        prepared = prepare(stage, data)
        lists, sources = prepared.lists, prepared.texts.sources
        pseudo = sources >= 0
        assert (lists.hidden == -1).all()
        np.testing.assert_array_equal(lists.positives[pseudo], sources[pseudo])
        relevant = data.qrels().to_dict()
        corpus = data.collection.documents.ids
        for row in np.flatnonzero(~pseudo):
            assert corpus[lists.positives[row]] in relevant[prepared.texts.texts.ids[row]]
        rows = training_rows(prepared, stage)
        assert {*np.flatnonzero(~pseudo)} - {*prepared.held_out} <= {*rows}
        plain = control_of(student("contrastive")).stages[0]
        assert (sources[training_rows(prepare(plain, replace(data, labels=None)), plain)] >= 0).all()


class TestInRecipes:
    @pytest.fixture
    def content(self, tiny_folder, tiny_model):
        return {
            "name": "one",
            "collection": str(tiny_folder),
            "document_encoder": f"dense:{tiny_model}",
            "students": {"student": {"model": "static", "stages": [STAGE]}},
        }

    def test_the_models_of_a_control_are_loaded_before_work_starts(self, content, tmp_path):
        content["students"]["student"]["control"] = {"teacher": "cross-encoder:/nowhere"}
        with pytest.raises(UserError, match="/nowhere"):
            open_job(parse_recipe(content), tmp_path)
        content["students"]["student"]["control"] = {"teacher": "bm25"}
        job = open_job(parse_recipe(content), tmp_path)
        planned = {name: settings for name, settings, _ in students_to_train(job.recipe)}
        assert [member.model for member in planned["control"].stages[0].teacher] == ["bm25"]

    def test_labels_are_read_for_a_control(self, content, tmp_path):
        content["students"]["student"]["control"] = "contrastive-labels"
        assert len(open_job(parse_recipe(content), tmp_path).training_data.qrels())
