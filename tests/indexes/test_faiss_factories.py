import faiss
import numpy as np
import pytest

from retrodistill.core.errors import UserError
from retrodistill.core.faiss import read_faiss
from retrodistill.encoders.vectors import training_rows
from retrodistill.indexes.factory import (
    build_faiss,
    empty_index,
    fewest_vectors,
    file_bytes,
    read_parameters,
    set_parameters,
)

KINDS = [
    *("Flat", "SQ4", "SQ6", "SQ8", "SQfp16", "SQbf16", "PQ8x4", "PQ8x4np", "PQ16x4fs", "OPQ8,PQ8x4", "OPQ8_8,PQ8x4"),
    *("RaBitQ", "RaBitQ4", "RaBitQfs", "RR16,RaBitQ", "HNSW8", "HNSW8,SQ8", "IVF8,Flat", "IVF8,SQ8", "IVF8,PQ8x4"),
    *("IVF8,PQ8x4fs", "IVF8,RaBitQ", "IVF8,RaBitQ4", "IVF8,RaBitQfs", "IVF16_HNSW4,Flat", "IVF16(IVF4,Flat),Flat"),
    *("OPQ8,IVF8,PQ8x4", "PCA8,Flat", "ITQ8,SQ8", "L2norm,SQ8", "Pad20,Flat", "RQ4x4", "LSQ4x4", "PRQ2x2x4"),
    *("IVF8,RQ4x4", "RQ4x4fs", "PQ8x4,RFlat", "PQ8x4,Refine(SQ8)", "RaBitQ,Refine(SQfp16)", "HNSW8,SQ4,RFlat"),
    "IVF8,RaBitQ,RFlat",
]


def untrained(factory):
    return faiss.index_factory(16, factory, faiss.METRIC_INNER_PRODUCT)


@pytest.fixture(scope="module")
def vectors():
    result = np.random.default_rng(0).standard_normal((600, 16)).astype("f4")
    return result / np.linalg.norm(result, axis=1, keepdims=True)


class Rows:
    """Vectors by row that are never all in memory."""

    def __init__(self, vectors):
        self.vectors, self.shape, self.most = vectors, vectors.shape, 0

    def __getitem__(self, rows):
        self.most = max(self.most, len(self.vectors[rows]))
        return self.vectors[rows]


@pytest.fixture
def small_parts(monkeypatch):
    """Blocks of 70 vectors, and samples of 300."""
    monkeypatch.setattr("retrodistill.indexes.factory._BLOCK", 70)
    monkeypatch.setattr("retrodistill.encoders.vectors._SAMPLE", 300)
    monkeypatch.setattr("retrodistill.encoders.vectors._PER_CENTROID", 1)


@pytest.mark.usefixtures("small_parts")
class TestBuildingInParts:
    @pytest.mark.parametrize("factory", ["Flat", "SQ8", "PQ8x4", "OPQ8,IVF4,PQ8x4", "RaBitQ,RFlat", "PQ16x4fs"])
    def test_a_sample_trains_and_the_index_is_that_of_all_vectors(self, vectors, factory):
        rows = Rows(vectors)
        in_parts = build_faiss(factory, rows)
        assert rows.most == (70 if factory == "Flat" else 300)
        whole = build_faiss(factory, vectors[np.linspace(0, 599, 300).astype(int)])
        whole.reset()
        whole.add(vectors)
        np.testing.assert_array_equal(faiss.serialize_index(in_parts), faiss.serialize_index(whole))

    def test_a_vector_that_is_not_finite_is_named_where_it_was_not_in_the_sample(self, vectors):
        spoilt = vectors.copy()
        spoilt[201] = np.nan  # odd rows are not in the sample
        with pytest.raises(UserError, match=r"^model m: 1 vectors are NaN or infinite \('d201'\)"):
            build_faiss("SQ8", spoilt, [f"d{row}" for row in range(600)], "model m")


def test_a_sample_is_drawn_evenly():
    assert training_rows(65_536, 7).tolist() == list(range(65_536))
    assert training_rows(131_072, 7)[:4].tolist() == [0, 2, 4, 6]
    assert len(training_rows(200_000, 2_000)) == 128_000  # 64 for each centroid


