"""FAISS indexes that were made elsewhere: refused where their scores would rank backwards or be no cosines."""

import faiss
import numpy as np
import pytest

from retrodistill.core.errors import UserError
from retrodistill.core.runtime import set_quiet
from retrodistill.encoders.space import EmbeddingSpace
from retrodistill.indexes import FaissIndex
from retrodistill.indexes.factory import build_faiss

IDS = [f"d{row}" for row in range(40)]


@pytest.fixture(scope="module")
def vectors():
    drawn = np.random.default_rng(0).standard_normal((40, 8)).astype(np.float32)
    return drawn / np.linalg.norm(drawn, axis=1, keepdims=True)


def space(similarity="cosine"):
    return EmbeddingSpace("of-a-test", 8, similarity, "dense:elsewhere")


def filled(index, vectors, labels=None):
    if not index.is_trained:
        index.train(vectors)
    if labels is None:
        index.add(vectors)
    else:
        index.add_with_ids(vectors, labels)
    return index


FACTORIES = ["Flat", "HNSW8", "SQ8", "IVF2,Flat", "RR8,Flat", "SQ8,RFlat", "PQ4x4"]


class TestMetric:
    @pytest.mark.parametrize("factory", FACTORIES)
    @pytest.mark.parametrize("similarity", ["cosine", "dot"])
    def test_distances_are_refused(self, vectors, factory, similarity):
        index = filled(faiss.index_factory(8, factory, faiss.METRIC_L2), vectors)
        with pytest.raises(UserError, match="Euclidean"):
            FaissIndex(index, IDS, space(similarity))

    @pytest.mark.parametrize("factory", FACTORIES)
    def test_inner_products_are_searched(self, vectors, factory, tmp_path):
        faiss.write_index(filled(faiss.index_factory(8, factory, faiss.METRIC_INNER_PRODUCT), vectors), f"{tmp_path}/i")
        index = FaissIndex(faiss.read_index(f"{tmp_path}/i"), IDS, space())
        index.search_vectors(vectors[3:4], 3)

    @pytest.mark.parametrize("wrap", [faiss.IndexIDMap, faiss.IndexIDMap2, faiss.IndexRefineFlat])
    def test_distances_are_refused_within_others(self, vectors, wrap, tmp_path):
        inner = faiss.IndexFlatL2(8)
        index = wrap(inner)
        faiss.write_index(
            filled(index, vectors, np.arange(40) if "IDMap" in type(index).__name__ else None), f"{tmp_path}/i"
        )
        with pytest.raises(UserError, match="Euclidean"):
            FaissIndex(faiss.read_index(f"{tmp_path}/i"), IDS, space())

    def test_the_lists_of_an_index_may_be_found_by_distance(self, vectors):
        quantizer = faiss.IndexFlatL2(8)
        index = filled(faiss.IndexIVFFlat(quantizer, 8, 2, faiss.METRIC_INNER_PRODUCT), vectors)
        assert FaissIndex(index, IDS, space()).search_vectors(vectors[3:4], 1).document_ids.tolist() == ["d3"]


class TestLengths:
    @pytest.mark.parametrize("factory", ["Flat", "HNSW8", "SQ8", "IVF2,Flat", "SQ8,RFlat", "IDMap,Flat", "IDMap,SQ8"])
    def test_inner_products_of_long_vectors_are_no_cosines(self, vectors, factory):
        long = vectors * np.linspace(1.5, 9, 40, dtype=np.float32)[:, None]
        labels = np.arange(40) if factory.startswith("IDMap") else None
        index = filled(faiss.index_factory(8, factory, faiss.METRIC_INNER_PRODUCT), long, labels)
        with pytest.raises(UserError, match="unit length"):
            FaissIndex(index, IDS, space())
        FaissIndex(index, IDS, space("dot"))

    def test_a_zero_vector_is_that_of_an_empty_text(self, vectors):
        some = vectors.copy()
        some[5] = 0
        assert len(FaissIndex(filled(faiss.IndexFlatIP(8), some), IDS, space())) == 40


class TestLabels:
    def test_those_of_a_map_of_ids_are_used(self, vectors):
        index = filled(faiss.IndexIDMap2(faiss.IndexFlatIP(8)), vectors, np.arange(40) * 7 + 100)
        wrapped = FaissIndex(index, IDS, space())
        assert wrapped.search_vectors(vectors[[3, 39]], 1).document_ids.tolist() == ["d3", "d39"]
        wrapped.remove(["d3"])
        wrapped.add_vectors(["new"], vectors[3:4])
        assert wrapped.search_vectors(vectors[[3, 39]], 1).document_ids.tolist() == ["new", "d39"]

    @pytest.mark.parametrize(("own", "given"), [(np.arange(40)[::-1], None), (np.arange(40), np.arange(40) + 1)])
    def test_others_are_refused(self, vectors, own, given):
        index = filled(faiss.IndexIDMap(faiss.IndexFlatIP(8)), vectors, np.ascontiguousarray(own))
        with pytest.raises(UserError, match="labels"):
            FaissIndex(index, IDS, space(), labels=given)

    def test_unknown_ones_in_lists_are_refused_by_a_search(self, vectors):
        index = faiss.index_factory(8, "IVF2,Flat", faiss.METRIC_INNER_PRODUCT)
        wrapped = FaissIndex(filled(index, vectors, np.arange(40) + 1000), IDS, space())
        with pytest.raises(UserError, match="label"):
            wrapped.search_vectors(vectors[:1], 1)
        labeled = FaissIndex(index, IDS, space(), labels=np.arange(40) + 1000)
        assert labeled.search_vectors(vectors[:1], 1).document_ids.tolist() == ["d0"]


class TestAdvice:
    @pytest.mark.parametrize("factory", ["SQ8", "Flat"])
    def test_kinds_without_centroids_are_told_nothing_about_k_means(self, vectors, factory, capsys):
        set_quiet(False)
        build_faiss(factory, vectors)
        assert "k-means" not in capsys.readouterr().err
        with pytest.raises(UserError) as refused:
            build_faiss(factory, vectors[:0])
        assert f"'{factory}'" not in str(refused.value).split("choose")[1]

    def test_few_vectors_for_a_codebook_are_said(self, vectors, capsys):
        set_quiet(False)
        build_faiss("PQ4x4", vectors)
        assert "PQ4x4: 40 vectors" in capsys.readouterr().err
