"""Documents come and go, from memory and from memory-mapped files."""

import tracemalloc

import faiss
import numpy as np
import pytest

from retrodistill.core.errors import UserError
from retrodistill.core.runtime import set_quiet
from retrodistill.data import Texts
from retrodistill.indexes import EmbeddingSpace, FaissIndex
from retrodistill.indexes.factory import build_faiss, file_bytes

WIDTH = 16
FORGETTING = [
    *("Flat", "SQ8", "PQ8x4", "OPQ8,PQ8x4", "RaBitQ", "RaBitQ4", "L2norm,SQ8", "RQ4x4"),
    *("IVF4,Flat", "IVF4,SQ8", "IVF4,RaBitQ4", "RR16,IVF4,PQ16x4", "IVF4_HNSW4,Flat"),
]
KEEPING = [
    *("HNSW8", "HNSW8,SQ8", "RaBitQ,RFlat", "SQ8,Refine(SQfp16)", "IVF4,SQ8,RFlat", "L2norm,HNSW8"),
    *("PQ16x4fs", "RaBitQfs", "IVF4,PQ16x4fs", "RR16,IVF4,RaBitQfs"),
]


@pytest.fixture(scope="module")
def vectors():
    result = np.random.default_rng(0).standard_normal((400, WIDTH)).astype("f4")
    return result / np.linalg.norm(result, axis=1, keepdims=True)


def indexed(vectors, factory, similarity="cosine"):
    index = build_faiss(factory, vectors[:300])
    result = FaissIndex(
        index, [f"d{row}" for row in range(300)], EmbeddingSpace("s", WIDTH, similarity, "dense:m"), factory=factory
    )
    if "IVF" in factory:
        result.parameters = "nprobe=4"
    return result


def best(index, vectors, k=1):
    """The k best documents of each vector."""
    result = index.search_vectors(vectors, k).to_dict()
    return [list(result[str(row)]) for row in range(len(vectors))]


class TestRemoving:
    @pytest.mark.parametrize("factory", FORGETTING)
    def test_those_that_stay_keep_their_ids_and_scores(self, vectors, factory):
        index = indexed(vectors, factory)
        before = index.search_vectors(vectors[:40], 300).to_dict()
        gone = {"d0", "d7", "d150", "d299"}
        index.remove(sorted(gone))
        after = index.search_vectors(vectors[:40], 296).to_dict()
        assert len(index) == index.index.ntotal == len(index.ids) == 296
        for query, documents in after.items():
            expected = {one: score for one, score in before[query].items() if one not in gone}
            assert documents.keys() == expected.keys()
            assert documents == pytest.approx(expected, abs=1e-5)

    @pytest.mark.parametrize("factory", FORGETTING)
    def test_new_ones_are_found_by_their_ids_afterwards_and_after_loading(self, vectors, factory, tmp_path):
        index = indexed(vectors, factory)
        index.remove(["d299", "d3"])
        index.add_vectors(["new0", "new1"], vectors[300:302])
        index.remove(["d5", "new0"])
        index.add_vectors(["d3"], vectors[302:303])
        index.save(tmp_path / "index")
        for one in (index, FaissIndex.load(tmp_path / "index")):
            result = one.search_vectors(vectors[301:303], len(one)).to_dict()
            assert set(result["0"]) == set(one.ids) == set(index.ids)
            assert list(result["0"]).index("new1") < 10
            assert list(result["1"]).index("d3") < 10

    @pytest.mark.parametrize("factory", KEEPING)
    def test_graphs_refined_and_fast_scan_ones_refuse_and_stay_as_they_are(self, vectors, factory):
        index = indexed(vectors, factory)
        before = index.search_vectors(vectors[:9], 20).to_dict()
        with pytest.raises(UserError, match=r"cannot remove documents; build it again without them.$") as error:
            index.remove(["d0"])
        assert "\n" not in str(error.value)
        assert (len(index), index.index.ntotal) == (300, 300)
        assert index.search_vectors(vectors[:9], 20).to_dict() == before

    def test_unknown_ones_are_named_and_nothing_goes(self, vectors):
        index = indexed(vectors, "Flat")
        with pytest.raises(UserError, match=r"^cannot remove 'x': not in the index.$"):
            index.remove(["d1", "x"])
        assert len(index) == 300

    def test_all_of_them(self, vectors):
        index = indexed(vectors, "IVF4,Flat")
        index.remove(index.ids)
        assert (len(index), index.bytes_per_document()) == (0, None)
        with pytest.raises(UserError, match=r"^k=1: the corpus has 0 documents"):
            index.search_vectors(vectors[:1], 1)
        index.add_vectors(["again"], vectors[:1])
        assert best(index, vectors[:1]) == [["again"]]

    def test_none_changes_nothing(self, vectors):
        index = indexed(vectors, "IVF4,Flat")
        index.remove([])
        assert len(index) == index.index.ntotal == 300


