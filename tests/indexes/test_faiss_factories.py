import faiss
import numpy as np
import pytest

from retrodistill.errors import UserError
from retrodistill.indexes.factory import build_faiss, empty_index, set_parameters, vectors_to_train


@pytest.fixture(scope="module")
def vectors():
    found = np.random.default_rng(0).standard_normal((600, 16)).astype("f4")
    return found / np.linalg.norm(found, axis=1, keepdims=True)


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
        exact, found = build_faiss("Flat", vectors).search(vectors[:50], 10)[1], index.search(vectors[:50], 10)[1]
        shared = [len(set(a) & set(b)) / 10 for a, b in zip(exact, found, strict=True)]
        assert np.mean(shared) > 0.4

    @pytest.mark.parametrize("factory", ["Flatt", "PQ5", "", "IVF", "OPQ7,PQ7", "drop table"])
    def test_nonsense_is_answered_with_examples(self, vectors, factory):
        with pytest.raises(
            UserError, match=r"^factory .* does not parse for 16 dimensions \(.*\); examples: 'Flat'"
        ) as e:
            build_faiss(factory, vectors)
        assert "\n" not in str(e.value)


class TestTooFewVectors:
    @pytest.mark.parametrize(
        ("factory", "wanted"),
        [("PQ4", 256), ("PQ4x4", 16), ("OPQ4,PQ4x4", 256), ("OPQ4_512,PQ4x4", 512), ("IVF300,Flat", 300), ("SQ8", 1)],
    )
    def test_how_many_are_needed(self, factory, wanted):
        assert vectors_to_train(factory, 16) == wanted

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

    def test_a_transform_that_faiss_itself_refuses_is_one_line(self, vectors):
        with pytest.raises(UserError, match=r"^factory 'PCAW4,Flat' cannot be filled with 1 vectors") as error:
            build_faiss("PCAW4,Flat", vectors[:1] * np.float32("nan"))
        assert "\n" not in str(error.value)


class TestParameters:
    def test_they_reach_the_lists_behind_a_transform(self, vectors):
        index = build_faiss("PCA8,IVF8,Flat", vectors)
        set_parameters(index, "nprobe=5")
        assert faiss.extract_index_ivf(index).nprobe == 5

    @pytest.mark.parametrize("parameters", ["nprobe=4", "speed=9", "nprobe", "nprobe=many"])
    def test_what_the_index_does_not_know(self, vectors, parameters):
        factory = "Flat" if parameters == "nprobe=4" else "IVF8,Flat"
        with pytest.raises(UserError, match=rf"^search parameters '{parameters}' do not fit this index"):
            set_parameters(build_faiss(factory, vectors), parameters)

    def test_they_are_checked_before_any_work(self):
        with pytest.raises(UserError, match=r"^search parameters 'nprobe=4' do not fit this index"):
            empty_index("SQ8", 16, 600, "nprobe=4")
        assert empty_index("IVF8,Flat", 16, 600, "nprobe=4").ntotal == 0
