from dataclasses import replace

import numpy as np
import pytest

from retrodistill.core.errors import UserError
from retrodistill.quantizers import QuantizerSettings, factory_for, learn_quantizer, read_index, start_index, to_faiss
from retrodistill.quantizers.bits import add_bits, bits_of, fit_bits
from retrodistill.quantizers.codes import reconstructed

faiss = pytest.importorskip("faiss")

FACTORIES = [
    *("PQ8", "PQ8x4", "OPQ8,PQ8x4", "OPQ8_24,PQ8x4", "OPQ4,PQ4", "IVF8,PQ8x4", "OPQ8,IVF8,PQ8x4"),
    *("ITQ32,PQ32x1", "ITQ24,PQ24x1"),
]
QUICK = QuantizerSettings(steps=20, evaluations=4, start_iterations=2, batch_size=16)


def unit(vectors):
    return (vectors / np.linalg.norm(vectors, axis=1, keepdims=True)).astype(np.float32)


def written(index, folder):
    """The path of its file."""
    faiss.write_index(index, str(folder / "index"))
    return str(folder / "index")


@pytest.fixture(scope="module")
def documents():
    """300 unit vectors around 20 centers, of 32 dimensions."""
    generator = np.random.default_rng(0)
    centers = generator.normal(size=(20, 32))
    return unit(centers[generator.integers(20, size=300)] + 0.7 * generator.normal(size=(300, 32)))


@pytest.fixture(scope="module")
def queries(documents):
    """Queries near the first hundred documents, all turned the same way: the documents' spread is not theirs."""
    generator = np.random.default_rng(1)
    return unit(documents[:100] + 0.3 * generator.normal(size=(100, 32)) * np.linspace(0, 2, 32))


def all_scores(index, queries):
    """(q, n) scores of a filled index, every list probed."""
    inner = faiss.downcast_index(index.index) if isinstance(index, faiss.IndexPreTransform) else index
    if isinstance(inner, faiss.IndexIVFPQ):
        inner.nprobe = inner.nlist
    scores, rows = index.search(queries, index.ntotal)
    table = np.empty_like(scores)
    np.put_along_axis(table, rows, scores, axis=1)
    return table


class TestFactoryFor:
    @pytest.mark.parametrize(
        ("bytes_", "dimension", "lists", "bits", "factory"),
        [
            (16, 384, None, 8, "OPQ16_384,PQ16"),
            (20, 384, None, 8, "OPQ20_380,PQ20"),
            (16, 384, None, 4, "OPQ32_384,PQ32x4"),
            (16, 384, 64, 8, "OPQ16_384,IVF64,PQ16"),
            (24, 384, None, 1, "ITQ192,PQ192x1"),
            (None, 384, None, 1, "ITQ384,PQ384x1"),
            (None, 384, None, 8, "OPQ16_384,PQ16"),
            (None, 12, None, 8, "OPQ12_12,PQ12"),
        ],
    )
    def test_takes_the_widest_space_that_the_subspaces_divide(self, bytes_, dimension, lists, bits, factory):
        assert factory_for(bytes_, dimension, lists, bits) == factory

    def test_gives_the_bytes_that_were_asked_for(self, documents):
        for bytes_, bits in ((5, 4), (5, 8), (3, 1)):
            index = start_index(factory_for(bytes_, 32, bits=bits), documents, iterations=1)
            assert faiss.downcast_index(index.index).code_size == bytes_

    @pytest.mark.parametrize(("bytes_", "bits"), [(0, 8), (33, 8), (17, 4), (5, 1), (4, 6)])
    def test_refuses_what_does_not_fit(self, bytes_, bits):
        with pytest.raises(UserError):
            factory_for(bytes_, 32, bits=bits)


def test_a_start_is_trained_on_documents_that_are_drawn_evenly(documents, monkeypatch):
    monkeypatch.setattr("retrodistill.encoders.vectors._SAMPLE", 100)
    monkeypatch.setattr("retrodistill.encoders.vectors._PER_CENTROID", 1)
    drawn = start_index("PQ4x4", documents[np.linspace(0, 299, 100).astype(int)])
    all_documents = start_index("PQ4x4", documents)
    assert all_documents.ntotal == 300
    np.testing.assert_array_equal(read_index(all_documents).codebooks, read_index(drawn).codebooks)