class TestAdding:
    @pytest.mark.parametrize("factory", [*FORGETTING, *KEEPING])
    def test_added_ones_are_found(self, vectors, factory):
        index = indexed(vectors, factory)
        index.add_vectors([f"n{row}" for row in range(100)], vectors[300:])
        result = best(index, vectors[300:], 10)
        assert np.mean([f"n{row}" in ids for row, ids in enumerate(result)]) > 0.9
        assert len(index) == 400

    def test_none_changes_nothing(self, vectors):
        index = indexed(vectors, "IVF4,Flat")
        index.add_vectors([], vectors[:0])
        index.add_vectors(["n"], vectors[300:301])
        assert best(index, vectors[300:301]) == [["n"]]

    @pytest.mark.parametrize(
        ("ids", "said"),
        [
            (["d1", "n"], r"^'d1': in the index already"),
            (["n", "n"], r"^'n': in the index already"),
            (["n", 3], r"^document id 3 is int; ids are strings.$"),
            ([None, "n"], r"^document id None is NoneType; ids are strings.$"),
            (["a", "b", "c"], r"^3 ids for 2 vectors; give one id per vector.$"),
        ],
    )
    def test_ids_that_cannot_be(self, vectors, ids, said):
        index = indexed(vectors, "Flat")
        with pytest.raises(UserError, match=said):
            index.add_vectors(ids, vectors[300:302])
        assert (len(index), index.index.ntotal) == (300, 300)

    def test_vectors_that_are_not_finite_are_named(self, vectors):
        index = indexed(vectors, "IVF4,Flat")
        spoilt = vectors[300:302].copy()
        spoilt[1, 0] = np.nan
        with pytest.raises(UserError, match=r"^documents: 1 vectors are NaN or infinite \('b'\)"):
            index.add_vectors(["a", "b"], spoilt)
        assert index.index.ntotal == 300


class TestLengths:
    def test_by_cosine_a_vectors_length_does_not_count(self, vectors):
        index = indexed(vectors, "Flat")
        index.add_vectors(["long", "short"], np.stack([vectors[300] * 50, vectors[301] * 0.01]))
        result = index.search_vectors(vectors[300:302] * 7, 1).to_dict()
        assert result["0"] == {"long": pytest.approx(1, abs=1e-5)}
        assert result["1"] == {"short": pytest.approx(1, abs=1e-5)}

    def test_by_dot_it_does(self, vectors):
        index = indexed(vectors, "Flat", "dot")
        index.add_vectors(["long"], vectors[300:301] * 50)
        assert index.search_vectors(vectors[300:301] * 2, 1).to_dict()["0"] == {"long": pytest.approx(100, rel=1e-5)}

    def test_unit_vectors_stay_bit_for_bit(self, vectors):
        index = indexed(vectors, "Flat")
        np.testing.assert_array_equal(index._prepare(vectors, "documents"), vectors)

    def test_a_vector_of_length_0_is_not_divided(self, vectors):
        index = indexed(vectors, "Flat")
        assert set(index.search_vectors(np.zeros(WIDTH), 3).scores) == {0}

    @pytest.mark.parametrize("similarity", ["cosine", "dot"])
    def test_truncation_on_both_sides(self, vectors, similarity):
        space = EmbeddingSpace("s", 6, similarity, "dense:m", 6, {"dimension": WIDTH})
        index = FaissIndex(build_faiss("Flat", np.full((1, 6), 6**-0.5, dtype="f4")), ["first"], space)
        index.add_vectors(["cut"], vectors[:1])
        query, document = vectors[5][:6], vectors[0][:6]
        if similarity == "cosine":
            query, document = query / np.linalg.norm(query), document / np.linalg.norm(document)
        result = index.search_vectors(vectors[5], 2).to_dict()["0"]
        assert result["cut"] == pytest.approx(float(query @ document), abs=1e-6)


class TestMemoryMapping:
    @pytest.fixture(params=[*FORGETTING, *KEEPING])
    def pair(self, request, vectors, tmp_path):
        index = indexed(vectors, request.param)
        index.save(tmp_path / "index")
        return index, FaissIndex.load(tmp_path / "index", memory_map=True)

    def test_it_answers_the_same(self, vectors, pair):
        index, mapped = pair
        assert mapped.search_vectors(vectors[:20], 9).to_dict() == index.search_vectors(vectors[:20], 9).to_dict()

    def test_it_refuses_changes_that_would_end_the_process(self, vectors, pair):
        _, mapped = pair
        for change in (
            lambda: mapped.add_vectors(["n"], vectors[300:301]),
            lambda: mapped.add(Texts.from_pairs([("n", "star")])),
            lambda: mapped.remove(["d0"]),
        ):
            with pytest.raises(
                UserError, match=r"^a memory-mapped index cannot be changed; load it without memory_map"
            ):
                change()
        assert len(mapped) == mapped.index.ntotal == 300

    def test_it_can_be_saved_over_its_own_file(self, vectors, pair, tmp_path):
        index, mapped = pair
        expected = index.search_vectors(vectors[:20], 9).to_dict()
        mapped.save(tmp_path / "index")
        assert mapped.search_vectors(vectors[:20], 9).to_dict() == expected
        assert FaissIndex.load(tmp_path / "index").search_vectors(vectors[:20], 9).to_dict() == expected