class TestBuilding:
    def test_flat_gives_inner_products(self, vectors):
        scores, rows = build_faiss("Flat", vectors).search(vectors[:3], 600)
        np.testing.assert_allclose(scores, -np.sort(-(vectors[:3] @ vectors.T)), atol=1e-6)
        assert rows[:, 0].tolist() == [0, 1, 2]

    @pytest.mark.parametrize("factory", ["SQ8", "PQ8x4", "OPQ8,PQ8x4", "IVF8,Flat", "HNSW8", "PQ4x4,RFlat"])
    def test_each_finds_most_of_what_flat_finds(self, vectors, factory):
        index = build_faiss(factory, vectors)
        assert index.ntotal == 600
        if "IVF" in factory:
            set_parameters(index, "nprobe=8")
        exact, result = build_faiss("Flat", vectors).search(vectors[:50], 10)[1], index.search(vectors[:50], 10)[1]
        shared = [len(set(a) & set(b)) / 10 for a, b in zip(exact, result, strict=True)]
        assert np.mean(shared) > 0.4

    @pytest.mark.parametrize("factory", KINDS)
    def test_each_kind_is_filled_searched_and_read_back_by_inner_product(self, vectors, factory, tmp_path):
        index = build_faiss(factory, vectors)
        if "IVF" in factory:
            set_parameters(index, "nprobe=8")
        scores, result = index.search(vectors[:100], 5)
        assert (np.diff(scores) <= 1e-6).all()
        assert np.mean([row in places for row, places in enumerate(result)]) > 0.5
        faiss.write_index(index, str(tmp_path / "index"))
        for memory_map in (False, True):
            again = read_faiss(tmp_path / "index", memory_map=memory_map)
            np.testing.assert_array_equal(again.search(vectors[:100], 5)[1], result)
        assert file_bytes(index) == (tmp_path / "index").stat().st_size

    def test_a_graph_of_unit_vectors_finds_what_exact_search_finds(self, vectors):
        index = build_faiss("HNSW32", vectors)
        set_parameters(index, "efSearch=64")
        exact = build_faiss("Flat", vectors).search(vectors[:50] + 0.1, 10)[1]
        np.testing.assert_array_equal(index.search(vectors[:50] + 0.1, 10)[1], exact)

    def test_lists_have_centroids_of_unit_length(self, vectors):
        index = build_faiss("IVF8,Flat", vectors)
        centroids = index.quantizer.reconstruct_n(0, 8)
        np.testing.assert_allclose(np.linalg.norm(centroids, axis=1), 1, atol=1e-5)

    @pytest.mark.parametrize("factory", ["PCA14,Flat", "PCAR14,Flat"])
    def test_principal_components_keep_the_order_of_inner_products(self, vectors, factory):
        shifted = vectors * np.linspace(1, 0.05, 16, dtype="f4") + np.linspace(0.5, 0, 16, dtype="f4")
        plain = faiss.index_factory(16, factory, faiss.METRIC_INNER_PRODUCT)
        plain.train(shifted)
        plain.add(shifted)
        exact = build_faiss("Flat", shifted).search(vectors[:50], 10)[1]
        centred, kept = (
            np.mean([len(set(a) & set(b)) / 10 for a, b in zip(exact, index.search(vectors[:50], 10)[1], strict=True)])
            for index in (plain, build_faiss(factory, shifted))
        )
        assert centred < 0.8
        assert kept > 0.9

    def test_whitening_is_left_as_it_is(self, vectors):
        plain = faiss.index_factory(16, "PCAW8,Flat", faiss.METRIC_INNER_PRODUCT)
        plain.train(vectors)
        plain.add(vectors)
        ours = build_faiss("PCAW8,Flat", vectors)
        np.testing.assert_array_equal(ours.search(vectors[:9], 5)[0], plain.search(vectors[:9], 5)[0])

    def test_codewords_are_those_of_plain_faiss_in_another_order(self, vectors):
        plain = faiss.index_factory(16, "PQ4x4np", faiss.METRIC_INNER_PRODUCT)
        plain.train(vectors)
        plain.add(vectors)
        np.testing.assert_array_equal(
            build_faiss("PQ4x4", vectors).search(vectors[:9], 5)[0], plain.search(vectors[:9], 5)[0]
        )

    @pytest.mark.parametrize("bad", [np.nan, np.inf])
    @pytest.mark.parametrize("factory", ["Flat", "IVF8,Flat", "PQ4x4", "HNSW8"])
    def test_vectors_that_are_not_finite_are_refused_before_training(self, vectors, factory, bad):
        spoilt = vectors.copy()
        spoilt[7, 2] = bad
        with pytest.raises(UserError, match=r"^vectors to index: 1 vectors are NaN or infinite \('7'\)"):
            build_faiss(factory, spoilt)

    @pytest.mark.parametrize(
        "factory", ["HNSW8,PQ4", "HNSW8_PQ4x4", "ZnLattice2x4_4", "LSH", "IVF8,PQ4+4", "IMI2x2,Flat"]
    )
    def test_kinds_that_measure_euclidean_distance_whatever_is_asked(self, vectors, factory):
        with pytest.raises(
            UserError, match=r"does not parse for 16 dimensions \(FAISS has it for Euclidean distance only"
        ):
            build_faiss(factory, vectors)

    @pytest.mark.parametrize(
        ("factory", "reason"),
        [
            ("HNSW0", "a size of 0"),
            ("HNSW1", "HNSW has 2 to 512 links"),
            ("IVF8_HNSW1,Flat", "HNSW has 2 to 512 links"),
            ("PQ8x0", "a size of 0"),
            ("OPQ4_0,PQ4", "a size of 0"),
            ("RR0,Flat", "a size of 0"),
            ("LSQ0x4", "a size of 0"),
            ("PQ4x4,Refine(IVF8,Flat)", "refine by RFlat, Refine"),
            ("PQ4x24", "codewords have at most 16 bits"),
            ("LSQ4x20", "codewords have at most 16 bits"),
            ("Pad99999999,Flat", "vectors have at most 65536 dimensions"),
            ("IVF99999999999,Flat", "at most 4194304 lists"),
            ("PCA64,Flat", "64 dimensions cannot be taken out of 16"),
            ("OPQ3,SQ8", "OPQ3: the width 16 is not a multiple of 3"),
            ("RQ200x4", "residual quantizers have at most 64 codewords"),
            ("NSG16", "IndexNSGFlat is not among the kinds used here"),
            ("IDMap,Flat", "IndexIDMap is not among the kinds used here"),
            ("(" * 3000, "longer than 200 characters"),
        ],
    )
    def test_what_would_end_the_process_or_take_all_memory(self, vectors, factory, reason):
        with pytest.raises(UserError, match=rf"^factory .* does not parse for 16 dimensions \({reason}"):
            build_faiss(factory, vectors)

    @pytest.mark.parametrize("factory", ["Flatt", "PQ5", "", "IVF", "OPQ7,PQ7", "drop table"])
    def test_nonsense_is_answered_with_examples(self, vectors, factory):
        with pytest.raises(
            UserError, match=r"^factory .* does not parse for 16 dimensions \(.*\); examples: 'Flat'"
        ) as e:
            build_faiss(factory, vectors)
        assert "\n" not in str(e.value)