class TestExport:
    @pytest.mark.parametrize("factory", FACTORIES)
    def test_a_start_that_is_read_and_written_is_the_same_index(self, documents, queries, factory, tmp_path):
        start = start_index(factory, documents, iterations=2)
        faiss.write_index(to_faiss(read_index(start)), str(tmp_path / "index"))
        again = faiss.read_index(str(tmp_path / "index"))
        # FAISS adds up bits one by one in the start, and eight at once in what is written.
        np.testing.assert_allclose(
            all_scores(again, queries), all_scores(start, queries), atol=0 if "x1" not in factory else 1e-5
        )

    @pytest.mark.parametrize("factory", FACTORIES)
    def test_learned_scores_are_those_of_torch_and_of_the_rebuilt_documents(self, documents, queries, factory):
        import torch

        from retrodistill.quantizers.learner import Quantizer

        learned = learn_quantizer(documents, queries, factory, QUICK)
        by_faiss = all_scores(learned.index, queries)
        by_torch = Quantizer(learned.codes, "fixed")(torch.from_numpy(queries)).detach().numpy()
        np.testing.assert_allclose(by_torch, by_faiss, atol=1e-5)
        np.testing.assert_allclose(queries @ reconstructed(learned.index).T, by_faiss, atol=1e-5)

    @pytest.mark.parametrize("factory", ["OPQ8,PQ8x4", "OPQ8,IVF8,PQ8x4"])
    def test_documents_can_be_added_later_and_are_found(self, documents, queries, factory):
        index = learn_quantizer(documents, queries, factory, QUICK).index
        index.add(documents[:10])
        assert all_scores(index, queries).shape == (100, 310)


class TestLearning:
    def test_agrees_better_with_exact_search_than_its_start(self, documents, queries):
        settings = QuantizerSettings(steps=150, evaluations=5, start_iterations=5, batch_size=32)
        learned = learn_quantizer(documents, queries, "OPQ4,PQ4x4", settings)
        before, after = learned.agreement
        assert learned.improved
        assert after > before
        assert learned.history[0].agreement == before

    def test_gives_the_start_back_where_nothing_was_better(self, documents, queries):
        settings = QUICK.model_copy(update={"temperature": 1e-4, "learning_rate": 10.0})
        learned = learn_quantizer(documents, queries, "OPQ8,PQ8x4", settings)
        assert not learned.improved
        np.testing.assert_array_equal(all_scores(learned.index, queries), all_scores(learned.start, queries))

    @pytest.mark.parametrize("changed", [{}, {"query_map": True}, {"whole": 100, "sampled": 50, "depth": 20}])
    def test_the_same_seed_gives_the_same_bytes(self, documents, queries, changed):
        settings = QUICK.model_copy(update=changed)
        first, second = (learn_quantizer(documents, queries, "OPQ8,IVF8,PQ8x4", settings) for _ in range(2))
        assert faiss.serialize_index(first.index).tobytes() == faiss.serialize_index(second.index).tobytes()

    @pytest.mark.parametrize("objective", ["kl", "reverse-kl", "listnet", "margin-mse", "mse"])
    def test_every_objective_lowers_its_loss(self, documents, queries, objective):
        settings = QuantizerSettings(objective=objective, steps=60, evaluations=3, start_iterations=2, batch_size=64)
        history = learn_quantizer(documents, queries, "OPQ4,PQ4x4", settings).history
        assert history[-1].loss < history[1].loss

    def test_kept_codes_and_fixed_lists_are_those_of_the_start(self, documents, queries):
        learned = learn_quantizer(documents, queries, "OPQ8,IVF8,PQ8x4", QUICK)
        start = read_index(learned.start)
        np.testing.assert_array_equal(learned.codes.codes, start.codes)
        np.testing.assert_array_equal(learned.codes.lists, start.lists)

    def test_a_rotation_stays_at_right_angles(self, documents, queries):
        settings = QUICK.model_copy(update={"transform": "rotation", "learning_rate": 0.01})
        rotation = learn_quantizer(documents, queries, "OPQ8_24,PQ8x4", settings).codes.rotation
        np.testing.assert_allclose(rotation @ rotation.T, np.eye(24), atol=1e-4)

    def test_a_large_corpus_is_sampled_and_still_learned(self, documents, queries):
        settings = QuantizerSettings(
            steps=100, evaluations=5, start_iterations=2, batch_size=16, whole=100, depth=20, sampled=30
        )
        before, after = learn_quantizer(documents, queries, "OPQ4,PQ4x4", settings).agreement
        assert after > before

    def test_a_pseudo_query_is_not_shown_its_own_document(self, documents, queries):
        from retrodistill.quantizers.learner import Learner
        from retrodistill.quantizers.learning import Targets

        sources = np.arange(100)
        parts = read_index(start_index("PQ4x4", documents))
        learner = Learner(parts, Targets(queries, documents, sources), QUICK)
        _, mask = learner._targets(np.array([3, 7]), slice(None))
        assert [np.flatnonzero(~row).tolist() for row in mask.numpy()] == [[3], [7]]
        hidden = np.where(sources == 3, -1, sources)  # 3 is a phrase
        learner = Learner(parts, Targets(queries, documents, sources, hidden=hidden), QUICK)
        _, mask = learner._targets(np.array([3, 7]), slice(None))
        assert [np.flatnonzero(~row).tolist() for row in mask.numpy()] == [[], [7]]


