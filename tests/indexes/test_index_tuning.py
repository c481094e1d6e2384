import faiss
import numpy as np
import pytest

from retrodistill.core.errors import UserError
from retrodistill.encoders import load_encoder
from retrodistill.indexes import build_index
from retrodistill.indexes.factory import build_faiss, set_parameters
from retrodistill.indexes.faiss_index import FaissIndex
from retrodistill.indexes.tuning import exact_labels, mean_recall, tune


@pytest.fixture(scope="module")
def vectors():
    result = np.random.default_rng(0).standard_normal((1500, 24)).astype("f4")
    return result / np.linalg.norm(result, axis=1, keepdims=True)


@pytest.fixture(scope="module")
def queries():
    result = np.random.default_rng(1).standard_normal((40, 24)).astype("f4")
    return result / np.linalg.norm(result, axis=1, keepdims=True)


@pytest.fixture(scope="module")
def exact(vectors, queries):
    return np.argsort(-(queries @ vectors.T), axis=1)[:, :10]


def recall_at(index, queries, exact, parameters):
    set_parameters(index, parameters)
    return mean_recall(index.search(queries, exact.shape[1])[1], exact)


class TestTuning:
    def test_it_finds_the_smallest_nprobe_that_reaches_it(self, vectors, queries, exact):
        index = build_faiss("IVF32,Flat", vectors)
        tuned = tune(index, queries, exact, recall=0.9)
        smallest = next(n for n in range(1, 33) if recall_at(index, queries, exact, f"nprobe={n}") >= 0.9)
        assert tuned.parameters == f"nprobe={smallest}"
        assert tuned.reached
        assert tuned.recall == recall_at(index, queries, exact, tuned.parameters)

    def test_it_leaves_the_index_so(self, vectors, queries, exact):
        index = build_faiss("L2norm,IVF32,Flat", vectors)
        tuned = tune(index, queries, exact, recall=0.5)
        assert tuned.parameters == f"nprobe={faiss.extract_index_ivf(index).nprobe}"

    def test_all_lists_of_whole_vectors_are_exact(self, vectors, queries, exact):
        assert tune(build_faiss("IVF32,Flat", vectors), queries, exact, recall=1.0).recall == 1.0

    def test_efsearch_of_a_graph(self, vectors, queries, exact):
        index = build_faiss("HNSW8", vectors)
        low, high = (tune(index, queries, exact, recall=share) for share in (0.8, 0.97))
        assert low.reached
        assert high.reached
        assert int(low.parameters.removeprefix("efSearch=")) < int(high.parameters.removeprefix("efSearch="))

    def test_the_factor_of_refining(self, vectors, queries, exact):
        index = build_faiss("RaBitQ,RFlat", vectors)
        tuned = tune(index, queries, exact, recall=0.95)
        factor = int(tuned.parameters.removeprefix("k_factor_rf="))
        assert tuned.reached
        assert recall_at(index, queries, exact, f"k_factor_rf={factor - 1}") < 0.95

    def test_lists_and_refining_together(self, vectors, queries, exact):
        index = build_faiss("IVF16,RaBitQ,RFlat", vectors)
        tuned = tune(index, queries, exact, recall=0.9)
        assert tuned.reached
        assert tuned.parameters.startswith("nprobe=")
        assert ",k_factor_rf=" in tuned.parameters
        assert recall_at(index, queries, exact, tuned.parameters) == tuned.recall

    def test_nothing_to_set(self, vectors, queries, exact):
        tuned = tune(build_faiss("Flat", vectors), queries, exact, recall=0.99)
        assert (tuned.parameters, tuned.recall) == ("", 1.0)
        assert str(tuned).startswith("no parameters to set: recall@10 1.000 on 40 queries, ")

    def test_what_codes_cannot_reach_is_said(self, vectors, queries, exact):
        index = build_faiss("IVF16,RaBitQ", vectors)
        tuned = tune(index, queries, exact, recall=0.99)
        assert not tuned.reached
        best = max(recall_at(index, queries, exact, f"nprobe={n}") for n in (1, 2, 4, 8, 16))
        assert tuned.recall == pytest.approx(best)
        assert "; 0.99 is out of reach: its codes keep no more; " in str(tuned)

    @pytest.mark.parametrize("recall", [0, 1.1, -0.5])
    def test_a_recall_that_is_no_share(self, vectors, queries, exact, recall):
        with pytest.raises(UserError, match=r"^recall=.*: choose a share above 0 and up to 1"):
            tune(build_faiss("Flat", vectors), queries, exact, recall=recall)

    def test_no_queries(self, vectors, exact):
        with pytest.raises(UserError, match=r"^no queries to tune on; give training queries"):
            tune(build_faiss("Flat", vectors), np.zeros((0, 24), dtype="f4"), exact[:0])

    def test_too_few_neighbors(self, vectors, queries, exact):
        with pytest.raises(UserError, match=r"^exact neighbors of shape \(40, 10\) for 40 queries and k=20"):
            tune(build_faiss("Flat", vectors), queries, exact, k=20)


