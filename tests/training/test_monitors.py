from dataclasses import replace

import numpy as np
import pytest

from retrodistill.core.runtime import set_quiet
from retrodistill.encoders import load_encoder
from retrodistill.encoders.vectors import exact_search
from retrodistill.evaluation.measures import evaluate_run
from retrodistill.rankers.loading import load_ranker
from retrodistill.recipes.student_settings import StudentSettings
from retrodistill.recipes.students import build_student
from retrodistill.runs import Run
from retrodistill.students.registry import run_stage
from retrodistill.training.prepared import Prepared, labeled_places, prepare
from retrodistill.training.settings import StageSettings, TrainingSettings
from retrodistill.training.texts import TrainingTexts
from retrodistill.training.trainer import HeldOutMonitor, RankMonitor, mean_cosine
from retrodistill.training.training_data import TrainingData

TEXTS = ["star planet", "violin", "court judge jury", "bread"]


@pytest.fixture
def student(tiny_model):
    return load_encoder(f"dense:{tiny_model}")


@pytest.fixture
def documents(student, tiny):
    return student.encode(tiny.documents.texts, "document")


class TestMeanCosine:
    def test_it_is_the_mean_over_different_rows(self):
        vectors = np.random.default_rng(0).standard_normal((7, 5))
        unit = vectors / np.linalg.norm(vectors, axis=1, keepdims=True)
        products = unit @ unit.T
        assert mean_cosine(vectors) == pytest.approx(products[~np.eye(7, dtype=bool)].mean())

    def test_one_direction_is_1_and_a_zero_vector_counts_0(self):
        assert mean_cosine(np.array([[1.0, 2], [2, 4], [0.5, 1]])) == pytest.approx(1)
        assert mean_cosine(np.array([[1.0, 2], [0, 0]])) == 0


class TestAgreement:
    def test_the_teachers_own_ranking_has_1(self, student, documents):
        rows = exact_search(student.encode(TEXTS, "query"), documents, 10)[0]
        assert HeldOutMonitor(student, TEXTS, rows, lambda: documents)()["agreement"] == pytest.approx(1)

    def test_the_worst_documents_have_0(self, student, documents):
        rows = exact_search(-student.encode(TEXTS, "query"), documents, 10)[0]
        assert HeldOutMonitor(student, TEXTS, rows, lambda: documents)()["agreement"] == 0

    def test_a_corpus_smaller_than_the_lists(self, student, documents):
        rows = exact_search(student.encode(TEXTS, "query"), documents[:4], 10)[0]
        padded = np.pad(rows, ((0, 0), (0, 6)), constant_values=-1)
        assert HeldOutMonitor(student, TEXTS, padded, lambda: documents[:4])()["agreement"] == pytest.approx(1)

    def test_without_stored_documents_only_collapse_is_watched(self, student, documents):
        assert set(HeldOutMonitor(student, TEXTS, np.zeros((4, 3), dtype=int), None)()) == {"mean_cosine"}

    def test_texts_are_ranked_among_themselves(self, student):
        cosines = student.encode(TEXTS, "query") @ student.encode(TEXTS, "query").T
        nearest = [[other for other in np.argsort(-row) if other != place] for place, row in enumerate(cosines)]
        for rows, agrees in ((nearest, True), ([row[::-1] for row in nearest], False)):
            measured = HeldOutMonitor(student, TEXTS, np.array(rows), None, among_texts=True)()
            assert (measured["agreement"] == pytest.approx(1)) == agrees