class TestTooFewVectors:
    @pytest.mark.parametrize(
        ("factory", "expected"),
        [
            *(("PQ4", 256), ("PQ4x4", 16), ("OPQ4,PQ4x4", 256), ("OPQ4_512,PQ4x4", 512), ("IVF300,Flat", 300)),
            *(("SQ8", 1), ("Flat", 1), ("HNSW8,SQ8", 1), ("RaBitQ", 1), ("RaBitQ4", 1), ("L2norm,Flat", 1)),
            *(("IVF64_HNSW32,Flat", 64), ("IVF256(HNSW8),Flat", 256), ("IVF1k,SQ8", 1024), ("IVF64,RaBitQ", 64)),
            *(("PCA8,Flat", 8), ("PCAR8,IVF4,PQ4x5", 32), ("PQ16x4fs", 16), ("IVF8,PQ4x4fs", 16), ("IVF8,PQ4", 256)),
            *(("RQ4x4", 16), ("RQ4x6", 64), ("PRQ2x2x4", 16), ("LSQ4x5", 32), ("IVF64,RQ2x4", 64), ("RQ2x2", 16)),
            *(("PQ4,RFlat", 256), ("SQ8,Refine(PQ4)", 256), ("IVF100,SQ8,RFlat", 100), ("RQ4x4_Ncqint8", 256)),
        ],
    )
    def test_how_many_are_needed(self, factory, expected):
        assert fewest_vectors(untrained(factory)) == expected

    @pytest.mark.parametrize("factory", ["PQ4", "OPQ4,PQ4", "IVF300,Flat", "IVF4,PQ4"])
    def test_they_are_refused_before_faiss_aborts(self, vectors, factory):
        with pytest.raises(
            UserError, match=r"needs at least (256|300) vectors to train, there are 200; choose a smaller"
        ):
            build_faiss(factory, vectors[:200])

    def test_opq_wants_as_many_as_its_output_is_wide(self):
        wide = np.random.default_rng(0).standard_normal((300, 512)).astype("f4")
        with pytest.raises(
            UserError, match=r"^factory 'OPQ4,PQ4x4' needs at least 512 vectors to train, there are 300; "
        ):
            build_faiss("OPQ4,PQ4x4", wide)

    def test_the_fewest_that_are_allowed_do_train(self, vectors):
        assert build_faiss("OPQ4,PQ4x4", vectors[:256]).ntotal == 256

    @pytest.mark.parametrize(
        "factory",
        ["PQ4x4", "IVF20,Flat", "IVF20_HNSW8,SQ8", "PCA8,Flat", "RQ4x4", "PRQ2x2x4", "RQ2x2", "OPQ4,SQ8", "IVF8,PQ4x5"],
    )
    def test_the_fewest_do_train_and_one_less_does_not(self, vectors, factory):
        fewest = fewest_vectors(untrained(factory))
        assert build_faiss(factory, vectors[:fewest]).ntotal == fewest
        plain = faiss.index_factory(16, factory, faiss.METRIC_INNER_PRODUCT)
        if "OPQ" not in factory:  # which aborts where its width is more than it is given
            with pytest.raises(RuntimeError):
                plain.train(vectors[: fewest - 1])
        with pytest.raises(UserError, match=rf"needs at least {fewest} vectors to train, there are {fewest - 1};"):
            build_faiss(factory, vectors[: fewest - 1])

    def test_more_lists_than_vectors_are_refused_before_faiss_makes_room_for_them(self, vectors):
        with pytest.raises(
            UserError, match=r"^factory 'IVF4M,Flat' needs at least 4194304 vectors to train, there are 6"
        ):
            build_faiss("IVF4M,Flat", vectors)

    def test_a_quantizer_of_lists_is_trained_on_the_lists(self, vectors):
        with pytest.raises(
            UserError, match=r"\(the quantizer of its lists needs at least 16 lists to train, there are 8\)"
        ):
            build_faiss("IVF8(PQ4x4),Flat", vectors)