@pytest.fixture
def in_parts(monkeypatch):
    """A corpus of 300 documents is learned in three parts."""
    monkeypatch.setattr("retrodistill.quantizers.learning.MOST_HELD", 100)


class Read:
    """Vectors that are only read in part."""

    def __init__(self, vectors):
        self._vectors, self.shape = vectors, vectors.shape

    def __getitem__(self, rows):
        read = self._vectors[rows]
        assert len(read) <= 150
        return read


@pytest.mark.usefixtures("in_parts")
class TestParts:
    @pytest.fixture(autouse=True)
    def _blocks(self, monkeypatch):
        monkeypatch.setattr("retrodistill.quantizers.codes._BLOCK", 64)
        monkeypatch.setattr("retrodistill.quantizers.learner._BLOCK", 64)
        monkeypatch.setattr("retrodistill.encoders.vectors._SAMPLE", 100)
        monkeypatch.setattr("retrodistill.encoders.vectors._PER_CENTROID", 1)

    @pytest.mark.parametrize("changed", [{}, {"codes": "nearest", "lists": "reassigned"}])
    def test_vectors_are_read_in_part_with_the_result_of_an_array(self, documents, queries, changed):
        settings = QUICK.model_copy(update={"sampled": 20, "depth": 3, **changed})
        read, whole = (
            learn_quantizer(vectors, queries, "OPQ8,IVF8,PQ8x4", settings) for vectors in (Read(documents), documents)
        )
        assert faiss.serialize_index(read.index).tobytes() == faiss.serialize_index(whole.index).tobytes()
        assert read.index.ntotal == 300

    def test_each_query_is_searched_in_one_part(self, documents, queries):
        from retrodistill.quantizers.learner import Learner
        from retrodistill.quantizers.learning import Targets

        targets = Targets(queries, documents, np.full(100, -1))
        learner = Learner(read_index(start_index("PQ4x4", documents)), targets, QUICK.model_copy(update={"depth": 5}))
        training = np.setdiff1d(np.arange(100), learner.held_out)
        for number, query in enumerate(training):
            part = np.arange(number % 3, 300, 3)
            expected = part[np.argsort(-(queries[query] @ documents[part].T))[:5]]
            np.testing.assert_array_equal(learner.near[query], expected)
        exact = np.argsort(-(queries[learner.held_out] @ documents[::3].T), axis=1)[:, :10]
        np.testing.assert_array_equal(learner.held_out_best, exact)

    def test_a_teacher_is_asked_for_few_documents_at_once(self, documents, queries):
        asked = []

        def teach(rows, columns):
            asked.append(len(np.arange(300)[columns]))
            return queries[rows] @ documents[columns].T

        settings = QUICK.model_copy(update={"sampled": 20, "depth": 3, "batch_size": 4})
        taught, exact = (learn_quantizer(documents, queries, 4, settings, teacher=given) for given in (teach, None))
        assert max(asked) == 100
        assert taught.history[1].loss == pytest.approx(exact.history[1].loss, rel=1e-3)

    def test_it_agrees_better_with_exact_search_than_its_start(self, documents, queries):
        settings = QuantizerSettings(steps=150, evaluations=5, start_iterations=5, batch_size=32, depth=20, sampled=50)
        before, after = learn_quantizer(documents, queries, "OPQ4,PQ4x4", settings).agreement
        assert after > before

    def test_bad_vectors_are_named_by_their_rows_in_the_corpus(self, documents, queries):
        broken = documents.copy()
        broken[201, 2] = np.nan
        with pytest.raises(UserError, match="'row 201'"):
            learn_quantizer(broken, queries, "PQ4x4")