class TestReading:
    @pytest.mark.parametrize("factory", ["Flat", "HNSW8", "IVF4,Flat", "SQ8,RFlat"])
    def test_a_reader_keeps_the_vectors_that_it_reads(self, vectors, factory):
        read = indexed(vectors, factory).vector_reader()
        np.testing.assert_array_equal(read(3, 200), vectors[3:200])

    def test_codes_have_no_reader(self, vectors):
        assert indexed(vectors, "SQ8").vector_reader() is None


class TestSize:
    def test_it_is_counted_without_a_second_copy(self):
        index = faiss.IndexFlatIP(256)
        index.add(np.zeros((40_000, 256), dtype="f4"))
        tracemalloc.start()
        size = file_bytes(index)
        peak = tracemalloc.get_traced_memory()[1]
        tracemalloc.stop()
        assert size == len(faiss.serialize_index(index))
        assert peak < size / 4

    def test_query_ids_are_one_per_vector(self, vectors):
        with pytest.raises(UserError, match=r"^1 query ids for 2 vectors; give one id per vector.$"):
            indexed(vectors, "Flat").search_vectors(vectors[:2], 1, ["q"])


class TestWhatCannotBeAdded:
    @pytest.mark.parametrize(
        ("ids", "number", "message"),
        [
            (["new"], 0.0, r"^documents: 1 vectors are zero \('new'\), which have no cosine"),
            (["new"], 1e30, r"^documents: 1 vectors hold numbers beyond 1e\+15 \('new'\)"),
            ([""], 1.0, r"^document id '' is empty"),
            ("x", 1.0, r"^document ids are 'x', one string; give a list of them, e.g. \['x'\]"),
        ],
    )
    def test_is_refused_and_nothing_changes(self, vectors, ids, number, message):
        index = indexed(vectors, "Flat")
        with pytest.raises(UserError, match=message):
            index.add_vectors(ids, np.full((1, WIDTH), number, dtype="f4"))
        assert len(index) == index.index.ntotal == 300

    def test_a_zero_vector_has_a_dot_product(self, vectors):
        index = indexed(vectors, "Flat", "dot")
        index.add_vectors(["new"], np.zeros((1, WIDTH), dtype="f4"))
        assert len(index) == 301

    def test_a_string_is_no_list_of_ids_to_remove(self, vectors):
        index = indexed(vectors, "Flat")
        with pytest.raises(UserError, match=r"^document ids are 'd2', one string"):
            index.remove("d2")
        assert len(index) == 300


class TestFewVectors:
    def test_faiss_says_nothing_and_one_line_tells_what_it_means(self, vectors, capfd):
        set_quiet(False)
        indexed(vectors, "OPQ8,PQ8")
        said = capfd.readouterr()
        assert "please provide at least" not in said.out + said.err
        assert said.err.count("300 vectors train 256 centroids, and k-means asks for 9,984") == 1

    def test_the_codes_are_those_that_faiss_learns_by_itself(self, vectors):
        alone = faiss.index_factory(WIDTH, "OPQ8,PQ8", faiss.METRIC_INNER_PRODUCT)
        faiss.downcast_index(alone.index).do_polysemous_training = False
        alone.train(vectors[:300])
        alone.add(vectors[:300])
        ours = build_faiss("OPQ8,PQ8", vectors[:300])
        np.testing.assert_array_equal(alone.search(vectors[:20], 5)[0], ours.search(vectors[:20], 5)[0])


class TestDefaultDepth:
    @pytest.mark.parametrize(("documents", "result"), [(3, 3), (300, 10)])
    def test_is_ten_or_all_of_fewer(self, vectors, documents, result):
        ids = [f"d{row}" for row in range(documents)]
        index = FaissIndex(
            build_faiss("Flat", vectors[:documents]), ids, EmbeddingSpace("s", WIDTH, "cosine", "dense:m")
        )
        assert len(index.search_vectors(vectors[:1])) == result

    def test_a_number_beyond_the_index_is_refused_all_the_same(self, vectors):
        with pytest.raises(UserError, match=r"k=301: the corpus has 300 documents"):
            indexed(vectors, "Flat").search_vectors(vectors[:1], 301)