class TestExactLabels:
    @pytest.mark.parametrize("factory", ["Flat", "HNSW8", "IVF16,Flat", "RaBitQ,RFlat", "IVF16,RaBitQ,RFlat"])
    def test_whole_vectors_are_searched_exactly(self, vectors, queries, exact, factory):
        index = build_faiss(factory, vectors)
        np.testing.assert_array_equal(exact_labels(index, queries, 10), exact)

    def test_lists_are_left_as_they_are(self, vectors, queries):
        index = build_faiss("IVF16,Flat", vectors)
        exact_labels(index, queries, 10)
        assert index.nprobe == 1

    @pytest.mark.parametrize("factory", ["SQ8", "RaBitQ", "PCA8,Flat", "HNSW8,SQ8", "RaBitQ,Refine(SQ8)"])
    def test_codes_are_not(self, vectors, queries, factory):
        assert exact_labels(build_faiss(factory, vectors), queries, 10) is None


class TestOnAnIndex:
    @pytest.fixture
    def teacher(self, tiny_model):
        return load_encoder(f"dense:{tiny_model}")

    def test_it_is_saved_and_set_at_loading(self, tiny, teacher, tmp_path):
        index = build_index(tiny, teacher, factory="IVF8,Flat")
        tuned = index.tune(tiny.split("train"), recall=1.0)
        assert (index.parameters, tuned.recall) == (tuned.parameters, 1.0)
        index.save(tmp_path / "index")
        loaded = FaissIndex.load(tmp_path / "index")
        assert loaded.parameters == tuned.parameters
        assert loaded.index.nprobe == int(tuned.parameters.removeprefix("nprobe="))

    def test_explicit_parameters_go_before_saved_ones(self, tiny, teacher, tmp_path):
        index = build_index(tiny, teacher, factory="IVF8,RaBitQ,RFlat")
        index.parameters = "nprobe=2,k_factor_rf=3"
        index.save(tmp_path / "index")
        loaded = FaissIndex.load(tmp_path / "index", parameters="nprobe=5")
        assert loaded.parameters == "nprobe=5,k_factor_rf=3"
        assert faiss.downcast_index(loaded.index.base_index).nprobe == 5
        assert loaded.index.k_factor == 3

    def test_wrong_parameters_change_nothing(self, tiny, teacher):
        index = build_index(tiny, teacher, factory="IVF8,Flat")
        index.parameters = "nprobe=2"
        with pytest.raises(UserError, match=r"it knows nprobe"):
            index.parameters = "nprobe=3,efSearch=4"
        assert (index.parameters, index.index.nprobe) == ("nprobe=2", 2)

    def test_codes_ask_for_the_documents(self, tiny, teacher):
        index = build_index(tiny, teacher, factory="IVF8,SQ8")
        with pytest.raises(UserError, match=r"factory 'IVF8,SQ8' does not hold its documents' exact vectors"):
            index.tune(tiny.split("train"))

    def test_documents_by_text_and_by_vector_agree(self, tiny, teacher):
        index = build_index(tiny, teacher, factory="IVF8,SQ8")
        index.remove(["d0", "d7"])
        by_text = index.tune(tiny.split("train"), 0.9, 5, documents=tiny.documents)
        vectors = teacher.encode(tiny.documents.select(index.ids).texts, "document")
        by_vector = index.tune(teacher.encode(tiny.split("train").texts, "query"), 0.9, 5, documents=vectors)
        assert by_text.recall == by_vector.recall >= 0.9
        assert by_text.parameters == by_vector.parameters

    def test_a_vector_for_each_document(self, tiny, teacher):
        index = build_index(tiny, teacher, factory="SQ8")
        with pytest.raises(UserError, match=r"^59 vectors to tune by for 60 documents"):
            index.tune(tiny.split("train"), documents=np.ones((59, 32)))

    def test_a_vector_that_is_not_finite_is_named_by_its_document(self, tiny, teacher, monkeypatch):
        monkeypatch.setattr("retrodistill.encoders.vectors._BLOCK", 16)
        index = build_index(tiny, teacher, factory="SQ8")
        vectors = teacher.encode(tiny.documents.texts, "document")
        vectors[37] = np.nan
        with pytest.raises(UserError, match=rf"NaN or infinite \('?{index.ids[37]}'?\)"):
            index.tune(tiny.split("train"), documents=vectors)

    def test_k_beyond_the_index(self, tiny, teacher):
        with pytest.raises(UserError, match=r"^k=61: the corpus has 60 documents"):
            build_index(tiny, teacher).tune(tiny.split("train"), k=61)