class TestBits:
    """Codes of one bit per dimension."""

    def test_the_start_is_itq_without_the_mean(self, documents):
        start = start_index("ITQ32,PQ32x1", documents)
        trained = faiss.ITQTransform(32, 32, True)
        trained.itq.seed = 1234
        trained.train(documents)
        rotation = faiss.vector_to_array(trained.pca_then_itq.A).reshape(32, 32)
        np.testing.assert_allclose(read_index(start).rotation, rotation, atol=1e-6)
        np.testing.assert_allclose(rotation @ rotation.T, np.eye(32), atol=1e-5)

    def test_a_file_has_the_bytes_of_the_bits_and_is_searched_byte_by_byte(self, documents):
        start = start_index("ITQ32,PQ32x1", documents, iterations=2)
        again = to_faiss(read_index(start))
        bits, written = (faiss.downcast_index(index.index) for index in (start, again))
        assert (written.pq.M, written.pq.nbits, written.code_size) == (4, 8, 4)
        np.testing.assert_array_equal(faiss.vector_to_array(written.codes), faiss.vector_to_array(bits.codes))

    def test_an_added_document_gets_the_bits_of_its_start(self, documents):
        start = start_index("ITQ32,PQ32x1", documents[:250], iterations=2)
        written = to_faiss(read_index(start))
        for index in (start, written):
            index.add(documents[250:])
        codes = [faiss.vector_to_array(faiss.downcast_index(index.index).codes) for index in (start, written)]
        np.testing.assert_array_equal(*codes)

    def test_learning_fits_them_first_and_then_keeps_them(self, documents, queries):
        settings = QuantizerSettings(steps=150, evaluations=5, start_iterations=5, batch_size=32)
        learned = learn_quantizer(documents, queries, "ITQ16,PQ16x1", settings)
        at_start, fitted = learned.history[:2]
        assert (at_start.step, fitted.step) == (0, 0)
        assert at_start.agreement < fitted.agreement < learned.agreement[1]
        assert learned.agreement[0] == at_start.agreement
        parts = read_index(start_index("ITQ16,PQ16x1", documents, iterations=5))
        np.testing.assert_array_equal(learned.codes.codes, fit_bits(parts, documents).codes)

    def test_a_query_map_leaves_the_map_that_decodes_them_as_it_is(self, documents, queries):
        settings = QuantizerSettings(
            steps=100, evaluations=5, start_iterations=5, batch_size=32, query_map=True, transform="rotation"
        )
        learned = learn_quantizer(documents, queries, "ITQ16,PQ16x1", settings)
        assert learned.query_map is not None
        parts = read_index(start_index("ITQ16,PQ16x1", documents, iterations=5))
        np.testing.assert_array_equal(learned.codes.rotation, fit_bits(parts, documents).rotation)


