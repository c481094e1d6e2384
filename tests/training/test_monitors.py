import numpy as np
import pytest

from retrodistill.core.runtime import set_quiet
from retrodistill.encoders import load_encoder
from retrodistill.encoders.vectors import exact_search
from retrodistill.training.trainer import HeldOutMonitor, mean_cosine

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
