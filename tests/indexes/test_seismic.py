import importlib.util

import numpy as np
import pytest
from scipy.sparse import csr_array, random_array
from sparse_models import inference_free

from retrodistill.core.errors import UserError
from retrodistill.encoders.space import EmbeddingSpace
from retrodistill.encoders.sparse import SparseTextEncoder
from retrodistill.indexes import build_index
from retrodistill.indexes.inverted import InvertedIndex, InvertedSettings
from retrodistill.rankers.postings import Postings, search_rows

SEISMIC = InvertedSettings(backend="seismic")
SPACE = EmbeddingSpace("of-a-test", 300, "dot", "sparse:elsewhere")
IDS = [f"d{number}" for number in range(2000)]
installed = pytest.mark.skipif(importlib.util.find_spec("seismic") is None, reason="Seismic is not installed")


@pytest.fixture(scope="module")
def matrix():
    """2,000 documents over 300 terms, the third and the last empty."""
    result = random_array((2000, 300), density=0.1, format="lil", dtype=np.float32, rng=np.random.default_rng(0))
    result[2], result[1999] = 0, 0
    return csr_array(result.tocsr())


@pytest.fixture(scope="module")
def queries():
    return csr_array(
        random_array((50, 300), density=0.03, format="csr", dtype=np.float32, rng=np.random.default_rng(1))
    )


class TestMissing:
    def test_it_is_refused_before_the_documents_are_encoded(self, tiny, tmp_path, monkeypatch):
        model = inference_free(tmp_path / "bert")
        monkeypatch.setattr(importlib.util, "find_spec", lambda _: None)
        monkeypatch.setattr(SparseTextEncoder, "encode", None)
        with pytest.raises(
            UserError,
            match=r"^the backend 'seismic' needs its package: pip install 'retrodistill\[seismic\]'",
        ):
            build_index(tiny, model, settings=SEISMIC)


@installed
class TestSearching:
    def test_it_finds_nearly_what_exact_search_finds(self, matrix, queries):
        index = InvertedIndex.from_csr(IDS, matrix, SPACE, settings=SEISMIC)
        run = index.search_vectors(queries, 10)
        rows, scores = search_rows(Postings.from_csr(matrix), queries, 10)
        result = [{index.ids.index(one) for one in documents} for _, documents, _ in run]
        assert (
            np.mean([len(one & set(expected.tolist())) / 10 for one, expected in zip(result, rows, strict=True)]) > 0.8
        )
        products = (queries @ matrix.T).toarray()
        for place, (_, documents, values) in enumerate(run):  # what it finds, it scores as exact search does
            np.testing.assert_allclose(values, products[place][[index.ids.index(one) for one in documents]], rtol=2e-3)
        assert run.scores.max() == pytest.approx(scores.max(), rel=2e-3)

    def test_documents_without_terms_keep_the_places_of_the_others(self, matrix):
        index = InvertedIndex.from_csr(IDS, matrix, SPACE, settings=SEISMIC)
        np.testing.assert_allclose(index.postings.matrix().toarray(), matrix.toarray(), rtol=1e-3, atol=1e-7)

    def test_unknown_terms_and_too_few_matches(self):
        few = csr_array(([1.0, 2.0], ([0, 1], [5, 7])), shape=(3, 300))
        index = InvertedIndex.from_csr(["a", "b", "c"], few, SPACE, settings=SEISMIC)
        query_vectors = csr_array(([1.0, 1.0], ([0, 0], [7, 250])), shape=(2, 300))
        assert index.search_vectors(query_vectors, 3).to_dict() == {"0": {"b": 2.0}}

    def test_adding_and_removing_build_it_again(self, matrix, queries):
        index = InvertedIndex.from_csr(IDS, matrix, SPACE, settings=SEISMIC)
        best = next(iter(index.search_vectors(queries, 1)))[1][0]
        index.remove([best])
        assert best not in index.search_vectors(queries, 10).select(["0"]).document_ids
        index.add_vectors([best], matrix[[IDS.index(best)]])
        assert next(iter(index.search_vectors(queries, 1)))[1][0] == best

    def test_a_vocabulary_beyond_16_bits(self):
        wide = csr_array(([1.0, 2.0], ([0, 1], [5, 99_999])), shape=(2, 100_000))
        index = InvertedIndex.from_csr(
            ["a", "b"], wide, EmbeddingSpace("s", 100_000, "dot", "sparse:x"), settings=SEISMIC
        )
        assert index.search_vectors(wide[[1]], 2).to_dict() == {"0": {"b": 4.0}}


@installed
class TestFolders:
    def test_it_comes_back_and_prints_nothing(self, matrix, queries, tmp_path, capfd):
        index = InvertedIndex.from_csr(IDS, matrix, SPACE, settings=InvertedSettings(backend="seismic", query_cut=3))
        index.save(tmp_path / "index")
        loaded = InvertedIndex.load(tmp_path / "index")
        assert loaded.settings == index.settings
        assert loaded.search_vectors(queries, 10).to_dict() == index.search_vectors(queries, 10).to_dict()
        assert loaded.bytes_per_document() * 2000 == (tmp_path / "index/seismic.index.seismic").stat().st_size
        assert capfd.readouterr().out == ""

    def test_a_damaged_file(self, matrix, tmp_path):
        InvertedIndex.from_csr(IDS, matrix, SPACE, settings=SEISMIC).save(tmp_path / "index")
        path = tmp_path / "index/seismic.index.seismic"
        path.write_bytes(path.read_bytes()[:5000])
        with pytest.raises(UserError, match=r"seismic is damaged"):
            InvertedIndex.load(tmp_path / "index")

    def test_queries_by_text(self, tiny, tmp_path):
        index = build_index(tiny, inference_free(tmp_path / "bert"), settings=SEISMIC)
        index.save(tmp_path / "index")
        assert len(InvertedIndex.load(tmp_path / "index").search("star planet", k=5)) > 0


@installed
class TestRefusals:
    def test_nothing_to_index(self):
        with pytest.raises(UserError, match=r"^Seismic cannot index these documents: none has a term; choose"):
            InvertedIndex.from_csr(["a"], csr_array((1, 300)), SPACE, settings=SEISMIC)

    def test_weights_beyond_its_numbers(self):
        heavy = csr_array(([1e5], ([0], [1])), shape=(1, 300))
        with pytest.raises(UserError, match=r"a weight is above 65504, float16's largest; choose the backend 'exact'"):
            InvertedIndex.from_csr(["a"], heavy, SPACE, settings=SEISMIC)