class TestFittedBits:
    @pytest.fixture(scope="class")
    def start(self, documents):
        return read_index(start_index("ITQ16,PQ16x1", documents))

    def test_the_error_is_smaller_than_that_of_itq(self, documents, start):
        errors = [np.square(documents - codes.reconstruct()).sum() for codes in (fit_bits(start, documents), start)]
        assert errors[0] < 0.85 * errors[1]

    def test_no_flip_of_one_bit_makes_it_smaller(self, documents, start):
        fitted = fit_bits(start, documents)
        for bit in range(16):
            codes = fitted.codes.copy()
            codes[:, bit] ^= 1
            flipped = replace(fitted, codes=codes).reconstruct()
            errors = [np.square(documents - each).sum(axis=1) for each in (flipped, fitted.reconstruct())]
            assert (errors[0] >= errors[1] - 1e-3).all()

    @pytest.mark.parametrize("refinement", ["", ",RFlat"])
    def test_added_documents_get_the_bits_that_they_would_have(self, documents, queries, refinement, tmp_path):
        learned = learn_quantizer(documents[:250], queries[:, ::-1], f"ITQ32,PQ32x1{refinement}", QUICK)
        index = faiss.read_index(written(learned.index, tmp_path))
        assert add_bits(index, documents[250:])
        assert index.ntotal == 300
        codes = read_index(index)
        error = np.square(documents - codes.reconstruct()).sum(axis=1)
        plain = learned.index.base_index if refinement else learned.index
        plain.add(documents[250:])
        by_faiss = np.square(documents - read_index(plain).reconstruct()).sum(axis=1)
        assert error[250:].mean() < by_faiss[250:].mean()
        assert error[250:].mean() < 1.8 * error[:250].mean()
        if refinement:
            index.k_factor = 300
            np.testing.assert_array_equal(index.search(documents[250:], 1)[1][:, 0], np.arange(250, 300))

    @pytest.mark.parametrize("factory", ["OPQ4,PQ4x4", "PQ8", "OPQ4,PQ4", "OPQ8,IVF8,PQ8x4"])
    def test_other_indexes_are_left_to_faiss(self, documents, factory):
        index = start_index(factory, documents, iterations=1)
        assert not add_bits(to_faiss(read_index(index)), documents[:5])
        assert not add_bits(index, documents[:5])

    def test_documents_beyond_the_sample_get_bits_block_by_block(self, documents, start, monkeypatch):
        monkeypatch.setattr("retrodistill.encoders.vectors._SAMPLE", 200)
        monkeypatch.setattr("retrodistill.encoders.vectors._PER_CENTROID", 1)
        whole = fit_bits(start, documents)
        monkeypatch.setattr("retrodistill.quantizers.bits._BLOCK", 7)
        np.testing.assert_array_equal(fit_bits(start, documents).codes, whole.codes)
        rows = np.linspace(0, 299, 200).astype(int)
        decoder = whole.rotation * (whole.codebooks[:, 1] - whole.codebooks[:, 0]) / 2
        found, others = bits_of(documents - documents[rows].mean(axis=0), decoder), np.delete(np.arange(300), rows)
        np.testing.assert_array_equal(whole.codes[others], found[others])
        again = replace(whole, codes=found)
        errors = [np.square(documents - codes.reconstruct())[rows].sum() for codes in (whole, again)]
        assert errors[0] < errors[1]  # the sample keeps the bits of all rounds

    def test_documents_that_are_all_the_same_are_decoded_as_they_are(self, documents, start):
        same, rows = np.repeat(documents[:1], 300, axis=0), start.rotation  # 16 dimensions of 32 can be decoded
        np.testing.assert_allclose(
            fit_bits(start, same).reconstruct()[:3] @ rows.T @ rows, same[:3] @ rows.T @ rows, atol=1e-4
        )

    def test_the_larger_codeword_is_bit_1_whatever_its_place(self, documents, start):
        swapped = replace(start, codebooks=start.codebooks[:, ::-1].copy(), codes=1 - start.codes)
        np.testing.assert_array_equal(fit_bits(swapped, documents).codes, fit_bits(start, documents).codes)