class TestQuality:
    """nDCG@10 by the labels of held-out training queries."""

    @pytest.fixture
    def data(self, tiny, student, tmp_path):
        labels = tiny.relevance("train")
        return TrainingData(tiny, tiny.split("train"), load_ranker("bm25"), student, tmp_path, labels=labels)

    @staticmethod
    def expected(tiny, run):
        judged = tiny.relevance("train").to_dict()
        queries = [query for query in run.query_ids if query in judged]
        return evaluate_run(run, {query: judged[query] for query in queries}, ["ndcg@10"])["ndcg@10"].to_numpy().mean()

    def test_over_the_corpus_it_is_that_of_a_search(self, data, tiny, student, documents):
        prepared = prepare(StageSettings(objectives="leaf", texts={"titles": False, "sentences": 0}), data)
        held_out = tiny.split("train").select([prepared.texts.texts.ids[row] for row in prepared.held_out])
        rows, scores = exact_search(student.encode(held_out.texts, "query"), documents, 10)
        grades = labeled_places(prepared, data, prepared.held_out)
        assert len(grades) == len(held_out) == 4
        measured = HeldOutMonitor(student, held_out.texts, rows, lambda: documents, grades)()
        run = Run.from_matrix(held_out.ids, tiny.documents.ids, rows, scores, name="student")
        assert measured["ndcg@10"] == pytest.approx(self.expected(tiny, run), abs=1e-12)
        assert 0 < measured["ndcg@10"] < 1

    def test_on_lists_only_their_labels_count(self, data, tiny):
        prepared, rows = self.drawn(tiny), np.arange(3)
        assert labeled_places(prepared, data, rows) == {0: {0: 1}, 1: {1: 1}}  # the third is a test query
        lists = np.array([[7, 0, -1], [9, 8, 3], [54, -1, -1]])
        assert labeled_places(prepared, data, rows, lists) == {0: {1: 1}}
        sample = np.array([1, 5, 9])
        assert labeled_places(prepared, data, rows, sample) == {1: {0: 1}}
        scores = np.array([[0.2, 0.1, -np.inf], [0.1, 0.2, 0.3], [1, -np.inf, -np.inf]])
        measured = RankMonitor(lambda: scores, np.zeros((3, 2), dtype=int), grades={0: {1: 1}})()
        assert measured["ndcg@10"] == pytest.approx(1 / np.log2(3))

    def test_without_labels_it_is_not_measured(self, data, tiny, student, documents):
        unlabeled = replace(data, labels=None)
        assert labeled_places(self.drawn(tiny), unlabeled, np.arange(3)) == {}
        rows = np.zeros((4, 3), dtype=int)
        assert set(HeldOutMonitor(student, TEXTS, rows, lambda: documents)()) == {"mean_cosine", "agreement"}

    @pytest.mark.parametrize("train", ["query_encoder", "both_encoders"])
    def test_labels_that_are_only_measured_do_not_change_the_student(self, train, data, tiny_model, tmp_path):
        digests = []
        for name, given in {"with": data, "without": replace(data, labels=None)}.items():
            stage = StageSettings(
                objectives="kl",
                train=train,
                texts={"titles": False, "sentences": 0},
                candidates={"depth": 10},
                training={"max_steps": 2, "batch_size": 8, "learning_rate": 1e-3},
            )
            settings = StudentSettings(
                model=f"dense:{tiny_model}",
                stages=[stage],
                documents="frozen" if train == "query_encoder" else "student",
                control=None,
            )
            model = build_student(settings, given)
            history = run_stage(model, stage, given, tmp_path / name, "training")
            assert [one for one in history.monitors if ("ndcg@10" in one) != (name == "with")] == []
            digests.append(load_encoder(model).weights_digest)
        assert digests[0] == digests[1]

    def test_a_key_that_is_not_given_is_not_written(self):
        assert "keep_by" not in TrainingSettings().model_dump(mode="json")
        assert StageSettings(objectives="kl", training={"keep_by": "ndcg@10"}).needs_labels

    @staticmethod
    def drawn(tiny):
        texts = tiny.queries.select(["q0", "q1", "q54"])
        return Prepared(TrainingTexts(texts, np.full(3, -1)), None, [], np.arange(3))


class TestCollapse:
    def test_it_is_logged(self, student, documents, capsys):
        set_quiet(False)
        measures = HeldOutMonitor(student, ["star"] * 4, np.zeros((4, 3), dtype=int), lambda: documents)()
        assert measures["mean_cosine"] == pytest.approx(1)
        assert (
            "warning: the student has collapsed: held-out queries have a mean cosine of 1.000"
            in capsys.readouterr().err
        )

    def test_a_healthy_student_logs_nothing_and_keeps_its_training_mode(self, student, documents, capsys):
        set_quiet(False)
        student.model.train()
        HeldOutMonitor(student, TEXTS, np.zeros((4, 3), dtype=int), lambda: documents - documents.mean(axis=0))()
        assert student.model.training