class TestParameters:
    def test_they_reach_the_lists_behind_a_transform(self, vectors):
        index = build_faiss("PCA8,IVF8,Flat", vectors)
        set_parameters(index, "nprobe=5")
        assert faiss.extract_index_ivf(index).nprobe == 5

    @pytest.mark.parametrize(
        ("factory", "parameters", "reason"),
        [
            ("Flat", "nprobe=4", "it has none"),
            ("IVF8,Flat", "speed=9", "it knows nprobe"),
            ("IVF8,Flat", "nprobe", "'nprobe' is not name=number"),
            ("IVF8,Flat", "nprobe=many", "'nprobe=many' is not name=number"),
            ("IVF8,Flat", "nprobe=0", "'nprobe=0' is not name=number"),
            ("IVF8,Flat", "nprobe=-3", "'nprobe=-3' is not name=number"),
            ("IVF8,Flat", "nprobe=2.5", "'nprobe=2.5' is not name=number"),
            ("IVF8,Flat", "nprobe=9", "nprobe is at most 8"),
            ("IVF8,Flat", "verbose=1", "it knows nprobe"),
            ("HNSW8", "nprobe=2", "it knows efSearch"),
            ("IVF8_HNSW4,Flat", "efSearch=2", "it knows nprobe, quantizer_efSearch"),
            ("IVF8,SQ8,RFlat", "ef=2", "it knows nprobe, k_factor_rf"),
        ],
    )
    def test_what_the_index_does_not_know(self, factory, parameters, reason):
        with pytest.raises(
            UserError, match=rf"^search parameters '{parameters}' do not fit this index \({reason}"
        ) as e:
            empty_index(factory, 16, 600, parameters)
        assert "\n" not in str(e.value)

    def test_each_reaches_its_part(self):
        index = empty_index("L2norm,IVF8_HNSW4,SQ8,RFlat", 16, 600, "nprobe=3, quantizer_efSearch=9 k_factor_rf=5")
        lists = faiss.extract_index_ivf(index.base_index)
        assert (lists.nprobe, faiss.downcast_index(lists.quantizer).hnsw.efSearch, index.k_factor) == (3, 9, 5)

    def test_they_are_read_by_name(self):
        assert read_parameters("nprobe=16,k_factor_rf=4") == {"nprobe": 16, "k_factor_rf": 4}

    def test_they_are_checked_before_any_work(self):
        with pytest.raises(UserError, match=r"^search parameters 'nprobe=4' do not fit this index"):
            empty_index("SQ8", 16, 600, "nprobe=4")
        assert empty_index("IVF8,Flat", 16, 600, "nprobe=4").ntotal == 0