class TestRefinement:
    @pytest.mark.parametrize(("refinement", "atol"), [("RFlat", 1e-6), ("Refine(SQfp16)", 1e-3), ("Refine(SQ8)", 0.02)])
    def test_the_vectors_rank_what_the_codes_find(self, documents, queries, refinement, atol, tmp_path):
        learned = learn_quantizer(documents, queries, f"ITQ16,PQ16x1,{refinement}", QUICK)
        plain = learn_quantizer(documents, queries, "ITQ16,PQ16x1", QUICK)
        faiss.write_index(learned.index, str(tmp_path / "index"))
        index = faiss.read_index(str(tmp_path / "index"))
        index.k_factor = 4
        scores = index.search(queries, 5)[0]
        first = plain.index.search(queries, 20)[1]
        exact = np.take_along_axis(queries @ documents.T, first, axis=1)
        np.testing.assert_allclose(scores, -np.sort(-exact, axis=1)[:, :5], atol=atol)

    def test_the_start_is_refined_too_and_codes_are_read_from_it(self, documents, queries):
        learned = learn_quantizer(documents, queries, "OPQ4,PQ4x4,RFlat", QUICK)
        assert isinstance(learned.start, faiss.IndexRefine)
        np.testing.assert_allclose(reconstructed(learned.index), learned.codes.reconstruct(), atol=1e-6)

    def test_mapped_queries_do_not_fit_the_vectors(self, documents, queries):
        settings = QUICK.model_copy(update={"query_map": True})
        with pytest.raises(UserError, match="leave the refinement or the query map out"):
            learn_quantizer(documents, queries, "OPQ4,PQ4x4,RFlat", settings)


class TestTeacher:
    def test_the_quantizer_moves_toward_a_better_ranker(self, documents, queries):
        other = documents * np.linspace(0, 3, 32, dtype=np.float32)
        settings = QuantizerSettings(steps=150, evaluations=5, start_iterations=3, batch_size=32)
        learned = learn_quantizer(
            documents, queries, 4, settings, teacher=lambda rows, columns: queries[rows] @ other[columns].T
        )
        before, after = learned.agreement
        assert after > before + 0.05


class TestBadInput:
    def test_too_few_documents(self, documents, queries):
        with pytest.raises(UserError, match="needs at least 256 documents to train, there are 200"):
            learn_quantizer(documents[:200], queries, 4)

    def test_opq_is_refused_below_its_width_where_faiss_would_abort(self, documents, queries):
        with pytest.raises(UserError, match="needs at least 32 documents to train, there are 20"):
            learn_quantizer(documents[:20], queries, "OPQ4,PQ4x4")

    @pytest.mark.parametrize("bad", [np.nan, np.inf])
    def test_vectors_that_are_not_finite_are_named(self, documents, queries, bad):
        broken = documents.copy()
        broken[4, 2] = bad
        with pytest.raises(UserError, match=r"1 vectors are NaN or infinite \('row 4'\)"):
            learn_quantizer(broken, queries, 4)
        with pytest.raises(UserError, match="'doc4'"):
            learn_quantizer(broken, queries, 4, names=[f"doc{row}" for row in range(300)])

    def test_two_dimensions(self, documents, queries):
        with pytest.raises(UserError, match="documents of 32 dimensions and queries of 16"):
            learn_quantizer(documents, queries[:, :16], 4)

    def test_no_queries(self, documents, queries):
        with pytest.raises(UserError, match="no training queries"):
            learn_quantizer(documents, queries[:0], 4)

    @pytest.mark.parametrize(
        "target",
        [
            *(0, 33, "Flat", "HNSW32", "PQ7", "OPQ4,PQ8", "OPQ4,IVF0,PQ4", "SQ8", "ITQ32,PQ16"),
            *(
                "PQ32x1",
                "OPQ32,PQ32x1",
                "ITQ32,IVF8,PQ32x1",
                "ITQ16,PQ32x1",
                "ITQ12,PQ12x1",
                "ITQ40,PQ40x1",
                "ITQ32,PQ32x1,Refine(PQ8)",
            ),
        ],
    )
    def test_a_target_that_does_not_fit(self, documents, queries, target):
        with pytest.raises(UserError):
            learn_quantizer(documents, queries, target)

    def test_an_index_of_other_documents(self, documents, queries):
        with pytest.raises(UserError, match="fill it with these documents"):
            learn_quantizer(documents, queries, start_index("PQ4x4", documents[:100]))
